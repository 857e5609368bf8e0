"""Token losses in compiled code: two operators, registered with PyTorch.

Compiled code needs operators without side effects: what the forward keeps is one of its outputs.

Both operators take lists of options: the numbers of ``Scalars.pack``; ``ignore_index`` and ``workspace_bytes``
(``BY_DEFAULT`` where nobody chose it); whether any gradient is needed (in the backward: the input's, the weight's, the
bias's) and statistics are returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import Head, Held, Scalars
from .call import LossCall
from .compile_call import compile_call
from .gradient_rows import gathered
from .rows import aligned, index_size, with_plain_rows
from .run_backward_chunks import backward_in_chunks
from .run_forward import forward
from .schedule import Schedule

__all__ = ["BY_DEFAULT", "fused_backward", "fused_forward"]

BY_DEFAULT = -1  # in place of a workspace in bytes: a list of integers holds no None


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
    return_statistics: bool,
) -> tuple[LossCall, Schedule, int]:
    """The call that an operator's arguments describe, its plan and the tokens of a chunk of the backward.

    The plan keeps at most one run of columns, and none where the backward comes in chunks.
    """
    ignore_index, budget = sizes
    workspace_bytes = None if budget == BY_DEFAULT else budget
    call = LossCall(Head(hidden, weight, bias, target), Scalars.unpack(numbers, ignore_index), workspace_bytes)
    kinds = {"consumed": False, "weight_gradient": weight_gradient}
    plan, n = call.plan(keep=keep, **kinds), int(hidden.shape[0])
    rows = call.backward_rows(plan, (True, weight_gradient, True)) if keep and not return_statistics else n
    plan = plan if rows >= n else call.plan(keep=False, **kinds)
    assert len(plan.kept) <= 1
    return call, plan, rows


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
    kinds = {"weight_gradient": need_weight, "return_statistics": return_statistics}
    call, plan, _ = _packed_call(*tensors, numbers, sizes, keep=differentiable, **kinds)
    # The operator is not told which of input and bias need a gradient: kernels for both are compiled.
    compile_call(call, (differentiable, need_weight, differentiable and bias is not None), return_statistics)
    held = call.held(plan)
    found = forward(call.head, call.scalars, held.kept, packed=differentiable, return_statistics=return_statistics)
    assert found.row_index is not None
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
    kinds = {"weight_gradient": need_weight, "return_statistics": return_statistics}
    call, plan, _ = _packed_call(hidden, weight, *described, keep=differentiable, **kinds)
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
    flags: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; empty where not needed."""
    tensors, (*needs, return_statistics) = (with_plain_rows(hidden), weight, bias, aligned(target)), flags
    kinds = {"weight_gradient": needs[1], "return_statistics": return_statistics}
    call, plan, rows = _packed_call(*tensors, numbers, sizes, keep=True, **kinds)
    upstream = gathered(of_loss, of_statistics, lse, entropy if entropy.numel() else None, index)
    needed = needs[0], needs[1], needs[2]
    if rows < hidden.shape[0]:
        gradients = backward_in_chunks(call, upstream, rows, needed)
    else:
        held = Held(tuple(call.kept(run, columns, reference) for run in plan.kept))
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
    hidden, weight, bias, target, ctx.numbers, ctx.sizes, (*_, ctx.return_statistics) = inputs
    _, _, argmax, *saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(argmax, *saved)
    ctx.save_for_backward(hidden, weight, bias, target, *saved)


def _operator_backward(
    ctx: Any, of_loss: Tensor | None, of_statistics: Tensor | None, *_: Tensor
) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    flags = [*needs, ctx.return_statistics]
    gradients = fused_backward(of_loss, of_statistics, *ctx.saved_tensors, ctx.numbers, ctx.sizes, flags)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None, None)


fused_forward.register_autograd(_operator_backward, setup_context=_setup_context)
