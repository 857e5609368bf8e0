"""The smoothing activity index (C4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import interval, require_broadcast

__all__ = ["activity_index"]


def activity_index(
    entropy: ArrayLike,
    cross_entropy: ArrayLike,
    uniform_cross_entropy: ArrayLike,
    label_smoothing: ArrayLike,
) -> NDArray[np.float64]:
    r"""Smoothing activity index A of a head trained *without* smoothing: does smoothing pull its scale up or down?

    .. math:: A = \frac{H - CE}{b\,(CE_u - CE)}, \qquad
              \frac{d\,CE_b}{d\log T}\Big|_{T=1} = (H - CE) - b\,(CE_u - CE).

    A > 1, = 1, < 1 says that this derivative is > 0, = 0, < 0, **for every input**: A > 1 means that even the
    smoothed loss still wants larger logits (smoothing inert), A < 1 that it wants smaller ones (smoothing acts). This
    is a first-order statement, averaged over the data, about the overall scale; that A > 1 leaves the confidence
    unchanged is exact only in the setting of :func:`effectiveness_ratio`. Needs forward passes only, for any D, V,
    temperature, softcap and bias.

    Args:
        entropy: Mean entropy H of the predictions over the training distribution, in nats.
        cross_entropy: Mean loss CE against the unsmoothed targets, in nats.
        uniform_cross_entropy: Mean of CE_u = lse - mean_k z_k, the loss against uniform targets, in nats.
        label_smoothing: Smoothing b in [0, 1] whose effect is asked for.

    Returns:
        A with the broadcast shape. Where b (CE_u - CE) <= 0 (b = 0, or a head no better on its targets than on uniform
        ones) the ratio would lose its sign, and the value is inf, 1 or -inf after the sign of the derivative.

    Raises:
        ValueError: If an argument is NaN or infinite, b is outside [0, 1], or the shapes do not broadcast.

    Example:
        >>> activity_index(2.0, [1.0, 1.9], 11.0, 0.1).round(3).tolist()
        [1.0, 0.11]
    """
    h, ce = interval("entropy", entropy), interval("cross_entropy", cross_entropy)
    uniform = interval("uniform_cross_entropy", uniform_cross_entropy)
    b = interval("label_smoothing", label_smoothing, 0, 1)
    require_broadcast(entropy=h, cross_entropy=ce, uniform_cross_entropy=uniform, label_smoothing=b)
    upward, downward = h - ce, b * (uniform - ce)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = upward / downward  # equation C4
        sign = np.sign(upward - downward)
        limit = np.where(sign == 0, 1.0, sign * np.inf)
    return np.where(downward > 0, ratio, limit)[()]
