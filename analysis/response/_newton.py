"""Minimise many small losses at once: a truncated-Newton trust region on spheres or in the whole space.

Every context has a trust region of its own and leaves the batch when its first-order condition holds. The inner solver
is Steihaug's: conjugate gradients in the tangent space until the residual is small, the region's edge is met or the
curvature is not positive (Absil, Baker and Gallivan 2007, "Trust-region methods on Riemannian manifolds", FoCM 7,
303-330). It needs products with the Hessian only, so that D may be in the thousands. In the principal axes of the rows
the many tokens of small p add to the Hessian about their geometric mean times a diagonal, and the multiplier of the
norm another: this is the preconditioner, and the few tokens of large p take a step of the solver each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._loss import ContextLoss, Point

__all__ = ["ENOUGH", "Domain", "Minimum", "Solver"]

_ITERATIONS = 200
_INNER = 400
# Fall of a loss, relative to it, that is rounding, and that no confidence feels: for a convex loss a fall of x that is
# left moves max p by at most sqrt(x / 2), by Cauchy and Schwarz in the metric of the Hessian.
_NOISE = 1e-13
_LEAST = 1e-14  # curvature that the preconditioner assumes everywhere, in units of the largest row's square
_FULL = 0.75  # share of a batch below which it is made smaller
_FASTER, _LONGER = 1.1, (2.0, 4.0, 8.0)
_SLOWER, _SHORTER = 0.1, (0.5, 0.25, 0.1)
ENOUGH = 1e-6  # of the gradient, beside such a fall


@dataclass(frozen=True)
class Domain:
    """Where hidden states may be: the sphere or the ball of a radius for each context, or everywhere."""

    kind: Literal["sphere", "ball", "free"]
    radius: Tensor | None  # (n,), None where free

    def part(self, which: slice | Tensor) -> Domain:
        """That of some contexts."""
        return Domain(self.kind, None if self.radius is None else self.radius[which])


@dataclass
class Minimum:
    """Hidden states ``(n, D)`` and the norm of the gradient that is left in each, in units of ``scale``."""

    hidden: Tensor
    residual: Tensor  # (n,)


class Solver:
    """State of the contexts that still move; ``found`` and ``left`` hold all.

    Args:
        loss: Of the contexts.
        start: ``(n, D)``.
        domain: A sphere, onto which the start is brought, or everywhere.
        squares: Diagonal of W^T W, ``(D,)``.
        scale: Unit of gradients.
        tolerance: Where to stop.
        leave: ``(n,)``, the radius of the ball in which this domain is one of two guesses; None to stay.
    """

    def __init__(
        self,
        loss: ContextLoss,
        start: Tensor,
        domain: Domain,
        squares: Tensor,
        scale: float,
        tolerance: float,
        leave: Tensor | None = None,
    ) -> None:
        self.loss, self.scale, self.tolerance = loss, scale, tolerance
        self.x, self.leave = _placed(start, domain), leave
        self.axes = squares
        self.squared = None if domain.radius is None else domain.radius.square().unsqueeze(-1)  # (n, 1)
        self.region = torch.full_like(self.x[:, 0], 8.0 / scale)  # logits may change by about 8 in the first step
        self.largest = 8 * self.region if domain.radius is None else torch.maximum(domain.radius, self.region)
        if domain.radius is not None:
            self.region = torch.minimum(self.region, domain.radius)
        self.point = loss.at(self.x)
        self.found, self.left = self.x.clone(), torch.full_like(self.region, math.inf)
        self.active = torch.arange(len(start), device=start.device)

    def run(self) -> Minimum:
        """Move until nothing moves."""
        stuck = torch.zeros_like(self.active, dtype=torch.bool)
        for _ in range(_ITERATIONS):
            gradient = self.gradient(self.x, self.point)
            left = gradient.norm(dim=-1) / self.scale
            self.found[self.active], self.left[self.active] = self.x, left
            moving = ~((left <= self.tolerance) | stuck | self.misplaced())
            if not bool(moving.all()):
                self.keep(moving)
                gradient, left = gradient[moving], left[moving]
            if not len(self.active):
                break
            stuck = self.step(gradient, left)
        return Minimum(self.found, self.left)

    def misplaced(self) -> Tensor:
        """Contexts whose guess looks wrong: on the sphere the loss falls inwards, or a free minimum is far outside."""
        if self.leave is None:
            return torch.zeros_like(self.active, dtype=torch.bool)
        if self.squared is None:
            return self.x.norm(dim=-1) > 2 * self.leave
        inward = (self.point.gradient * self.x).sum(-1) / self.leave
        along = self.gradient(self.x, self.point).norm(dim=-1)  # where this is larger the place is not known yet
        return (inward > self.tolerance * self.scale) & (inward > along)

    def keep(self, which: Tensor) -> None:
        self.loss = self.loss.part(which)
        self.x, self.region, self.largest = self.x[which], self.region[which], self.largest[which]
        self.active, self.point = self.active[which], self.point.part(which)
        self.squared = None if self.squared is None else self.squared[which]
        self.leave = None if self.leave is None else self.leave[which]

    def part(self, which: Tensor) -> Solver:
        """A view of some contexts."""
        part = copy(self)
        part.loss, part.x, part.region = self.loss.part(which), self.x[which], self.region[which]
        part.point = self.point.part(which)
        part.squared = None if self.squared is None else self.squared[which]
        return part

    def gradient(self, x: Tensor, point: Point) -> Tensor:
        """Along the domain."""
        if self.squared is None:
            return point.gradient
        return point.gradient - x * ((point.gradient * x).sum(-1, keepdim=True) / self.squared)

    def curvature(self, v: Tensor, pull: Tensor) -> Tensor:
        """Hessian along the domain times tangent vectors; ``pull`` is the multiplier of the norm, ``(n, 1)``."""
        product = self.loss.curvature(self.point, v)
        if self.squared is None:
            return product
        return product - self.x * ((product * self.x).sum(-1, keepdim=True) / self.squared) + pull * v

    def step(self, gradient: Tensor, left: Tensor) -> Tensor:
        """One step of every context; True where what is left is rounding."""
        pull = torch.zeros_like(gradient[:, :1])
        if self.squared is not None:
            pull = -(self.point.gradient * self.x).sum(-1, keepdim=True) / self.squared
        move, predicted = self.conjugate_gradients(gradient, pull, left)
        trial = self.moved(move)
        point = self.loss.at(trial)
        fall = self.point.value - point.value
        # below rounding the loss cannot judge a step, the gradient can
        blind = predicted <= _NOISE * (1 + self.point.value.abs())
        then = self.gradient(trial, point).norm(dim=-1) / self.scale
        ratio = torch.where(blind, (then < left).double(), fall / predicted.clamp_min(1e-300))
        size = move.norm(dim=-1)
        length = self.searched(move, fall, ratio, blind)
        other = length != 1
        if bool(other.any()):
            trial = self.moved(length.unsqueeze(-1) * move)
            point = self.loss.at(trial)
            fall = self.point.value - point.value
            then = self.gradient(trial, point).norm(dim=-1) / self.scale
        accepted = torch.where(other, fall > 0, ratio > 0.05)  # False for nan
        region = torch.where(
            (ratio < 0.25) | ratio.isnan(),
            0.25 * size,
            torch.where(ratio > 0.75, torch.minimum(torch.maximum(self.region, 2 * size), self.largest), self.region),
        )
        self.region = torch.where(other, torch.minimum(2 * length * size, self.largest), region)
        self.x = torch.where(accepted.unsqueeze(-1), trial, self.x)
        self.point = point.where(accepted, self.point)
        return blind & (~accepted | (then <= ENOUGH))

    def moved(self, move: Tensor) -> Tensor:
        """Hidden states after a move, in their domain."""
        trial = self.x + move
        if self.squared is None:
            return trial
        return trial * (self.squared.sqrt() / trial.norm(dim=-1, keepdim=True))

    def searched(self, move: Tensor, fall: Tensor, ratio: Tensor, blind: Tensor) -> Tensor:
        """Length along the move, ``(n,)``: longer where the loss falls faster than a square, as exponentials do.

        A saturated head's loss is a sum of exponentials, of which a Newton step takes a factor e each: the model is
        right about the way, and wrong about how far. Where it promised too much shorter steps are tried.
        """
        length, best = torch.ones_like(fall), fall
        for longer, chosen in ((True, ratio > _FASTER), (False, ratio < _SLOWER)):
            which = (chosen & ~blind).nonzero().squeeze(-1)
            for factor in _LONGER if longer else _SHORTER:
                if not len(which):
                    break
                value = self.loss.part(which).value(self.moved(factor * move)[which])
                gained = self.point.value[which] - value
                better = gained > (best[which] if longer else 0)
                kept = which[better]
                length[kept], best[kept] = factor, gained[better]
                which = kept if longer else which[~better]
        return length

    def conjugate_gradients(self, gradient: Tensor, pull: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Steihaug's step ``(n, D')`` and the fall that the quadratic model promises, ``(n,)``.

        Contexts that are done leave the batch when they are a quarter of it.
        """
        moves, curves = torch.zeros_like(gradient), torch.zeros_like(gradient)
        here, view, precondition = torch.arange(len(gradient), device=gradient.device), self, self.preconditioner(pull)
        move, curved, residual = moves, curves, gradient  # curved: Hessian times the move
        conditioned = precondition(residual)
        direction, square = -conditioned, (residual * conditioned).sum(-1)
        goal = gradient.square().sum(-1) * left.clamp(1e-4, 0.1).square()  # of the squared residual: superlinear
        going = square > 0
        for _ in range(min(2 * gradient.shape[1] + 10, _INNER)):
            product = view.curvature(direction, pull)
            along = (direction * product).sum(-1)
            length = square / along
            edge = _to_edge(move, direction, view.region)
            out = going & ((along <= 0) | (length >= edge) | ~length.isfinite())
            taken = torch.where(going, torch.where(out, edge, length), 0.0).unsqueeze(-1)
            move, curved = move + taken * direction, curved + taken * product
            residual = residual + taken * product
            going = going & ~out & (residual.square().sum(-1) > goal)
            count = int(going.sum())
            if count < _FULL * len(here):
                moves[here], curves[here] = move, curved
                if not count:
                    break
                which = going.nonzero().squeeze(-1)
                move, curved, residual, direction = move[which], curved[which], residual[which], direction[which]
                square, goal, going, pull, here = square[which], goal[which], going[which], pull[which], here[which]
                view = view.part(which)
                precondition = view.preconditioner(pull)
            conditioned = precondition(residual)
            new = (residual * conditioned).sum(-1)
            share = torch.where(going, new / square, 0.0).unsqueeze(-1)
            direction, square = -conditioned + share * direction, torch.where(going, new, square)
        else:
            moves[here], curves[here] = move, curved
        return moves, -(moves * (gradient + 0.5 * curves)).sum(-1)

    def preconditioner(self, pull: Tensor) -> Callable[[Tensor], Tensor]:
        """Inverse of what the Hessian is about, in the axes of the rows; on a sphere of its tangential part."""
        added = pull.abs() + self.loss.decay + _LEAST * self.scale**2
        diagonal = self.point.bulk.unsqueeze(-1) * self.axes + added
        if self.squared is None:
            return lambda v: v / diagonal
        normal = self.x / diagonal
        size = (normal * self.x).sum(-1, keepdim=True)

        def tangent(v: Tensor) -> Tensor:
            moved = v / diagonal
            return moved - normal * ((moved * self.x).sum(-1, keepdim=True) / size)

        return tangent


def _placed(start: Tensor, domain: Domain) -> Tensor:
    """The start in the domain."""
    if domain.radius is None:
        return start.clone()
    norm = start.norm(dim=-1, keepdim=True)
    fallback = torch.zeros_like(start)
    fallback[:, 0] = 1.0
    return domain.radius.unsqueeze(-1) * torch.where(norm > 0, start / norm.clamp_min(1e-300), fallback)


def _to_edge(move: Tensor, direction: Tensor, region: Tensor) -> Tensor:
    """Positive length along ``direction`` at which the move meets the edge of its region."""
    a, b = direction.square().sum(-1).clamp_min(1e-300), (move * direction).sum(-1)
    c = (region.square() - move.square().sum(-1)).clamp_min(0)
    root = (b.square() + a * c).sqrt()
    return torch.where(b > 0, c / (b + root), (root - b) / a)
