"""The kernels as PyTorch operators: an autograd function for eager code, two registered operators for compiled code.

Both compute token losses ``(N,)``, to which plain PyTorch applies weights and reduction, and take token-wise upstream
gradients. Compiled code needs operators without side effects: what the forward keeps is one of its outputs. The eager
function may also keep columns in the memory that will hold the weight's gradient, and its backward writes where columns
were kept: a second backward through the same graph recomputes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..options import LossOptions
from ..token_statistics import TokenStatistics
from .arguments import Head, Held, Scalars
from .call import LossCall, Needs, gathered
from .rows import aligned, index_size, with_plain_rows
from .run_forward import ForwardResult, forward
from .run_sparse import Sparse, SparseTiles
from .schedule import Schedule

__all__ = ["EagerLoss", "fused_backward", "fused_forward", "token_losses"]


def token_losses(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    options: LossOptions,
    workspace_bytes: int,
    return_statistics: bool,
    sparse: Sparse | None = None,
) -> tuple[Tensor, TokenStatistics | None]:
    """Loss of every token ``(N,)``, without weights and reduction, and statistics if asked for.

    Compiled code computes exact gradients whatever ``sparse`` allows for: that waits for the device once.
    """
    scalars = Scalars.of(options)
    # the kernels read both by their index alone
    target, linear_bias = target.contiguous(), None if linear_bias is None else linear_bias.contiguous()
    tensors = (input, linear_weight, linear_bias, target)
    grad_enabled = torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        needs = grad_enabled and any(t is not None and t.requires_grad for t in tensors[:3])
        numbers, ignore_index = scalars.pack()
        flags = [needs, linear_weight.requires_grad, return_statistics]
        found = fused_forward(*tensors, numbers, [ignore_index, workspace_bytes], flags)
    else:
        token_loss, *statistics = EagerLoss.apply(
            *tensors, scalars, workspace_bytes, return_statistics, grad_enabled, sparse
        )
        return token_loss, TokenStatistics._make(statistics) if statistics else None
    token_loss, statistics, argmax, *_ = found
    if not return_statistics:
        return token_loss, None
    *differentiable, confidence = statistics.unbind(0)
    return token_loss, TokenStatistics._make([*differentiable, confidence.detach(), argmax])


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
        workspace_bytes: int,
        return_statistics: bool,
        grad_enabled: bool,
        sparse: Sparse | None,
    ) -> tuple[Tensor, ...]:
        head = Head(with_plain_rows(hidden), weight, bias, aligned(target))
        call = LossCall(head, scalars, workspace_bytes)
        differentiable = grad_enabled and any(ctx.needs_input_grad[:3])
        needs: Needs = tuple(ctx.needs_input_grad[:3]) if differentiable else (False, False, False)
        sparse = sparse if sparse is not None and sparse.serves(head, scalars, needs) else None
        call.compile_ahead(needs, return_statistics, sparse is not None, eager=True)
        sparse = sparse if sparse is not None and sparse.due(head, needs) else None
        ctx.set_materialize_grads(False)
        if not differentiable:
            return _outputs(ctx, forward(head, scalars, packed=False, return_statistics=return_statistics))
        # A sparse backward computes what it needs of the logits anew.
        plan = call.plan(keep=sparse is None, consumed=True, weight_gradient=needs[1])
        held = call.held(plan)
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
        upstream = gathered(grad_outputs[0], grad_outputs[1:4] or None, lse, entropy, index)
        plan, held = call.usable(ctx.plan, ctx.held, upstream, needs)
        if ctx.plan.kept:  # used up now: whoever comes again recomputes
            ctx.held = None
        gradients = None
        if ctx.sparse is not None:
            gradients = call.sparse_backward(upstream, ctx.sparse[0], ctx.sparse[1], needs)
        if gradients is None:
            gradients = call.backward(upstream, plan, held, needs)
        return (*gradients, None, None, None, None, None, None)


def _outputs(ctx: Any, found: ForwardResult) -> tuple[Tensor, ...]:
    """The loss and, each for itself, so that it is known which of them have gradients, the statistics."""
    if found.statistics is None or found.argmax is None:
        return (found.token_loss,)
    statistics = found.statistics.unbind(0)
    ctx.mark_non_differentiable(statistics[3], found.argmax)
    return found.token_loss, *statistics, found.argmax


# Both operators take lists of options: the numbers of Scalars.pack; ignore_index and workspace_bytes; whether any
# gradient is needed, the weight's is, and statistics are returned.


def _packed_call(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    numbers: Sequence[float],
    sizes: Sequence[int],
    *,
    keep: bool,
    weight_gradient: bool,
) -> tuple[LossCall, Schedule]:
    """The call that an operator's arguments describe, and its plan, which keeps at most one run of columns."""
    ignore_index, workspace_bytes = sizes
    call = LossCall(Head(hidden, weight, bias, target), Scalars.unpack(numbers, ignore_index), workspace_bytes)
    plan = call.plan(keep=keep, consumed=False, weight_gradient=weight_gradient)
    assert len(plan.kept) <= 1
    return call, plan


@torch.library.custom_op("confidence_ceiling::fused_forward", mutates_args=())
def fused_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    numbers: Sequence[float],
    sizes: Sequence[int],
    flags: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Token losses, statistics, classes; lse, entropy, index of the kept rows, what is kept and its references.

    What there is none of is empty.
    """
    differentiable, need_weight, return_statistics = flags
    tensors = with_plain_rows(hidden), weight, bias, aligned(target)
    call, plan = _packed_call(*tensors, numbers, sizes, keep=differentiable, weight_gradient=need_weight)
    # The operator is not told which of input and bias need a gradient: kernels for both are compiled.
    call.compile_ahead((differentiable, need_weight, differentiable and bias is not None), return_statistics)
    held = call.held(plan)
    found = forward(call.head, call.scalars, held.kept, packed=differentiable, return_statistics=return_statistics)
    nothing = [hidden.new_empty(0, dtype=torch.float32) for _ in range(3)]
    return (
        found.token_loss,
        nothing[0] if found.statistics is None else found.statistics,
        target.new_empty(0) if found.argmax is None else found.argmax,
        found.lse,
        nothing[1] if found.entropy is None else found.entropy,
        found.row_index,
        weight.new_empty(0) if held.workspace is None else held.workspace,
        held.kept[0].reference.view(-1) if held.kept else nothing[2],
    )


@fused_forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *described, (differentiable, need_weight, return_statistics) = others
    call, plan = _packed_call(hidden, weight, *described, keep=differentiable, weight_gradient=need_weight)
    n = hidden.shape[0]
    want_entropy = return_statistics or call.scalars.confidence_penalty > 0

    def new(*shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    return (
        new(n),
        new(4, n) if return_statistics else new(0),
        new(n if return_statistics else 0, dtype=torch.int64),
        new(n),
        new(n if want_entropy else 0),
        new(index_size(n), dtype=torch.int32),
        weight.new_empty(plan.held),
        new(sum(call.references(run) for run in plan.kept) * n),
    )


@torch.library.custom_op("confidence_ceiling::fused_backward", mutates_args=())
def fused_backward(
    of_loss: Tensor | None,
    of_statistics: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    index: Tensor,
    columns: Tensor,
    reference: Tensor,
    numbers: Sequence[float],
    sizes: Sequence[int],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; empty where not needed."""
    tensors = with_plain_rows(hidden), weight, bias, aligned(target)
    call, plan = _packed_call(*tensors, numbers, sizes, keep=True, weight_gradient=needs[1])
    held = Held(tuple(call.kept(run, columns, reference) for run in plan.kept))
    upstream = gathered(of_loss, of_statistics, lse, entropy if entropy.numel() else None, index)
    needed = needs[0], needs[1], needs[2]
    gradients = call.backward(upstream, *call.usable(plan, held, upstream, needed), needed)
    a, b, c = (hidden.new_empty(0) if g is None else g for g in gradients)
    return a, b, c


@fused_backward.register_fake
def _(
    of_loss: Tensor | None,
    of_statistics: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    needs = others[-1]
    return (
        hidden.new_empty(hidden.shape if needs[0] else (0,)),
        hidden.new_empty(weight.shape if needs[1] else (0,)),
        hidden.new_empty(weight.shape[:1] if needs[2] and bias is not None else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, target, ctx.numbers, ctx.sizes, _ = inputs
    _, _, argmax, *saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(argmax, *saved)
    ctx.save_for_backward(hidden, weight, bias, target, *saved)


def _operator_backward(
    ctx: Any, of_loss: Tensor | None, of_statistics: Tensor | None, *_: Tensor
) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    gradients = fused_backward(of_loss, of_statistics, *ctx.saved_tensors, ctx.numbers, ctx.sizes, needs)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None, None)


fused_forward.register_autograd(_operator_backward, setup_context=_setup_context)
