"""S6: heads trained on the conditionals themselves, narrower than the teacher: what a lack of rank does alone."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..bottleneck import FitConfig, course, measure, train
from ..lab.registry import Prediction, Preset
from ..smoothing import smoothed_calibration_error, weighted_svd_head
from .grids import head_experiment, heads

__all__ = ["EXPERIMENT", "configs", "population"]

PREDICTIONS = (
    Prediction(
        claim="K2",
        verdict="depends on",
        statement="On the population a plain head of free norms has H = CE to 1e-3 at every width, so that it is "
        "calibrated on average however narrow it is; smoothing b = .1 then makes it under-confident and raises the "
        "true ECE by b (E max p_true - 1/V) where the width suffices. Calibration needs no smoothing without "
        "over-fitting.",
    ),
    Prediction(
        claim="K3",
        verdict="depends on",
        statement="Below the teacher's rank entropy rises by exactly the divergence, H(p) = H(q) + KL, which the "
        "weighted SVD bounds from above within a factor of 2.5 for logits of std 1 and 6 for std 3.",
    ),
)


def population(config: FitConfig, *, device: str = "cpu") -> dict[str, Any]:
    """Train one head on the conditionals (``samples_per_context=None``) and compare it with the theory of low rank.

    Returns:
        The columns of :func:`analysis.bottleneck.fit` and ``divergence``, KL(q || p) in nats; ``svd_predicted`` and
        ``svd_divergence`` of :func:`analysis.smoothing.weighted_svd_head` (E2); ``smoothed_ece_predicted`` (D2).
    """
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = train(config, device=device)
    conditionals = torch.cat([q for _, q in fitted.teacher.blocks()]).numpy()
    # Centred logits have one rank less than their smaller side, so that a wider head is no better.
    svd = weighted_svd_head(conditionals, min(config.hidden_size, min(conditionals.shape) - 1))
    measured = measure(fitted.head, fitted.teacher, fitted.training, fitted.held_out)
    return {
        **config.columns(),
        **measured,
        "divergence": measured["true_nll"] - measured["true_entropy"],
        "svd_predicted": svd.predicted,
        "svd_divergence": svd.divergence,
        "smoothed_ece_predicted": float(smoothed_calibration_error(conditionals, config.label_smoothing)),
        **course(fitted),
        "device": device,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def configs(preset: Preset) -> list[FitConfig]:
    """Widths below, at and above the teacher's rank; free norms."""
    quick = preset == "quick"
    return [
        head
        for std in (1.0, 3.0)
        for head in heads(
            teachers=("lowrank",),
            vocab_sizes=(48,) if quick else (64, 256),
            hidden_sizes=(2, 4, 12) if quick else (2, 4, 8, 16, 32, 64),
            samples=(None,),
            n_contexts=64 if quick else 256,
            seeds=3 if quick else 5,
            norm="free",
            teacher={"rank": 8 if quick else 32, "logit_std": std},
            tolerance=1e-6,
        )
    ]


EXPERIMENT = head_experiment(
    name="S6",
    title="Population training at student rank below teacher rank",
    compute=population,
    configs=configs,
    predictions=PREDICTIONS,
)
