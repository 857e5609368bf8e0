"""S3: is the effect of smoothing a function of the activity index alone, over D, V, T, c, b, norms and teacher?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..bottleneck import FitConfig, fit
from ..lab.registry import Prediction, Preset
from ..smoothing import optimal_gap
from ..teachers import TeacherKind
from .grids import AVERAGED_TIES, head_experiment, heads, smoothing_at_gap

__all__ = ["EXPERIMENT", "configs"]

_ANCHOR = 256  # vocabulary whose smoothing-optimal gap at b = .1 is held over V where b moves with V

PREDICTIONS = (
    Prediction(
        claim="K3",
        verdict="depends on",
        statement="A norm product m caps confidence: no head of a det teacher exceeds A2. At one m and D >= 64 a "
        "further change of D moves the confidence by less than .01 (V <= 256): what looks like hidden size is the "
        "norm m = k D. Refuted as a statement about geometry, supported as one about norms.",
    ),
    Prediction(
        claim="K4",
        verdict="depends on",
        statement="Under a norm budget smoothing moves the confidence of det heads by less than .01 where A > 1.25 "
        "and lowers it where A < .8; the same at any D, V, T, k and cap. Small D and large V matter through A alone: "
        "A explains more of the variance of the effect than rho, sqrt(D) / ln V and D / sqrt(V). In noisy cells "
        "smoothing may still lower confidence by up to .025 for A of 1.3 to 3.",
    ),
    Prediction(
        claim="K5",
        verdict="depends on",
        statement="Under a norm budget a training temperature below T* takes A below 1 and smoothing acts again.",
    ),
)


def configs(preset: Preset) -> list[FitConfig]:
    """Heads under a norm budget m = k D, with and without smoothing.

    With k fixed, hidden size acts through the norm by construction; cells of one norm product and several hidden sizes
    tell the two apart. V is varied at fixed b and at fixed smoothing-optimal gap.
    """
    if preset == "quick":
        listed = _quick()
    else:
        listed = [replace(head, overtime=2, max_steps=6000) for head in _full()]
        listed += [replace(head, max_steps=600) for head in _large_vocabulary()]
    return list(dict.fromkeys(listed))  # a cell may belong to two axes


def _at_norm_product(
    norm_product: float, teachers: tuple, vocab_sizes: tuple, hidden_sizes: tuple, seeds: int
) -> list[FitConfig]:
    """Heads of one norm product m at several hidden sizes: what a hidden size does apart from the norms."""
    return [
        head
        for d in hidden_sizes
        for head in heads(
            teachers=teachers,
            vocab_sizes=vocab_sizes,
            hidden_sizes=(d,),
            norm_coefficients=(norm_product / d,),
            seeds=seeds,
        )
    ]


def _at_gap(vocab_size: int, **axes: Any) -> list[FitConfig]:
    """Pairs at the b whose smoothing-optimal gap is that of b = .1 at the anchor vocabulary."""
    held = smoothing_at_gap(float(optimal_gap(0.1, _ANCHOR)), vocab_size)
    return heads(vocab_sizes=(vocab_size,), smoothings=(0.0, held), **axes)


def _quick() -> list[FitConfig]:
    both = ("det", "lowrank")
    sharp = (1.0, 0.25)
    return [
        *heads(teachers=both, vocab_sizes=(64, 256), hidden_sizes=(4, 16, 64, 256), temperatures=sharp),
        *heads(teachers=("det",), vocab_sizes=(512,), hidden_sizes=(64,)),
        *heads(teachers=("det",), vocab_sizes=(1024,), hidden_sizes=(16,), temperatures=sharp, seeds=1),
        *heads(teachers=("det",), vocab_sizes=(1024,), hidden_sizes=(64,), seeds=1),
        *_at_gap(64, teachers=both, hidden_sizes=(4, 16, 64, 256), temperatures=sharp),
        *_at_gap(512, teachers=("det",), hidden_sizes=(64,)),
        *heads(teachers=both, vocab_sizes=(64,), hidden_sizes=(16, 64), norm_coefficients=(0.05, 0.2)),
        *heads(
            teachers=both, vocab_sizes=(64,), hidden_sizes=(16, 64), temperatures=sharp, smoothings=(0.0, 0.05, 0.2)
        ),
        *heads(teachers=both, vocab_sizes=(64,), hidden_sizes=(64,), softcap=5.0),
        *heads(teachers=both, vocab_sizes=(64,), hidden_sizes=(64,), softcap=5.0, softcap_form="gain"),
        # Where smoothing begins to act, rho from .9 to 1.6, at two hidden sizes.
        *(head for m in (7, 10) for head in _at_norm_product(m, ("det",), (64, 256), (64, 256), seeds=3)),
        *(head for m in (7, 10) for head in _at_norm_product(m, ("lowrank",), (64, 256), (64,), seeds=3)),
    ]


def _full() -> list[FitConfig]:
    sizes, some = (4, 16, 64, 256, 1024), (16, 64, 256)
    both: tuple[TeacherKind, ...] = ("det", "lowrank")
    sharp = (1.0, 0.25)
    cubes: dict[str, Any] = {
        "norm_coefficients": (0.05, 0.1, 0.2),
        "temperatures": (1.0, 0.5, 0.25),
        "smoothings": (0.0, 0.1, 0.2),
        "seeds": 5,
    }
    listed = [
        *heads(teachers=("lowrank",), vocab_sizes=(256, 4096, 32768), hidden_sizes=sizes, **cubes),
        *heads(teachers=("det",), vocab_sizes=(256,), hidden_sizes=sizes[:-1], **cubes),
        # As many contexts as tokens.
        *heads(teachers=("det",), vocab_sizes=(1024,), hidden_sizes=(16, 64), temperatures=sharp, seeds=5),
        *heads(teachers=("det",), vocab_sizes=(4096,), hidden_sizes=(64,), temperatures=sharp, seeds=5),
        *heads(teachers=("sparse",), vocab_sizes=(256, 4096), hidden_sizes=some, temperatures=sharp, seeds=5),
        *heads(
            teachers=both,
            vocab_sizes=(256,),
            hidden_sizes=some,
            temperatures=sharp,
            smoothings=(0.0, 0.02, 0.05, 0.4),
            seeds=5,
        ),
    ]
    for v in (1024, 4096, 32768):
        listed += _at_gap(v, teachers=("lowrank",), hidden_sizes=some, temperatures=sharp, seeds=5)
    for c, form in [(c, form) for c in (2.0, 5.0, 15.0) for form in ("contraction", "gain")]:
        listed += heads(
            teachers=both, vocab_sizes=(256,), hidden_sizes=some, seeds=5, softcap=c, softcap_form=form,
        )  # fmt: skip
    for m in (5, 7, 8, 10, 14):
        listed += _at_norm_product(m, both, (256,), (16, 64, 256, 1024), seeds=5)
    return listed


def _large_vocabulary() -> list[FitConfig]:
    """The named subset at V = 262144: 4096 contexts, one seed."""
    return heads(teachers=("lowrank",), vocab_sizes=(262144,), hidden_sizes=(64, 256, 1024), n_contexts=4096, seeds=1)


def _leftover(config: FitConfig) -> int:
    """The costliest corner, the first that may go."""
    return int(config.teacher.vocab_size == 32768 and config.hidden_size == 1024)


EXPERIMENT = head_experiment(
    name="S3",
    title="Collapse: is the effect of smoothing a function of the activity index alone?",
    compute=fit,
    configs=configs,
    leftover=_leftover,
    predictions=PREDICTIONS,
    measurement_version=AVERAGED_TIES,
)
