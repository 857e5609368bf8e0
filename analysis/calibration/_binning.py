"""Binning of confidences and the norms over bins: the one place where a bin and an error are defined."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ..checks import check_choice, check_flag

Norm = Literal["l1", "l2", "max"]
Binning = Literal["uniform", "quantile"]

# Samples handled at a time: the temporaries of one block stay in the caches.
BLOCK = 1 << 15


class BinSums(NamedTuple):
    """Sums of the samples of each bin; counts may be fractional where equal confidences are split between bins."""

    samples: NDArray[np.float64]
    correct: NDArray[np.float64]
    confidence: NDArray[np.float64]


def uniform_index(confidence: NDArray[np.float64], n_bins: int) -> NDArray[np.intp]:
    """Find the bin ``(k / n_bins, (k + 1) / n_bins]`` that holds each confidence; the first also holds 0.

    The edges are those of ``np.linspace(0, 1, n_bins + 1)``; 1.0 falls in the last bin, never in one of its own.
    """
    edges = np.linspace(0, 1, n_bins + 1)
    index = np.minimum((confidence * n_bins).astype(np.intp), n_bins - 1)  # right, or one too high on an edge
    index -= (confidence <= edges[index]) & (index > 0)
    return index


def sum_by(index: NDArray[np.intp], values: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Float64 sums of the values of each index; :func:`numpy.bincount` with the type it really returns."""
    return np.asarray(np.bincount(index, values, minlength=size), np.float64)


def uniform_sums(confidence: NDArray[np.float64], correct: NDArray[np.bool_], n_bins: int) -> BinSums:
    """Sums over equal-width bins: int64 counts, float64 confidences."""
    count = np.zeros((2, n_bins), np.int64)  # wrong, right
    total = np.zeros(n_bins)
    for start in range(0, confidence.size, BLOCK):
        c, y = confidence[start : start + BLOCK], correct[start : start + BLOCK]
        index = uniform_index(c, n_bins)
        total += sum_by(index, c, n_bins)
        count += np.bincount(index + n_bins * y, minlength=2 * n_bins).reshape(2, n_bins)
    return BinSums(count.sum(0).astype(np.float64), count[1].astype(np.float64), total)


def sums_between(
    cuts: NDArray[np.int64],  # (bins + 1,), ranks in order of confidence
    confidence: NDArray[np.float64],
    *values: NDArray[np.float64],
) -> list[NDArray[np.float64]]:  # each (bins,)
    """Sums of each of the values over the samples whose rank in confidence lies between successive cuts.

    Samples of one confidence that a cut divides are shared between the bins in proportion, the average over all orders
    of the tied samples, so that the result does not depend on the order of the input.
    """
    order = np.argsort(confidence)
    c = confidence[order]
    first = np.flatnonzero(np.concatenate(([True], c[1:] != c[:-1])))  # where each distinct confidence starts
    ends = np.append(first, c.size)
    cumulative = (np.concatenate(([0.0], np.cumsum(np.add.reduceat(x[order], first)))) for x in values)
    # Linear within a tied group: np.interp shares the group out at every cut.
    return [np.diff(np.interp(cuts, ends, x)) for x in cumulative]


def equal_mass_cuts(n: int, n_bins: int) -> NDArray[np.int64]:
    """Ranks ``(bins + 1,)`` that cut n samples into bins whose sizes differ by at most one, larger ones first."""
    sizes = np.full(n_bins, n // n_bins, np.int64) + (np.arange(n_bins) < n % n_bins)
    return np.concatenate(([0], np.cumsum(sizes)))


def equal_mass_sums(confidence: NDArray[np.float64], correct: NDArray[np.bool_], n_bins: int) -> BinSums:
    """Sums over bins of equally many samples in order of confidence; at least as many samples as bins."""
    cuts = equal_mass_cuts(confidence.size, n_bins)
    right, total = sums_between(cuts, confidence, correct.astype(np.float64), confidence)
    return BinSums(np.diff(cuts).astype(np.float64), right, total)


def binned_error(sums: BinSums, norm: Norm, debiased: bool = False) -> float:
    """As :func:`binned_errors` of one set of bins, as a float."""
    return float(binned_errors(sums, norm, debiased))


def binned_errors(sums: BinSums, norm: Norm, debiased: bool = False) -> NDArray[np.float64]:
    r"""Calibration errors of bin sums ``(..., bins)``, as fractions ``(...)``; empty bins do not count.

    With share w_b, mean confidence c_b, accuracy a_b and n_b samples in bin b,

        l1   sum_b w_b |c_b - a_b|                      (expected calibration error)
        l2   sqrt(sum_b w_b (c_b - a_b)^2)              (root mean square calibration error)
        max  max_b |c_b - a_b|                          (maximum calibration error)

    Debiased, bins of one sample, whose variance cannot be estimated, count 0 and the others

        l2   (c_b - a_b)^2 - a_b (1 - a_b) / (n_b - 1), the root taken of the positive part of the sum
        l1   2 |g| - E|N(g, s^2)|, g = c_b - a_b and s^2 = a_b (1 - a_b) / n_b; the sum cut at 0
    """
    check_choice("norm", norm, ("l1", "l2", "max"))
    if check_flag("debiased", debiased) and norm == "max":
        raise ValueError("debiased must be False for norm='max': no bias correction of a maximum over bins is known.")
    count, correct, confidence = sums
    weight = count / count.sum(-1, keepdims=True)
    some = np.where(count > 0, count, 1.0)
    gap = np.abs(confidence - correct) / some  # 0 where empty, as both sums are
    if not debiased:
        if norm == "max":
            return gap.max(-1)
        return (weight * gap).sum(-1) if norm == "l1" else np.sqrt((weight * gap**2).sum(-1))
    accuracy = correct / some
    variance = accuracy * (1 - accuracy)
    several = count > 1
    if norm == "l2":  # Kumar et al. 2019, Sec. 4; Bröcker 2012
        square = gap**2 - variance / np.where(several, count - 1, 1.0)
        return np.sqrt(np.maximum((weight * np.where(several, square, 0.0)).sum(-1), 0.0))
    sigma = np.sqrt(variance / some)  # Kumar et al. 2019, App. B, with the mean of the folded normal in closed form
    scaled = np.divide(gap, sigma, out=np.full_like(gap, np.inf), where=sigma > 0)
    folded = sigma * np.sqrt(2 / np.pi) * np.exp(-(scaled**2) / 2) + gap * (2 * ndtr(scaled) - 1)
    return np.maximum((weight * np.where(several, 2 * gap - folded, 0.0)).sum(-1), 0.0)
