"""Minimise many small losses at once: a truncated-Newton trust region on a sphere, in a ball or in the whole space.

Every context has a trust region of its own and leaves the batch when its first-order condition holds. The inner solver
is Steihaug's: conjugate gradients in the tangent space until the residual is small, the region's edge is met or the
curvature is not positive (Absil, Baker and Gallivan 2007, "Trust-region methods on Riemannian manifolds", FoCM 7,
303-330). It needs products with the Hessian only, so that D may be in the thousands. In the principal axes of the rows
the many tokens of small p add to the Hessian about their geometric mean times a diagonal, and the multiplier of the norm
another: this is the preconditioner, and the few tokens of large p take a step of the solver each.

A ball is the shadow of a sphere one dimension up: the last coordinate is a slack that no logit sees, and rests at 0
where the norm binds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._loss import ContextLoss, Point

__all__ = ["Domain", "Minimum", "minimise"]

_ITERATIONS = 200
_INNER = 400
_SLACK = 0.1  # share of R with which a start inside a ball may see the inside
# Fall of a loss, relative to it, that is rounding, and that no confidence feels: for a convex loss a fall of x that is
# left moves max p by at most sqrt(x / 2), by Cauchy and Schwarz in the metric of the Hessian.
_NOISE = 1e-13
_LEAST = 1e-14  # curvature that the preconditioner assumes everywhere, in units of the largest row's square
_ENOUGH = 1e-6  # of the gradient, beside such a fall


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
    """Hidden states ``(n, D)`` and the largest component of the gradient that is left in each, in units of ``scale``."""

    hidden: Tensor
    residual: Tensor  # (n,)


def minimise(
    loss: ContextLoss, start: Tensor, domain: Domain, *, squares: Tensor, scale: float, tolerance: float
) -> Minimum:
    """Local minimum that a descent from ``start`` reaches; for a convex loss in a ball or in the whole space, the global.

    Args:
        loss: Of the contexts.
        start: ``(n, D)``; for a sphere or a ball brought into it.
        domain: Where to look.
        squares: Diagonal of W^T W, ``(D,)``; W has orthogonal columns.
        scale: Unit of gradients: the largest norm of a centred row.
        tolerance: Stop where the gradient along the domain is at most this, in that unit.

    Returns:
        The minimum; contexts that did not get there have a residual above the tolerance.
    """
    solver = _Solver(loss, start, domain, squares, scale, tolerance)
    solver.run()
    return Minimum(solver.found[:, : start.shape[1]], solver.left)


class _Solver:
    """State of the contexts that still move; ``found`` and ``left`` hold all."""

    def __init__(
        self, loss: ContextLoss, start: Tensor, domain: Domain, squares: Tensor, scale: float, tolerance: float
    ) -> None:
        self.loss, self.width, self.scale, self.tolerance = loss, start.shape[1], scale, tolerance
        self.x = _placed(start, domain)
        self.axes = torch.nn.functional.pad(squares, (0, self.x.shape[1] - self.width))
        self.squared = None if domain.radius is None else domain.radius.square().unsqueeze(-1)  # (n, 1)
        self.region = torch.full_like(self.x[:, 0], 8.0 / scale)  # logits may change by about 8 in the first step
        self.largest = 8 * self.region if domain.radius is None else torch.maximum(domain.radius, self.region)
        if domain.radius is not None:
            self.region = torch.minimum(self.region, domain.radius)
        self.point = loss.at(self.x[:, : self.width])
        self.found, self.left = self.x.clone(), torch.full_like(self.region, math.inf)
        self.active = torch.arange(len(start), device=start.device)

    def run(self) -> None:
        stuck = torch.zeros_like(self.active, dtype=torch.bool)
        for _ in range(_ITERATIONS):
            gradient = self.gradient(self.x, self.point)
            left = gradient.norm(dim=-1) / self.scale
            self.found[self.active], self.left[self.active] = self.x, left
            moving = ~((left <= self.tolerance) | stuck)
            if not bool(moving.all()):
                self.keep(moving)
                gradient, left = gradient[moving], left[moving]
            if not len(self.active):
                return
            stuck = self.step(gradient, left)

    def keep(self, which: Tensor) -> None:
        self.loss.keep(which)
        self.x, self.region, self.largest = self.x[which], self.region[which], self.largest[which]
        self.active, self.point = self.active[which], _chosen(self.point, which)
        if self.squared is not None:
            self.squared = self.squared[which]

    def gradient(self, x: Tensor, point: Point) -> Tensor:
        """Along the domain."""
        full = torch.nn.functional.pad(point.gradient, (0, x.shape[1] - self.width))
        if self.squared is None:
            return full
        return full - x * ((full * x).sum(-1, keepdim=True) / self.squared)

    def curvature(self, v: Tensor, pull: Tensor) -> Tensor:
        """Hessian along the domain times tangent vectors; ``pull`` is the multiplier of the norm, ``(n, 1)``."""
        product = self.loss.curvature(self.point, v[:, : self.width])
        full = torch.nn.functional.pad(product, (0, v.shape[1] - self.width))
        if self.squared is None:
            return full
        return full - self.x * ((full * self.x).sum(-1, keepdim=True) / self.squared) + pull * v

    def step(self, gradient: Tensor, left: Tensor) -> Tensor:
        """One step of every context; True where what is left is rounding."""
        pull = torch.zeros_like(gradient[:, :1])
        if self.squared is not None:
            pull = -(self.point.gradient * self.x[:, : self.width]).sum(-1, keepdim=True) / self.squared
        diagonal = self.point.bulk.unsqueeze(-1) * self.axes + pull.abs() + self.loss.decay + _LEAST * self.scale**2
        move, predicted = self.conjugate_gradients(gradient, pull, left, diagonal)
        trial = self.x + move
        if self.squared is not None:
            trial = trial * (self.squared.sqrt() / trial.norm(dim=-1, keepdim=True))
        point = self.loss.at(trial[:, : self.width])
        fall = self.point.value - point.value
        # below rounding the loss cannot judge a step, the gradient can
        blind = predicted <= _NOISE * (1 + self.point.value.abs())
        then = self.gradient(trial, point).norm(dim=-1) / self.scale
        ratio = torch.where(blind, (then < left).double(), fall / predicted.clamp_min(1e-300))
        accepted = ratio > 0.05  # False for nan
        size = move.norm(dim=-1)
        self.region = torch.where(
            (ratio < 0.25) | ratio.isnan(),
            0.25 * size,
            torch.where(ratio > 0.75, torch.minimum(torch.maximum(self.region, 2 * size), self.largest), self.region),
        )
        self.x = torch.where(accepted.unsqueeze(-1), trial, self.x)
        self.point = _either(accepted, point, self.point)
        return blind & (~accepted | (then <= _ENOUGH))

    def conjugate_gradients(
        self, gradient: Tensor, pull: Tensor, left: Tensor, diagonal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Steihaug's step ``(n, D')`` and the fall that the quadratic model promises, ``(n,)``."""
        precondition = self.preconditioner(diagonal)
        move, residual = torch.zeros_like(gradient), gradient
        conditioned = precondition(residual)
        direction, square = -conditioned, (residual * conditioned).sum(-1)
        goal = gradient.square().sum(-1) * left.clamp(1e-4, 0.1).square()  # of the squared residual: superlinear
        going = square > 0
        curved = torch.zeros_like(move)  # Hessian times the move
        for _ in range(min(2 * gradient.shape[1] + 10, _INNER)):
            product = self.curvature(direction, pull)
            along = (direction * product).sum(-1)
            length = square / along
            edge = _to_edge(move, direction, self.region)
            out = going & ((along <= 0) | (length >= edge) | ~length.isfinite())
            taken = torch.where(going, torch.where(out, edge, length), 0.0).unsqueeze(-1)
            move, curved = move + taken * direction, curved + taken * product
            residual = residual + taken * product
            going = going & ~out & (residual.square().sum(-1) > goal)
            if not bool(going.any()):
                break
            conditioned = precondition(residual)
            new = (residual * conditioned).sum(-1)
            share = torch.where(going, new / square, 0.0).unsqueeze(-1)
            direction, square = -conditioned + share * direction, torch.where(going, new, square)
        return move, -(move * (gradient + 0.5 * curved)).sum(-1)

    def preconditioner(self, diagonal: Tensor) -> Callable[[Tensor], Tensor]:
        """Inverse of the diagonal, on a sphere of its restriction to the tangent space."""
        if self.squared is None:
            return lambda v: v / diagonal
        normal = self.x / diagonal
        size = (normal * self.x).sum(-1, keepdim=True)

        def tangent(v: Tensor) -> Tensor:
            moved = v / diagonal
            return moved - normal * ((moved * self.x).sum(-1, keepdim=True) / size)

        return tangent


def _placed(start: Tensor, domain: Domain) -> Tensor:
    """The start in the domain, with its slack coordinate in a ball."""
    if domain.radius is None:
        return start.clone()
    radius, norm = domain.radius.unsqueeze(-1), start.norm(dim=-1, keepdim=True)
    fallback = torch.zeros_like(start)
    fallback[:, 0] = 1.0
    unit = torch.where(norm > 0, start / norm.clamp_min(1e-300), fallback)
    if domain.kind == "sphere":
        return radius * unit
    slack = (1 - (norm / radius).square()).clamp_min(_SLACK**2).sqrt()
    return radius * torch.cat([(1 - slack.square()).sqrt() * unit, slack], dim=-1)


def _to_edge(move: Tensor, direction: Tensor, region: Tensor) -> Tensor:
    """Positive length along ``direction`` at which the move meets the edge of its region."""
    a, b = direction.square().sum(-1).clamp_min(1e-300), (move * direction).sum(-1)
    c = (region.square() - move.square().sum(-1)).clamp_min(0)
    root = (b.square() + a * c).sqrt()
    return torch.where(b > 0, c / (b + root), (root - b) / a)


def _chosen(point: Point, which: Tensor) -> Point:
    return Point(*(None if part is None else part[which] for part in vars(point).values()))  # pyright: ignore


def _either(first: Tensor, a: Point, b: Point) -> Point:
    """Of each context the one or the other."""
    if bool(first.all()):
        return a
    wide = first.unsqueeze(-1)
    parts = zip(vars(a).values(), vars(b).values(), strict=True)
    return Point(*(None if x is None else torch.where(first if x.ndim == 1 else wide, x, y) for x, y in parts))
