"""The kernels as PyTorch operators: an autograd function for eager code, two registered operators for compiled code.

Both compute token losses ``(N,)``, to which plain PyTorch applies weights and reduction, and take token-wise upstream
gradients. Compiled code needs operators without side effects: what the forward keeps is one of its outputs. The eager
function may also keep columns in the memory that will hold the weight's gradient, and hands that memory out once: a
second backward through the same graph recomputes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import Head, Kept, Scalars, keeps_directly, kept_views, may_keep
from .compile_ahead import compile_ahead
from .launch import launch_table, processors
from .rows import KeptRows
from .run_backward import backward
from .run_forward import forward
from .schedule import Schedule, schedule

__all__ = ["FusedLoss", "fused_backward", "fused_forward"]


def _plan(
    head: Head, scalars: Scalars, workspace_bytes: int, *, keep: bool, keep_in_gradient: bool, weight_gradient: bool
) -> Schedule:
    hidden, weight = head.hidden, head.weight
    return schedule(
        int(hidden.shape[0]),
        int(weight.shape[0]),
        int(weight.shape[1]),
        hidden.element_size(),
        int(workspace_bytes),
        keep=keep and may_keep(hidden.dtype, scalars),
        direct=keeps_directly(hidden.dtype, scalars),
        keep_in_gradient=keep_in_gradient,
        weight_gradient=weight_gradient,
        processors=processors(hidden.device),
        table=launch_table(hidden.device, hidden.dtype),
    )


def _references(head: Head, scalars: Scalars, plan: Schedule) -> int:
    """Rows of the kept softmax's references: one, or one a tile."""
    if not plan.kept or keeps_directly(head.hidden.dtype, scalars):
        return min(plan.kept, 1)
    return plan.kept // launch_table(head.hidden.device, head.hidden.dtype).forward.columns


def _rows(memory: Tensor) -> KeptRows:
    n = (memory.shape[0] - 1) // 2
    return KeptRows(memory[:1], memory[1 : n + 1], memory[n + 1 :])


def _every_launch(head: Head, scalars: Scalars, workspace_bytes: int, needs: tuple[bool, bool, bool]) -> None:
    """Go through the launches of a loss, and of its gradients if any are needed."""
    token_loss, lse, rows, plan, kept, gradient = _forward(head, scalars, workspace_bytes, needs)
    if plan is not None:
        backward(head, scalars, torch.ones_like(token_loss), lse, rows, plan, kept, needs, gradient)


def _forward(
    head: Head, scalars: Scalars, workspace_bytes: int, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, KeptRows, Schedule | None, Kept | None, Tensor | None]:
    """Token losses, lse and kept rows; then what a backward needs: plan, kept softmax, the gradient's memory."""
    if not any(needs):
        return *forward(head, scalars, None, packed=False), None, None, None
    plan = _plan(head, scalars, workspace_bytes, keep=True, keep_in_gradient=needs[1], weight_gradient=needs[1])
    gradient, kept = None, None
    if plan.kept:
        if plan.in_gradient:
            gradient = head.weight.new_empty(head.weight.shape)
            memory = gradient.view(-1)
        else:
            memory = head.weight.new_empty(head.hidden.shape[0] * plan.kept)
        kept = kept_views(memory, plan, head.hidden.shape[0], _references(head, scalars, plan))
    return *forward(head, scalars, kept, packed=True), plan, kept, gradient


class FusedLoss(torch.autograd.Function):
    """Token losses in eager mode."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        target: Tensor,  # (N,)
        scalars: Scalars,
        workspace_bytes: int,
        grad_enabled: bool,
    ) -> Tensor:
        head = Head(hidden, weight, bias, target)
        differentiable = grad_enabled and any(ctx.needs_input_grad[:3])
        needs = ctx.needs_input_grad[:3] if differentiable else (False, False, False)
        shapes = (hidden.dtype, weight.shape, weight.stride(), hidden.shape[0] % 16, hidden.stride(1), bias is not None)
        compile_ahead(
            (hidden.device, shapes, scalars, workspace_bytes, needs),
            hidden.device,
            lambda: _every_launch(head, scalars, workspace_bytes, needs),
        )
        token_loss, lse, rows, plan, kept, gradient = _forward(head, scalars, workspace_bytes, needs)
        if plan is None:
            return token_loss
        ctx.save_for_backward(hidden, weight, bias, target, lse, *rows)
        ctx.scalars, ctx.plan, ctx.kept, ctx.gradient = scalars, plan, kept, gradient
        ctx.workspace_bytes = workspace_bytes
        return token_loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph=True; a detached gradient would be silently wrong
            raise RuntimeError("The fused loss has no second derivative; use implementation='reference'.")
        hidden, weight, bias, target, lse, *rows = ctx.saved_tensors
        head = Head(hidden, weight, bias, target)
        plan, kept, gradient = ctx.plan, ctx.kept, ctx.gradient
        if plan.in_gradient:  # handed out now: whoever comes again recomputes
            ctx.kept, ctx.gradient = None, None
            if gradient is None:
                plan = _plan(
                    head,
                    ctx.scalars,
                    ctx.workspace_bytes,
                    keep=False,
                    keep_in_gradient=False,
                    weight_gradient=ctx.needs_input_grad[1],
                )
        gradients = backward(
            head,
            ctx.scalars,
            grad_outputs[0].contiguous(),
            lse,
            KeptRows(*rows),
            plan,
            kept,
            ctx.needs_input_grad[:3],
            gradient,
        )
        return (*gradients, None, None, None, None)


@torch.library.custom_op("confidence_ceiling::fused_forward", mutates_args=())
def fused_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    softcap: float,
    temperature: float,
    logit_scale: float,
    z_loss: float,
    ignore_index: int,
    workspace_bytes: int,
    differentiable: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Token losses, lse, index of the kept rows, kept softmax and its peaks (the last two empty if nothing is kept)."""
    head = Head(hidden, weight, bias, target)
    scalars = Scalars(label_smoothing, softcap, temperature, logit_scale, z_loss, ignore_index)
    plan = _plan(
        head, scalars, workspace_bytes, keep=differentiable, keep_in_gradient=False, weight_gradient=need_weight
    )
    n = hidden.shape[0]
    softmax = weight.new_empty(n * plan.kept)
    kept = kept_views(softmax, plan, n, _references(head, scalars, plan)) if plan.kept else None
    token_loss, lse, rows = forward(head, scalars, kept, packed=differentiable)
    reference = hidden.new_empty(0, n, dtype=torch.float32) if kept is None else kept.reference
    return token_loss, lse, torch.cat(rows), softmax, reference


@fused_forward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    softcap: float,
    temperature: float,
    logit_scale: float,
    z_loss: float,
    ignore_index: int,
    workspace_bytes: int,
    differentiable: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = Head(hidden, weight, bias, target)
    scalars = Scalars(label_smoothing, softcap, temperature, logit_scale, z_loss, ignore_index)
    plan = _plan(
        head, scalars, workspace_bytes, keep=differentiable, keep_in_gradient=False, weight_gradient=need_weight
    )
    n = hidden.shape[0]
    token_loss = hidden.new_empty(n, dtype=torch.float32)
    index = hidden.new_empty(2 * n + 1, dtype=torch.int32)
    reference = hidden.new_empty(_references(head, scalars, plan), n, dtype=torch.float32)
    return token_loss, torch.empty_like(token_loss), index, weight.new_empty(n * plan.kept), reference


@torch.library.custom_op("confidence_ceiling::fused_backward", mutates_args=())
def fused_backward(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    lse: Tensor,
    index: Tensor,
    softmax: Tensor,
    reference: Tensor,
    label_smoothing: float,
    softcap: float,
    temperature: float,
    logit_scale: float,
    z_loss: float,
    ignore_index: int,
    workspace_bytes: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; empty where not needed."""
    head = Head(hidden, weight, bias, target)
    scalars = Scalars(label_smoothing, softcap, temperature, logit_scale, z_loss, ignore_index)
    plan = _plan(head, scalars, workspace_bytes, keep=True, keep_in_gradient=False, weight_gradient=need_weight)
    n = hidden.shape[0]
    kept = Kept(softmax.view(n, plan.kept), reference) if plan.kept else None
    needs = (need_input, need_weight, need_bias)
    gradients = backward(head, scalars, upstream.contiguous(), lse, _rows(index), plan, kept, needs)
    a, b, c = (hidden.new_empty(0) if g is None else g for g in gradients)
    return a, b, c


@fused_backward.register_fake
def _(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    lse: Tensor,
    index: Tensor,
    softmax: Tensor,
    reference: Tensor,
    label_smoothing: float,
    softcap: float,
    temperature: float,
    logit_scale: float,
    z_loss: float,
    ignore_index: int,
    workspace_bytes: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_input else (0,)),
        hidden.new_empty(weight.shape if need_weight else (0,)),
        hidden.new_empty(weight.shape[:1] if need_bias and bias is not None else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, target, *ctx.options, _, _ = inputs
    _, lse, index, softmax, reference = output
    ctx.mark_non_differentiable(lse, index, softmax, reference)
    ctx.save_for_backward(hidden, weight, bias, target, lse, index, softmax, reference)


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved, needs = ctx.saved_tensors, ctx.needs_input_grad[:3]
    gradients = fused_backward(upstream, *saved, *ctx.options, *needs)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), *[None] * 10)


fused_forward.register_autograd(_backward, setup_context=_setup_context)
