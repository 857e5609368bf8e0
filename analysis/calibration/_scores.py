"""The one scorer of top predictions: from what was right, or from the known probability of being right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import calibration_error, sorted_rms_error
from ._inputs import pairs
from ._selective import selective_scores
from ._truth import binned_true_error

_BINS = 15


def score_predictions(confidence: Any, correct: Any, *, log1m_confidence: Any = None) -> dict[str, float]:
    """Score predictions that were right or wrong: accuracy, calibration errors and selective prediction.

    Args:
        confidence: Probability of each prediction, ``(n,)``.
        correct: Whether it was right, ``(n,)``.
        log1m_confidence: log(1 - confidence), which tells confidences apart that round to 1.

    Returns:
        ``n``; ``accuracy`` and mean ``confidence``; ``ece`` and ``rms``, the l1 and l2 calibration errors over 15 bins
        of equal width; ``rms_sorted``, over bins of 100 in order of confidence; ``aurc``, the area under the
        risk-coverage curve.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`.

    Example:
        >>> score_predictions(np.array([0.9, 0.6]), np.array([True, False]))["aurc"]
        0.25
    """
    c, y = pairs(confidence, correct)
    return {
        "n": y.size,
        "accuracy": float(y.mean()),
        "confidence": float(c.mean()),
        "ece": calibration_error(confidence, correct, n_bins=_BINS),
        "rms": calibration_error(confidence, correct, n_bins=_BINS, norm="l2"),
        "rms_sorted": float(sorted_rms_error(confidence, correct)[0]),
        "aurc": float(selective_scores(confidence, correct, log1m_confidence=log1m_confidence).aurc),
    }


def score_against_truth(confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> dict[str, float]:
    """Score predictions whose true probability of being right is known.

    Args:
        confidence: Probability that the model gives each prediction, ``(n,)``, at most 1.
        accuracy: Its true probability, ``(n,)``.

    Returns:
        Mean ``confidence`` and ``accuracy``; ``true_ece``, over 15 bins of equal width; ``context_error``, mean
        ``|confidence - accuracy|`` without bins, an upper bound that counts errors of single contexts even where they
        cancel; ``aurc``, where a prediction's risk is 1 - accuracy.
    """
    return {
        "confidence": float(confidence.mean()),
        "accuracy": float(accuracy.mean()),
        "true_ece": binned_true_error(confidence, accuracy, _BINS),
        "context_error": float(np.abs(confidence - accuracy).mean()),
        "aurc": aurc_from_risks(confidence, 1 - accuracy),
    }


def aurc_from_risks(confidence: NDArray[np.float64], risk: NDArray[np.float64]) -> float:
    """Mean over coverages of the mean risk of the most confident contexts; ties count with their mean risk."""
    _, group, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    tied = np.bincount(group, risk) / counts
    cumulative = np.cumsum(np.repeat(tied, counts))
    return float((cumulative / np.arange(1, risk.size + 1)).mean())
