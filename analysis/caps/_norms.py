"""Caps that follow from norms alone: one context (A0), one token (A1), every token at once (A2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ..checks import interval, one_index, require_broadcast, whole
from ._gaps import gap_to_confidence, max_gap


def _context_gap(logit_norm: ArrayLike, vocab_size: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gap of the logits ``z ~ e_1 - 1/V`` with Euclidean norm L, and V: the extreme point of A0."""
    norm, v = interval("logit_norm", logit_norm, 0), whole("vocab_size", vocab_size, 2)
    require_broadcast(logit_norm=norm, vocab_size=v)
    return norm * np.sqrt(v / (v - 1)), v


@one_index
def entropy_floor(logit_norm: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Return the least entropy, in nats, that the softmax of logits z with ``||z||_2 <= logit_norm`` can have.

    With :math:`G = L\sqrt{V/(V-1)}` and :math:`q = 1/(1 + e^G/(V-1))`, the mass off the top token,

    .. math:: H \ge \log\bigl(1 + (V-1)e^{-G}\bigr) + G\,q.

    Attained at z proportional to e_1 - 1/V. It sees the hidden size through the norm L only, never through the rank,
    and speaks of one context: the other contexts of the same head may all have larger entropy.

    Args:
        logit_norm: Bound L >= 0 on the Euclidean norm of the (centred or not) logits over the vocabulary, after cap and
            temperature.
        vocab_size: Number of classes V >= 2.

    Returns:
        The floor in nats, from log V at L = 0 towards 0, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> entropy_floor([0.0, 10.0, 20.0], 4096).round(4).tolist()
        [8.3178, 1.7366, 0.0002]
    """
    gap, v = _context_gap(logit_norm, vocab_size)
    excess = gap - np.log(v - 1)
    return np.logaddexp(0.0, -excess) + gap * expit(-excess)  # equation A0


@one_index
def logit_norm_cap(logit_norm: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Return the largest probability of a token when ``||z||_2 <= logit_norm``: :math:`G = L\sqrt{V/(V-1)}`.

    The companion of :func:`entropy_floor`, attained at the same logits.

    Args:
        logit_norm: Bound L >= 0 on the Euclidean norm of the logits, after cap and temperature.
        vocab_size: Number of classes V >= 2.

    Returns:
        The confidence cap, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> logit_norm_cap([0.0, 10.0], 4096).round(4).tolist()
        [0.0002, 0.8434]
    """
    gap, v = _context_gap(logit_norm, vocab_size)
    return gap_to_confidence(gap, v)


@one_index
def single_token_cap(norm_product: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Bound the confidence in **one** token, whatever happens to the others: gap 2m.

    .. math:: p \le \frac{1}{1 + (V-1)e^{-2m}}

    Reason: ``|w_k . h| <= m`` for every k. Attained in every hidden size >= 1 by one row along h and all others
    against it, so that no bound on all heads that looks at a single token can be lower.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units. Broadcasts with ``vocab_size``.
        vocab_size: Number of classes V >= 2.

    Returns:
        The confidence cap, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> single_token_cap([2.0, 5.0, 8.0], 32768).round(4).tolist()
        [0.0017, 0.402, 0.9963]
    """
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    require_broadcast(norm_product=m, vocab_size=v)
    return gap_to_confidence(2 * m, v)  # equation A1


@one_index
def simplex_cap(norm_product: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    r"""Bound the confidence that a head can give to **every** token in its own context: gap mV/(V-1).

    .. math:: \min_k p_k(h_k) \le \frac{1}{1 + (V-1)e^{-mV/(V-1)}}

    Reason: by Jensen the gap is at most the mean of z_y - z_k; summed over tokens this is
    V sum_y h_y . (w_y - mean w) <= V^2 m. Holds for every hidden size; tight iff ``hidden_size >= vocab_size - 1``,
    where rows and features are the same regular simplex. :func:`rank_cap` is the one that knows the hidden size.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units. Broadcasts with ``vocab_size``.
        vocab_size: Number of classes V >= 2.

    Returns:
        The confidence cap, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> simplex_cap([5.0, 10.0, 15.0], 32768).round(4).tolist()
        [0.0045, 0.4021, 0.9901]
    """
    return gap_to_confidence(max_gap(norm_product, vocab_size), vocab_size)  # equation A2
