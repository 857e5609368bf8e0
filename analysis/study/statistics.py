"""Intervals over seeds, and how much of an effect one number explains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

__all__ = ["Effect", "explained_variance", "mean_effect", "mean_interval", "resamples"]

Array = NDArray[np.float64]
_EXHAUSTIVE = 6  # seeds up to which every resample is used: 6^6 = 46656
_TAILS = (2.5, 97.5)


class Effect(NamedTuple):
    """A mean with its 95 % interval over seeds; all nan where no cell was left."""

    mean: float
    low: float
    high: float
    seeds: int
    cells: int

    def __str__(self) -> str:
        if not self.cells:
            return "not known (no rows)"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@lru_cache(maxsize=8)
def resamples(seeds: int) -> Array:
    """Weights of the bootstrap over seeds, ``(resamples, seeds)``, rows summing to 1.

    All ``seeds ** seeds`` resamples up to 6 seeds, so that nothing is random; 10,000 of a fixed generator beyond.

    Example:
        >>> resamples(2).tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]
    """
    if seeds <= _EXHAUSTIVE:
        draws = np.array(list(product(range(seeds), repeat=seeds)))
    else:
        draws = np.random.default_rng(0).integers(seeds, size=(10_000, seeds))
    return np.stack([(draws == i).mean(axis=1) for i in range(seeds)], axis=1)


def mean_interval(values: ArrayLike) -> tuple[Array, Array]:
    """Ends of the 95 % percentile bootstrap interval of the mean over the first axis, one entry per seed.

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 6.0])
        >>> float(low), float(high)  # with three seeds: the smallest and the largest
        (1.0, 6.0)
    """
    array = np.asarray(values, np.float64)
    if not array.shape[0]:
        raise ValueError("values must hold at least one seed, got none.")
    means = np.tensordot(resamples(array.shape[0]), array, axes=1)
    low, high = np.percentile(means, _TAILS, axis=0, method="inverted_cdf")
    return low, high


def mean_effect(frame: pd.DataFrame, value: str, *, cell: Sequence[str], seed: str = "data_seed") -> Effect:
    """Mean over cells of a column, with a 95 % bootstrap interval over seeds.

    Seeds are resampled as a whole, over all cells at once: cells of one seed share teacher and data and are not
    independent. What differs between cells is taken out first, so that a missing row shifts nothing.

    Args:
        frame: One line per cell and seed.
        value: Column, usually a paired difference.
        cell: Columns that name a cell.
        seed: Column of the seed.

    Returns:
        The effect; with one seed the interval is nan, without any line all of it is, and it has no cells.
    """
    if frame.empty:
        return Effect(float("nan"), float("nan"), float("nan"), 0, 0)
    values = frame[value].to_numpy(np.float64)
    numbers = frame.groupby(list(cell), dropna=False).ngroup().to_numpy()
    counts = np.bincount(numbers)
    means = np.bincount(numbers, values) / counts
    cells, mean = counts.size, float(means.mean())
    _, seeds = np.unique(frame[seed].to_numpy(), return_inverse=True)
    rest = np.bincount(seeds, values - means[numbers]) / np.bincount(seeds)
    if rest.size < 2:
        return Effect(mean, float("nan"), float("nan"), rest.size, cells)
    low, high = mean_interval(rest)
    return Effect(mean, mean + float(low), mean + float(high), rest.size, cells)


def explained_variance(predictor: ArrayLike, effect: ArrayLike, *, folds: int = 10) -> float:
    """Share of the variance of an effect over cells that a monotone function of one predictor explains, out of sample.

    Isotonic regression (rising or falling, whichever fits the training cells better) on all cells but a tenth, which it
    then predicts; 1 minus the mean square of what is left over the variance. 0 or less: no help.

    Args:
        predictor: One number per cell; only its order counts, and its logarithm between cells.
        effect: One number per cell.
        folds: Parts, made by counting along the order of the predictor.

    Returns:
        At most 1.

    Raises:
        ValueError: If there are fewer cells than twice the folds.
    """
    x, y = np.asarray(predictor, np.float64), np.asarray(effect, np.float64)
    if x.size < 2 * folds:
        raise ValueError(f"predictor must have at least {2 * folds} cells, got {x.size}.")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    fold, predicted = np.arange(x.size) % folds, np.empty(x.size)
    for part in range(folds):
        train, test = fold != part, fold == part
        fits = [isotonic_regression(y[train], increasing=increasing).x for increasing in (True, False)]
        best = min(fits, key=lambda fitted: float(((fitted - y[train]) ** 2).sum()))
        where, inverse = np.unique(x[train], return_inverse=True)  # tied predictors get one value
        level = np.bincount(inverse, best) / np.bincount(inverse)
        predicted[test] = np.interp(x[test], where, level)
    return float(1 - ((y - predicted) ** 2).mean() / y.var())
