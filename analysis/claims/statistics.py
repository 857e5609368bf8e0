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
from scipy.special import stdtrit

__all__ = [
    "Effect", "bootstrap_half_width", "explained_effect", "explained_variance", "half_width", "mean_effect",
    "mean_interval", "resamples",
]  # fmt: skip

Array = NDArray[np.float64]
_EXHAUSTIVE = 6  # seeds up to which every resample is used: 6^6 = 46656
_LEVEL = 0.95


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
        if np.isnan(self.low) and self.seeds == 1:
            return f"{self.mean:.4f} (one seed)"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@lru_cache(maxsize=8)
def resamples(seeds: int) -> Array:
    """Return the weights of the bootstrap over seeds, ``(resamples, seeds)``, whose rows sum to 1.

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


def half_width(values: ArrayLike) -> Array:
    """Return half the 95 % interval of the mean over the first axis, one entry per seed (:func:`bootstrap_half_width`).

    For a mean this is the t interval, exact for normal values.

    Values are ``(seeds, ...)``, the result ``(...)``; nan with one seed.

    Raises:
        ValueError: If there is no seed.

    Example:
        >>> round(float(half_width([1.0, 2.0, 6.0])), 3)  # 4.303 x 2.646 / sqrt(3)
        6.572
    """
    array = np.asarray(values, np.float64)
    if not array.shape[0]:
        raise ValueError("values must hold at least one seed, got none.")
    centred = array - array.mean(axis=0)
    return bootstrap_half_width(np.tensordot(resamples(array.shape[0]), centred, axes=1), array.shape[0])


def bootstrap_half_width(replicates: ArrayLike, seeds: int) -> Array:
    """Return half the 95 % interval of a statistic: Student's quantile x its spread over :func:`resamples`.

    Quantiles of the resamples themselves are too narrow for few seeds: they cover 74 % with three and 83 % with five.
    Resamples of n values spread too little by sqrt((n - 1) / n), and an error estimated from n values is uncertain
    itself; Student's quantile of n - 1 degrees of freedom allows for that (Hesterberg 2015, "What teachers should know
    about the bootstrap", The American Statistician 69, 371-386).

    Args:
        replicates: ``(resamples, ...)``.
        seeds: n.

    Returns:
        ``(...)``; nan with one seed, which says nothing of its spread.
    """
    spread = np.asarray(replicates, np.float64).std(axis=0)
    if seeds < 2:
        return np.full(spread.shape, np.nan)
    return float(stdtrit(seeds - 1, 0.5 + _LEVEL / 2)) * np.sqrt(seeds / (seeds - 1)) * spread


def mean_interval(values: ArrayLike) -> tuple[Array, Array]:
    """Return both ends of the 95 % interval of the mean over the first axis, one entry per seed (:func:`half_width`).

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 6.0])
        >>> round(float(low), 3), round(float(high), 3)
        (-3.572, 9.572)
    """
    half = half_width(values)
    mean = np.asarray(values, np.float64).mean(axis=0)
    return mean - half, mean + half


def mean_effect(frame: pd.DataFrame, value: str, *, cell: Sequence[str], seed: str = "data_seed") -> Effect:
    """Average a column over cells, with a 95 % t interval over whole seeds, of Satterthwaite's degrees of freedom.

    The section "Statistics" of ``docs/study.md`` says how and why. In short: cells of one seed are not independent, so
    that seeds count as a whole, over all cells at once; each cell's mean is taken out first, so that a missing row
    shifts nothing; a cell of one seed is left out where another one has more.

    Args:
        frame: One line per cell and seed.
        value: Column, usually a paired difference.
        cell: Columns that name a cell.
        seed: Column of the seed.

    Returns:
        The effect, with the cells that are in it; with one seed in every cell the interval is nan, without any line all
        of it is, and it has no cells.
    """
    if frame.empty:
        return Effect(float("nan"), float("nan"), float("nan"), 0, 0)
    size = np.asarray(frame.groupby(list(cell), dropna=False)[value].transform("size"))
    if size.max() > 1:
        frame = frame.loc[size > 1]
    values = frame[value].to_numpy(np.float64)
    numbers = frame.groupby(list(cell), dropna=False).ngroup().to_numpy()
    counts = np.bincount(numbers)
    means = np.bincount(numbers, values) / counts
    cells, mean = counts.size, float(means.mean())
    _, seeds = np.unique(frame[seed].to_numpy(), return_inverse=True)
    if counts.max() < 2:
        return Effect(mean, float("nan"), float("nan"), int(seeds.max()) + 1, cells)
    rest = values - means[numbers]
    # by how much each seed moves the mean over cells; the squares add up to the mean's variance
    scaled = rest * np.sqrt(counts / (counts - 1))[numbers] / counts[numbers] / cells
    error = np.sqrt((np.bincount(seeds, scaled) ** 2).sum())
    half = float(stdtrit(_freedom(rest, numbers, counts), 0.5 + _LEVEL / 2) * error)
    return Effect(mean, mean - half, mean + half, int(seeds.max()) + 1, cells)


def _freedom(rest: Array, numbers: NDArray[np.intp], counts: NDArray[np.intp]) -> float:
    """Satterthwaite's degrees of freedom of a mean over cells, at most those of the largest cell."""
    most = float(counts.max() - 1)
    variance = np.bincount(numbers, rest**2) / (counts - 1) / counts
    parts = float((variance**2 / (counts - 1)).sum())
    return min(float(variance.sum()) ** 2 / parts, most) if parts > 0 else most


def explained_variance(
    predictor: ArrayLike, effect: ArrayLike, *, same: ArrayLike | None = None, folds: int = 10
) -> float:
    """Return the share of the variance over cells that a monotone function of one predictor explains, out of sample.

    Isotonic regression (rising or falling, whichever fits the training cells better) on all cells but a tenth, which it
    then predicts; 1 minus the mean square of what is left over the variance. 0 or less: no help.

    Args:
        predictor: One number per cell; only its order counts, and its logarithm between cells.
        effect: One number per cell.
        same: One label per cell; cells of one label are copies of one thing, and never lie on both sides of a split.
            Without it every cell stands for itself.
        folds: Parts, made by counting along the order of the predictor: of the labels, at their first cell.

    Returns:
        At most 1.

    Raises:
        ValueError: If there are fewer cells, or labels, than twice the folds.
    """
    x, y = np.asarray(predictor, np.float64), np.asarray(effect, np.float64)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    labels, _ = pd.factorize(np.arange(x.size) if same is None else np.asarray(same)[order])  # by first appearance
    if (found := labels.max(initial=-1) + 1) < 2 * folds:
        raise ValueError(f"predictor must have at least {2 * folds} cells that differ, got {found}.")
    fold, predicted = labels % folds, np.empty(x.size)
    for part in range(folds):
        train, test = fold != part, fold == part
        fits = [isotonic_regression(y[train], increasing=increasing).x for increasing in (True, False)]
        best = min(fits, key=lambda fitted: float(((fitted - y[train]) ** 2).sum()))
        where, inverse = np.unique(x[train], return_inverse=True)  # tied predictors get one value
        level = np.bincount(inverse, best) / np.bincount(inverse)
        predicted[test] = np.interp(x[test], where, level)
    return float(1 - ((y - predicted) ** 2).mean() / y.var())


def explained_effect(
    frame: pd.DataFrame,
    predictor: str,
    effect: str,
    *,
    cell: str,
    minus: str | None = None,
    same: str | None = None,
    seed: str = "data_seed",
) -> Effect:
    """Return :func:`explained_variance` over means of cells, with a 95 % interval over seeds that ends at 1.

    Its error is that of all resamples of the seeds (:func:`bootstrap_half_width`).

    Args:
        frame: One line per cell and seed.
        predictor: Column; a cell's is the mean over its seeds, as its effect.
        effect: Column.
        cell: Column that names a cell.
        minus: Column of a second predictor, whose share is subtracted: the paired difference, over the same resamples.
        same: Column, one value a cell: ``same`` of :func:`explained_variance`.
        seed: Column of the seed. A cell that has none of a resample's seeds stays as it is.

    Returns:
        The share, or the difference of two; with one seed the interval is nan.
    """
    lines, _ = pd.factorize(frame[cell], sort=True)
    names, columns = np.unique(frame[seed].to_numpy(), return_inverse=True)
    predictors = [predictor] if minus is None else [predictor, minus]
    values = np.full((1 + len(predictors), lines.max() + 1, names.size), np.nan)
    values[:, lines, columns] = frame[[effect, *predictors]].to_numpy(np.float64).T
    there, known = np.isfinite(values[0]), np.nan_to_num(values)
    labels = None if same is None else frame.groupby(lines)[same].first().to_numpy()

    def share(weights: Array) -> float:
        weight = there * weights
        weight = np.where(weight.any(axis=1, keepdims=True), weight, there)
        y, *xs = (known * weight).sum(axis=2) / weight.sum(axis=1)
        first, *others = (explained_variance(x, y, same=labels) for x in xs)
        return first - sum(others)

    # many resamples are the same seeds in another order
    distinct, inverse = np.unique(resamples(names.size), axis=0, return_inverse=True)
    replicates = np.array([share(weights) for weights in distinct])[inverse.reshape(-1)]
    value = share(np.full(names.size, 1 / names.size))
    half = float(bootstrap_half_width(replicates, names.size))
    return Effect(value, value - half, min(value + half, 1.0), names.size, len(there))
