"""Selective prediction: does confidence rank right answers above wrong ones? Smoothing may help ECE and harm this."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import check_index, interval
from ._inputs import log1m_confidences, pairs


class RiskCoverage(NamedTuple):
    """Share of samples answered and error rate among them, from the most confident sample on.

    Attributes:
        coverage: (1 / n, ..., 1).
        risk: Error rate among the ``coverage * n`` most confident, tied samples in expectation over their orders.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


class SelectiveScores(NamedTuple):
    """Areas under selective-prediction curves; for all but ``auroc`` smaller is better.

    Attributes:
        aurc: Mean risk over the coverages 1/n, ..., 1.
        excess_aurc: ``aurc`` minus that of a ranking which puts every error last.
        augrc: Area under share of all samples that are answered wrong against coverage; at most 1/2.
        auroc: Probability that a right answer has more confidence than a wrong one, ties half; nan without both kinds.
    """

    aurc: float
    excess_aurc: float
    augrc: float
    auroc: float


def _errors_answered(
    confidence: Any, correct: Any, log1m_confidence: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Expected wrong answers among the k most confident samples, k = 1, ..., n; the ranking scores; the outcomes."""
    check_index(confidence=confidence, log1m_confidence=log1m_confidence)
    score, y = pairs(confidence, correct)
    if log1m_confidence is not None:
        score = -log1m_confidences(log1m_confidence, score, tuple(np.shape(confidence)))
    order = np.argsort(-score, kind="stable")
    first = np.flatnonzero(np.concatenate(([True], np.diff(score[order]) != 0)))
    ends = np.append(first, y.size)
    wrong = np.concatenate(([0], np.cumsum(np.add.reduceat((~y[order]).astype(np.int64), first))))
    return np.interp(np.arange(1, y.size + 1), ends, wrong), score, y  # linear within tied samples


def risk_coverage_curve(confidence: Any, correct: Any, *, log1m_confidence: Any = None) -> RiskCoverage:
    """Return the error rate among the most confident samples, for every share of the samples that is answered.

    Args:
        confidence: Any shape, in [0, 1].
        correct: Whether the predictions were right, of the same shape.
        log1m_confidence: log(1 - confidence), which ranks confidences that rounding made equal.

    Returns:
        Coverage and risk, ``n`` points each.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`.

    References:
        Geifman, El-Yaniv, "Selective Classification for Deep Neural Networks", 2017, Sec. 2. arXiv:1705.08500

    Example:
        >>> risk_coverage_curve([0.9, 0.6, 0.6], [1, 0, 1]).risk.round(3).tolist()
        [0.0, 0.25, 0.333]
    """
    wrong, _, y = _errors_answered(confidence, correct, log1m_confidence)
    answered = np.arange(1, y.size + 1)
    return RiskCoverage(answered / y.size, wrong / answered)


def risk_at_coverage(
    confidence: Any, correct: Any, coverage: ArrayLike, *, log1m_confidence: Any = None
) -> NDArray[np.float64]:
    """Return the error rate among the share ``coverage`` of most confident samples, rounded up to whole samples.

    Args:
        confidence: Any shape, in [0, 1].
        correct: Whether the predictions were right, of the same shape.
        coverage: Shares in (0, 1], any shape.
        log1m_confidence: log(1 - confidence), which ranks confidences that rounding made equal.

    Returns:
        The error rates, of coverage's shape.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`, or if a coverage is outside (0, 1].

    Example:
        >>> risk_at_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0], [0.5, 1.0]).tolist()
        [0.0, 0.5]
    """
    share = interval("coverage", coverage, 0, 1, open_low=True)
    risk = risk_coverage_curve(confidence, correct, log1m_confidence=log1m_confidence).risk
    answered = np.ceil(np.round(share * risk.size, 9)).astype(np.intp)  # .3 of 10 samples are 3, not 4
    return risk[np.maximum(answered, 1) - 1]


def selective_scores(confidence: Any, correct: Any, *, log1m_confidence: Any = None) -> SelectiveScores:
    r"""Score confidence as a predictor of being right: AURC, its excess, AUGRC and AUROC.

    With E_k the expected number of wrong answers among the k most confident of n samples and E_0 = 0,

    .. math::
        \mathrm{AURC} = \frac1n \sum_{k=1}^n \frac{E_k}{k}, \qquad
        \mathrm{AUGRC} = \frac1{n^2} \sum_{k=1}^n \frac{E_{k-1} + E_k}{2}
            = (1 - \mathrm{AUROC})\,a(1-a) + \tfrac12 (1-a)^2

    at accuracy a. Samples of equal confidence count as the average over their orders.

    Args:
        confidence: Any shape, in [0, 1].
        correct: Whether the predictions were right, of the same shape.
        log1m_confidence: log(1 - confidence), which ranks confidences that rounding made equal.

    Returns:
        The four scores.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`.

    References:
        Geifman, Uziel, El-Yaniv, "Bias-Reduced Uncertainty Estimation", 2019 (AURC, excess). arXiv:1805.08206
        Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems", 2024 (AUGRC).

    Example:
        >>> scores = selective_scores([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1])
        >>> [round(x, 4) for x in scores]
        [0.2708, 0.2083, 0.1562, 0.3333]
    """
    wrong, _, y = _errors_answered(confidence, correct, log1m_confidence)
    n = y.size
    answered = np.arange(1, n + 1)
    aurc = float(np.mean(wrong / answered))
    errors = int(n - y.sum())
    best = float(np.mean(np.maximum(answered - (n - errors), 0) / answered))
    augrc = float((wrong.sum() - errors / 2) / n**2)
    right = n - errors
    # Area between the curve of wrong answers and the one of a random ranking, per pair of a right and a wrong answer.
    auroc = 1 - (augrc * n**2 - errors**2 / 2) / (errors * right) if errors and right else float("nan")
    return SelectiveScores(aurc, aurc - best, augrc, float(auroc))
