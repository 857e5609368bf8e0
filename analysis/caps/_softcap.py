r"""The gap under a softcap: a bound that holds for every head, and the symmetric heads that often attain it.

For a head of V tokens let p = mean_y h_y . w_y and q = mean_{y, k != y} h_y . w_k, in units before the cap. Whatever
the hidden size, p <= m, and p - mu q <= (mu - 1) m with mu = 2 (V - 1) / (V - 2) (the largest singular value of the
matrix that takes p - mu q from the logits). So (p, -q) lies below the segment from the simplex, (m, m / (V - 1)), to
(-m, m).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import interval, one_index, require_broadcast, softcap_or_inf, whole
from ._minimise import unimodal_minimum

Array = NDArray[np.float64]


def _segment(x: Array, m: Array, v: Array) -> tuple[Array, Array]:
    """(p, -q) at the fraction x of the way from the simplex to logits that are -m throughout."""
    return m * (1 - 2 * x), m * (1 + (v - 2) * x) / (v - 1)


def symmetric_gap(m: Array, v: Array, c: Array) -> Array:
    """Largest f(p) - f(q) on the segment, in nats at T = 1; each point is a head of D >= V.

    That head: rows sqrt(1 - x) u_k + sqrt(x) e and features sqrt(1 - x) u_k - sqrt(x) e, with u the simplex and e a
    unit vector orthogonal to it. Moving along the segment trades the saturated logit of the target for lower logits
    of the rivals.
    """
    shape = np.broadcast_shapes(m.shape, v.shape, c.shape)
    cap = np.where(np.isinf(c), 1.0, c)

    def f(x: Array) -> Array:
        return np.where(np.isinf(c), x, cap * np.tanh(x / cap))

    def minus_gap(x: Array) -> Array:
        p, minus_q = _segment(x, m, v)
        return -(f(p) + f(minus_q))

    # not unimodal in general: bracket on a grid first
    grid = np.linspace(0.0, 1.0, 65)
    table = np.stack([np.broadcast_to(minus_gap(np.full(shape, x)), shape) for x in grid])
    centre = np.clip(table.argmin(axis=0), 1, 63) / 64
    return -unimodal_minimum(lambda x: minus_gap(centre + (2 * x - 1) / 64), shape)


def _tangent_point(s: Array) -> Array:
    """Point x > 0 up to which the concave envelope of tanh on [-s, s] is its chord from (-s, -tanh s).

    By bisection: tanh x + tanh s = (x + s) sech^2 x. It is s/2 for small s.
    """
    low, high = np.zeros_like(s), s.copy()
    for _ in range(60):
        x = (low + high) / 2
        # in the form (tanh x + tanh s) cosh^2 x > x + s; cosh overflows only where the answer is already known
        beyond = (np.tanh(x) + np.tanh(s)) * np.cosh(np.minimum(x, 300.0)) ** 2 > x + s
        low, high = np.where(beyond, low, x), np.where(beyond, x, high)
    return high


@one_index
def softcap_gap(
    norm_product: ArrayLike, vocab_size: ArrayLike, softcap: ArrayLike | None, *, temperature: ArrayLike = 1.0
) -> NDArray[np.float64]:
    r"""Bound the gap, in nats, that a softcapped head can give to every token: no condition on argmax or rank.

    .. math:: \min_k G_k \le \frac1T \max_{0 \le x \le 1} E\bigl(m(1 - 2x)\bigr)
              + E\Bigl(m\,\frac{1 + (V-2)x}{V-1}\Bigr),

    with E the concave envelope of c tanh(x/c) on [-m, m]. Reason: Jensen bounds the gap by the mean of f(z_yy) -
    f(z_yk); E lies above f, -f(q) = f(-q), and a concave function of a mean bounds the mean; the means obey the two
    inequalities in the head of this module, and E rises. Where the best x leaves both arguments in the part of E that
    coincides with the tanh, the symmetric head attains the bound at D >= V, so that there it is exact.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before cap and temperature.
        vocab_size: Number of classes V >= 2.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap (then this is :func:`max_gap`).
        temperature: Temperature T > 0, applied after the cap.

    Returns:
        The gap in nats, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> softcap_gap(12.0, 32, [5.0, 1e9]).round(3).tolist()  # attained: 7.055; bound C2: 8.451
        [7.145, 12.387]
    """
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    c, t = softcap_or_inf(softcap), interval("temperature", temperature, 0, open_low=True)
    shape = require_broadcast(norm_product=m, vocab_size=v, softcap=c, temperature=t)
    cap = np.where(np.isinf(c), 1.0, c)
    s = np.broadcast_to(m / cap, shape)
    touch = _tangent_point(s)
    incline = 1 / np.cosh(np.minimum(touch, 300.0)) ** 2

    def envelope(x: Array) -> Array:
        u = x / cap
        capped = cap * np.where(u >= touch, np.tanh(u), np.tanh(touch) + (u - touch) * incline)
        return np.where(np.isinf(c), x, capped)

    def minus_bound(x: Array) -> Array:
        p, minus_q = _segment(x, m, v)
        return -(envelope(p) + envelope(minus_q))  # convex in x

    return -unimodal_minimum(minus_bound, shape)[()] / t
