"""What label smoothing asks of a head, and whether a head of given norms can feel it.

Convention, everywhere in this project that of :func:`torch.nn.functional.cross_entropy`: with ``label_smoothing`` b the
target of a token y is (1 - b) onehot(y) + b / V, so y itself keeps 1 - b + b / V.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from ._validation import distribution, interval, require_broadcast, whole
from .caps._softcap import softcap_gap

__all__ = [
    "activity_index",
    "effectiveness_ratio",
    "loss_floor",
    "optimal_confidence",
    "optimal_gap",
    "restoring_temperature",
    "smooth",
    "unsmooth",
]


def _smoothing_and_vocab(
    label_smoothing: ArrayLike, vocab_size: ArrayLike, *, positive: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    b = interval("label_smoothing", label_smoothing, 0, 1, open_low=positive)
    v = whole("vocab_size", vocab_size, 2)
    require_broadcast(label_smoothing=b, vocab_size=v)
    return b, v


def optimal_gap(label_smoothing: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Logit gap G_LS between the target and the others at the smoothed optimum, in nats.

    .. math:: G_{LS} = \log\bigl(1 + (1-b)\,V/b\bigr)

    Reason: the minimiser of the smoothed loss on one target is the smoothed target itself.

    Args:
        label_smoothing: Smoothing b in (0, 1]. Broadcasts with ``vocab_size``.
        vocab_size: Number of classes V >= 2.

    Returns:
        The gap in nats, with the broadcast shape; 0 at b = 1. It grows as log V at fixed b, though the confidence it
        belongs to (:func:`optimal_confidence`) hardly moves.

    Raises:
        ValueError: If an argument is outside its range (at b = 0 the optimum is at infinity) or the shapes do not
            broadcast.

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, Sec. 7. arXiv:1512.00567

    Example:
        >>> optimal_gap(0.1, [32768, 131072, 262144]).round(2).tolist()
        [12.59, 13.98, 14.67]
    """
    b, v = _smoothing_and_vocab(label_smoothing, vocab_size, positive=True)
    return np.log1p((1 - b) * v / b)  # equation C0


def optimal_confidence(label_smoothing: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    """Confidence in the target at the smoothed optimum: 1 - b + b/V.

    Args:
        label_smoothing: Smoothing b in [0, 1]. Broadcasts with ``vocab_size``.
        vocab_size: Number of classes V >= 2.

    Returns:
        The probability, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> float(optimal_confidence(0.1, 10))
        0.91
    """
    b, v = _smoothing_and_vocab(label_smoothing, vocab_size)
    return (1 - b) + b / v  # equation C0


def loss_floor(label_smoothing: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Smallest value of the smoothed loss on deterministic targets, in nats: the entropy of the smoothed target.

    .. math:: H(q) = -q_y\log q_y - \frac{V-1}{V}\,b\,\log\frac{b}{V}, \qquad q_y = 1 - b + b/V

    Args:
        label_smoothing: Smoothing b in [0, 1]. Broadcasts with ``vocab_size``.
        vocab_size: Number of classes V >= 2.

    Returns:
        The floor in nats, from 0 at b = 0 to log V at b = 1, with the broadcast shape. Subtract it from a smoothed
        training loss before comparing runs of different b or V.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> float(loss_floor(0.1, 32768).round(4))
        1.3648
    """
    b, v = _smoothing_and_vocab(label_smoothing, vocab_size)
    rest = b * ((v - 1) / v)  # mass off the target
    kept = (1 - b) + b / v
    # log1p keeps a tiny b exact, log keeps b near 1 exact
    log_kept = np.where(rest < 0.5, np.log1p(-np.minimum(rest, 0.5)), np.log(kept))
    return -kept * log_kept - xlogy(rest, b / v)  # equation C0


def effectiveness_ratio(
    norm_product: ArrayLike,
    vocab_size: ArrayLike,
    label_smoothing: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""Ratio rho of the gap that the norms allow to the gap that smoothing asks for.

    .. math:: \rho = \texttt{softcap\_gap}(m, V, c; T) \,/\, G_{LS}(b, V)

    For norm-bounded features, every token a target equally often, D >= V - 1 and no softcap, smoothing is **exactly
    inert** iff rho <= 1: the logits of every minimiser are a simplex of gap min(mV/((V-1)T), G_LS). With a softcap
    rho <= 1 still proves inertness, rho > 1 proves nothing. For D < V - 1 rho ignores the rank and is a heuristic:
    use :func:`activity_index`.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before cap and temperature.
        vocab_size: Number of classes V >= 2.
        label_smoothing: Smoothing b in (0, 1].
        temperature: Training temperature T > 0.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.

    Returns:
        rho >= 0 with the broadcast shape; 0 at m = 0 and, for m > 0, inf at b = 1, where the asked gap is 0.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> effectiveness_ratio([5.0, 20.0], 32768, 0.1).round(3).tolist()
        [0.397, 1.588]
    """
    asked = optimal_gap(label_smoothing, vocab_size)
    allowed = softcap_gap(norm_product, vocab_size, softcap, temperature=temperature)
    require_broadcast(norm_product=np.asarray(allowed), label_smoothing=np.asarray(asked))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(allowed, asked)  # equation C1
    return np.where(allowed == 0, 0.0, ratio)[()]


def restoring_temperature(
    norm_product: ArrayLike,
    vocab_size: ArrayLike,
    label_smoothing: ArrayLike,
    *,
    softcap: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""Training temperature T* below which a norm-bounded head can reach the gap that smoothing asks for.

    .. math:: T^* = \texttt{softcap\_gap}(m, V, c; T = 1) \,/\, G_{LS}(b, V)

    Smoothing acts iff T < T* for D >= V - 1 without a softcap; with one, T >= T* proves that it is inert. T* is rho at
    T = 1, since both gap and bound scale as 1/T. It is a statement about *training* under a norm budget: with free
    norms T is a reparametrisation, and after training no temperature creates an effect of smoothing.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before the cap.
        vocab_size: Number of classes V >= 2.
        label_smoothing: Smoothing b in (0, 1].
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.

    Returns:
        T* with the broadcast shape; a value above 1 says that smoothing acts without help.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> restoring_temperature([5.0, 20.0], 32768, 0.1).round(3).tolist()
        [0.397, 1.588]
    """
    return effectiveness_ratio(norm_product, vocab_size, label_smoothing, softcap=softcap)  # equation C2


def smooth(probabilities: ArrayLike, label_smoothing: ArrayLike) -> NDArray[np.float64]:
    """Smoothed distributions (1 - b) p + b / V.

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


def unsmooth(probabilities: ArrayLike, label_smoothing: ArrayLike) -> NDArray[np.float64]:
    """Inverse of :func:`smooth`, (p - b / V) / (1 - b), clipped at 0 and renormalised.

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


def _rows_and_smoothing(
    probabilities: ArrayLike, label_smoothing: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, b = distribution("probabilities", probabilities), interval("label_smoothing", label_smoothing, 0, 1)
    require_broadcast(probabilities=p[..., 0], label_smoothing=b)
    return p, b[..., None]


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
