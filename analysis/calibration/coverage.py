"""Measured coverage of the intervals and size of the noise-floor test, on simulated data of known binned error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta
from tqdm import tqdm

from ._binning import Binning, BinSums, Norm, binned_error, equal_mass_cuts, sum_by, uniform_index
from ._state import CalibrationState

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ACCURACIES", "CONFIDENCES", "simulate"]

# Beta parameters of the confidences: many near 1, as a language model's, and two-sided.
CONFIDENCES = {"peaked": (1.2, 0.6), "two-sided": (0.7, 0.7)}
# Probability of being right at each confidence, with the shape of the miscalibration.
ACCURACIES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "calibrated": lambda c: c,
    "slightly over": lambda c: c**1.05,
    "over": lambda c: c**1.8,
    "under": lambda c: c**0.5,
    "shift": lambda c: np.maximum(c - 0.1, 0),
    "temperature": lambda c: expit(0.4 * logit(np.clip(c, 1e-12, 1 - 1e-12))),
}


@lru_cache(maxsize=4)
def _quantiles(confidence: str, n_points: int) -> NDArray[np.float64]:
    return beta.ppf((np.arange(n_points) + 0.5) / n_points, *CONFIDENCES[confidence])


def _population(confidence: str, accuracy: str, binning: Binning, n_points: int = 1 << 16) -> BinSums:
    """Bin sums of the whole population, by the midpoint rule over quantiles of the confidence; right to 1e-6."""
    c = _quantiles(confidence, n_points)
    if binning == "uniform":
        index = uniform_index(c, 15)
    else:
        index = np.repeat(np.arange(15), np.diff(equal_mass_cuts(n_points, 15)))
    return BinSums(*(sum_by(index, x, 15) for x in (np.ones_like(c), ACCURACIES[accuracy](c), c)))


def simulate(
    *,
    confidences: Iterable[str] = tuple(CONFIDENCES),
    accuracies: Iterable[str] = tuple(ACCURACIES),
    sizes: Iterable[int] = (2000, 10_000),
    binnings: Iterable[Binning] = ("uniform", "quantile"),
    n_datasets: int = 2000,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the coverage of :meth:`analysis.calibration.CalibrationState.interval` over simulated data sets.

    The truth is the same binned error, 15 bins, at population: no sampled labels and no sampled confidences.

    Args:
        confidences: Keys of ``CONFIDENCES``.
        accuracies: Keys of ``ACCURACIES``.
        sizes: Samples a data set.
        binnings: ``"uniform"``, ``"quantile"``.
        n_datasets: Data sets for each row.
        n_resamples: Bootstrap resamples for each interval.
        level: Level of the intervals.
        seed: Seed of everything.

    Returns:
        One row for each case, binning and norm: the true error, the share of intervals that hold it, the means of the
        plug-in and the debiased estimate, the mean interval, and the share of data sets whose noise-floor test rejects
        calibration at ``1 - level``.

    Example:
        >>> table = simulate(confidences=["peaked"], accuracies=["over"], sizes=[500], n_datasets=5, n_resamples=100)
        >>> len(table), table["true_error"].round(3).tolist()[:2]
        (4, [0.121, 0.14])
    """
    import pandas as pd

    rows = []
    cases = [(c, a, n) for c in confidences for a in accuracies for n in sizes]
    bar = tqdm(total=len(cases) * n_datasets, desc="coverage", unit="set", disable=None)
    norms: tuple[Norm, ...] = ("l1", "l2")
    kinds: list[tuple[Binning, Norm]] = [(binning, norm) for binning in binnings for norm in norms]
    for i, (name, shape, n) in enumerate(cases):
        rng = np.random.default_rng([seed, i])
        found: list[list[tuple[float, ...]]] = [[] for _ in kinds]
        for dataset in range(n_datasets):
            c = rng.beta(*CONFIDENCES[name], n)
            state = CalibrationState().update(c, rng.random(n) < ACCURACIES[shape](c))
            for (binning, norm), results in zip(kinds, found, strict=True):
                interval = state.interval(
                    norm=norm, binning=binning, level=level, n_resamples=n_resamples, seed=dataset
                )
                debiased = state.calibration_error(norm=norm, binning=binning, debiased=True)
                results.append((*interval, debiased))
            bar.update()
        for (binning, norm), results in zip(kinds, found, strict=True):
            truth = binned_error(_population(name, shape, binning), norm)
            error, low, high, p_value, debiased = np.array(results).T
            rows.append(
                {
                    "confidences": name,
                    "accuracy": shape,
                    "n": n,
                    "binning": binning,
                    "norm": norm,
                    "true_error": truth,
                    "coverage": np.mean((low <= truth + 1e-12) & (truth <= high)),
                    "mean_plug_in": error.mean(),
                    "mean_debiased": debiased.mean(),
                    "mean_low": low.mean(),
                    "mean_high": high.mean(),
                    "rejected": np.mean(p_value <= 1 - level),
                    "level": level,
                    "n_datasets": n_datasets,
                    "n_resamples": n_resamples,
                    "seed": seed,
                }
            )
    bar.close()
    return pd.DataFrame(rows)
