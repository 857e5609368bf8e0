r"""Temperature scaling by maximum likelihood, from logits or from streamed hidden states and a head.

With z the logits at temperature 1, the mean negative log-likelihood L of softmax(z / T) has

    d L / d log T    = E[H - CE]             H entropy, CE = -log p of the target           (theory, C3)
    d^2 L / d(log T)^2 = E[Var_p(z / T)] - E[H - CE]

L is convex in 1 / T, so E[H - CE] changes sign once and a bracketed root search over log T cannot miss the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from ..checks import as_numpy
from ._inputs import logits_and_labels

if TYPE_CHECKING:
    from torch import Tensor

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


class _Moments(NamedTuple):
    """Means over the samples at one temperature."""

    slope: float  # H - CE
    slope_square: float  # (H - CE)^2
    nll: float


def _check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in bounds)
    except (TypeError, ValueError) as error:
        raise TypeError(f"bounds must be two numbers, got {bounds!r}.") from error
    if not 0 < low <= 1 <= high < math.inf or low == high:
        raise ValueError(f"bounds must be finite with 0 < low <= 1 <= high and low < high, got {bounds!r}.")
    return low, high


def _result(
    temperature: float, moments: _Moments, curvature: float, before: _Moments, at_bound: bool, n: int
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
        allow_probabilities: Take logits whose rows all lie in [0, 1] and sum to 1, which otherwise are refused.

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
    low, high = _check_bounds(bounds)
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
    found: dict[float, tuple[_Moments, float]] = {}

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
            found[log_t] = _Moments(*sums[:3].tolist()), float(sums[3] - sums[0])
        return found[log_t][0].slope

    root, at_bound = _root(slope, math.log(low), math.log(high))
    slope(root)
    temperature = min((low, high), key=lambda end: abs(math.log(end) - root)) if at_bound else math.exp(root)
    return _result(temperature, *found[root], found[0.0][0], at_bound, y.size)


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


def fit_head_temperature(
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]] | Iterable[tuple[Tensor, Tensor]],
    linear_weight: Tensor,  # (V, D)
    *,
    linear_bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    bounds: tuple[float, float] = (0.01, 100.0),
) -> TemperatureFit:
    """Fit the maximum-likelihood temperature to streamed hidden states and a head; N x V logits are never held.

    Each pass over the batches evaluates eight temperatures at once through :func:`kernel.head_statistics`; five or six
    passes suffice.

    Args:
        batches: Pairs of hidden states ``(..., D)`` and targets ``(...)``: a sequence, or a function that returns a
            fresh iterator, as they are read several times.
        linear_weight: Head ``(V, D)``.
        linear_bias: Its bias.
        softcap: Cap of the logits, before the temperature.
        logit_scale: Scale of the product.
        ignore_index: Targets to leave out.
        bounds: Range of T to search, around 1.

    Returns:
        The fit, to 1e-6 in log T or the accuracy of the statistics' dtype.

    Raises:
        TypeError: If ``batches`` is an iterator, which could be read only once, or an argument has the wrong type.
        ValueError: As :func:`kernel.head_statistics`, if no token is left, the likelihood does not depend on T, or the
            bounds do not hold 1.

    Example:
        >>> import torch
        >>> hidden, head = torch.eye(2).repeat(10, 1), 3 * torch.eye(2)
        >>> target = torch.tensor([0, 1] * 7 + [1, 0] * 3)  # logits 3, 0; accuracy .7
        >>> fit = fit_head_temperature([(hidden, target)], head)
        >>> round(fit.temperature, 3), round(3 / math.log(7 / 3), 3)
        (3.541, 3.541)
    """
    from kernel import head_statistics

    low, high = _check_bounds(bounds)
    if not callable(batches) and iter(batches) is batches:
        raise TypeError("batches must be a sequence or a function that returns an iterator: it is read several times.")

    def evaluate(log_ts: NDArray[np.float64]) -> tuple[list[_Moments], int]:
        sums, n = np.zeros((3, log_ts.size)), 0
        for hidden, target in batches() if callable(batches) else batches:
            statistics = head_statistics(
                hidden,
                linear_weight,
                target,
                linear_bias=linear_bias,
                softcap=softcap,
                logit_scale=logit_scale,
                temperatures=tuple(np.exp(log_ts).tolist()),
                ignore_index=ignore_index,
            )
            kept = as_numpy("target", target).reshape(-1) != ignore_index
            entropy, log_p = (
                as_numpy("statistics", x).reshape(-1, log_ts.size)[kept].astype(np.float64)
                for x in (statistics.entropy, statistics.log_probability)
            )
            slope = entropy + log_p
            sums += slope.sum(0), (slope**2).sum(0), -log_p.sum(0)
            n += int(kept.sum())
        if not n:
            raise ValueError("batches must hold at least one token whose target is not ignored.")
        return [_Moments(*column) for column in (sums / n).T], n

    grid = np.unique([*np.linspace(math.log(low), math.log(high), 7), 0.0])
    moments, n = evaluate(grid)
    before = moments[int(np.flatnonzero(grid == 0)[0])]
    if all(abs(m.slope) < 1e-12 for m in moments):
        raise ValueError("batches must give logits that differ within a row: else the likelihood does not depend on T.")
    slopes = np.array([m.slope for m in moments])
    if not slopes[0] < 0 < slopes[-1]:
        end = 0 if slopes[0] >= 0 else -1
        return _result((low, high)[end], moments[end], math.nan, before, True, n)
    while True:
        # The ends are known to have slopes of either sign, whatever rounding says of them this time.
        right = 1 + int(np.argmax(np.append(slopes[1:-1] > 0, True)))
        a, b, slope_a, slope_b = grid[right - 1], grid[right], slopes[right - 1], slopes[right]
        root = a - slope_a * (b - a) / (slope_b - slope_a)  # secant
        if b - a < 1e-3:
            break
        # Three temperatures close about the secant's prediction, the rest spread over the bracket.
        near = root + (b - a) * np.array([-0.03, 0.0, 0.03])
        grid = np.unique(np.clip(np.concatenate([np.linspace(a, b, 5), near]), a, b))
        moments, n = evaluate(grid)
        slopes = np.array([m.slope for m in moments])
    # Within a bracket of 1e-3 the secant's error is of the order of its square.
    step = 1e-3
    (below, final, above), n = evaluate(np.array([root - step, root, root + step]))
    curvature = (above.slope - below.slope) / (2 * step)
    return _result(math.exp(root), final, curvature, before, False, n)
