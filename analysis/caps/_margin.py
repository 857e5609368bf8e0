"""What geometry alone allows: hard-margin bounds (A6) and the cap from packing rows into a ball."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv

from ..checks import interval, one_index, require_broadcast, whole
from ._gaps import gap_to_confidence
from ._minimise import unimodal_minimum
from ._rank import welch_moments


class MarginBounds(NamedTuple):
    """Bounds on the hard margin per unit of norm product: ``lower`` is achievable, above ``upper`` is impossible."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@one_index
def margin_bounds(vocab_size: ArrayLike, hidden_size: ArrayLike) -> MarginBounds:
    r"""Bound the hard margin that a head can have in every token at once, per unit of the norm product.

    The hard margin is the least h_y . (w_y - w_k) over tokens y and rivals k. It is the slope of
    the attainable gap in m as m goes to infinity: what geometry leaves when norms are no limit.

    ============== =========================================== ===============================================
    V              lower (attained)                            upper
    ============== =========================================== ===============================================
    <= D + 1       V / (V - 1), the simplex                    the same
    D + 2 ... 2D   1, part of the orthoplex                    the same (Radon's theorem)
    > 2D           1 - cos t, a greedy code: V cap_D(t) = 1    min of 2 / (V^(1/D) - 1) and 2 - min_a M_2 / M_1
    ============== =========================================== ===============================================

    Reasons. The best h_y gives the distance from w_y to the hull of the other rows. V >= D + 2: two disjoint sets of
    rows have a common point x in their hulls; over one set the weighted mean of ||w_y - x||^2 is at most 1, so some
    w_y lies within 1 of the other hull. Packing: rows at mutual distance t carry disjoint balls of radius t/2 in a
    ball of radius 1 + t/2. Two moments: the limit of :func:`rank_gap`. Greedy: a code to which no point can be added
    at angle t covers the sphere by caps.

    Args:
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.

    Returns:
        The two bounds, each with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> lower, upper = margin_bounds(262144, [512, 4096])
        >>> lower.round(3).tolist(), upper.round(3).tolist()
        ([0.804, 0.93], [0.998, 1.0])
    """
    v, d = whole("vocab_size", vocab_size, 2), whole("hidden_size", hidden_size, 1)
    shape = require_broadcast(vocab_size=v, hidden_size=d)
    simplex, orthoplex = v <= d + 1, v <= 2 * d
    cap_fraction = np.minimum(2 / v, 1.0)
    half = np.maximum((d - 1) / 2, 0.5)  # D = 1 has no angle: overwritten below
    greedy = np.where(d > 1, 1 - np.sqrt(betainccinv(0.5, half, cap_fraction)), 0.0)
    packing = 2 / np.expm1(np.log(v) / d)

    def largest_atom(a: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second = welch_moments(a, v, np.minimum(d, v - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(first > 0, second / first, 0.0)  # quadratic over linear: convex in a

    two_moments = 2 - unimodal_minimum(largest_atom, shape)
    lower = np.where(simplex, v / (v - 1), np.where(orthoplex, 1.0, greedy))
    upper = np.where(simplex, v / (v - 1), np.where(orthoplex, 1.0, np.minimum(packing, two_moments)))
    return MarginBounds(lower[()], upper[()])  # equation A6


@one_index
def packing_cap(norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike) -> NDArray[np.float64]:
    r"""Bound the confidence in every token where many rows must share a ball of low dimension.

    .. math:: \min_k p_k \le \min_{t > 0}\ \frac{1}{1 + (\mu(t) - 1)\,e^{-tm}}, \qquad
              \mu(t) = V\Bigl(\frac{t}{2 + t}\Bigr)^D

    Reason: balls of radius t/2 around the rows lie in one of radius 1 + t/2, so some point is in at least mu(t) of
    them; those rows are within t of each other, and a token among them has mu(t) - 1 rivals at most t m below it.
    Sharper than
    :func:`rank_cap` only where V^(1/D) is well above 3, that is D < log V.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units; with a temperature T pass m / T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.

    Returns:
        The confidence cap, with the broadcast shape; 1.0 or a little less where it says nothing.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> packing_cap(20.0, 262144, [2, 4, 8]).round(4).tolist()
        [0.0123, 0.7632, 1.0]
    """
    return gap_to_confidence(packing_gap(norm_product, vocab_size, hidden_size), vocab_size)


@one_index
def packing_gap(norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike) -> NDArray[np.float64]:
    """Return the bound of :func:`packing_cap` as a gap in nats, which is finite where the confidence rounds to 1."""
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    d = whole("hidden_size", hidden_size, 1)
    shape = require_broadcast(norm_product=m, vocab_size=v, hidden_size=d)
    start = 2 / np.expm1((np.log(v) - np.log1p(1e-9)) / d)  # mu(start) is just above 1
    stop = np.maximum(2.0, start)  # at a distance of 2 every pair is within reach

    def log_odds(x: NDArray[np.float64]) -> NDArray[np.float64]:
        t = start + x * (stop - start)
        log_mu = np.log(v) - d * np.log1p(2 / t)
        with np.errstate(divide="ignore"):
            return m * t - np.log(np.expm1(np.maximum(log_mu, 0.0)))  # log mu is concave, so this is convex

    return (unimodal_minimum(log_odds, shape) + np.log(v - 1))[()]
