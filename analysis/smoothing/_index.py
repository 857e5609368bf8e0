"""The smoothing activity index (C4), measured and predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..caps import gap_to_confidence, programme_gap, rank_gap
from ..checks import check_losses, interval, one_index, require_broadcast, whole


@one_index
def activity_index(
    entropy: ArrayLike,
    cross_entropy: ArrayLike,
    uniform_cross_entropy: ArrayLike,
    label_smoothing: ArrayLike,
) -> NDArray[np.float64]:
    r"""Tell from a head trained *without* smoothing whether smoothing would pull its scale up or down: the index A.

    .. math:: A = \frac{H - CE}{b\,(CE_u - CE)}, \qquad
              \frac{d\,CE_b}{d\log T}\Big|_{T=1} = (H - CE) - b\,(CE_u - CE).

    A > 1, = 1, < 1 says that this derivative is > 0, = 0, < 0, **for every input**: A > 1 means that even the
    smoothed loss still wants larger logits (smoothing inert), A < 1 that it wants smaller ones (smoothing acts). This
    is a first-order statement, averaged over the data, about the overall scale; that A > 1 leaves the confidence
    unchanged is exact only in the setting of :func:`effectiveness_ratio`, where A < 1 says no more than that the plain
    confidence exceeds 1 - b + b/V (:func:`analysis.response.exceeds_smoothed_target`). With noisy targets smoothing
    acts at any A; :func:`analysis.response.frozen_head_response` predicts by how much. Needs forward passes only, for
    any D, V, temperature, softcap and bias.

    Args:
        entropy: Mean entropy H of the predictions over the training distribution, in nats.
        cross_entropy: Mean loss CE against the unsmoothed targets, in nats.
        uniform_cross_entropy: Mean of CE_u = lse - mean_k z_k, the loss against uniform targets, in nats.
        label_smoothing: Smoothing b in [0, 1] whose effect is asked for.

    Returns:
        A with the broadcast shape. Where b (CE_u - CE) <= 0 (b = 0, or a head no better on its targets than on uniform
        ones) the ratio would lose its sign, and the value is inf, 1 or -inf after the sign of the derivative.

    Raises:
        ValueError: If an argument is NaN or infinite, H or CE is negative or H above CE_u (no softmax has these), b is
            outside [0, 1], or the shapes do not broadcast.

    Example:
        >>> activity_index(2.0, [1.0, 1.9], 11.0, 0.1).round(3).tolist()
        [1.0, 0.11]
    """
    h, ce = interval("entropy", entropy), interval("cross_entropy", cross_entropy)
    uniform = interval("uniform_cross_entropy", uniform_cross_entropy)
    b = interval("label_smoothing", label_smoothing, 0, 1)
    require_broadcast(entropy=h, cross_entropy=ce, uniform_cross_entropy=uniform, label_smoothing=b)
    check_losses(h, ce, uniform)
    upward, downward = h - ce, b * (uniform - ce)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = upward / downward  # equation C4
        sign = np.sign(upward - downward)
        limit = np.where(sign == 0, 1.0, sign * np.inf)
    return np.where(downward > 0, ratio, limit)[()]


@one_index
def predicted_activity(
    norm_product: ArrayLike,
    vocab_size: ArrayLike,
    hidden_size: ArrayLike,
    label_smoothing: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
) -> NDArray[np.float64]:
    r"""Predict the activity index of a norm-bounded head from its shape alone, of any rank, without training it.

    .. math:: A = \frac{1 - p(m)}{b}\,\frac{dG}{dm}, \qquad m \to m/T,

    G the gap of the linear-programming cap (:func:`analysis.caps.aligned_cap`) and p its confidence. Reason: at an
    optimum H - CE is minus the derivative of the optimal CE in log m (envelope theorem), which is (1 - p) m G'(m) if
    all tokens have the gap G; and CE_u - CE = m for aligned rows of mean zero.

    **Heuristic** for D < V - 1, where that cap is nearly attained; exact for D >= V - 1, where A = 1 is rho = 1.
    Against heads trained on one context a token (V = 16 to 64, D = 2 to 6, ``paper_figures/data/transition.csv``) it
    is within 5 % of the measured index for A in (.5, 2), and A = 1 is where smoothing starts to act, while rho there
    lies anywhere between .85 and 1.7; at other shapes it was up to 10 % off. The setting: features free in a ball,
    tokens balanced, no softcap. Refused at D = 1 with V > 2, where the tokens of a trained head differ widely.

    Args:
        norm_product: m > 0, in logit units before the temperature.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 2 (or D >= 1 at V = 2).
        label_smoothing: Smoothing b in (0, 1].
        temperature: Training temperature T > 0.

    Returns:
        A with the broadcast shape; some 20 ms an element.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> predicted_activity([6.0, 12.0], 32, 4, 0.1).round(1).tolist()  # trained heads: 1.9 and .2
        [1.9, 0.2]
    """
    m, v = interval("norm_product", norm_product, 0, open_low=True), whole("vocab_size", vocab_size, 2)
    d, b = whole("hidden_size", hidden_size, 1), interval("label_smoothing", label_smoothing, 0, 1, open_low=True)
    t = interval("temperature", temperature, 0, open_low=True)
    require_broadcast(norm_product=m, vocab_size=v, hidden_size=d, label_smoothing=b, temperature=t)
    if np.any((d < 2) & (v > 2)):
        raise ValueError(f"hidden_size must be at least 2 where vocab_size is above 2, got {hidden_size!r}.")

    def gap(x: float, size: float, width: float) -> float:
        # the programme at full width is the simplex cap, and fails where exp(2 x) is beyond its precision
        linear = float(rank_gap(x, size, width))
        return linear if width >= size - 1 else min(linear, programme_gap(x, size, width))

    def one(x: float, size: float, width: float) -> float:
        step = 0.01 * x
        slope = (gap(x + step, size, width) - gap(x - step, size, width)) / (2 * step)
        return float((1 - gap_to_confidence(gap(x, size, width), size)) * slope)

    return (np.vectorize(one, otypes=[np.float64])(m / t, v, d) / b)[()]
