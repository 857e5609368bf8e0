"""Intervals over documents: tokens of one document are not independent, documents are resampled as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TAILS = (2.5, 97.5)


class Estimate(NamedTuple):
    """A number with its 95 % interval; nan ends where there is one document only."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


class Documents:
    """Sums over the tokens of each document, and their bootstrap.

    Args:
        document: Index of the document of each token ``(n,)``.
        resamples: Number of bootstrap resamples.
        seed: Of the resamples.
    """

    def __init__(self, document: NDArray[np.int64], *, resamples: int = 2000, seed: int = 0) -> None:
        _, self.index = np.unique(document, return_inverse=True)
        self.count = int(self.index.max()) + 1
        draws = np.random.default_rng(seed).multinomial(self.count, np.full(self.count, 1 / self.count), size=resamples)
        self.weights = np.vstack([np.ones(self.count), draws.astype(np.float64)])  # the data themselves first

    def sums(self, values: NDArray[np.generic]) -> Array:
        """``(1 + resamples, ...)``: sums of values ``(n, ...)`` over the tokens, the data's own first."""
        flat = np.asarray(values, np.float64).reshape(len(self.index), -1)
        per_document = np.zeros((self.count, flat.shape[1]))
        np.add.at(per_document, self.index, flat)
        return (self.weights @ per_document).reshape(-1, *np.shape(values)[1:])

    def estimate(self, statistic: Callable[..., Array], *values: NDArray[np.generic]) -> Estimate:
        """A function of sums, with its percentile interval.

        Args:
            statistic: Takes the sums of each of ``values`` ``(1 + resamples, ...)``, gives ``(1 + resamples,)``.
            *values: Of each token.
        """
        found = self._all(statistic, *values)
        return Estimate(float(found[0]), *self._ends(found[1:]))

    def error(self, statistic: Callable[..., Array], *values: NDArray[np.generic]) -> Estimate:
        """As :meth:`estimate` for a binned error: interval reflected about the value (basic bootstrap), from 0.

        Binned errors of a resample lie above those of the data as these lie above the truth; reflecting takes both out.
        """
        found = self._all(statistic, *values)
        low, high = self._ends(found[1:])
        return Estimate(float(found[0]), max(2 * float(found[0]) - high, 0.0), max(2 * float(found[0]) - low, 0.0))

    def mean(self, values: NDArray[np.generic], kept: NDArray[np.bool_] | None = None) -> Estimate:
        """Mean over the tokens, or those kept; resamples without any are left out."""
        share = np.ones(len(self.index)) if kept is None else kept.astype(np.float64)
        return self.estimate(lambda total, n: total / n, np.where(share > 0, values, 0.0), share)

    def _all(self, statistic: Callable[..., Array], *values: NDArray[np.generic]) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(statistic(*(self.sums(v) for v in values)), np.float64)

    def _ends(self, found: Array) -> tuple[float, float]:
        if self.count < 2:
            return float("nan"), float("nan")
        low, high = np.nanpercentile(found, _TAILS, method="inverted_cdf")  # an index may be infinite
        return float(low), float(high)
