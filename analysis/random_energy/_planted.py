"""Random rows on a sphere and one planted token among them (B4, B5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from ..checks import interval, one_index, require_broadcast, whole

Array = NDArray[np.float64]


@one_index
def spherical_log_partition(norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike) -> Array:
    r"""Return the leading order of log sum_k exp(z_k), in nats, for V random rows of one norm and any fixed feature.

    .. math:: F(m) = \max_{0 \le t \le t_c} \log V + \tfrac D2\log(1 - t^2) + m t, \qquad t_c^2 = 1 - V^{-2/D}

    Reason: about V (1 - t^2)^{D/2} rows have cosine t with the feature, and none beyond t_c.

    Args:
        norm_product: m >= 0, in logit units; with a temperature T pass m / T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.

    Returns:
        F with the broadcast shape. A large-deviation form: it drops terms of order log D.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> spherical_log_partition([0.0, 12.0], 50000, 128).round(3).tolist()
        [10.82, 11.38]
    """
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    d = whole("hidden_size", hidden_size, 1)
    require_broadcast(norm_product=m, vocab_size=v, hidden_size=d)
    t_c = np.sqrt(-np.expm1(-2 * np.log(v) / d))
    t = np.minimum(2 * m / (d + np.hypot(d, 2 * m)), t_c)  # m (1 - t^2) = D t
    return np.log(v) + d / 2 * np.log1p(-t * t) + m * t  # equation B4


@one_index
def planted_confidence(norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike) -> Array:
    r"""Return the confidence in a token whose row lies along the feature, among V random rows of equal norm.

    .. math:: p = 1 / (1 + e^{F(m) - m}), \qquad F \text{ of } \texttt{spherical\_log\_partition}

    Args:
        norm_product: m >= 0, in logit units; with a temperature T pass m / T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.

    Returns:
        The confidence, with the broadcast shape: what a head of *unoptimised* rows reaches, to leading order.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> planted_confidence([5.0, 12.0, 20.0], 50000, 128).round(4).tolist()
        [0.0027, 0.6503, 0.9995]
    """
    f = spherical_log_partition(norm_product, vocab_size, hidden_size)
    return expit(np.asarray(norm_product, np.float64) - f)  # equation B5


@one_index
def planted_norm_product(vocab_size: ArrayLike, hidden_size: ArrayLike, confidence: ArrayLike = 0.5) -> Array:
    r"""Return the norm product at which a planted token reaches a confidence: inverts :func:`planted_confidence`.

    At 1/2 it is m = F(m), about log V + (log V)^2 / (2D): within 5 % of log V for D = 128 and V = 50,000, so that at
    LLM sizes a head is limited by its norms against log V rather than by its rank. The expansion fails for D < log V.

    Args:
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.
        confidence: Probability p in (0, 1), at least the 1 / (1 + V) of m = 0.

    Returns:
        The norm product in logit units, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range, p is below 1 / (1 + V), or the shapes do not broadcast.

    Example:
        >>> (planted_norm_product(50000, 128) / np.log(50000)).round(3).item()
        1.046
    """
    v, d = whole("vocab_size", vocab_size, 2), whole("hidden_size", hidden_size, 1)
    p = interval("confidence", confidence, 0, 1, open_low=True, open_high=True)
    shape = require_broadcast(vocab_size=v, hidden_size=d, confidence=p)
    if np.any(p < (1 - 1e-12) / (1 + v)):
        raise ValueError(f"confidence must be at least 1 / (1 + vocab_size), got {confidence!r}.")
    asked = np.maximum(logit(p) + np.log(v), 0.0)  # m + log V - F(m), which rises from 0: F' = t < 1
    t_c = np.sqrt(-np.expm1(-2 * np.log(v) / d))
    low, high = np.zeros(shape), np.broadcast_to(asked / (1 - t_c), shape).copy()  # m - (F - log V) >= m (1 - t_c)
    for _ in range(200):
        middle = (low + high) / 2
        short = middle + np.log(v) - spherical_log_partition(middle, v, d) < asked
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return ((low + high) / 2)[()]
