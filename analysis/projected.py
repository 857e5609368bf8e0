"""Projected gradient descent on heads with norm-bounded rows and features, batched over independent problems.

Shapes: rows W and features H are (B, V, D) with every vector in the unit ball, context y of problem b has the target y,
and the logits are Z[b, y, k] = f(m_b h_y . w_k) / T_b, f(x) = c_b tanh(x / c_b), with m, T, c of shape (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = ["Problem", "check_size", "descend", "gaps", "logits", "start"]


_MOST = 2**27  # numbers of one array, 1 GB


class Problem(NamedTuple):
    """Norm product, temperature and softcap (infinity: none) of each of the B problems."""

    m: Array
    t: Array
    c: Array


def start(count: int, vocab_size: int, hidden_size: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Random unit rows, and features along their own rows."""
    rows = generator.standard_normal((count, vocab_size, hidden_size))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows, rows.copy()


def check_size(count: int, vocab_size: int, hidden_size: int) -> None:
    """Refuse problems whose rows and logits, with what is made of them, would not fit into about 10 GB."""
    if count * vocab_size * max(vocab_size, hidden_size) > _MOST:
        raise ValueError(
            f"vocab_size must be smaller: {count} heads (restarts, elements) of V = {vocab_size} and D = {hidden_size} "
            f"have {count * vocab_size * max(vocab_size, hidden_size):.3g} numbers, at most {_MOST} fit."
        )


def logits(rows: Array, features: Array, problem: Problem) -> tuple[Array, Array]:
    """Z (B, V, V) and dZ / d(h . w) of the same shape."""
    m, t, c = (x[:, None, None] for x in problem)
    raw = m * (features @ rows.swapaxes(-1, -2))
    with np.errstate(invalid="ignore"):
        squashed = np.tanh(raw / c)
        capped = np.where(np.isinf(c), raw, c * squashed)
    return capped / t, (1 - squashed**2) * m / t


def gaps(z: Array) -> tuple[Array, Array]:
    """G[b, y] = z_y - log mean_{k != y} exp z_k, and the softmax over the rivals (B, V, V) with a zero diagonal."""
    v = z.shape[-1]
    rivals = np.where(np.eye(v, dtype=bool), -np.inf, z)
    top = rivals.max(axis=-1, keepdims=True)
    weights = np.exp(rivals - top)
    total = weights.sum(axis=-1, keepdims=True)
    target = np.diagonal(z, axis1=-2, axis2=-1)
    return target - (top + np.log(total))[..., 0] + np.log(v - 1), weights / total


def descend(
    rows: Array,
    features: Array,
    problem: Problem,
    slope: Callable[[Array, float], Array],
    *,
    steps: int,
    rate: float = 0.3,
) -> None:
    """Projected descent in place; ``slope(Z, progress)`` gives dLoss/dZ (B, V, V), progress running over [0, 1).

    Momentum, with the step of each row divided by the running norm of its gradient. (Adam's division by coordinate is
    not rotation invariant and stopped up to 3 % short of the simplex.) The rate falls along a cosine to 1e-3 of its
    start.
    """
    parameters = (rows, features)
    momentum = [np.zeros_like(x) for x in parameters]
    square = [np.zeros((*x.shape[:2], 1)) for x in parameters]
    for step in range(steps):
        progress = step / steps
        z, chain = logits(rows, features, problem)
        g = slope(z, progress) * chain
        current = rate * (1e-3 + 0.999 * 0.5 * (1 + np.cos(np.pi * progress)))
        for i, gradient in enumerate((g.swapaxes(-1, -2) @ features, g @ rows)):
            momentum[i] += 0.1 * (gradient - momentum[i])
            square[i] += 0.01 * ((gradient**2).sum(axis=-1, keepdims=True) - square[i])
            scale = np.sqrt(square[i] / (1 - 0.99 ** (step + 1))) + 1e-300
            x = parameters[i]
            x -= current * (momentum[i] / (1 - 0.9 ** (step + 1))) / scale
            x /= np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1.0)
