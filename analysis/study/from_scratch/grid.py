"""The cells of S11, in the order in which they are wanted, and what a row costs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from ...checks import check_fields, check_number
from ...lab.registry import Preset
from .pretraining import PretrainingConfig, Sizes
from .transformer import Trunk
from .tuning import arm_of

__all__ = [
    "MAIN", "MAPPED_FROM", "TransformerConfig", "cell_name", "configs", "has_more_rows", "leftover", "row_seconds",
    "solves_maps",
]  # fmt: skip

MAIN = ("b=0", "b=0.1")
MAPPED_FROM = 1024  # tokens asked: maps of the features have up to D^2 unknowns
# Further tunings of the models of the first grid at its corners: one row for each model, so that it is pretrained again
# once at most where the machine that kept it is gone.
_TUNINGS = (
    "b=0.05", "b=0.2", "penalty=0.1", "b=0 T=0.5", "b=0.1 T=0.5", "b=0 T=0.25", "b=0.1 T=0.25", "b=0 cap=30",
    "b=0.1 cap=30", "b=0 cap=5", "b=0.1 cap=5", "b=0 frozen", "b=0.1 frozen",
)  # fmt: skip
_CORNERS = ((16, 256), (256, 65536))  # D, V
_TINY = Sizes(
    trunk=Trunk(layers=2, width=32, heads=2, context=16), states=8, classes=16, successors=2,
    shifted_exponent=4.0, step_size=3e-3,
)  # fmt: skip
# Estimates of row_seconds: a GPU's is bound by launches in the trunk and by arithmetic in the head. Not
# timed alone: where eight shared an H200 a row took 2.5 to 5 times as long.
_STEP = {"cpu": 5e-3, "cuda": 1.2e-2}  # seconds a step beside its arithmetic
_RATE = {"cpu": 4e10, "cuda": 2e14}  # operations a second in training
_ENTRY = {"cpu": 3e-7, "cuda": 4e-10}  # seconds of measuring for each logit
_FIRST = {"cpu": 0.3, "cuda": 10.0}  # seconds before the first step


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(PretrainingConfig):
    """One pretrained model and some tunings of it.

    Attributes:
        arms: How it is tuned, as :func:`~.tuning.arm_of` reads.
        sequences: Of the shifted language, tuned on.
        epochs: After which it is measured, ascending.
        tuning_batch: Sequences a step.
        tuning_step: Of AdamW in tuning.
        evaluated: New sequences of each language that measurements are made on.
        predicted: b whose effect is predicted from tunings without.
        asked: Tokens tuned on that predictions are solved for; those of free features take a quarter of them.
    """

    arms: tuple[str, ...] = MAIN
    sequences: int = 128
    epochs: tuple[int, ...] = (2, 16)
    tuning_batch: int = 16
    tuning_step: float = 3e-4
    evaluated: int = 64
    predicted: tuple[float, ...] = (0.1,)
    asked: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, sequences=1, tuning_batch=1, evaluated=1, asked=4)
        check_number("tuning_step", self.tuning_step, 0, open_low=True)
        for name in self.arms:
            arm_of(name)
        if not self.epochs or list(self.epochs) != sorted(set(self.epochs)) or self.epochs[0] < 1:
            raise ValueError(f"epochs must ascend from at least 1, got {self.epochs!r}.")

    @property
    def pretraining(self) -> PretrainingConfig:
        """What all tunings of this model share."""
        return PretrainingConfig(**{field.name: getattr(self, field.name) for field in fields(PretrainingConfig)})


def _cells(hidden_sizes: tuple[int, ...], vocab_sizes: tuple[int, ...], **options: Any) -> list[TransformerConfig]:
    """Sizes x three seeds."""
    return [
        TransformerConfig(vocab_size=v, hidden_size=d, seed=seed, **options)
        for v, d, seed in product(vocab_sizes, hidden_sizes, range(3))
    ]


def configs(preset: Preset) -> list[TransformerConfig]:
    """Hidden sizes x vocabularies x seeds, b of 0 and .1; ``full`` has the further arms behind them."""
    if preset == "quick":
        tiny: dict[str, Any] = {
            "sizes": _TINY, "tokens": 250 * 64 * 16, "sequences": 16, "tuning_batch": 8, "tuning_step": 2e-3,
            "asked": 256,
        }  # fmt: skip
        return _cells((4, 16), (16, 64), **tiny)
    widths, vocabularies = (16, 64, 256), (256, 4096, 65536)
    return [
        *(_with_further_b(cell) for cell in _cells(widths, vocabularies)),
        *_cells(*_CORNERS, arms=_TUNINGS),
        *_cells(widths, vocabularies[1:], symbols="dead"),
        *_cells(widths, vocabularies, distinct=1_000_000),
        *_cells(widths, vocabularies, tied=True),
        *_cells(*_CORNERS, smoothing=0.1),
    ]


def _with_further_b(cell: TransformerConfig) -> TransformerConfig:
    """At the corners every b that a further tuning has is predicted too."""
    corner = cell.hidden_size in _CORNERS[0] and cell.vocab_size in _CORNERS[1]
    return replace(cell, predicted=(0.05, 0.1, 0.2)) if corner else cell


def leftover(config: TransformerConfig) -> int:
    """The first grid first; dead tokens, which carry the comparison over V; little text; tied heads; the rest."""
    if config.arms == _TUNINGS:
        return 4
    if config.smoothing:
        return 5
    return 1 if config.symbols == "dead" else 2 if config.distinct else 3 if config.tied else 0


def has_more_rows(config: TransformerConfig) -> bool:
    """Whether another row tunes the same model: of the first grid, at its corners."""
    first = config.symbols == "live" and not (config.tied or config.distinct or config.smoothing)
    return first and config.hidden_size in _CORNERS[0] and config.vocab_size in _CORNERS[1]


def solves_maps(config: TransformerConfig) -> bool:
    """Whether predictions by maps of many unknowns are made too: in the first grid, where there are tokens enough."""
    return not leftover(config) and config.asked >= MAPPED_FROM


def cell_name(cell: TransformerConfig) -> str:
    """V, D and the arm, for people."""
    kind = "tied" if cell.tied else "few" if cell.distinct else "smoothed" if cell.smoothing else cell.symbols
    return f"{kind} V={cell.vocab_size} D={cell.hidden_size}" + ("" if cell.arms == MAIN else f" {cell.arms[0]} ...")


def row_seconds(config: TransformerConfig, device: str) -> float:
    """Pretraining, also of a model that may have been kept, tunings, and measurements in float64."""
    kind, sizes, length = "cuda" if device.startswith("cuda") else "cpu", config.sizes, config.sequence
    trunk, arms = sizes.trunk, len(config.arms)
    weights = 12 * trunk.layers * trunk.width**2 + config.hidden_size * (config.vocab_size + trunk.width)
    tuning = arms * config.epochs[-1] * -(-config.sequences // config.tuning_batch)
    tokens = length * (config.steps * sizes.batch + tuning * config.tuning_batch)
    read = (1 + arms * len(config.epochs)) * (2 * config.evaluated + config.sequences) * length * config.vocab_size
    return (
        _FIRST[kind] + (config.steps + tuning) * _STEP[kind] + 6 * weights * tokens / _RATE[kind] + read * _ENTRY[kind]
    )
