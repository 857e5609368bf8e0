"""The options of the loss, checked once and passed to every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["LossOptions", "Reduction"]

_TINIEST, _LARGEST = 1e-30, 1e30  # what float32 arithmetic can multiply and divide by without overflow

Reduction = Literal["none", "mean", "sum"]


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a Python number, got {type(value).__name__}.")
    return float(value)


@dataclass(frozen=True, slots=True)
class LossOptions:
    """What :func:`kernel.linear_cross_entropy` computes, apart from the tensors.

    The fields have the meaning and the defaults given there. Numbers are converted to ``float``.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option lies outside its range.

    Example:
        >>> LossOptions(label_smoothing=0.1).label_smoothing
        0.1
    """

    label_smoothing: float = 0.0
    softcap: float | None = None
    temperature: float = 1.0
    logit_scale: float = 1.0
    z_loss: float = 0.0
    confidence_penalty: float = 0.0
    ignore_index: int = -100
    reduction: Reduction = "mean"
    gradient_tolerance: float = 0.0

    def __post_init__(self) -> None:
        names = "label_smoothing", "temperature", "logit_scale", "z_loss", "confidence_penalty", "gradient_tolerance"
        for name in names:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}.")
        if self.softcap is not None:
            object.__setattr__(self, "softcap", _number("softcap", self.softcap))
            if not _TINIEST <= self.softcap <= _LARGEST:
                raise ValueError(f"softcap must be None or in [{_TINIEST}, {_LARGEST}], got {self.softcap}.")
        if not _TINIEST <= self.temperature <= _LARGEST:
            raise ValueError(f"temperature must be in [{_TINIEST}, {_LARGEST}], got {self.temperature}.")
        if not abs(self.logit_scale) <= _LARGEST:
            raise ValueError(f"logit_scale must be in [{-_LARGEST}, {_LARGEST}], got {self.logit_scale}.")
        for name in ("z_loss", "confidence_penalty"):
            if not 0 <= getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} must be in [0, {_LARGEST}], got {getattr(self, name)}.")
        if not 0 <= self.gradient_tolerance < 1:
            raise ValueError(f"gradient_tolerance must be in [0, 1), got {self.gradient_tolerance}.")
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"ignore_index must be an int, got {type(self.ignore_index).__name__}.")
        if self.reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {self.reduction!r}.")
