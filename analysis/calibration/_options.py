"""Confidence as multiple-choice benchmarks read it: a softmax over the candidates alone, and what that leaves out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from ..checks import as_numpy
from ._inputs import outcomes


class OptionConfidence(NamedTuple):
    """Confidence restricted to K options, with the full-vocabulary view beside it.

    Attributes:
        confidence: Largest probability after renormalising over the options ``(...)``.
        choice: Index of that option, the first on ties ``(...)``.
        full_confidence: Probability of the choice before renormalising ``(...)``: of the token among the vocabulary, or
            of the whole answer.
        mass: Probability that the model gives to all options together ``(...)``; for answers of different lengths the
            sum over disjoint strings.
    """

    confidence: NDArray[np.float64]
    choice: NDArray[np.intp]
    full_confidence: NDArray[np.float64]
    mass: NDArray[np.float64]


def _log_probabilities(name: str, value: Any, shape: str, axes: int) -> NDArray[np.float64]:
    array = as_numpy(name, value).astype(np.float64)
    if array.ndim < axes or 0 in array.shape[-axes:]:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")
    if not (array <= 1e-3).all():  # also true of NaN; half precision may round a certain token above 0
        raise ValueError(f"{name} must hold log-probabilities, at most 0 and not NaN, got a maximum of {array.max()}.")
    return np.minimum(array, 0)


def _restrict(score: NDArray[np.float64], log_p: NDArray[np.float64]) -> OptionConfidence:
    if np.isneginf(score).all(-1).any():
        raise ValueError("log_probability must be above -inf for at least one option of every question.")
    choice = score.argmax(-1)
    at_choice = np.take_along_axis(log_p, choice[..., None], -1)[..., 0]
    confidence = np.exp(log_softmax(score, axis=-1).max(-1))
    mass = np.minimum(np.exp(logsumexp(log_p, axis=-1)), 1.0)
    return OptionConfidence(confidence, choice, np.exp(at_choice), mass)


def option_confidence(log_probability: Any) -> OptionConfidence:
    """Renormalise over candidate tokens, as multiple-choice benchmarks do that compare the letters A to D.

    Renormalising over four options hides most of what the vocabulary does: report ``full_confidence`` and ``mass`` too.

    Args:
        log_probability: Full-vocabulary log-probabilities of the candidate tokens ``(..., K)``: their logits over T
            minus the ``lse`` of :func:`kernel.head_statistics`.

    Returns:
        The restricted confidence, the choice, its full-vocabulary probability and the mass of all options.

    Raises:
        TypeError: If the argument is not numeric.
        ValueError: If it holds no log-probabilities, options of more than the whole probability (logits, say), or a
            question whose options are all impossible.

    Example:
        >>> result = option_confidence(np.log([0.3, 0.1, 0.05, 0.05]))
        >>> [round(float(x), 4) for x in result]
        [0.6, 0.0, 0.3, 0.5]
    """
    log_p = _log_probabilities("log_probability", log_probability, "(..., K)", 1)
    mass = np.exp(logsumexp(log_p, axis=-1))
    if log_p.size and mass.max() > 1 + 1e-2:  # half precision rounds; different tokens cannot have more than 1 together
        raise ValueError(
            "log_probability must be of different tokens over the whole vocabulary, got options of a probability of "
            f"{mass.max():.4g} together: logits need their log-sum-exp subtracted."
        )
    return _restrict(log_p, log_p)


def answer_confidence(token_log_probability: Any, mask: Any) -> OptionConfidence:
    r"""Compare whole candidate answers by their length-normalised likelihood.

    .. math:: p_k \propto \exp\Bigl(\frac1{L_k}\sum_{t \le L_k} \log p(w_{k,t} \mid w_{k,<t})\Bigr)
        = 1 / \text{perplexity}_k

    Args:
        token_log_probability: Log-probabilities of the answers' tokens ``(..., K, L)``, padded; what stands in the
            padding does not matter.
        mask: True at tokens, False at padding ``(..., K, L)``; every answer needs a token.

    Returns:
        As :func:`option_confidence`; ``full_confidence`` and ``mass`` are of whole answers, not normalised by length.

    Raises:
        TypeError: If an argument is not numeric.
        ValueError: If shapes differ, an answer is empty, or values are no log-probabilities.

    Example:
        >>> log_p = np.log([[0.5, 0.5], [0.25, 1.0]])  # perplexities 2 and 4
        >>> result = answer_confidence(log_p, [[True, True], [True, False]])
        >>> [round(float(x), 4) for x in result]
        [0.6667, 0.0, 0.25, 0.5]
    """
    values, shape = as_numpy("token_log_probability", token_log_probability), as_numpy("mask", mask).shape
    if values.shape != shape:
        raise ValueError(f"mask must have token_log_probability's shape {values.shape}, got {shape}.")
    inside = outcomes("mask", mask).reshape(shape)
    log_p = _log_probabilities("token_log_probability", np.where(inside, values, 0.0), "(..., K, L)", 2)
    length = inside.sum(-1)
    if not length.all():
        raise ValueError("mask must mark at least one token of every answer.")
    total = log_p.sum(-1)
    return _restrict(total / length, total)
