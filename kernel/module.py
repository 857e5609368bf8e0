"""A linear head and its loss as one module."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from .api import check_choices, linear_cross_entropy, refuse_unsupported
from .gradient_tolerance import tolerance_of
from .options import LossOptions
from .token_statistics import TokenStatistics
from .vocab_parallel import check_group

__all__ = ["LinearCrossEntropy"]

_OPTIONS = tuple(field.name for field in dataclasses.fields(LossOptions))


class LinearCrossEntropy(nn.Module):
    """A linear head and its loss as one module; equivalent to ``nn.Linear`` followed by ``nn.CrossEntropyLoss``.

    Args:
        hidden_size: D, features of the input.
        vocab_size: V, number of classes; with ``process_group``, of those whose rows this process holds.
        bias: Whether the head has a bias. It may not be combined with ``weight``.
        weight: A parameter ``(V, D)`` to share, for a head tied to an embedding; None makes a new one, initialised as
            :class:`torch.nn.Linear` does.
        device: Device of a new weight.
        dtype: Dtype of a new weight.
        **options: Keyword arguments of :func:`linear_cross_entropy` other than tensors, checked here. A module with a
            ``process_group`` can be neither copied nor pickled, as the group itself; its ``state_dict`` is plain.

    Example:
        >>> embedding = nn.Embedding(10, 4)
        >>> head = LinearCrossEntropy(4, 10, weight=embedding.weight, label_smoothing=0.1)
        >>> head(torch.zeros(2, 4), torch.tensor([1, 2])).item() == torch.tensor(10.0).log().item()
        True
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        bias: bool = False,
        weight: nn.Parameter | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        choices = {"implementation": "auto", "workspace_bytes": None}
        choices = {name: options.pop(name, default) for name, default in choices.items()}
        check_choices(**choices)
        if (group := options.pop("process_group", None)) is not None:
            check_group(group)
            choices["process_group"] = group
        refuse_unsupported(type(self).__name__, [name for name in options if name not in _OPTIONS])
        LossOptions(**{name: tolerance_of(value) for name, value in options.items()})
        self.options = {**options, **choices}
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be True or False, got {bias!r}.")
        for name, size in (("hidden_size", hidden_size), ("vocab_size", vocab_size)):
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an int, got {type(size).__name__}.")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if weight is None:
            linear = nn.Linear(hidden_size, vocab_size, bias=bias, device=device, dtype=dtype)
            self.weight = nn.Parameter(linear.weight.detach())
            self.register_parameter("bias", linear.bias)
        else:
            if bias:
                raise ValueError("bias must be False when weight is given: a tied head has no bias of its own.")
            if device is not None or dtype is not None:
                raise ValueError("device and dtype must be None when weight is given: they are the weight's.")
            if not isinstance(weight, nn.Parameter):
                raise TypeError(
                    f"weight must be a torch.nn.Parameter, so that it is shared, got {type(weight).__name__}."
                )
            if weight.shape != (vocab_size, hidden_size):
                raise ValueError(f"weight must have shape {(vocab_size, hidden_size)}, got {tuple(weight.shape)}.")
            self.weight = weight
            self.register_parameter("bias", None)

    def forward(
        self, input: Tensor, target: Tensor, token_weight: Tensor | None = None, *, return_statistics: bool = False
    ) -> Tensor | tuple[Tensor, TokenStatistics]:
        """Return the loss of hidden states ``(..., D)`` and targets ``(...)``, with statistics if asked for.

        See :func:`linear_cross_entropy`.
        """
        options: dict[str, Any] = {**self.options, "return_statistics": return_statistics}
        return linear_cross_entropy(
            input, self.weight, target, linear_bias=self.bias, token_weight=token_weight, **options
        )

    def extra_repr(self) -> str:
        """Return the sizes and options that ``print`` shows."""
        vocab_size, hidden_size = self.weight.shape
        shown = {name: value for name, value in self.options.items() if name != "process_group"}
        return ", ".join([f"{hidden_size}, {vocab_size}", *(f"{k}={v!r}" for k, v in shown.items())])
