"""The scores of predictions, pooled and by group, by the functions of :mod:`analysis.calibration`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from .. import calibration
from ._read import FAR, Predictions

__all__ = ["POOLED", "ReliabilityScores", "describe", "measure_predictions"]

POOLED = "all"
_MOST_GROUPS = 200


class ReliabilityScores(NamedTuple):
    """What :func:`measure_predictions` found.

    Attributes:
        scores: One line for each kind of score and group, ``"all"`` first.
        bins: Their reliability tables, as :func:`analysis.calibration.reliability_table` gives them.
    """

    scores: pd.DataFrame
    bins: pd.DataFrame


def measure_predictions(predictions: Sequence[Predictions], *, n_bins: int = 15) -> ReliabilityScores:
    """Measure predictions, all together and by group.

    Columns of the scores, besides ``score`` and ``group``: ``n``; ``accuracy`` and mean ``confidence``; ``ece`` and
    ``rms``, calibration errors over bins of equal width, each with what a calibrated model of these confidences would
    show on average (``_if_calibrated``) and the share of such models that show more (``_p_value``); ``over`` and
    ``under``, the two parts of ``ece``; ``nll`` in nats and ``brier``, mean (confidence - correct)^2; ``temperature``,
    that of the least NLL, with ``nll_after`` and ``ece_after`` at it on the same predictions (nan where none is best,
    as something of probability 0 happened or no row prefers an option); ``aurc``, ``excess_aurc``, ``auroc``. Ends of
    95 % intervals are named ``_low`` and ``_high``; they take predictions for independent.

    Args:
        predictions: Of :func:`read_predictions`.
        n_bins: Bins of equal width.

    Returns:
        Scores and bins.

    Raises:
        ValueError: If there are more than 200 groups.
    """
    lines, bins = list[dict[str, Any]](), list[pd.DataFrame]()
    for view in predictions:
        names = sorted(set(view.group.tolist()))
        if len(names) > _MOST_GROUPS:
            raise ValueError(f"group must have at most {_MOST_GROUPS} values, got {len(names)}.")
        parts = {POOLED: view}
        if len(names) > 1:
            parts |= {name if name != POOLED else f"'{name}'": view.take(view.group == name) for name in names}
        for name, part in parts.items():
            state = calibration.CalibrationState(n_bins).update(
                part.confidence, part.correct, log1m_confidence=part.log1m_confidence, nll=part.nll
            )
            lines.append({"score": view.score, "group": name, **_scores(part, state)})
            bins.append(state.reliability_table().assign(score=view.score, group=name))
    return ReliabilityScores(pd.DataFrame(lines), pd.concat(bins, ignore_index=True))


def _scores(part: Predictions, state: calibration.CalibrationState) -> dict[str, float]:
    low, high = calibration.wilson_interval(part.correct.sum(), state.n)
    found: dict[str, float] = {"n": state.n, "accuracy": state.accuracy, "accuracy_low": float(low)}
    found |= {"accuracy_high": float(high), "confidence": state.mean_confidence}
    norms: dict[str, Literal["l1", "l2"]] = {"ece": "l1", "rms": "l2"}
    for name, norm in norms.items():
        error, floor = state.interval(norm=norm), state.noise_floor(norm=norm)
        found |= {name: error.error, f"{name}_low": error.low, f"{name}_high": error.high}
        found |= {f"{name}_if_calibrated": floor.mean, f"{name}_p_value": floor.p_value}
    found |= {**state.signed_error()._asdict(), "nll": state.nll, "brier": state.top_label_brier}
    selective = calibration.selective_scores(part.confidence, part.correct, log1m_confidence=part.log1m_confidence)
    selected = {name: getattr(selective, name) for name in ("aurc", "excess_aurc", "auroc")}
    return {**found, **_temperature(part, state.n_bins), **selected}


def _temperature(part: Predictions, n_bins: int) -> dict[str, float]:
    """The best temperature, if there is one, and what it leaves."""
    below = part.logits.max(-1, keepdims=True) - part.logits
    if np.isinf(part.nll).any() or not ((below > 0) & (below < FAR)).any():
        names = ("temperature", "temperature_low", "temperature_high", "nll_after", "ece_after")
        return dict.fromkeys(names, math.nan)
    fit = calibration.fit_temperature(part.logits, part.label, allow_probabilities=True)
    half = 1.96 * fit.standard_error
    p = np.exp(log_softmax(part.logits / fit.temperature, -1)[np.arange(len(part.label)), part.chosen])
    return {
        "temperature": fit.temperature,
        "temperature_low": max(fit.temperature - half, 0.0) if half == half else half,
        "temperature_high": fit.temperature + half,
        "nll_after": fit.nll,
        "ece_after": calibration.calibration_error(p, part.correct, n_bins=n_bins),
    }


def describe(line: Any) -> str:
    """A line of the scores of :func:`measure_predictions` in words; it has the columns as attributes."""
    excess = line.confidence - line.accuracy
    word = f"miscalibrated; confidence is {abs(excess):.3f} {'above' if excess > 0 else 'below'} accuracy on average"
    if line.ece_p_value > 0.05:
        word = "no further from calibrated than chance would put a calibrated model"

    def shown(name: str) -> str:
        return f"{getattr(line, name):.3f} [{getattr(line, f'{name}_low'):.3f}, {getattr(line, f'{name}_high'):.3f}]"

    after = f"leaves NLL {line.nll_after:.3f} and ECE {line.ece_after:.3f} on these same predictions"
    best = f"best {shown('temperature')}, {after}"
    if math.isnan(line.temperature_low):
        best = f"best beyond {line.temperature:g}, where it {after}"
    if math.isnan(line.temperature):
        best = "none is best: what happened was given probability 0, or no row prefers an option"
    of = "being right or wrong" if line.score == "confidence" else "the label"
    return f"""{line.score}, {line.n} predictions: {word}
  accuracy     {shown("accuracy")}, mean confidence {line.confidence:.3f}
  ECE          {shown("ece")}, a calibrated model would show {line.ece_if_calibrated:.3f}
  RMS-CE       {shown("rms")}, a calibrated model would show {line.rms_if_calibrated:.3f}
  NLL          {line.nll:.3f} nats, of {of}; Brier score of the confidence {line.brier:.3f}
  temperature  {best}
  selective    AURC {line.aurc:.3f}, {line.excess_aurc:.3f} above the best order; AUROC {line.auroc:.3f}"""
