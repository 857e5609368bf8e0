"""Shared by the tests of chunks of tokens, of the loss and of its backward: problems without ignored tokens, float16."""

from __future__ import annotations

from typing import Any

import torch
from helpers import Problem, eager, ours, relative_error, value_and_gradients
from torch import Tensor


def without_ignored(args: Problem) -> Problem:
    """The kept tokens alone, whose gradients no number of an ignored one can reach."""
    kept = args.target != -100
    weight = None if args.token_weight is None else args.token_weight[kept]
    hidden = args.input.detach()[kept].requires_grad_()
    return args._replace(input=hidden, target=args.target[kept], token_weight=weight)


def among_ignored(gradient: Tensor, args: Problem) -> Tensor:
    """The input's gradient of :func:`without_ignored`, with zeros for the others."""
    return gradient.new_zeros(args.input.shape).index_put_((args.target != -100,), gradient)


def exact_of_kept(args: Problem, **options: Any) -> list[Tensor]:
    """Loss and gradients of eager code, which would multiply what ignored tokens hold by 0."""
    value, of_input, *others = value_and_gradients(eager, without_ignored(args), **options)
    return [value, among_ignored(of_input, args), *others]


def float16_errors(
    args: Problem, exact: list[Tensor] | None = None, **options: Any
) -> tuple[list[float], list[Tensor]]:
    """Errors of the fused loss and of both gradients in float16 beside ``exact`` or eager float64, and these three."""
    args = args.to(torch.float16)
    exact = value_and_gradients(eager, args.to(torch.float64), **options) if exact is None else exact
    got = value_and_gradients(ours, args, **options)[:3]
    return [relative_error(a, b) for a, b in zip(got, exact[:3], strict=True)], got
