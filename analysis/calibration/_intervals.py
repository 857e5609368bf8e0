"""Sampling error: Wilson intervals, bootstrap from bin sums, and the error that perfect calibration would show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from ..checks import check_choice, check_count, interval, one_index, require_broadcast
from ._binning import BinSums, Norm, binned_error, binned_errors

_MOST_DRAWS = 2**25  # bins times resamples: arrays of 256 MB, of which there are about ten


class OutcomeSums(NamedTuple):
    """Sums of each bin, of wrong predictions and of right ones: arrays ``(2, bins)``."""

    samples: NDArray[np.float64]
    confidence: NDArray[np.float64]
    variance: NDArray[np.float64]  # of c (1 - c)

    def total(self) -> BinSums:
        """Both outcomes together."""
        return BinSums(self.samples.sum(0), self.samples[1], self.confidence.sum(0))


class NoiseFloor(NamedTuple):
    """The error that a perfectly calibrated model of the same confidences would show, and a test against it.

    Attributes:
        mean: Mean of that error.
        high: Its quantile at the level asked for.
        p_value: Share of such models whose error is at least the one measured; small: miscalibrated beyond chance.
    """

    mean: float
    high: float
    p_value: float


class ErrorInterval(NamedTuple):
    """A binned error with its sampling error.

    Attributes:
        error: The plug-in value, which lies above the truth on average.
        low: Lower end of the interval for the binned error at population.
        high: Upper end.
        p_value: Of the test against the noise floor; above 1 - level the interval reaches down to 0.
    """

    error: float
    low: float
    high: float
    p_value: float


def check_level(level: float) -> None:
    """Refuse a level outside (0, 1)."""
    if isinstance(level, bool) or not isinstance(level, (int, float)):
        raise TypeError(f"level must be a number, got {type(level).__name__}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")


@one_index
def wilson_interval(
    correct: ArrayLike, samples: ArrayLike, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the Wilson score interval of a share, elementwise; nan where there is no sample.

    Args:
        correct: Number of right predictions, any shape; may be fractional.
        samples: Number of predictions, of a shape that broadcasts with it.
        level: Level of the interval.

    Returns:
        Lower and upper ends, fractions.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If not 0 <= correct <= samples, or ``level`` is outside (0, 1).

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(float(low), 4), round(float(high), 4)
        (0.4902, 0.9433)
    """
    check_level(level)
    correct, samples = interval("correct", correct), interval("samples", samples)
    require_broadcast(correct=correct, samples=samples)
    slack = 1e-9 * samples  # sums over divided cells round
    if not ((samples >= 0) & np.isfinite(samples) & (correct >= -slack) & (correct <= samples + slack)).all():
        raise ValueError("correct must be in [0, samples], and samples finite and at least 0.")
    z2 = ndtri((1 + level) / 2) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip(correct / samples, 0, 1)
        centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
        half = np.sqrt(z2 * (share * (1 - share) / samples + z2 / (4 * samples**2))) / (1 + z2 / samples)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def _check(norm: Norm, n_resamples: int, bins: int, seed: int) -> int:
    check_choice("norm", norm, ("l1", "l2"))  # the maximum over bins has no usable bootstrap
    check_count("seed", seed, 0)
    n_resamples = check_count("n_resamples", n_resamples, 100)
    if n_resamples * bins > _MOST_DRAWS:
        raise ValueError(
            f"n_resamples times the number of bins must be at most {_MOST_DRAWS}, got {n_resamples} and {bins}: all "
            "are held at once."
        )
    return n_resamples


def noise_floor(
    sums: OutcomeSums, norm: Norm = "l1", *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> NoiseFloor:
    """Errors of calibrated models, simulated bin by bin.

    The number right in a bin is drawn binomial at the bin's mean confidence and its deviation scaled to the variance
    sum c (1 - c) that the confidences of the bin imply.
    """
    check_level(level)
    n_resamples = _check(norm, n_resamples, sums.samples.shape[-1], seed)
    total = sums.total()
    # A shared tied group may leave a fractional count; one sample more or less does not matter to the scaled deviation.
    count = np.maximum(np.rint(total.samples), 1).astype(np.int64)
    mean = np.divide(total.confidence, total.samples, out=np.zeros_like(total.samples), where=total.samples > 0)
    mean = np.clip(mean, 0, 1)
    spread = count * mean * (1 - mean)
    scale = np.sqrt(np.divide(sums.variance.sum(0), spread, out=np.zeros_like(spread), where=spread > 0))
    # A row a bin: the generator prepares a distribution once for a run of equal parameters.
    right = np.random.default_rng(seed).binomial(count[:, None], mean[:, None], size=(count.size, n_resamples)).T
    deviation = np.asarray((right - count * mean) * scale, np.float64)  # of the number right from its expectation
    samples = np.broadcast_to(total.samples, deviation.shape)
    floor = binned_errors(BinSums(samples, deviation, np.zeros_like(deviation)), norm)
    measured = binned_error(total, norm)
    # Rounding must not tell equal errors apart: at confidences of 0 and 1 all of them are 0.
    p_value = (1 + np.count_nonzero(floor >= measured - 1e-12)) / (1 + n_resamples)
    return NoiseFloor(float(floor.mean()), float(np.quantile(floor, level)), float(p_value))


def error_interval(
    sums: OutcomeSums, norm: Norm = "l1", *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> ErrorInterval:
    """Debiased error, plus and minus the normal quantile of its standard error, bootstrapped from the bin sums.

    A resample draws the number of wrong and right predictions of every bin as Poisson variables, which the division by
    their sum makes multinomial, and the sum of their confidences from its normal limit. The standard error is that of
    the debiased error: it varies more than the plug-in error, whose interval would be too short. Where the test against
    the noise floor does not reject calibration the bootstrap has no validity; there the interval starts at 0 and ends
    no lower than the bootstrap quantile of the plug-in error.
    """
    check_level(level)
    n_resamples = _check(norm, n_resamples, sums.samples.shape[-1], seed)
    total = sums.total()
    rng = np.random.default_rng(seed)
    mean, square = (
        np.divide(x, sums.samples, out=np.zeros_like(x), where=sums.samples > 0)
        for x in (sums.confidence, sums.confidence - sums.variance)  # c^2 = c - c (1 - c)
    )
    spread = np.maximum(square - mean**2, 0)
    drawn = rng.poisson(sums.samples, size=(n_resamples, *sums.samples.shape)).astype(np.float64)
    drawn[drawn.sum((-2, -1)) == 0] = sums.samples  # of a handful of samples all may have been left out
    confidence = drawn * mean + np.sqrt(drawn * spread) * rng.standard_normal(drawn.shape)
    resampled = BinSums(drawn.sum(1), drawn[:, 1], confidence.sum(1))
    debiased = binned_error(total, norm, debiased=True)
    half = ndtri((1 + level) / 2) * binned_errors(resampled, norm, debiased=True).std(ddof=1)
    low, high = max(debiased - half, 0.0), debiased + half
    p_value = noise_floor(sums, norm, level=level, n_resamples=n_resamples, seed=seed).p_value
    if p_value > 1 - level:
        low, high = 0.0, max(high, float(np.quantile(binned_errors(resampled, norm), (1 + level) / 2)))
    return ErrorInterval(binned_error(total, norm), float(low), float(min(high, 1.0)), p_value)
