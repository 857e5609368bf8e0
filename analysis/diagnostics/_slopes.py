"""Derivatives of the loss in the temperature: scale gap (C3) and smoothing slope (C4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import check_losses, interval, one_index, require_broadcast

Array = NDArray[np.float64]


@one_index
def scale_gap(entropy: ArrayLike, cross_entropy: ArrayLike) -> Array:
    """Return entropy minus cross-entropy, in nats: d CE / d log T at T = 1.

    Reason: CE(T) = E[lse(z / T) - z_y / T], whose derivative in log T is E[z_y - sum p z] = H - CE, since
    H = lse - sum p z. On the training data: > 0, the scale of the logits is capped or underfit; 0 at an attained
    optimum of a free scale. On held-out data: < 0 says over-confident, > 0 under-confident. Under a softcap it
    concerns the output temperature only (a scale of W does not scale the logits).

    Args:
        entropy: Mean entropy of the predictions, in nats.
        cross_entropy: Mean loss against the targets, in nats.

    Returns:
        H - CE with the broadcast shape.

    Raises:
        ValueError: If an argument is NaN, infinite or negative, or the shapes do not broadcast.

    Example:
        >>> float(scale_gap(1.5, 2.0))
        -0.5
    """
    h, ce = interval("entropy", entropy), interval("cross_entropy", cross_entropy)
    require_broadcast(entropy=h, cross_entropy=ce)
    check_losses(h, ce)
    return h - ce  # equation C3


@one_index
def smoothing_slope(
    entropy: ArrayLike, cross_entropy: ArrayLike, uniform_cross_entropy: ArrayLike, label_smoothing: ArrayLike
) -> Array:
    """Return the slope d CE_b / d log T at T = 1, in nats: (H - CE) - b (CE_u - CE).

    Its sign is that of :func:`analysis.smoothing.activity_index` minus 1: positive, the smoothed loss still wants
    larger logits; negative, smoothing pulls them down. At b = 0 it is :func:`scale_gap`.

    Args:
        entropy: Mean entropy H of the predictions, in nats.
        cross_entropy: Mean loss CE against the unsmoothed targets, in nats.
        uniform_cross_entropy: Mean of CE_u = lse - mean_k z_k, in nats.
        label_smoothing: Smoothing b in [0, 1].

    Returns:
        The slope with the broadcast shape.

    Raises:
        ValueError: If an argument is NaN, infinite or out of range, H is above CE_u, or the shapes do not broadcast.

    Example:
        >>> smoothing_slope(2.0, 1.9, 11.0, [0.0, 0.1]).round(2).tolist()
        [0.1, -0.81]
    """
    gap, ce = scale_gap(entropy, cross_entropy), interval("cross_entropy", cross_entropy)
    uniform = interval("uniform_cross_entropy", uniform_cross_entropy)
    b = interval("label_smoothing", label_smoothing, 0, 1)
    require_broadcast(entropy=np.asarray(gap), cross_entropy=ce, uniform_cross_entropy=uniform, label_smoothing=b)
    check_losses(interval("entropy", entropy), ce, uniform)
    return gap - b * (uniform - ce)  # equation C4
