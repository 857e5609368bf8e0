"""Minima on spheres, in balls and without limits, and how they move when their gradient is pushed.

In a ball the minimum of a convex loss lies on the sphere, where the multiplier of the norm is at least 0 there, or is
that of the whole space: each context is tried on the sphere and, where that fails, without limits. (A slack
coordinate would do without the two cases, but converges slowly where the multiplier is near 0, as in saturated heads.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._loss import ContextLoss
from ._newton import ENOUGH, Domain, Minimum, Solver

__all__ = ["give_way", "minimise"]

_EDGE = 1e-2  # share of the radius within which a start is on the sphere


def minimise(
    loss: ContextLoss, start: Tensor, domain: Domain, *, squares: Tensor, scale: float, tolerance: float
) -> Minimum:
    """The minimum that a descent from ``start`` reaches; for a convex loss, but on a sphere, there is only one.

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
    if domain.kind != "ball" or domain.radius is None:
        return Solver(loss, start, domain, squares, scale, tolerance).run()
    sphere, free = Domain("sphere", domain.radius), Domain("free", None)
    found = Minimum(start.clone(), torch.full_like(domain.radius, math.inf))
    todo = wrong = torch.ones_like(domain.radius, dtype=torch.bool)
    on_edge = start.norm(dim=-1) >= (1 - _EDGE) * domain.radius  # the first guess is where the start is
    for turn in range(4):  # the first two give up a context early; where each guess was wrong, two more do not
        for there, place in ((on_edge, sphere), (~on_edge, free)):
            which = (todo & there).nonzero().squeeze(-1)
            leave = None if turn > 1 else domain.radius[which]
            solver = Solver(loss.part(which), found.hidden[which], place.part(which), squares, scale, tolerance, leave)
            solved = solver.run()
            found.hidden[which], found.residual[which] = solved.hidden, solved.residual
        inside = found.hidden.norm(dim=-1) <= domain.radius
        wrong = torch.where(on_edge, ~_outward(loss, found.hidden, tolerance * scale), ~inside)
        todo = wrong | (found.residual > ENOUGH)
        if not bool(todo.any()):
            return found
        on_edge = torch.where(wrong, ~on_edge, on_edge)
    found.residual[wrong] = math.inf
    return found


def give_way(
    loss: ContextLoss, hidden: Tensor, domain: Domain, push: Tensor, *, squares: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """How a minimum moves when its gradient is pushed: [Pi (Hessian + mu) Pi]^+ Pi push.

    Args:
        loss: Of the contexts.
        hidden: Their minima, ``(n, D)``, on the sphere of ``domain`` or free.
        domain: Where they may move. The multiplier mu counts as 0 where it is negative, as it is in a ball.
        push: ``(n, D)``.
        squares: Diagonal of W^T W.
        scale: Unit of gradients.

    Returns:
        The moves, and what is left of each equation as a share of the push, ``(n,)``.
    """
    solver = Solver(loss, hidden, domain, squares, scale, 0.0)
    solver.region = torch.full_like(solver.region, math.inf)
    x, pull = solver.x, torch.zeros_like(hidden[:, :1])
    if solver.squared is not None:
        pull = (-(solver.point.gradient * x).sum(-1, keepdim=True) / solver.squared).clamp_min(0)
        push = push - x * ((push * x).sum(-1, keepdim=True) / solver.squared)
    move, _ = solver.conjugate_gradients(-push, pull, torch.zeros_like(push[:, 0]))
    left = (solver.curvature(move, pull) - push).norm(dim=-1)
    return move, left / push.norm(dim=-1).clamp_min(1e-300)


def _outward(loss: ContextLoss, hidden: Tensor, tolerance: float) -> Tensor:
    """Whether the loss would fall along the hidden state: a multiplier of at least 0, within the tolerance."""
    return (loss.at(hidden).gradient * hidden).sum(-1) <= tolerance * hidden.norm(dim=-1)
