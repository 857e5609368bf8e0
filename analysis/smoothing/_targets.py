"""Smoothed distributions, their inverse, and what they do to a calibrated model (D1, D2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import distribution, interval, one_index, require_broadcast, whole


@one_index
def smooth(probabilities: ArrayLike, label_smoothing: ArrayLike) -> NDArray[np.float64]:
    """Smooth distributions: (1 - b) p + b / V.

    Applied to the true conditionals this is what a well-specified model learns from smoothed targets, so that its
    expected calibration error is b (E max p_true - 1/V): smoothing makes a calibrated model under-confident.

    Args:
        probabilities: Distributions, shape (..., V), at least 0 and summing to 1.
        label_smoothing: Smoothing b in [0, 1], shape broadcastable to (...).

    Returns:
        The distributions, shape (..., V).

    Raises:
        ValueError: If ``probabilities`` are not distributions, b is outside [0, 1], or the shapes do not broadcast.

    Example:
        >>> smooth([0.7, 0.3, 0.0], 0.3).round(3).tolist()
        [0.59, 0.31, 0.1]
    """
    p, b = _rows_and_smoothing(probabilities, label_smoothing)
    return (1 - b) * p + b / p.shape[-1]  # equation D2


@one_index
def unsmooth(probabilities: ArrayLike, label_smoothing: ArrayLike) -> NDArray[np.float64]:
    """Undo :func:`smooth`: (p - b / V) / (1 - b), clipped at 0 and renormalised.

    Exact on what :func:`smooth` returns. Elsewhere (a model away from its optimum) entries below b / V would be
    negative: they become 0 and the rest is scaled to sum to 1. The free baseline that smoothing should be compared
    with; no temperature does the same.

    Args:
        probabilities: Distributions, shape (..., V), at least 0 and summing to 1.
        label_smoothing: Smoothing b in [0, 1), shape broadcastable to (...).

    Returns:
        The distributions, shape (..., V).

    Raises:
        ValueError: If ``probabilities`` are not distributions, b is outside [0, 1) (at 1 nothing is left to invert), or
            the shapes do not broadcast.

    Example:
        >>> unsmooth([0.59, 0.31, 0.1], 0.3).round(3).tolist()
        [0.7, 0.3, 0.0]
    """
    interval("label_smoothing", label_smoothing, 0, 1, open_high=True)
    p, b = _rows_and_smoothing(probabilities, label_smoothing)
    raw = np.maximum(p - b / p.shape[-1], 0.0)  # equation D2, up to the factor that renormalising supplies
    return raw / raw.sum(axis=-1, keepdims=True)


@one_index
def smoothed_calibration_error(
    probabilities: ArrayLike, label_smoothing: ArrayLike, *, weights: ArrayLike | None = None
) -> NDArray[np.float64]:
    r"""Return the expected calibration error that smoothing gives to a model that would be calibrated without it.

    .. math:: \mathrm{ECE}_b = b\,\bigl(E \max_k p_k - 1/V\bigr)

    Reason: the minimiser of the smoothed loss over all models is :func:`smooth` of the truth p; its confidence is
    (1-b) max p + b/V while it is right with probability max p, so every context is under-confident by b (max p - 1/V).

    Args:
        probabilities: True conditionals, shape (..., N, V).
        label_smoothing: Smoothing b in [0, 1], shape broadcastable to (...).
        weights: Frequencies of the N contexts, shape (N,), at least 0 and not all 0; equal by default.

    Returns:
        The error, shape (...): a fraction in [0, 1).

    Raises:
        ValueError: If an argument is outside its range or the shapes do not fit.

    Example:
        >>> smoothed_calibration_error([[0.8, 0.2], [0.5, 0.5]], 0.1).round(4).item()
        0.015
    """
    p, b = distribution("probabilities", probabilities), interval("label_smoothing", label_smoothing, 0, 1)
    if p.ndim < 2:
        raise ValueError(f"probabilities must have shape (..., contexts, vocab_size), got the shape {p.shape}.")
    w = np.ones(p.shape[-2]) if weights is None else interval("weights", weights, 0)
    if w.shape != p.shape[-2:-1] or w.sum() == 0:
        raise ValueError(f"weights must have shape {p.shape[-2:-1]} and a positive sum, got the shape {w.shape}.")
    mean = (p.max(axis=-1) * w).sum(axis=-1) / w.sum()
    require_broadcast(probabilities=np.asarray(mean), label_smoothing=b)
    return b * (mean - 1 / p.shape[-1])  # equation D2


@one_index
def dirichlet_concentration(label_smoothing: ArrayLike, vocab_size: ArrayLike, count: ArrayLike) -> NDArray[np.float64]:
    r"""Return the concentration of the symmetric Dirichlet prior whose posterior mode is what smoothing learns.

    .. math:: \alpha = 1 + \frac{b\,n}{(1-b)\,V}

    Reason: n observations with counts n_k make the smoothed loss -sum_k [(1-b) n_k + b n/V] log p_k, which is
    -(1-b) times the log-posterior under pseudo-counts alpha - 1 = b n / ((1-b) V). The prior grows with n: smoothing is
    not one prior, and unlike a prior it is never outweighed by data.

    Args:
        label_smoothing: Smoothing b in [0, 1).
        vocab_size: Number of classes V >= 2.
        count: Observations n >= 0 of the context.

    Returns:
        alpha >= 1, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> dirichlet_concentration(0.1, 100, [10, 1000]).round(4).tolist()
        [1.0111, 2.1111]
    """
    b = interval("label_smoothing", label_smoothing, 0, 1, open_high=True)
    v, n = whole("vocab_size", vocab_size, 2), interval("count", count, 0)
    require_broadcast(label_smoothing=b, vocab_size=v, count=n)
    return 1 + b * n / ((1 - b) * v)  # equation D1


def _rows_and_smoothing(
    probabilities: ArrayLike, label_smoothing: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, b = distribution("probabilities", probabilities), interval("label_smoothing", label_smoothing, 0, 1)
    require_broadcast(probabilities=p[..., 0], label_smoothing=b)
    return p, b[..., None]
