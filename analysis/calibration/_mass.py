"""Equal-mass bins cut out of a histogram of confidences, and how wrong such a cut can be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._cells import Cells


def shared_between(
    cuts: NDArray[np.int64],  # (bins + 1,), ranks
    counts: NDArray[np.int64],  # (cells,)
    values: NDArray[Any],  # (..., cells)
) -> NDArray[np.float64]:  # (..., bins)
    """Sums of the values between the cuts; a cell that a cut divides is shared in proportion."""
    ends = np.concatenate(([0], np.cumsum(counts)))
    rows = np.reshape(values, (-1, counts.size))
    sums = [np.diff(np.interp(cuts, ends, np.concatenate(([0.0], np.cumsum(row))))) for row in rows]
    return np.reshape(sums, (*values.shape[:-1], cuts.size - 1))


def mass_bound(
    counts: NDArray[np.int64],  # (2, cells)
    confidence: NDArray[np.float64],  # (cells,)
    cuts: NDArray[np.int64],  # (bins + 1,)
    cells: Cells,
) -> float:
    r"""Bound of the distance between the l1 error of :func:`shared_between` and that of the samples.

    Let a cut leave j of a cell's m samples below it, s of the m right, their mean confidence c in [lower, upper]. The
    samples below hold between max(0, s - (m - j)) and min(j, s) right ones, where js / m is assumed; their confidences,
    the j smallest, add up to j c less at most min(j (c - lower), (m - j) (upper - c)). What one cut moves changes two
    bins, so the l1 error moves by at most 2 / n times the sum over the cuts.
    """
    cuts, ends = cuts[1:-1], np.cumsum(counts.sum(0))
    cell = np.searchsorted(ends, cuts)  # holds the last sample below the cut
    m, s = counts.sum(0)[cell], counts[1][cell]
    j = cuts - (ends[cell] - m)
    assumed = j * s / m
    right = np.maximum(np.minimum(j, s) - assumed, assumed - np.maximum(0, s - (m - j)))
    mean, lower, upper = confidence[cell] / m, cells.lower[cell], cells.upper[cell]
    moved = np.maximum(np.minimum(j * (mean - lower), (m - j) * (upper - mean)), 0)
    return float(2 * (right + moved).sum() / ends[-1])
