"""Rivals of the response that need a confidence and an index alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import interval, one_index, real, require_broadcast, whole

Array = NDArray[np.float64]

__all__ = ["clipped_fall", "exceeds_smoothed_target", "rational_fall"]


def _checked(
    confidence: ArrayLike, activity_index: ArrayLike, vocab_size: ArrayLike, label_smoothing: ArrayLike
) -> tuple[Array, Array]:
    """The amplitude b (confidence - 1/V) and the index."""
    p, v = interval("confidence", confidence, 0, 1), whole("vocab_size", vocab_size, 2)
    a, b = real("activity_index", activity_index), interval("label_smoothing", label_smoothing, 0, 1)
    require_broadcast(confidence=p, activity_index=a, vocab_size=v, label_smoothing=b)
    return b * (p - 1 / v), a


@one_index
def rational_fall(
    confidence: ArrayLike, activity_index: ArrayLike, vocab_size: ArrayLike, label_smoothing: ArrayLike
) -> Array:
    """The fall b (confidence - 1/V) / (1 + A), from two numbers of the plain head: a rule of thumb for noisy targets.

    **Heuristic**, without a derivation. The amplitude is what smoothing takes from a head that follows its targets
    (D2). It fails at small b and for deterministic targets, where :func:`clipped_fall` is exact;
    :func:`frozen_head_response` is the prediction.

    Args:
        confidence: Mean max p of the plain head.
        activity_index: Its A at this smoothing, :func:`analysis.smoothing.activity_index`; infinite means no fall.
        vocab_size: V.
        label_smoothing: b in [0, 1].

    Returns:
        The fall, with the broadcast shape; nan where A <= -1, where the formula has no meaning.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> rational_fall(0.5, [0.0, 1.0, 4.0], 100, 0.1).round(4).tolist()
        [0.049, 0.0245, 0.0098]
    """
    amplitude, a = _checked(confidence, activity_index, vocab_size, label_smoothing)
    with np.errstate(divide="ignore"):
        return np.where(a > -1, amplitude / np.where(a > -1, 1 + a, 1.0), np.nan)[()]


@one_index
def clipped_fall(
    confidence: ArrayLike, activity_index: ArrayLike, vocab_size: ArrayLike, label_smoothing: ArrayLike
) -> Array:
    r"""The fall b (confidence - 1/V) max(0, 1 - A), A floored at -1, from two numbers of the plain head.

    For balanced deterministic targets at D >= V - 1 the fall is b (V - 1)/V max(0, 1 - A), exactly (C5): there A is
    (1 - confidence) V / ((V - 1) b), so that A < 1 says no more than that the confidence exceeds the smoothed target
    (:func:`exceeds_smoothed_target`), and the fall is what it exceeds it by. This function has the measured confidence
    in the place of 1, as a noisy head's amplitude is smaller; for deterministic targets it is off by the factor
    1 - (1 - confidence) V / (V - 1). An index below 0, of a text that the head was not trained on, says that plain
    training there would lower the confidence too: the line is not followed beyond A = -1.

    Args:
        confidence: Mean max p of the plain head.
        activity_index: Its A at this smoothing, :func:`analysis.smoothing.activity_index`.
        vocab_size: V.
        label_smoothing: b in [0, 1].

    Returns:
        The fall, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> clipped_fall(0.5, [-7.0, 0.0, 0.6, 4.0], 100, 0.1).round(4).tolist()
        [0.098, 0.049, 0.0196, 0.0]
    """
    amplitude, a = _checked(confidence, activity_index, vocab_size, label_smoothing)
    return (amplitude * (1 - np.clip(a, -1.0, 1.0)))[()]


@one_index
def exceeds_smoothed_target(confidence: ArrayLike, vocab_size: ArrayLike, label_smoothing: ArrayLike) -> NDArray[Any]:
    """Whether the plain confidence is above 1 - b + b/V: the rule that the activity index has to beat.

    For balanced deterministic targets at D >= V - 1 it is the same statement as A < 1. Noisy heads may feel smoothing
    far below it.

    Args:
        confidence: Mean max p of the plain head.
        vocab_size: V.
        label_smoothing: b in [0, 1].

    Returns:
        True where a smoothed deterministic target asks for less confidence than there is; the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> exceeds_smoothed_target([0.85, 0.95], 100, 0.1).tolist()
        [False, True]
    """
    p, v = interval("confidence", confidence, 0, 1), whole("vocab_size", vocab_size, 2)
    b = interval("label_smoothing", label_smoothing, 0, 1)
    require_broadcast(confidence=p, vocab_size=v, label_smoothing=b)
    return np.asarray(p > 1 - b + b / v)[()]
