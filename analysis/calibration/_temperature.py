r"""Temperature scaling by maximum likelihood, from logits; from hidden states and a head in ``_head_temperature``.

With z the logits at temperature 1, the mean negative log-likelihood L of softmax(z / T) has

    d L / d log T    = E[H - CE]             H entropy, CE = -log p of the target           (theory, C3)
    d^2 L / d(log T)^2 = E[Var_p(z / T)] - E[H - CE]

L is convex in 1 / T, so E[H - CE] changes sign once and a bracketed root search over log T cannot miss the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.optimize import brentq

from ._inputs import logits_and_labels

BLOCK_ELEMENTS = 1 << 17  # logits handled at a time: the temporaries stay in the caches


class TemperatureFit(NamedTuple):
    """A fitted temperature.

    Attributes:
        temperature: The maximum-likelihood T, or the bound it ran into.
        standard_error: Of T, robust to misspecification (sandwich); nan at a bound.
        nll: Mean negative log-likelihood at T, in nats.
        nll_before: The same at T = 1.
        at_bound: Whether T is an end of ``bounds`` and the optimum lies beyond.
        n: Samples used.
    """

    temperature: float
    standard_error: float
    nll: float
    nll_before: float
    at_bound: bool
    n: int


class Moments(NamedTuple):
    """Means over the samples at one temperature."""

    slope: float  # H - CE
    slope_square: float  # (H - CE)^2
    nll: float


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in bounds)
    except (TypeError, ValueError) as error:
        raise TypeError(f"bounds must be two numbers, got {bounds!r}.") from error
    if not 0 < low <= 1 <= high < math.inf or low == high:
        raise ValueError(f"bounds must be finite with 0 < low <= 1 <= high and low < high, got {bounds!r}.")
    return low, high


def fit_result(
    temperature: float, moments: Moments, curvature: float, before: Moments, at_bound: bool, n: int
) -> TemperatureFit:
    # Sandwich: Var(log T) = E[slope^2] / (n curvature^2)
    error = math.nan if at_bound else temperature * math.sqrt(moments.slope_square / n) / curvature
    return TemperatureFit(float(temperature), float(error), float(moments.nll), float(before.nll), at_bound, n)


def fit_temperature(
    logits: Any,  # (..., V)
    target: Any,  # (...)
    *,
    ignore_index: int = -100,
    bounds: tuple[float, float] = (0.01, 100.0),
    allow_probabilities: bool = False,
) -> TemperatureFit:
    r"""Fit the temperature of maximum likelihood, :math:`\arg\min_T -\sum \log\operatorname{softmax}(z/T)_y`.

    Args:
        logits: ``(..., V)``; NumPy or torch. Log-probabilities are logits too; probabilities are refused. For a
            language model's vocabulary use :func:`fit_head_temperature`.
        target: Class indices ``(...)``, integers.
        ignore_index: Targets to leave out.
        bounds: Range of T to search, around 1.
        allow_probabilities: Take logits that look like probabilities or percentages, rounded and clipped ones too: none
            is negative, and rows that are not all zero sum to 1 or 100, each to 2 %, or, of ten rows and more, nine in
            ten to 10 %. Otherwise these are refused.

    Returns:
        The fit, to 1e-8 in log T; ``at_bound`` says when the optimum lies outside the bounds.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If logits are not finite or are probabilities, shapes or pandas indexes differ, a target is out of
            range, no sample is left, every row of logits is constant (then the likelihood does not depend on T), or the
            bounds do not hold 1.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, Sec. 4.2. arXiv:1706.04599

    Example:
        >>> fit = fit_temperature(np.log([[0.9, 0.1]] * 10), [0] * 7 + [1] * 3)  # confidence .9, accuracy .7
        >>> round(fit.temperature, 4), round(math.log(9) / math.log(7 / 3), 4)
        (2.5932, 2.5932)
    """
    low, high = check_bounds(bounds)
    z, y = logits_and_labels(logits, target, ignore_index=ignore_index, allow_probabilities=allow_probabilities)
    shifted = z.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted -= shifted.max(-1, keepdims=True)
    if not np.isfinite(shifted).all():
        raise ValueError("logits must differ by finite numbers within a row, got a difference that overflows.")
    if not shifted.any():
        raise ValueError("logits must differ within a row: the likelihood of constant ones does not depend on T.")
    at_target = shifted[np.arange(y.size), y]
    step = max(1, BLOCK_ELEMENTS // shifted.shape[-1])
    found: dict[float, tuple[Moments, float]] = {}

    def slope(log_t: float) -> float:
        if log_t not in found:
            sums, t = np.zeros(4), math.exp(log_t)
            for start in range(0, y.size, step):
                s, own = shifted[start : start + step], at_target[start : start + step]
                e = s / t
                np.exp(e, out=e)
                total = e.sum(-1)
                e *= s
                mean = e.sum(-1) / total  # E_p[z]
                variance = np.einsum("nv,nv->n", e, s) / total - mean**2
                gap = (own - mean) / t  # H - CE
                sums += gap.sum(), gap @ gap, (np.log(total) - own / t).sum(), variance.sum() / t**2
            sums /= y.size
            found[log_t] = Moments(*sums[:3].tolist()), float(sums[3] - sums[0])
        return found[log_t][0].slope

    root, at_bound = _root(slope, math.log(low), math.log(high))
    slope(root)
    temperature = min((low, high), key=lambda end: abs(math.log(end) - root)) if at_bound else math.exp(root)
    return fit_result(temperature, *found[root], found[0.0][0], at_bound, y.size)


def _root(slope: Callable[[float], float], low: float, high: float) -> tuple[float, bool]:
    """Where the slope turns from negative to positive, searched from 0 outwards, or the end that it does not reach."""
    end = high if slope(0.0) < 0 else low
    inner, stride = 0.0, 0.5
    while inner != end:
        outer = min(stride, end) if end > 0 else max(-stride, end)
        if (slope(outer) > 0) if end > 0 else (slope(outer) < 0):
            return cast(float, brentq(slope, inner, outer, xtol=1e-9)), False
        inner, stride = outer, 2 * stride
    return end, True
