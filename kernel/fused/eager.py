"""Token losses in eager code: an autograd function.

It may also keep columns in the memory that will hold the weight's gradient, and its backward writes where columns were
kept: a second backward through the same graph recomputes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import Head, Held, Scalars
from .call import LossCall, Needs
from .compile_call import compile_call
from .gradient_rows import gathered
from .rows import aligned, with_plain_rows
from .run_backward_chunks import backward_in_chunks
from .run_forward import ForwardResult, forward
from .run_sparse import Sparse, SparseTiles
from .sparse_times import LEAST_SHARE

__all__ = ["EagerLoss"]


class EagerLoss(torch.autograd.Function):
    """Token losses in eager mode; the statistics of :class:`TokenStatistics` too if asked for."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        target: Tensor,  # (N,)
        scalars: Scalars,
        workspace_bytes: int | None,
        return_statistics: bool,
        grad_enabled: bool,
        sparse: Sparse | None,
    ) -> tuple[Tensor, ...]:
        head = Head(with_plain_rows(hidden), weight, bias, aligned(target))
        call = LossCall(head, scalars, workspace_bytes)
        differentiable = grad_enabled and any(ctx.needs_input_grad[:3])
        needs: Needs = tuple(ctx.needs_input_grad[:3]) if differentiable else (False, False, False)
        serves = sparse is not None and sparse.serves(head, scalars, needs) and call.most_active(needs) > LEAST_SHARE
        sparse = sparse if serves else None
        compile_call(call, needs, return_statistics, sparse is not None, eager=True)
        in_chunks = sparse is None and not return_statistics
        sparse = sparse if sparse is not None and sparse.due(head, needs) else None
        ctx.set_materialize_grads(False)
        if not differentiable:
            return _outputs(ctx, forward(head, scalars, packed=False, return_statistics=return_statistics))
        # A sparse backward computes what it needs of the logits anew.
        plan = call.plan(keep=sparse is None, consumed=True, weight_gradient=needs[1])
        ctx.rows = call.backward_rows(plan, needs) if in_chunks else hidden.shape[0]
        held = call.held(plan) if ctx.rows >= hidden.shape[0] else Held()
        tile_sums = None if sparse is None else SparseTiles.memory(head)
        found = forward(head, scalars, held.kept, packed=True, return_statistics=return_statistics, tile_sums=tile_sums)
        ctx.save_for_backward(*head, found.lse, found.entropy, found.row_index)
        ctx.sparse = None
        if sparse is not None and tile_sums is not None:
            ctx.sparse = sparse, SparseTiles.finish(tile_sums, head, found.lse, found.rows.number, sparse.tolerance)
            if sparse.told is not None:
                sparse.told.await_backward(*needs[:2])
        held = held._replace(target_logit=found.target_logit if return_statistics else None)
        ctx.options, ctx.plan, ctx.held = (scalars, workspace_bytes), plan, held
        return _outputs(ctx, found)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph=True; a detached gradient would be silently wrong
            raise RuntimeError("The fused loss has no second derivative; use implementation='reference'.")
        *tensors, lse, entropy, index = ctx.saved_tensors
        call, needs = LossCall(Head(*tensors), *ctx.options), ctx.needs_input_grad[:3]
        of_loss, *of_statistics, _ = grad_outputs
        upstream = gathered(of_loss, of_statistics[:3] or None, lse, entropy, index)
        if ctx.rows < lse.shape[0]:
            return (*backward_in_chunks(call, upstream, ctx.rows, needs), *[None] * 6)
        plan, held = call.usable(ctx.plan, ctx.held, upstream, needs)
        if ctx.plan.kept:  # used up now: whoever comes again recomputes
            ctx.held = None
        gradients = None
        if ctx.sparse is not None:
            gradients = call.sparse_backward(upstream, ctx.sparse[0], ctx.sparse[1], needs)
        if gradients is None:
            gradients = call.backward(upstream, plan, held, needs)
        return (*gradients, *[None] * 6)


def _outputs(ctx: Any, found: ForwardResult) -> tuple[Tensor, ...]:
    """The loss, each for itself, so that it is known which of them have gradients, the statistics, and a count."""
    number = found.rows.number
    if found.statistics is None or found.argmax is None:
        ctx.mark_non_differentiable(number)
        return found.token_loss, number
    statistics = found.statistics.unbind(0)
    ctx.mark_non_differentiable(statistics[3], found.argmax, number)
    return found.token_loss, *statistics, found.argmax, number
