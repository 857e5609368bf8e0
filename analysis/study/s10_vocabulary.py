"""S10: does the vocabulary itself cap confidence? Tokens that never occur are added to one and the same problem.

Over the vocabularies of S3 the teacher changes too: with more tokens its conditionals are flatter, and a head of any
norm ends at less confidence. Here contexts, conditionals and samples are those of 256 tokens, at every V.
"""

from __future__ import annotations

from dataclasses import replace

from ..bottleneck import FitConfig, fit
from ..lab.registry import Prediction, Preset
from ..teachers import PaddedTeacherConfig
from .grids import AVERAGED_TIES, head_experiment, heads

__all__ = ["EXPERIMENT", "configs"]

PREDICTIONS = (
    Prediction(
        claim="K3",
        verdict="depends on",
        statement="Dead tokens take confidence where norms bind, as every rival's logit is bounded from below: at one "
        "norm product confidence falls with V, by more at k = .1 and T = 1 than at T = .25, where it stays within .01 "
        "of that of the least V. At T = 1 it falls by less than half as much as over the vocabularies of S3 (from .349 "
        "at V = 256 to .161 at 4096).",
    ),
    Prediction(
        claim="K4",
        verdict="depends on",
        statement="The activity index rises with V at T = 1, so that smoothing of .1 acts less; at T = .25 the fall "
        "stays within .01 of that of the least V.",
    ),
)


def configs(preset: Preset) -> list[FitConfig]:
    """Plain and smoothed heads on one low-rank problem, with more and more tokens that never occur."""
    live, sizes = (64, (64, 256, 1024)) if preset == "quick" else (256, (256, 1024, 4096))
    listed = heads(
        teachers=("lowrank",), vocab_sizes=(live,), hidden_sizes=(64,), temperatures=(1.0, 0.25),
        n_contexts=64 if preset == "quick" else 256, seeds=3 if preset == "quick" else 5,
    )  # fmt: skip
    return [_padded(head, v - live) for v in sizes for head in listed]


def _padded(head: FitConfig, dead: int) -> FitConfig:
    if not dead:
        return head
    fields = {name: getattr(head.teacher, name) for name in head.teacher.__dataclass_fields__}
    fields["vocab_size"] += dead
    return replace(head, teacher=PaddedTeacherConfig(**fields, dead_tokens=dead))


EXPERIMENT = head_experiment(
    name="S10",
    title="Vocabulary at fixed difficulty: does it cap confidence by itself?",
    compute=fit,
    configs=configs,
    measurement_version=AVERAGED_TIES,
    predictions=PREDICTIONS,
)
