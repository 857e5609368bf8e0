"""Exact expectations at finite V, argument checks and broadcasting around the quadrature (B1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import interval, one_index, require_broadcast, whole
from . import _quadrature as quadrature

Array = NDArray[np.float64]

MOST_STD = 1e5  # of logits: the quadrature holds some 100 s numbers, and a softmax froze at sqrt(2 log V)


def std_and_vocab(logit_std: ArrayLike, vocab_size: ArrayLike, most: float = math.inf) -> tuple[Array, Array]:
    """The two checked arguments of every function of independent Gaussian logits."""
    s, v = interval("logit_std", logit_std, 0), whole("vocab_size", vocab_size, 2)
    if np.any(s > most):
        raise ValueError(f"logit_std must be at most {most:g} (the asymptotic_ functions take any), got {s.max():g}.")
    require_broadcast(logit_std=s, vocab_size=v)
    return s, v


def _each(function: Callable[[float, float], float], s: Array, v: Array) -> Array:
    return np.vectorize(function, otypes=[np.float64])(s, v)[()]


@one_index
def expected_log_partition(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    r"""Return E log sum_k exp(z_k), in nats, of V independent logits N(0, s^2), exact at finite V.

    .. math:: E\log Z = \int_0^\infty \frac{e^{-t} - M(t)^V}{t}\,dt, \qquad M(t) = E\,e^{-t e^{s g}}

    Evaluated as -Euler's constant minus the mean of X = log(Exp(1)) - log Z, whose survival function is M(e^x)^V.

    Args:
        logit_std: Standard deviation s in [0, 1e5] of the logits (divide by the temperature first).
        vocab_size: Number of classes V >= 2.

    Returns:
        The expectation, with the broadcast shape; log V at s = 0. A few ms an element.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    References:
        Derrida, "Random-energy model: an exactly solvable model of disordered systems", Phys. Rev. B 24 (1981).

    Example:
        >>> expected_log_partition(4.079, 4096).round(3).item()
        15.967
    """
    s, v = std_and_vocab(logit_std, vocab_size, MOST_STD)
    return _each(quadrature.log_partition, s, v)


@one_index
def participation(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    r"""Return the expected sum of squared probabilities of V logits N(0, s^2): the chance that two draws agree.

    .. math:: Y_2 = V \int_0^\infty t\,E\bigl[e^{2sg - te^{sg}}\bigr]\,M(t)^{V-1}\,dt

    Args:
        logit_std: Standard deviation s in [0, 1e5] of the logits.
        vocab_size: Number of classes V >= 2.

    Returns:
        The expectation, from 1/V at s = 0 to 1, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> participation([0.0, 4.079], 4096).round(4).tolist()
        [0.0002, 0.2139]
    """
    s, v = std_and_vocab(logit_std, vocab_size, MOST_STD)
    return _each(quadrature.participation, s, v)


@one_index
def expected_entropy(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    r"""Return the mean entropy in nats of the softmax of V independent logits N(0, s^2): E log Z - s^2 (1 - Y_2).

    Reason: E sum p_k z_k = s^2 E sum p_k (1 - p_k), Gaussian integration by parts.

    Args:
        logit_std: Standard deviation s in [0, 1e5] of the logits.
        vocab_size: Number of classes V >= 2.

    Returns:
        The expectation, with the broadcast shape; log V at s = 0.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> expected_entropy(4.079, 4096).round(3).item()
        2.889
    """
    s, v = std_and_vocab(logit_std, vocab_size, MOST_STD)
    return _each(quadrature.entropy, s, v)


@one_index
def expected_confidence(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    r"""Return the expected confidence E max_k p_k of the softmax of V independent logits N(0, s^2).

    .. math:: V\,E_g \int_0^\infty e^{sg - te^{sg}}
              \Bigl(\int_{-\infty}^{g} \varphi(g')\,e^{-te^{sg'}}dg'\Bigr)^{V-1} dt

    Reason: p_max = a / (a + Z') with a = exp(s g) the largest term, and 1 / (a + Z') is the integral of
    exp(-t (a + Z')).

    Args:
        logit_std: Standard deviation s in [0, 1e5] of the logits.
        vocab_size: Number of classes V >= 2.

    Returns:
        The expectation, from 1/V at s = 0 to 1, with the broadcast shape. Relative error below 2e-8 (V to 1e7); some
        5 ms an element.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> expected_confidence([0.0, 4.079], 4096).round(3).tolist()
        [0.0, 0.365]
    """
    s, v = std_and_vocab(logit_std, vocab_size, MOST_STD)
    return _each(quadrature.confidence, s, v)
