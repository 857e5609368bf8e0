"""Caps that know the hidden size: two moments (A3), spectral and Frobenius budgets (A5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import interval, one_index, require_broadcast, whole
from ._gaps import gap_to_confidence
from ._minimise import unimodal_minimum


def welch_moments(
    a: NDArray[np.float64], v: NDArray[np.float64], rank: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and least second moment of X = 2 - d, for differences d in units of m at mean alignment a in [0, 1]."""
    mean_difference = a * v / (v - 1)
    first = 2 - mean_difference
    second = 4 - 4 * mean_difference + a**2 * (v / (v - 1)) * (1 + 1 / rank)
    return first, np.maximum(second, first**2)  # equal at rank V - 1, up to rounding


@one_index
def rank_gap(norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike) -> NDArray[np.float64]:
    r"""Bound the gap, in nats, that a head of rank D can give to every token at once: the scale of :func:`rank_cap`.

    .. math::
        G &\le 2m - \min_{a \in [0, m]} \log\Bigl[1 + \frac{M_1^2}{M_2}\bigl(e^{M_2/M_1} - 1\bigr)\Bigr], \\
        M_1 &= 2m - \frac{aV}{V-1}, \\
        M_2 &= 4m^2 - \frac{4maV}{V-1} + \frac{a^2V}{V-1}\Bigl(1 + \frac1D\Bigr),

    with min(D, V-1) for D.

    Reason. Let d be the differences z_y - z_k over all pairs and a the mean of h_y . (w_y - mean w) <= m. Then X = 2m
    - d >= 0 has mean M_1, and second moment at least M_2, because the matrix of h_y . (w_k - mean w) has rank at most
    D and hence squared Frobenius norm at least trace^2 / D (Welch). Among such X the smallest E e^X has two atoms, 0
    and M_2 / M_1 (Chebyshev), which gives the bracket. It is convex in a, as a partial minimum of a jointly convex
    problem.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units; with a temperature T pass m / T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1 of the head (or its rank, if that is lower).

    Returns:
        The gap in nats, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    References:
        Welch, "Lower bounds on the maximum cross correlation of signals", IEEE Trans. Inf. Theory 20 (1974).

    Example:
        >>> rank_gap(20.0, 1024, [2, 64, 1023]).round(2).tolist()
        [10.98, 19.74, 20.02]
    """
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    rank = np.minimum(whole("hidden_size", hidden_size, 1), v - 1)
    shape = require_broadcast(norm_product=m, vocab_size=v, hidden_size=rank)

    def log_mean_exp(x: NDArray[np.float64]) -> NDArray[np.float64]:  # log E exp(-d) at a = x m
        first, second = welch_moments(x, v, rank)
        with np.errstate(divide="ignore", invalid="ignore"):
            mass, atom = first**2 / second, m * second / first  # at V = 2, a = m both moments are 0
            value = np.logaddexp(np.log1p(-np.minimum(mass, 1.0)), np.log(mass) + atom)  # equation A3
        return np.where(first > 0, value, 0.0) - 2 * m

    return -unimodal_minimum(log_mean_exp, shape)[()]


@one_index
def rank_cap(norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike) -> NDArray[np.float64]:
    """Bound the confidence that a head of rank D can give to **every** token in its own context.

    The confidence of :func:`rank_gap`. Equals :func:`simplex_cap` for ``hidden_size >= vocab_size - 1``; attained at
    ``vocab_size == 2 * hidden_size >= 4`` by the orthoplex (rows and features +-e_i); valid but loose for V >> D.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units; with a temperature T pass m / T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1 of the head (or its rank, if that is lower).

    Returns:
        The confidence cap, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> rank_cap([1.0, 3.0, 6.0], 4, 2).round(5).tolist()
        [0.53445, 0.9074, 0.99506]
    """
    return gap_to_confidence(rank_gap(norm_product, vocab_size, hidden_size), vocab_size)


@one_index
def spectral_cap(
    spectral_norm: ArrayLike, feature_norm_max: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike
) -> NDArray[np.float64]:
    r"""Bound the confidence in every token by the largest singular value of the head.

    .. math:: G \le \frac{aV}{V-1}, \qquad a = R\,s\,\sqrt{\min(D, V-1)/V}

    Reason: the mean of h_y . (w_y - mean w) is at most ||W||_F R / sqrt(V), and ||W||_F <= s sqrt(rank). With
    R ~ sqrt(D) the gap scales as D / sqrt(V) at constant s; but s itself grows as sqrt(V) for rows without a common
    direction, so measure it.

    Args:
        spectral_norm: s = ||W||_2 >= 0. The centred head (rows minus their mean) may be used: it is never larger.
        feature_norm_max: R = max ||h|| >= 0; with a temperature T pass R / T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1 of the head.

    Returns:
        The confidence cap, with the broadcast shape. Tight at D >= V - 1 (simplex), loose below.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> spectral_cap(40.0, [8.0, 16.0], 32768, 1024).round(4).tolist()
        [1.0, 1.0]
        >>> spectral_cap(4.0, [8.0, 16.0], 32768, 1024).round(4).tolist()
        [0.0087, 0.7144]
    """
    return gap_to_confidence(spectral_gap(spectral_norm, feature_norm_max, vocab_size, hidden_size), vocab_size)


@one_index
def spectral_gap(
    spectral_norm: ArrayLike, feature_norm_max: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike
) -> NDArray[np.float64]:
    """Return the bound of :func:`spectral_cap` as a gap in nats."""
    s, r = interval("spectral_norm", spectral_norm, 0), interval("feature_norm_max", feature_norm_max, 0)
    v, d = whole("vocab_size", vocab_size, 2), whole("hidden_size", hidden_size, 1)
    require_broadcast(spectral_norm=s, feature_norm_max=r, vocab_size=v, hidden_size=d)
    return r * s * np.sqrt(np.minimum(d, v - 1) / v) * (v / (v - 1))  # equation A5


@one_index
def frobenius_cap(frobenius_norm: ArrayLike, feature_norm_max: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Bound the confidence in every token by the RMS of the row norms: a = R F / sqrt(V), G <= aV/(V-1).

    Args:
        frobenius_norm: F = ||W||_F >= 0. The centred head (rows minus their mean) may be used: it is never larger.
        feature_norm_max: R = max ||h|| >= 0; with a temperature T pass R / T.
        vocab_size: Number of classes V >= 2.

    Returns:
        The confidence cap, with the broadcast shape. Tight at D >= V - 1 (simplex).

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> frobenius_cap(128.0, [8.0, 16.0], 16384).round(4).tolist()
        [0.154, 0.9982]
    """
    return gap_to_confidence(frobenius_gap(frobenius_norm, feature_norm_max, vocab_size), vocab_size)


@one_index
def frobenius_gap(frobenius_norm: ArrayLike, feature_norm_max: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    """Return the bound of :func:`frobenius_cap` as a gap in nats."""
    f, r = interval("frobenius_norm", frobenius_norm, 0), interval("feature_norm_max", feature_norm_max, 0)
    v = whole("vocab_size", vocab_size, 2)
    require_broadcast(frobenius_norm=f, feature_norm_max=r, vocab_size=v)
    return r * f / np.sqrt(v) * (v / (v - 1))  # equation A5
