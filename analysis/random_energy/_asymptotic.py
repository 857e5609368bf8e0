"""Large-V limits of random logits and their phase boundary (B2, B3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, gamma, gammainc

from ..checks import interval, one_index, require_broadcast, whole
from ._exact import std_and_vocab

Array = NDArray[np.float64]

_BLOCK = 4096  # elements integrated at a time, 10 KB each


def critical_logit_std(vocab_size: ArrayLike) -> Array:
    """Return the standard deviation sqrt(2 log V) at which the softmax of V random logits freezes onto a few tokens.

    Args:
        vocab_size: Number of classes V >= 2.

    Returns:
        The standard deviation, with the same shape. A phase boundary in the limit of large V only: just below it the
        largest probability is still small, and at LLM sizes the change is wide.

    Raises:
        ValueError: If ``vocab_size`` is not a whole number >= 2.

    Example:
        >>> critical_logit_std([4096, 262144]).round(3).tolist()
        [4.079, 4.995]
    """
    return np.sqrt(2 * np.log(whole("vocab_size", vocab_size, 2)))  # equation B2


@one_index
def freezing_temperature(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    """Return the temperature s / sqrt(2 log V) below which random logits of standard deviation s are frozen.

    Args:
        logit_std: Standard deviation s >= 0 of the logits at temperature 1.
        vocab_size: Number of classes V >= 2.

    Returns:
        The temperature, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> freezing_temperature(2.5, 262144).round(3).item()
        0.5
    """
    s, v = std_and_vocab(logit_std, vocab_size)
    return s / critical_logit_std(v)  # equation B3


@one_index
def critical_hidden_size(vocab_size: ArrayLike, gain: ArrayLike, row_std: ArrayLike) -> Array:
    """Return the hidden size 2 log V / (g sigma_w)^2 at which random logits of an RMS-normed head freeze.

    With features of norm g sqrt(D) and row entries of standard deviation sigma_w the logit std is g sigma_w sqrt(D).

    Args:
        vocab_size: Number of classes V >= 2.
        gain: Gain g > 0 of the last RMSNorm.
        row_std: Standard deviation sigma_w > 0 of the entries of the head.

    Returns:
        The hidden size (not rounded), with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> critical_hidden_size(32000, 1.0, 0.02).round().item()
        51867.0
    """
    v = whole("vocab_size", vocab_size, 2)
    g, w = interval("gain", gain, 0, open_low=True), interval("row_std", row_std, 0, open_low=True)
    require_broadcast(vocab_size=v, gain=g, row_std=w)
    return 2 * np.log(v) / (g * w) ** 2  # equation B3


def _frozen_share(s: Array, v: Array) -> Array:
    """s_c / s where frozen (s > s_c), and 1 elsewhere: the index of the Poisson-Dirichlet limit."""
    with np.errstate(divide="ignore"):
        return np.minimum(critical_logit_std(v) / s, 1.0)


@one_index
def asymptotic_log_partition(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    """Return the leading order of E log Z at large V: log V + s^2 / 2 below freezing, s sqrt(2 log V) above.

    Args:
        logit_std: Standard deviation s >= 0 of the logits.
        vocab_size: Number of classes V >= 2.

    Returns:
        The limit form, with the broadcast shape. Draw it dashed; compute with :func:`expected_log_partition`.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> asymptotic_log_partition([1.0, 8.0], 4096).round(3).tolist()
        [8.818, 32.629]
    """
    s, v = std_and_vocab(logit_std, vocab_size)
    critical = critical_logit_std(v)
    return np.where(s <= critical, np.log(v) + s**2 / 2, s * critical)[()]  # equation B2


@one_index
def asymptotic_entropy(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    """Return the limit of the mean entropy: log V - s^2 / 2 below freezing, psi(1) - psi(1 - s_c / s) nats above.

    Args:
        logit_std: Standard deviation s >= 0 of the logits.
        vocab_size: Number of classes V >= 2.

    Returns:
        The limit form, with the broadcast shape; converges slowly (and is infinite at s = s_c from above).

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> asymptotic_entropy([1.0, 8.0], 4096).round(3).tolist()
        [7.818, 1.436]
    """
    s, v = std_and_vocab(logit_std, vocab_size)
    share = _frozen_share(s, v)
    frozen = share < 1
    above = digamma(1.0) - digamma(1 - np.where(frozen, share, 0.0))
    return np.where(frozen, above, np.log(v) - s**2 / 2)[()]  # equation B2


@one_index
def asymptotic_participation(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    """Return the limit of E sum p^2: 0 below freezing, 1 - s_c / s above.

    Args:
        logit_std: Standard deviation s >= 0 of the logits.
        vocab_size: Number of classes V >= 2.

    Returns:
        The limit form, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> asymptotic_participation([1.0, 8.0], 4096).round(3).tolist()
        [0.0, 0.49]
    """
    s, v = std_and_vocab(logit_std, vocab_size)
    return (1 - _frozen_share(s, v))[()]  # equation B2


def _largest_part(a: Array) -> Array:
    """The integral of :func:`asymptotic_confidence` for indices ``(n, 1)``."""
    u = np.arange(-60.0, 4.0, 0.05)  # t = exp(u): analytic, decaying at both ends, so the trapezoid rule is exact
    t = np.exp(u)
    others = t**a * gamma(1 - a) * gammainc(1 - a, t)
    return 0.05 * (np.exp(u - t) / (np.exp(-t) + others)).sum(axis=-1)


@one_index
def asymptotic_confidence(logit_std: ArrayLike, vocab_size: ArrayLike) -> Array:
    r"""Return the limit of E max p: 0 below freezing, above it the largest part of Poisson-Dirichlet PD(s_c / s, 0).

    .. math:: E\max p = \int_0^\infty \frac{e^{-t}\,dt}{e^{-t} + t^a\,\gamma(1-a, t)}

    with a = s_c / s. Reason: in units of the largest of Poisson points of density a x^(-a-1), the others have the
    Laplace transform exp(-y psi(t)), psi(t) = integral over (0, 1) of (1 - e^{-tx}) a x^(-a-1), and y, their mean
    number above it, is Exp(1).

    Args:
        logit_std: Standard deviation s >= 0 of the logits.
        vocab_size: Number of classes V >= 2.

    Returns:
        The limit form, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> asymptotic_confidence([1.0, 8.0], 4096).round(3).tolist()
        [0.0, 0.618]
    """
    s, v = std_and_vocab(logit_std, vocab_size)
    share = _frozen_share(s, v)
    a = np.where(share < 1, share, 0.5)[..., None]
    flat = np.reshape(a, (-1, 1))
    parts = [_largest_part(flat[start : start + _BLOCK]) for start in range(0, len(flat), _BLOCK)]
    value = np.concatenate(parts or [np.zeros(0)]).reshape(share.shape)
    return np.where(share < 1, value, 0.0)[()]  # equation B2
