"""Calibration errors of arrays of confidences and outcomes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..checks import check_choice, check_count
from ._binning import Binning, BinSums, Norm, binned_error, equal_mass_sums, sums_between, uniform_sums
from ._inputs import check_bins, pairs


def calibration_error(
    confidence: Any,
    correct: Any,
    *,
    n_bins: int = 15,
    norm: Norm = "l1",
    binning: Binning = "uniform",
    debiased: bool = False,
) -> float:
    r"""Measure how far confidence lies from accuracy, as a fraction: the binned calibration error.

    .. math:: \Bigl(\sum_b \frac{n_b}{n}\,\bigl|\bar c_b - \bar a_b\bigr|^p\Bigr)^{1/p},\qquad
        \text{or}\quad \max_b \bigl|\bar c_b - \bar a_b\bigr|

    Bins are (lo, hi]; the first also holds 0 and the last holds 1. With few samples every plug-in value lies above the
    truth: compare it with :meth:`CalibrationState.noise_floor`, or take ``debiased=True``.

    Args:
        confidence: Probability given to the predicted class, any shape, in [0, 1]. NumPy, torch or lists; what
            rounding put above 1 counts as 1. Sums are taken in float64.
        correct: Whether the prediction was right: booleans or 0 and 1, of confidence's shape.
        n_bins: Number of bins, at most 2^20; of ``"quantile"`` at most the number of samples.
        norm: ``"l1"`` (ECE), ``"l2"`` (RMS-CE) or ``"max"`` (MCE).
        binning: ``"uniform"``, bins of equal width, or ``"quantile"``, bins of equally many samples; samples of equal
            confidence that a cut divides are shared in proportion, so the order of the samples never matters.
        debiased: Subtract the estimated sampling bias; l1 and l2 only. At l2 the square is unbiased before it is cut
            at 0; a bin of one sample counts 0.

    Returns:
        The error in [0, 1].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a confidence is NaN or outside [0, 1], shapes or pandas indexes differ, no sample is given, there
            are too many bins, or ``confidence`` holds whole distributions beside one-hot labels.

    References:
        Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015 (ECE, MCE).
        Kumar, Liang, Ma, "Verified Uncertainty Calibration", 2019, Sec. 4 and App. B (debiasing). arXiv:1909.10155

    Example:
        >>> round(calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0]), 3)
        0.1
    """
    check_choice("binning", binning, ("uniform", "quantile"))
    check_choice("norm", norm, ("l1", "l2", "max"))
    c, y = pairs(confidence, correct)
    n_bins = check_bins(n_bins, c.size if binning == "quantile" else None)
    sums = uniform_sums(c, y, n_bins) if binning == "uniform" else equal_mass_sums(c, y, n_bins)
    return binned_error(sums, norm, debiased)


class SortedError(NamedTuple):
    """Root mean square calibration error over sorted bins, and what a perfectly calibrated model would show."""

    error: float
    noise_floor: float


def sorted_rms_error(confidence: Any, correct: Any, *, bin_size: int = 100) -> SortedError:
    r"""Measure the RMS calibration error over bins of ``bin_size`` samples sorted by confidence, and its noise floor.

    The floor is what perfect calibration shows in expectation (of the square) at these confidences,

    .. math:: \Bigl(\frac1n \sum_b \frac1{n_b} \sum_{i \in b} c_i (1 - c_i)\Bigr)^{1/2}
        \approx \sqrt{\mathbb E[c(1-c)] / \texttt{bin\_size}},

    about .04 at 100 samples a bin *whatever* n is: never read the error without it.

    Args:
        confidence: As in :func:`calibration_error`.
        correct: As in :func:`calibration_error`.
        bin_size: Samples a bin; the last bin also takes the remainder. Tied samples are shared as for ``"quantile"``.

    Returns:
        ``error`` and ``noise_floor``, fractions.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`.

    References:
        Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", 2019, App. (RMS calibration error).

    Example:
        >>> result = sorted_rms_error(np.full(400, 0.8), np.arange(400) % 5 < 4)
        >>> round(result.error, 6), round(result.noise_floor, 6)
        (0.0, 0.04)
    """
    size = check_count("bin_size", bin_size)
    c, y = pairs(confidence, correct)
    cuts = np.append(np.arange(max(c.size // size, 1)) * size, c.size)
    right, total, variance = sums_between(cuts, c, y.astype(np.float64), c, c * (1 - c))
    sums = BinSums(np.diff(cuts).astype(np.float64), right, total)
    return SortedError(binned_error(sums, "l2"), float(np.sqrt((variance / sums.samples).sum() / c.size)))
