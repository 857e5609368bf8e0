"""S4: when does smoothing help? Samples per context x hidden size, under a norm budget and with free norms."""

from __future__ import annotations

from typing import Any

from ..bottleneck import FitConfig, fit
from ..lab.registry import Prediction, Preset
from .grids import AVERAGED_TIES, head_experiment, heads

__all__ = ["EXPERIMENT", "configs"]

# Free norms have no optimum where some sampled tokens can be separated from the rest, as at D = 4: the norms grow for
# ever. This much decay gives them one, and costs a head of norm product 100 a hundredth of a nat.
_DECAY = 1e-4

PREDICTIONS = (
    Prediction(
        claim="K4",
        verdict="depends on",
        statement="Whether smoothing lowers the true ECE follows over-fitting, not D or V: the gain changes sign "
        "where H - CE of the plain head on held-out data crosses 0 (below 0, over-confident: gain; above: harm). "
        "With free norms smoothing always acts, at D = 4 as at D = 64; at small D and many samples it harms.",
    ),
)


def configs(preset: Preset) -> list[FitConfig]:
    """Noisy teachers, b = 0 and .1."""
    if preset == "quick":
        budget = heads(
            teachers=("lowrank",), vocab_sizes=(128,), hidden_sizes=(4, 16, 64), samples=(2, 8, 32),
            temperatures=(0.25,),
        )  # fmt: skip
        free = heads(
            teachers=("lowrank",), vocab_sizes=(128,), hidden_sizes=(4, 16, 64), samples=(2, 8, 32), norm="free",
            weight_decay=_DECAY,
        )  # fmt: skip
        return budget + free
    listed: list[FitConfig] = []
    for axes in (
        {"teachers": ("lowrank",), "hidden_sizes": (4, 16, 64, 256), "samples": (1, 2, 4, 8, 16, 64)},
        {"teachers": ("sparse",), "hidden_sizes": (4, 16, 64), "samples": (2, 8, 64)},
    ):
        shared: dict[str, Any] = {**axes, "vocab_sizes": (256,), "seeds": 5}
        listed += heads(temperatures=(1.0, 0.25), **shared)
        listed += heads(norm="free", weight_decay=_DECAY, **shared)
    return [
        *listed,
        *heads(
            teachers=("lowrank",), vocab_sizes=(4096,), hidden_sizes=(16, 64), samples=(2, 32), norm="free",
            weight_decay=_DECAY, seeds=5,
        ),
    ]  # fmt: skip


EXPERIMENT = head_experiment(
    name="S4",
    title="Samples per context x hidden size: when does smoothing help?",
    compute=fit,
    configs=configs,
    measurement_version=AVERAGED_TIES,
    predictions=PREDICTIONS,
)
