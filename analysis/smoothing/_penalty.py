"""Smoothing as a penalty on the distances between logits (D1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from ..checks import interval, refuse_probabilities


class SmoothingPenalty(NamedTuple):
    """Divergence KL(uniform || p) and mean distance of the logits to their maximum, both in nats."""

    divergence: NDArray[np.float64]
    distance: NDArray[np.float64]


def smoothing_penalty(logits: ArrayLike, *, allow_probabilities: bool = False) -> SmoothingPenalty:
    r"""Return what smoothing adds to the loss of these logits, and the logit distances that bound it.

    .. math::
        CE_b = (1-b)\,CE + b\,\bigl(\log V + KL(u \| p)\bigr), \\
        KL(u \| p) \le \operatorname{mean}_k (\max_j z_j - z_k) \le KL(u \| p) + \log V

    Reason: KL(u || p) = lse - mean z - log V and max z <= lse <= max z + log V. So smoothing penalises the mean
    distance of the logits from their maximum, to within log V, whatever the target is.

    Args:
        logits: Logits after cap and temperature, shape (..., V), V >= 1. Log-probabilities are logits too.
        allow_probabilities: Take logits that look like probabilities or percentages, rounded and clipped ones too: none
            is negative, and rows that are not all zero sum to 1 or 100, each to 2 %, or, of ten rows and more, nine in
            ten to 10 %. Otherwise these are refused.

    Returns:
        Divergence and distance, each of shape (...).

    Raises:
        ValueError: If ``logits`` are not finite, have no last axis, or are probabilities.

    Example:
        >>> divergence, distance = smoothing_penalty([3.0, 0.0, 0.0, -3.0])
        >>> float(divergence.round(3)), float(distance)
        (1.711, 3.0)
    """
    z = interval("logits", logits)
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., vocab_size), got the shape {z.shape}.")
    refuse_probabilities("logits", z, allow_probabilities)
    mean = z.mean(axis=-1)
    divergence = np.asarray(logsumexp(z, axis=-1)) - mean - np.log(z.shape[-1])
    return SmoothingPenalty(np.maximum(divergence, 0.0), z.max(axis=-1) - mean)  # equation D1
