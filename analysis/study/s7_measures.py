"""What S7 measures of a model on the way: scores against known conditionals, readings, reliability and features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..calibration import calibration_error, fit_temperature, score_against_truth, tied_accuracy, uniform_index
from ..language_models.features import feature_spectrum
from ..smoothing import unsmooth
from .s7_world import Contexts, Model

__all__ = ["mean_nll", "measured"]

_BINS = 15


def measured(
    model: Model, data: dict[str, Contexts], validation: Contexts, known: dict[str, Any], device: str, *, last: bool
) -> Iterator[dict[str, Any]]:
    """Lines of one model: every distribution as trained, and the recalibrated readings of the shifted one."""
    first = known["epoch"] == 0 and known["method"] == "b=0"  # the pretrained model, which all methods start from
    for name, batch in data.items():
        logits = model.logits(batch.inputs.to(device)).cpu()
        line = {**known, "distribution": name, "reading": "as_trained", **_scores(logits.softmax(-1), batch)}
        if name != "train":
            line |= _features(model, batch.inputs.to(device))
            if first or last:
                line["reliability"] = _reliability(logits.softmax(-1), batch)
        yield line
        if name == "shifted" and known["label_smoothing"]:
            p = torch.from_numpy(unsmooth(logits.softmax(-1).numpy(), known["label_smoothing"]))
            yield {**known, "distribution": name, "reading": "inverted", **_scores(p, batch)}
        if name == "shifted" and last:
            fit = fit_temperature(model.logits(validation.inputs.to(device)).cpu(), validation.tokens)
            p = (logits / fit.temperature).softmax(-1)
            yield {**known, "distribution": name, "reading": "post_hoc", **_scores(p, batch)}


def _scores(p: Tensor, batch: Contexts) -> dict[str, float]:
    confidence, prediction = p.max(-1)
    accuracy = tied_accuracy(p, batch.conditionals, 0.0).numpy()
    log_p = p.clamp_min(1e-300).log()
    return {
        **score_against_truth(confidence.clamp_max(1).double().numpy(), accuracy),
        "estimated_ece": calibration_error(confidence, prediction == batch.tokens, n_bins=_BINS),
        "true_nll": float(-(batch.conditionals * log_p).sum(-1).mean()),
        "nll": float(-log_p.gather(-1, batch.tokens.unsqueeze(-1)).mean()),
    }


def _reliability(p: Tensor, batch: Contexts) -> str:
    """Bins of ``true_ece`` that hold any context, lowest first: ``count:mean confidence:mean true accuracy;...``."""
    sure = p.amax(-1).clamp_max(1).numpy()
    accuracy = tied_accuracy(p, batch.conditionals, 0.0).numpy()
    bins = uniform_index(sure, _BINS)
    parts = [bins == index for index in np.unique(bins)]
    return ";".join(f"{part.sum()}:{sure[part].mean():.5f}:{accuracy[part].mean():.5f}" for part in parts)


def mean_nll(logits: Tensor, batch: Contexts) -> float:
    """Mean loss of the sampled tokens, in nats."""
    return float(-logits.log_softmax(-1).gather(-1, batch.tokens.unsqueeze(-1)).mean())


@torch.no_grad()
def _features(model: Model, inputs: Tensor) -> dict[str, float]:
    """The diversity of the features, which smoothing is said to add, and the largest norms."""
    hidden = model.eval().hidden(inputs).double()
    model.train()
    return {
        **feature_spectrum(hidden),
        "head_norm": float(model.head.norm(dim=-1).max()),
        "feature_norm_max": float(hidden.norm(dim=-1).max()),
    }
