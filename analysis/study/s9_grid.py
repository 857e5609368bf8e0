"""The cells of S9: plain heads of other experiments and arms of its own, and what a row costs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from ..bottleneck import FitConfig
from ..lab.registry import Preset, experiment
from ..teachers import TeacherConfig
from .grids import fit_seconds, heads

__all__ = ["LARGEST", "ResponseConfig", "configs", "response_seconds"]

_SOURCES = ("S3", "S4", "S5")
LARGEST = 4096  # vocabulary of those that are trained again
# Coefficients k of det heads of width 64 whose index at b = .1 is predicted to be 1.5 and .6 (predicted_activity).
_DET = {1024: (0.1405, 0.1579), 4096: (0.1656, 0.1836), 32768: (0.2049, 0.2241)}
# Products with a Hessian that a response takes for each b, and what one costs for each logit beside its arithmetic.
_PRODUCTS = 100
_ENTRY = {"cpu": 1.2e-8, "cuda": 3e-11}  # seconds
_RATE = {"cpu": 2e10, "cuda": 2e13}  # float64 operations a second
_LAUNCH = {"cpu": 2e-4, "cuda": 1e-3}  # seconds a product


@dataclass(frozen=True, kw_only=True)
class ResponseConfig:
    """One plain head and the smoothings whose effect is to be predicted.

    Attributes:
        head: The plain head with both seeds at 0.
        seed: Data seed i; the model's is 1000 + i, as everywhere in the study.
        smoothings: Label smoothings b > 0.
        source: The experiment that has rows of these heads; ``""`` for none: the smoothed heads are trained here.
        arm: Name of an arm of its own; ``""`` for cells of ``source``.

    Raises:
        ValueError: If ``head`` is smoothed or seeded, or ``smoothings`` are not in (0, 1].
    """

    head: FitConfig
    seed: int
    smoothings: tuple[float, ...]
    source: str = ""
    arm: str = ""

    def __post_init__(self) -> None:
        if self.head.label_smoothing or self.head.seed or self.head.teacher.seed:
            raise ValueError(f"head must be a plain head with its seeds at 0, got {self.head!r}.")
        if not self.smoothings or not all(0 < b <= 1 for b in self.smoothings):
            raise ValueError(f"smoothings must be in (0, 1], at least one, got {self.smoothings!r}.")

    @property
    def plain(self) -> FitConfig:
        """What is trained."""
        return _seeded(self.head, self.seed, 1000 + self.seed)

    @property
    def teacher(self) -> TeacherConfig:
        """Of the plain head."""
        return self.plain.teacher

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.head.hidden_size

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.head.teacher.vocab_size

    def columns(self) -> dict[str, Any]:
        """Columns of the plain head, ``source`` and ``arm``."""
        return {**self.plain.columns(), "source": self.source, "arm": self.arm}


def _seeded(config: FitConfig, data: int, model: int) -> FitConfig:
    return replace(config, teacher=replace(config.teacher, seed=data), seed=model)


def _of_source(name: str, preset: Preset) -> list[ResponseConfig]:
    """The plain heads of an experiment that have smoothed twins, each once."""
    smoothings = defaultdict[FitConfig, list[float]](list)
    for config in experiment(name).configs(preset):
        if config.label_smoothing and config.teacher.vocab_size <= LARGEST:
            smoothings[replace(config, label_smoothing=0.0)].append(config.label_smoothing)
    return [
        ResponseConfig(
            head=_seeded(plain, 0, 0), seed=plain.teacher.seed, smoothings=tuple(sorted(bs)), source=name
        )
        for plain, bs in smoothings.items()
    ]  # fmt: skip


def _arm(name: str, smoothings: tuple[float, ...], **axes: Any) -> list[ResponseConfig]:
    """Cells of an arm, with the smoothed heads to be trained."""
    plain = heads(smoothings=(0.0,), **axes)
    return [
        ResponseConfig(head=_seeded(head, 0, 0), seed=head.teacher.seed, smoothings=smoothings, arm=name)
        for head in plain
    ]


def configs(preset: Preset) -> list[ResponseConfig]:
    """Every cell of S3, S4 and S5 with V <= 4096, and the arms; ``quick`` takes a few of S3."""
    if preset == "quick":
        small = [
            config
            for config in _of_source("S3", "quick")
            if config.vocab_size == 64 and config.hidden_size in (16, 64) and config.head.softcap is None
            and config.head.temperature == 1.0
        ]  # fmt: skip
        tiny: dict[str, Any] = {"teachers": ("lowrank",), "vocab_sizes": (64,), "hidden_sizes": (16,), "seeds": 3}
        tiny["temperatures"] = (0.25,)
        return [
            *small,
            *_arm("trunk", (0.1,), samples=(1, 8), n_contexts=128, features="trunk", **tiny),
            *_arm("contexts", (0.1,), n_contexts=128, **tiny),
        ]
    shared: dict[str, Any] = {"teachers": ("lowrank",), "vocab_sizes": (256,), "hidden_sizes": (64,), "seeds": 5}
    listed = [config for name in _SOURCES for config in _of_source(name, preset)]
    listed += _arm(
        "trunk", (0.05, 0.1, 0.2), samples=(1, 8, 64), temperatures=(1.0, 0.5, 0.25), features="trunk",
        max_steps=6000, **shared,
    )  # fmt: skip
    for n in (128, 512, 1024, 4096):
        listed += _arm("contexts", (0.1, 0.2), n_contexts=n, temperatures=(1.0, 0.5, 0.25), **shared)
    for v, coefficients in _DET.items():
        seeds, steps = (1, 600) if v > LARGEST else (5, 3000)
        det: dict[str, Any] = {"teachers": ("det",), "vocab_sizes": (v,), "hidden_sizes": (64,), "seeds": seeds}
        listed += _arm("det", (0.05, 0.1, 0.2), norm_coefficients=coefficients, max_steps=steps, **det)
    return listed


def response_seconds(config: ResponseConfig, device: str) -> float:
    """Estimated seconds of a row: training, and products with Hessians."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    n, v, d = config.teacher.n_contexts, config.vocab_size, min(config.hidden_size, config.vocab_size)
    product = _LAUNCH[kind] + n * v * (_ENTRY[kind] + 4 * d / _RATE[kind])
    fits = 1 if config.source else 1 + len(config.smoothings)
    return fits * fit_seconds(config.plain, device) + _PRODUCTS * (1 + len(config.smoothings)) * product
