"""The smoothed optimum and whether a norm-bounded head can reach it (C0, C1, C2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from ..caps import max_gap, softcap_gap
from ..checks import interval, one_index, require_broadcast, whole


def _smoothing_and_vocab(
    label_smoothing: ArrayLike, vocab_size: ArrayLike, *, positive: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    b = interval("label_smoothing", label_smoothing, 0, 1, open_low=positive)
    v = whole("vocab_size", vocab_size, 2)
    require_broadcast(label_smoothing=b, vocab_size=v)
    return b, v


@one_index
def optimal_gap(label_smoothing: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Return the logit gap G_LS between the target and the others at the smoothed optimum, in nats.

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


@one_index
def optimal_confidence(label_smoothing: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    """Return the confidence in the target at the smoothed optimum: 1 - b + b/V.

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


@one_index
def loss_floor(label_smoothing: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Return the least smoothed loss on deterministic targets, in nats: the entropy of the smoothed target.

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


@one_index
def optimal_gap_under_cap(
    norm_product: ArrayLike, vocab_size: ArrayLike, label_smoothing: ArrayLike, *, temperature: ArrayLike = 1.0
) -> NDArray[np.float64]:
    r"""Return the gap, in nats, of every minimiser of the smoothed loss over norm-bounded heads.

    It is the gap that the norms allow or the one that smoothing asks for, whichever is smaller.

    .. math:: G^* = \min\Bigl(\frac{mV}{(V-1)\,T},\ G_{LS}(b, V)\Bigr)

    Exact for features of norm at most R that are otherwise free, rows of norm at most B, every token a target equally
    often, D >= V - 1 and no softcap. Reason: by Jensen the loss is at least phi(mean difference z_y - z_k), with
    phi(g) = log(1 + (V-1) e^-g) + b g (V-1)/V convex and smallest at G_LS; the mean difference is at most mV/((V-1)T);
    a scaled simplex attains both.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before the temperature.
        vocab_size: Number of classes V >= 2.
        label_smoothing: Smoothing b in [0, 1]; at 0 the second wish is infinite.
        temperature: Training temperature T > 0.

    Returns:
        The gap, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> optimal_gap_under_cap([3.0, 6.0], 8, 0.1).round(3).tolist()
        [3.429, 4.29]
    """
    b, v = _smoothing_and_vocab(label_smoothing, vocab_size)
    allowed = max_gap(norm_product, v, temperature=temperature)
    require_broadcast(norm_product=np.asarray(allowed), label_smoothing=b)
    with np.errstate(divide="ignore"):
        asked = np.log1p((1 - b) * v / b)  # equation C0, infinite at b = 0
    return np.minimum(allowed, asked)  # equation C1


@one_index
def effectiveness_ratio(
    norm_product: ArrayLike,
    vocab_size: ArrayLike,
    label_smoothing: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""Divide the gap that the norms allow by the gap that smoothing asks for: the ratio rho.

    .. math:: \rho = \texttt{softcap\_gap}(m, V, c; T) \,/\, G_{LS}(b, V)

    For norm-bounded features, every token a target equally often, D >= V - 1 and no softcap, smoothing is **exactly
    inert** iff rho <= 1: the logits of every minimiser are a simplex of gap min(mV/((V-1)T), G_LS). With a softcap
    rho <= 1 proves that no head reaches the asked gap in every token (and exact inertness where the bound is attained,
    see ``docs/theory_notes.md``); rho > 1 proves nothing. For D < V - 1 rho ignores the rank and is a heuristic: use
    :func:`activity_index` or :func:`predicted_activity`.

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


@one_index
def restoring_temperature(
    norm_product: ArrayLike,
    vocab_size: ArrayLike,
    label_smoothing: ArrayLike,
    *,
    softcap: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""Return the training temperature T* below which a norm-bounded head can reach the gap that smoothing asks for.

    .. math:: T^* = \texttt{softcap\_gap}(m, V, c; T = 1) \,/\, G_{LS}(b, V)

    Smoothing acts iff T < T* for D >= V - 1 without a softcap; with one, T >= T* proves that the asked gap is out of
    reach. T* is rho at T = 1, since both gap and bound scale as 1/T. It is a statement about *training* under a norm
    budget: with free norms T is a reparametrisation, and after training no temperature creates an effect of smoothing.

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
