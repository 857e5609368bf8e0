"""The maximum-likelihood temperature of a head over streamed hidden states: equations in ``_temperature``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import as_numpy
from ._temperature import Moments, TemperatureFit, check_bounds, fit_result

if TYPE_CHECKING:
    from torch import Tensor

Batches = Callable[[], Iterable[tuple[Any, Any]]] | Iterable[tuple[Any, Any]]
_SAMPLE = 256  # tokens at most that a bracket is searched on, and half of that at least
_NEAR = 1e-3  # in log T: where three slopes are read for the last step
_CLOSE = 3e-4  # a last step this short leaves an error of about its square
_MOST = 40  # rounds at most: where rounding leaves a plateau of zeros no round narrows the bracket


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

    What costs is the number of temperatures times tokens, each V exponentials (:func:`kernel.head_statistics`). So a
    bracket is searched on a few hundred tokens, spread over all; then all tokens are read at three temperatures about
    what it gave and at 1, and once more at three, from which a Newton step ends. A sample that misleads costs passes
    but changes nothing: every step is judged by all tokens.

    Args:
        batches: Pairs of hidden states ``(..., D)`` and targets ``(...)``: a sequence, or a function that returns a
            fresh iterator, as they are read several times: once for the sample, then two or three times.
        linear_weight: Head ``(V, D)``.
        linear_bias: Its bias.
        softcap: Cap of the logits, before the temperature.
        logit_scale: Scale of the product.
        ignore_index: Targets to leave out.
        bounds: Range of T to search, around 1.

    Returns:
        The fit, to 2e-6 in log T or the accuracy of the statistics' dtype.

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
    low, high = check_bounds(bounds)
    if not callable(batches) and iter(batches) is batches:
        raise TypeError("batches must be a sequence or a function that returns an iterator: it is read several times.")
    head = {"linear_bias": linear_bias, "softcap": softcap, "logit_scale": logit_scale, "ignore_index": ignore_index}
    ends = math.log(low), math.log(high)
    sample = _sample(batches, ignore_index)
    everything = _Slopes(batches, linear_weight, head)
    rough = everything if sample is None else _Slopes([sample], linear_weight, head)
    # Looser on a sample than on everything: it is off by more.
    start, reach = _search(rough, ends, _NEAR if sample is None else 0.02)
    return _finish(everything, start, reach, (low, high))


class _Slopes:
    """Moments of all tokens of some batches at each temperature that was asked for."""

    def __init__(self, batches: Batches, weight: Tensor, head: dict[str, Any]) -> None:
        self.batches, self.weight, self.head = batches, weight, head
        self.at: dict[float, Moments] = {}  # log T -> moments
        self.n = 0
        double = str(getattr(weight, "dtype", "")) == "torch.float64"
        self.rounding = 8 * float(np.finfo(np.float64 if double else np.float32).eps)  # of statistics, relative
        self.constant = math.log(weight.shape[0]) if getattr(weight, "ndim", 0) == 2 and len(weight) else math.nan

    def __call__(self, *log_ts: float) -> list[Moments]:
        """The moments at these temperatures, after one pass for those that are new."""
        new = sorted({float(x) for x in log_ts} - self.at.keys())
        if new:
            self.at |= dict(zip(new, self._pass(new), strict=True))
        return [self.at[float(x)] for x in log_ts]

    def bracket(self) -> tuple[float | None, float | None]:
        """Where the slope is last negative and first positive; None where it is nowhere. In tied logits it can be 0."""
        points = sorted(self.at)
        right = next((x for x in points if self.at[x].slope > 0), None)
        below = [x for x in points if self.at[x].slope < 0 and (right is None or x < right)]
        return (below[-1] if below else None), right

    def flat(self) -> bool:
        """Whether the logits are constant in each row, as far as the temperatures asked for show.

        A slope of 0 alone does not say so: a head that is sure of every target has it too, with a loss near 0.
        """
        error = self.rounding * (1 + self.constant)
        return all(abs(m.nll - self.constant) < error and math.sqrt(m.slope_square) < error for m in self.at.values())

    def _pass(self, log_ts: list[float]) -> list[Moments]:
        from kernel import head_statistics

        sums, n = np.zeros((3, len(log_ts))), 0
        for hidden, target in self.batches() if callable(self.batches) else self.batches:
            statistics = head_statistics(
                hidden, self.weight, target, temperatures=tuple(math.exp(x) for x in log_ts), **self.head
            )
            kept = as_numpy("target", target).reshape(-1) != self.head["ignore_index"]
            entropy, log_p = (
                as_numpy("statistics", x).reshape(-1, len(log_ts))[kept].astype(np.float64)
                for x in (statistics.entropy, statistics.log_probability)
            )
            slope = entropy + log_p
            sums += slope.sum(0), (slope**2).sum(0), -log_p.sum(0)
            n += int(kept.sum())
        if not n:
            raise ValueError("batches must hold at least one token whose target is not ignored.")
        self.n = n
        return [Moments(*column) for column in (sums / n).T]


def _sample(batches: Batches, ignore_index: int) -> tuple[Tensor, Tensor] | None:
    """Every k-th token that counts, with the largest k = 2^j that leaves enough of them; None where k would be 1.

    None also where a batch is not what it should be, of which the first pass over everything says why.
    """
    import torch

    every, seen = 1, 0
    kept: list[tuple[int, Any, Any]] = []  # place among all, hidden state, target
    for hidden, target in batches() if callable(batches) else batches:
        if not (isinstance(hidden, torch.Tensor) and isinstance(target, torch.Tensor)):
            return None
        if hidden.ndim < 1 or hidden.shape[:-1] != target.shape:
            return None
        flat, labels = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
        rows = (labels != ignore_index).nonzero().squeeze(-1)
        first = -seen % every
        for place in range(first, len(rows), every):
            if (seen + place) % every == 0:  # every may have grown
                # copies: a view would keep its batch alive
                kept.append((seen + place, flat[rows[place]].clone(), labels[rows[place]].clone()))
            if len(kept) > _SAMPLE:
                every *= 2
                kept = [token for token in kept if token[0] % every == 0]
        seen += len(rows)
    if every == 1:
        return None
    return torch.stack([token[1] for token in kept]), torch.stack([token[2] for token in kept])


def _search(slopes: _Slopes, ends: tuple[float, float], width: float) -> tuple[float, float]:
    """About where the slope is 0, from a bracket of at most ``width`` or the end it points to; how far that may be off.

    In log T. Twice the standard error is how far off it is as an estimate of what other tokens would give.
    """
    slopes(*np.linspace(*ends, 7), 0.0)
    if slopes.flat():
        return 0.0, _NEAR  # undefined here: everything will say
    for tries in range(_MOST):
        a, b = slopes.bracket()
        if a is None or b is None:
            return (ends[0] if a is None else ends[1]), 10 * width
        (below, above), root = slopes(a, b), _secant(slopes, a, b)
        if b - a < width or tries == _MOST - 1:
            error = math.sqrt(max(below.slope_square, above.slope_square) / slopes.n)
            return root, max(width, 2 * error * (b - a) / (above.slope - below.slope))
        # Three temperatures close about the secant's prediction, the rest spread over the bracket.
        near = root + (b - a) * np.array([-0.03, 0.0, 0.03])
        slopes(*np.clip(np.concatenate([np.linspace(a, b, 5)[1:-1], near]), a, b))
    raise AssertionError  # the last round returns


def _secant(slopes: _Slopes, a: float, b: float) -> float:
    below, above = slopes(a, b)
    return a - below.slope * (b - a) / (above.slope - below.slope)


def _finish(slopes: _Slopes, start: float, reach: float, bounds: tuple[float, float]) -> TemperatureFit:
    """The temperature where the slope of all tokens is 0, from a guess and how far it may be off."""
    ends = math.log(bounds[0]), math.log(bounds[1])
    slopes(*np.clip([start - reach, start, start + reach], *ends), 0.0)
    if slopes.flat() and (slopes(ends[0]), slopes.flat())[1]:  # the lowest temperature shows differences best
        raise ValueError("batches must give logits that differ within a row: else the likelihood does not depend on T.")
    before, tries = slopes.at[0.0], 0
    while True:
        a, b = slopes.bracket()
        if b is None or a is None:  # the guess was off to one side; no slope at all: sure of every target, T falls
            up = b is None and a is not None
            edge, end = (max(slopes.at), ends[1]) if up else (min(slopes.at), ends[0])
            if edge == end:
                return fit_result(bounds[ends.index(end)], slopes.at[edge], math.nan, before, True, slopes.n)
            reach = max(2 * reach, 0.1)
            slopes(min(end, edge + reach) if up else max(end, edge - reach))
            continue
        tries += 1  # an interpolation can creep along one side
        guess = _interpolated(slopes, a, b) if tries < 4 else (a + b) / 2
        root = min(max(guess, ends[0] + _NEAR), ends[1] - _NEAR)
        below, final, above = slopes(root - _NEAR, root, root + _NEAR)
        curvature = (above.slope - below.slope) / (2 * _NEAR)
        step = -final.slope / curvature if curvature > 0 else math.inf
        if abs(step) < _CLOSE or b - a < 2.1 * _NEAR or tries == _MOST:
            best = root + step if abs(step) < 2 * _NEAR else root
            if above.slope - below.slope <= slopes.rounding * (1 + final.nll):
                low, high = slopes(*ends)
                if final.nll >= min(low.nll, high.nll) - slopes.rounding * (1 + final.nll):
                    # The sign changes by rounding, and the loss is least at a bound: low temperatures tell which.
                    end = 0 if low.slope >= 0 else 1
                    return fit_result(bounds[end], (low, high)[end], math.nan, before, True, slopes.n)
                if curvature <= 0:  # within a plateau
                    (left, right) = slopes(a, b)
                    curvature = (right.slope - left.slope) / (b - a)
            within = min(max(math.exp(best), bounds[0]), bounds[1])
            return fit_result(within, final, curvature, before, False, slopes.n)


def _interpolated(slopes: _Slopes, a: float, b: float) -> float:
    """Where a parabola of log T over the slope is 0, through the bracket and its nearest neighbour; else the secant."""
    secant = _secant(slopes, a, b)
    others = [x for x in slopes.at if x not in (a, b)]
    if not others:
        return secant
    x = [a, b, min(others, key=lambda other: min(abs(other - a), abs(other - b)))]
    y = [slopes.at[point].slope for point in x]
    if len(set(y)) < 3:
        return secant
    root = sum(x[i] * y[j] * y[k] / ((y[i] - y[j]) * (y[i] - y[k])) for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1)))
    return root if a < root < b else secant
