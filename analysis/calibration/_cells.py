"""The cells of a calibration state: equal-width bins of confidence refined by equal steps of its logit.

A cell is the intersection of a bin (k / n_bins, (k + 1) / n_bins] and a step [j, j + 1) / RESOLUTION of the logit.
Along the confidence axis both indices only grow, so their sum numbers the intersections in order, and each bin of
either partition is a run of cells: equal-width errors are exact, equal-mass ones divide at most one cell per cut.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ._binning import uniform_index

LOWEST, HIGHEST, RESOLUTION = -16, 48, 64  # logits; a softmax over 2^18 classes stays above -12.5
STEPS = (HIGHEST - LOWEST) * RESOLUTION


def _step(logit: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.clip((logit - LOWEST) * RESOLUTION, 0, STEPS - 1).astype(np.intp)


def _logit(confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(confidence) - np.log1p(-confidence)


class Cells:
    """Numbering of the cells for one number of equal-width bins.

    Attributes:
        size: Number of cells.
        starts: First cell of each equal-width bin ``(n_bins,)``.
        lower: Lower end of each cell in confidence ``(size,)``.
        upper: Upper end ``(size,)``.
    """

    def __init__(self, n_bins: int) -> None:
        self.n_bins = n_bins
        self.size = STEPS + n_bins - 1
        edges = np.linspace(0, 1, n_bins + 1)
        self._first = _step(_logit(np.nextafter(edges[:-1], 1)))  # the steps that meet each bin
        self._last = _step(_logit(edges[1:]))
        self.starts = self._first + np.arange(n_bins)
        steps = expit(LOWEST + np.arange(1, STEPS) / RESOLUTION)
        inner = np.sort(np.concatenate([steps, edges[1:-1]]))
        self.lower = np.concatenate([[0.0], inner])
        self.upper = np.concatenate([inner, [1.0]])

    def index(self, confidence: NDArray[np.float64], logit: NDArray[np.float64] | None = None) -> NDArray[np.intp]:
        """Cell of each confidence; ``logit`` tells apart confidences that rounding made equal (to 1.0, mostly)."""
        bins = uniform_index(confidence, self.n_bins)
        step = _step(_logit(confidence) if logit is None else logit)
        # Where rounding of the logit disagrees with the bin, the bin decides.
        return np.clip(step, self._first[bins], self._last[bins]) + bins


@lru_cache(maxsize=16)
def cells(n_bins: int) -> Cells:
    """The numbering for ``n_bins``, made once."""
    return Cells(n_bins)
