"""The loss in chunks of tokens (:mod:`.token_chunks`): an autograd function whose forward makes the gradients.

Each chunk has a forward, which keeps columns, and at once its backward. The upstream gradient of every token is then
assumed to be its part in the loss, which holds for a mean or a sum but for one factor, that of the loss itself: the
backward multiplies by it, and leaves everything as it is where the factor is 1. What another factor costs is a pass
over the gradients and, unless it is a power of two, one more rounding. The gradients are given away by the first
backward; a second one through the same graph computes them once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..options import LossOptions
from ..reference import reduced
from .arguments import Head, Scalars
from .call import LossCall, Needs
from .chunk_sums import SumPowers
from .compile_call import compile_call
from .gradient_rows import Upstream, largest_of
from .gradients import Destination
from .launch import blocks
from .plan import ALIGN
from .rows import aligned, index_rows, rows_in_chunks, with_plain_rows
from .run_forward import forward
from .scale import scale
from .token_chunks import Chunks

__all__ = ["loss_in_chunks"]


def loss_in_chunks(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    linear_bias: Tensor | None,  # (V,)
    token_weight: Tensor | None,  # (N,)
    options: LossOptions,
    workspace_bytes: int | None,
) -> Tensor | None:
    """The scalar loss in eager code, without statistics, if chunks of tokens are the way to compute it; else None."""
    tensors = input, linear_weight, linear_bias
    required = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in tensors]
    needs: Needs = required[0], required[1], required[2]
    call = LossCall(Head(input, linear_weight, linear_bias, target), Scalars.of(options), workspace_bytes)
    if options.reduction == "none" or not call.serves_chunks(needs, False, options.gradient_tolerance > 0):
        return None
    chunks = call.chunks()
    if chunks.rows >= input.shape[0]:
        return None
    return _LossInChunks.apply(*tensors, target, token_weight, options, workspace_bytes, chunks)


class _LossInChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        token_weight: Tensor | None,
        options: LossOptions,
        workspace_bytes: int | None,
        chunks: Chunks,
    ) -> Tensor:
        bias, target = None if bias is None else bias.contiguous(), aligned(target.contiguous())
        kept = target != options.ignore_index
        share = kept.float() if token_weight is None else torch.where(kept, token_weight.float(), 0)
        head = Head(with_plain_rows(hidden), weight, bias, target)
        call = LossCall(head, Scalars.of(options), workspace_bytes)
        needs: Needs = tuple(ctx.needs_input_grad[:3])
        compile_call(call, needs, False, eager=True)
        upstream = share
        if options.reduction == "mean":  # of no weight at all the gradients are zero
            total = share.sum()
            upstream = share / torch.where(total > 0, total, 1)
        token_loss, ctx.gradients = _in_chunks(call, upstream, chunks, needs)
        ctx.call = call.scalars, workspace_bytes, chunks
        ctx.save_for_backward(*head, upstream)
        return reduced(token_loss * share, share, options.reduction)

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph=True; a detached gradient would be silently wrong
            raise RuntimeError("The fused loss has no second derivative; use implementation='reference'.")
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            *head, upstream = ctx.saved_tensors
            scalars, workspace_bytes, chunks = ctx.call
            call = LossCall(Head(*head), scalars, workspace_bytes)
            _, gradients = _in_chunks(call, upstream * of_loss, chunks, ctx.needs_input_grad[:3])
        else:
            scale(gradients, of_loss)
        return (*gradients, None, None, None, None, None)


def _in_chunks(
    call: LossCall, upstream: Tensor, chunks: Chunks, needs: Needs
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Losses ``(N,)`` of all tokens and the gradients of ``sum(upstream * loss)``, chunk by chunk.

    Chunks are made of the packed tokens, and of the ignored ones behind them: chunks of these alone have nothing to do.
    """
    (hidden, weight, bias, target), rows = call.head, chunks.rows
    every = index_rows(target, call.scalars.ignore_index, weight.shape[0])
    largest = largest_of(upstream, None, every)
    of_input = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if needs[0] else None
    of_weight = weight.new_empty(weight.shape)
    bias_sums = None if bias is None or not needs[2] else bias.new_zeros(bias.shape, dtype=torch.float32)
    powers = None
    if weight.element_size() == 2:
        powers = SumPowers.of(hidden, upstream, target, call.scalars.ignore_index, call.scalars.confidence_penalty)
    column_sums: dict[tuple[int, int], Tensor] = {}
    plans = call.chunk_plans(chunks)
    # One memory for dz and kept columns of all chunks, and what they are relative to behind them.
    places = [blocks(max(plan.workspace, plan.held), ALIGN) * ALIGN for plan in plans]
    peaks = [4 * rows * sum(call.references(run) for run in plan.kept) // weight.element_size() for plan in plans]
    memory = weight.new_empty(max(map(sum, zip(places, peaks, strict=True))))
    token_loss = torch.empty_like(upstream)
    for i, chunk in enumerate(rows_in_chunks(every, rows)):
        later = int(i > 0)
        plan, place = plans[later], places[later]
        references = memory[place : place + peaks[later]].view(torch.float32)
        held = call.held(plan, memory[:place], of_weight, references, tokens=chunk.source.shape[0])
        found = forward(call.head, call.scalars, held.kept, packed=True, chunk=chunk, token_loss=token_loss)
        assert found.packed is not None
        own = Upstream(upstream, None, found.lse, found.entropy, chunk, largest=largest)
        powers = None if powers is None else powers._replace(last=(i + 1) * rows >= hidden.shape[0])
        into = Destination(found.packed, of_input, of_weight, bias_sums, column_sums, accumulate=i > 0, powers=powers)
        call.backward(own, plan, held, needs, into=into)
        del held, found, own, into  # whose memory the next chunk takes
    of_bias = None if bias_sums is None else bias_sums.to(weight.dtype)
    return token_loss, (of_input, of_weight, of_bias)
