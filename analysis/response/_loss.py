r"""The smoothed loss of each context as a function of its hidden state alone, the head frozen.

With rows W (already over T), a = W h and z = f(a),

    L(h) = lse(z) - q_b . z + (decay / 2) ||h||^2,      q_b = (1 - b) q + b / V,
    grad = J^T (p - q_b) + decay h,                     J = diag(f'(a)) W,
    Hess = J^T (diag p - p p^T) J + W^T diag(f''(a) (p - q_b)) W + decay I.

Without a softcap f' = 1 and f'' = 0, and the loss is convex; the last term but one is what a softcap takes away.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from kernel.softcap import slope, softcap

from ._inputs import ScaledHead

__all__ = ["ContextLoss", "Point", "forward"]


@dataclass
class Point:
    """Value and first derivative at hidden states, with what the second derivative needs."""

    value: Tensor  # (n,)
    gradient: Tensor  # (n, D)
    p: Tensor  # (n, V)
    bulk: Tensor  # geometric mean of p, (n,)
    slope: Tensor | None  # f'(a), (n, V); None for 1
    bend: Tensor | None  # f''(a) (p - q_b), (n, V); None for 0

    def part(self, which: Tensor) -> Point:
        """Of some contexts."""
        slope, bend = (None if x is None else x[which] for x in (self.slope, self.bend))
        return Point(self.value[which], self.gradient[which], self.p[which], self.bulk[which], slope, bend)

    def where(self, chosen: Tensor, other: Point) -> Point:
        """Its own where ``chosen``, ``(n,)``, else the other's."""
        if bool(chosen.all()):
            return self

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(chosen if a.ndim == 1 else chosen.unsqueeze(-1), a, b)

        return Point(
            pick(self.value, other.value),
            pick(self.gradient, other.gradient),
            pick(self.p, other.p),
            pick(self.bulk, other.bulk),
            None if self.slope is None or other.slope is None else pick(self.slope, other.slope),
            None if self.bend is None or other.bend is None else pick(self.bend, other.bend),
        )


def forward(head: ScaledHead, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits ``(n, V)`` and f'(a), None for 1."""
    a = hidden @ head.rows.T
    if head.softcap is None:
        return a, None
    return softcap(a, head.softcap), slope(a / head.softcap)


class ContextLoss:
    """The loss of a block of contexts.

    Args:
        head: Frozen.
        targets: q, ``(n, V)``.
        smoothing: b.
        decay: Weight decay of the hidden states, 0 for none.
    """

    def __init__(self, head: ScaledHead, targets: Tensor, smoothing: float, decay: float) -> None:
        self._head, self.decay = head, decay
        smoothed = (1 - smoothing) * targets + smoothing / head.vocab_size
        # without a softcap the targets enter through their mean row alone
        self._targets = smoothed if head.softcap is not None else smoothed @ head.rows  # (n, V) or (n, D)

    def part(self, which: Tensor) -> ContextLoss:
        """That of some of the contexts."""
        loss = copy(self)
        loss._targets = self._targets[which]
        return loss

    def at(self, hidden: Tensor) -> Point:  # (n, D)
        """Loss and derivatives."""
        z, incline = forward(self._head, hidden)
        lse = z.logsumexp(-1)
        p = (z - lse.unsqueeze(-1)).exp_()
        bulk = (z.mean(-1) - lse).exp()
        squares = 0.5 * self.decay * hidden.square().sum(-1)
        if incline is None or self._head.softcap is None:
            value = lse - (hidden * self._targets).sum(-1) + squares
            return Point(value, p @ self._head.rows - self._targets + self.decay * hidden, p, bulk, None, None)
        residual = p - self._targets
        value = lse - (z * self._targets).sum(-1) + squares
        gradient = (residual * incline) @ self._head.rows + self.decay * hidden
        bend = -2 * (z / self._head.softcap**2) * incline * residual  # f'' = -2 f f' / c^2
        return Point(value, gradient, p, bulk, incline, bend)

    def value(self, hidden: Tensor) -> Tensor:  # (n,)
        """Loss alone."""
        z = forward(self._head, hidden)[0]
        linear = hidden * self._targets if self._head.softcap is None else z * self._targets
        return z.logsumexp(-1) - linear.sum(-1) + 0.5 * self.decay * hidden.square().sum(-1)

    def curvature(self, point: Point, vectors: Tensor) -> Tensor:  # (n, D)
        """Hessian times one vector a context."""
        moved = vectors @ self._head.rows.T  # (n, V)
        inner = moved if point.slope is None else moved * point.slope
        mixed = point.p * (inner - (point.p * inner).sum(-1, keepdim=True))
        if point.slope is not None and point.bend is not None:
            mixed = mixed * point.slope + point.bend * moved
        return mixed @ self._head.rows + self.decay * vectors
