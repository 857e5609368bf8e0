"""Minimisers of the smoothed loss over norm-bounded heads: the setting of C1, solved by projected gradient in numpy.

One context for every token, features free inside a ball, rows inside a ball. This is the small exact counterpart of
:mod:`analysis.bottleneck`, without torch, that the theory is checked against.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from . import projected
from .checks import interval, one_index, one_whole, require_broadcast, softcap_or_inf

Array = NDArray[np.float64]

__all__ = ["NormBallHead", "fit_norm_ball"]


class NormBallHead(NamedTuple):
    """What a head of :func:`fit_norm_ball` predicts: means over its contexts, or the smallest where a field says so."""

    loss: Array
    confidence: Array
    smallest_confidence: Array
    accuracy: Array
    entropy: Array
    cross_entropy: Array
    uniform_cross_entropy: Array


@one_index
def fit_norm_ball(
    vocab_size: int,
    hidden_size: int,
    norm_product: ArrayLike,
    *,
    label_smoothing: ArrayLike = 0.0,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    restarts: int = 4,
    steps: int = 600,
    generator: np.random.Generator | None = None,
) -> NormBallHead:
    """Fit the head of least smoothed loss with max ||h|| max ||w|| = m, one context per token.

    Args:
        vocab_size: Number of classes V >= 2, one number; time and memory grow as V^2.
        hidden_size: Width D >= 1, one number.
        norm_product: m >= 0, in logit units before cap and temperature.
        label_smoothing: Smoothing b in [0, 1].
        temperature: Temperature T > 0, in training and in what is reported.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.
        restarts: Random heads tried for each element; the one of least loss is reported.
        steps: Gradient steps, at least 1.
        generator: Source of the random heads; by default a fresh one of seed 0.

    Returns:
        Means over the contexts: the smoothed loss; the probability of the target (``confidence``, which at an optimum
        is the largest one) and its smallest value; accuracy; entropy, CE and CE_u in nats, the arguments of
        :func:`analysis.smoothing.activity_index`.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> fit_norm_ball(8, 8, [3.0, 6.0], label_smoothing=0.1).confidence.round(3).tolist()
        [0.815, 0.913]
    """
    m, b = interval("norm_product", norm_product, 0), interval("label_smoothing", label_smoothing, 0, 1)
    t, c = interval("temperature", temperature, 0, open_low=True), softcap_or_inf(softcap)
    v, d = one_whole("vocab_size", vocab_size, 2), one_whole("hidden_size", hidden_size, 1)
    tries, steps = one_whole("restarts", restarts, 1), one_whole("steps", steps, 1)
    shape = require_broadcast(norm_product=m, label_smoothing=b, temperature=t, softcap=c)
    projected.check_size(math.prod(shape) * tries, v, d)
    m, b, t, c = (np.broadcast_to(x, shape).ravel() for x in (m, b, t, c))
    problem = projected.Problem(*(np.repeat(x, tries) for x in (m, t, c)))
    smoothing = np.repeat(b, tries)[:, None, None]
    generator = np.random.default_rng(0) if generator is None else generator
    rows, features = projected.start(len(problem.m), v, d, generator)
    target = (1 - smoothing) * np.eye(v) + smoothing / v

    def slope(z: Array, progress: float) -> Array:
        return np.exp(log_softmax(z, axis=-1)) - target

    projected.descend(rows, features, problem, slope, steps=steps)
    log_p = log_softmax(projected.logits(rows, features, problem)[0], axis=-1)
    p = np.exp(log_p)
    own = np.diagonal(log_p, axis1=-2, axis2=-1)
    loss = -(target * log_p).sum(axis=-1).mean(axis=-1)
    best = loss.reshape(m.size, tries).argmin(axis=1) + tries * np.arange(m.size)
    fields = (
        loss,
        np.exp(own).mean(axis=-1),
        np.exp(own.min(axis=-1)),
        (own >= log_p.max(axis=-1)).mean(axis=-1),
        -(p * log_p).sum(axis=-1).mean(axis=-1),
        -own.mean(axis=-1),
        -log_p.mean(axis=(-2, -1)),
    )
    return NormBallHead(*(x[best].reshape(shape)[()] for x in fields))
