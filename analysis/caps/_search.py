"""What heads really attain: projected gradient on the smallest gap, against which every bound can be plotted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import projected
from ..checks import interval, one_index, one_whole, require_broadcast, softcap_or_inf
from ._gaps import gap_to_confidence
from ._softcap import symmetric_gap


@one_index
def attained_gap(
    norm_product: ArrayLike,
    vocab_size: int,
    hidden_size: int,
    *,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    restarts: int = 4,
    steps: int = 400,
    generator: np.random.Generator | None = None,
) -> NDArray[np.float64]:
    """Search for the best head and return its smallest gap over tokens, in nats: a **lower** bound on what is possible.

    Maximises a soft minimum of the gaps over rows and features in their balls, by projected gradient from random
    aligned heads, all restarts and all broadcast elements in one batch. For D >= V (or D >= V - 1 without a cap) the
    best of a one-parameter family of symmetric heads competes too; it has never been beaten (see
    ``docs/theory_notes.md``).

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before cap and temperature.
        vocab_size: Number of classes V >= 2, one number; time and memory grow as V^2 (to about V = 512).
        hidden_size: Width D >= 1, one number.
        temperature: Temperature T > 0.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.
        restarts: Random heads tried for each element, at least 1.
        steps: Gradient steps, at least 1.
        generator: Source of the random heads; by default a fresh one of seed 0, so that the result is repeatable.

    Returns:
        The gap, with the broadcast shape of norm product, temperature and softcap.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> attained_gap(12.0, 32, 32, softcap=5.0, steps=1).round(3).item()
        7.055
        >>> attained_gap([1.0, 3.0], 4, 2).round(3).tolist()  # the orthoplex
        [1.237, 3.381]
    """
    m, t = interval("norm_product", norm_product, 0), interval("temperature", temperature, 0, open_low=True)
    c = softcap_or_inf(softcap)
    v, d = one_whole("vocab_size", vocab_size, 2), one_whole("hidden_size", hidden_size, 1)
    tries, steps = one_whole("restarts", restarts, 1), one_whole("steps", steps, 1)
    shape = require_broadcast(norm_product=m, temperature=t, softcap=c)
    projected.check_size(math.prod(shape) * tries, v, d)
    m, t, c = (np.broadcast_to(x, shape).ravel() for x in (m, t, c))
    problem = projected.Problem(*(np.repeat(x, tries) for x in (m, t, c)))
    generator = np.random.default_rng(0) if generator is None else generator
    rows, features = projected.start(m.size * tries, v, d, generator)
    identity = np.eye(v)
    unit = (10 * problem.t / np.maximum(problem.m, 1e-3 * problem.t))[:, None]  # sharpness follows the gaps' scale

    def slope(z: NDArray[np.float64], progress: float) -> NDArray[np.float64]:
        gaps, rivals = projected.gaps(z)
        sharpness = 0.05 * 6000**progress * unit  # from nearly the mean gap to nearly the smallest
        weight = np.exp(-sharpness * (gaps - gaps.min(axis=-1, keepdims=True)))
        return (weight / weight.sum(axis=-1, keepdims=True))[..., None] * (rivals - identity)

    projected.descend(rows, features, problem, slope, steps=steps)
    gaps, _ = projected.gaps(projected.logits(rows, features, problem)[0])
    found = gaps.min(axis=-1).reshape(m.size, tries).max(axis=-1)
    capped = np.isfinite(c)
    family = symmetric_gap(m, np.asarray(v, np.float64), c) / t
    found = np.where((d >= v) | (~capped & (d >= v - 1)), np.maximum(found, family), found)
    return np.maximum(found, 0.0).reshape(shape)[()]  # the head of zeros gives 0


def best_confidence(
    vocab_size: int,
    hidden_size: int,
    norm_product: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    restarts: int = 4,
    steps: int = 400,
    generator: np.random.Generator | None = None,
) -> NDArray[np.float64]:
    """Search for the head that is surest of every token at once, and return its confidence.

    The search is that of :func:`attained_gap`, which returns the same as a gap.

    Args:
        vocab_size: Number of classes V >= 2, one number.
        hidden_size: Width D >= 1, one number.
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before cap and temperature.
        temperature: Temperature T > 0.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.
        restarts: Random heads tried for each element, at least 1.
        steps: Gradient steps, at least 1.
        generator: Source of the random heads; by default a fresh one of seed 0.

    Returns:
        The confidence, with the broadcast shape of norm product, temperature and softcap.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> best_confidence(4, 2, [1.0, 3.0, 6.0]).round(4).tolist()  # equals rank_cap there
        [0.5344, 0.9074, 0.9951]
    """
    gap = attained_gap(
        norm_product,
        vocab_size,
        hidden_size,
        temperature=temperature,
        softcap=softcap,
        restarts=restarts,
        steps=steps,
        generator=generator,
    )
    return gap_to_confidence(gap, vocab_size)
