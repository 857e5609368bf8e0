"""The reliability table: what a reliability diagram shows, with counts and intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from ..checks import check_choice
from ._binning import Binning, equal_mass_cuts, sum_by, sums_between, uniform_index
from ._inputs import check_bins, pairs
from ._intervals import OutcomeSums, check_level, wilson_interval

if TYPE_CHECKING:
    import pandas as pd


def reliability_table(
    confidence: Any, correct: Any, *, n_bins: int = 15, binning: Binning = "uniform", level: float = 0.95
) -> pd.DataFrame:
    """Tabulate confidence and accuracy of each bin, with counts, Wilson intervals and the band of calibration.

    Args:
        confidence: Probability given to the predicted class, any shape, in [0, 1].
        correct: Whether the prediction was right, of the same shape.
        n_bins: Number of bins, as in :func:`calibration_error`.
        binning: ``"uniform"`` or ``"quantile"``, as in :func:`calibration_error`.
        level: Level of the intervals.

    Returns:
        One row a bin, empty equal-width bins included (their means and ends are nan), with the columns

        - ``lower``, ``upper``: ends of the bin, or its smallest and largest confidence for ``"quantile"``;
        - ``n``: number of samples;
        - ``confidence``, ``accuracy``: means;
        - ``accuracy_low``, ``accuracy_high``: Wilson interval of the accuracy;
        - ``calibrated_low``, ``calibrated_high``: binomial range of the accuracy of a perfectly calibrated model.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`, or if ``level`` is outside (0, 1).

    Example:
        >>> table = reliability_table([0.9, 0.8, 0.9, 0.4], [1, 1, 0, 0], n_bins=2)
        >>> table[["n", "confidence", "accuracy"]].round(3).values.tolist()
        [[1.0, 0.4, 0.0], [3.0, 0.867, 0.667]]
    """
    check_choice("binning", binning, ("uniform", "quantile"))
    c, y = pairs(confidence, correct)
    n_bins = check_bins(n_bins, c.size if binning == "quantile" else None)
    values = [x * side for x in (np.ones_like(c), c, c * (1 - c)) for side in (~y, y)]
    if binning == "uniform":
        index, edges = uniform_index(c, n_bins), np.linspace(0, 1, n_bins + 1)
        parts = [sum_by(index, x, n_bins) for x in values]
        lower, upper = edges[:-1], edges[1:]
    else:
        cuts, ordered = equal_mass_cuts(c.size, n_bins), np.sort(c)
        parts = sums_between(cuts, c, *values)
        lower, upper = ordered[cuts[:-1]], ordered[cuts[1:] - 1]
    return make_table(OutcomeSums(*np.stack(parts).reshape(3, 2, -1)), lower, upper, level)


def make_table(sums: OutcomeSums, lower: NDArray[Any], upper: NDArray[Any], level: float) -> pd.DataFrame:
    """The table of :func:`reliability_table` from bin sums and bin ends."""
    import pandas as pd  # takes longer to import than the rest of this package together

    check_level(level)
    samples, correct, total = sums.total()
    count = np.rint(samples)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = total / samples, correct / samples
        # binom.ppf gives nan where the bin is empty
        ends = [binom.ppf(q, count, np.minimum(confidence, 1)) / count for q in ((1 - level) / 2, (1 + level) / 2)]
    low, high = wilson_interval(correct, samples, level)
    return pd.DataFrame(
        {
            "lower": lower,
            "upper": upper,
            "n": count.astype(np.int64),
            "confidence": confidence,
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "calibrated_low": ends[0],
            "calibrated_high": ends[1],
        }
    )
