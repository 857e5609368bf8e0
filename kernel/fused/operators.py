"""The kernels as PyTorch operators: an autograd function for eager code, two registered operators for compiled code.

Both compute token losses ``(N,)``, to which plain PyTorch applies weights and reduction, and take token-wise upstream
gradients. Compiled code needs operators without side effects: what the forward keeps is one of its outputs. The eager
function may also keep columns in the memory that will hold the weight's gradient, and hands that memory out once: a
second backward through the same graph recomputes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..options import LossOptions
from ..token_statistics import TokenStatistics
from .arguments import Head, Kept, Scalars, kept_views, reference_rows, storage
from .compile_ahead import compile_ahead
from .launch import launch_table, processors, uses_descriptors
from .rows import KeptRows, aligned, index_size, with_plain_rows
from .run_backward import Upstream, backward
from .run_forward import Forward, forward
from .schedule import Schedule, every_kind, schedule

__all__ = ["FusedLoss", "fused_backward", "fused_forward", "token_losses"]

_TRIAL_TOKENS = 16  # of the launches that are only noted down
_Needs = tuple[bool, bool, bool]  # input, weight, bias


def token_losses(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    options: LossOptions,
    workspace_bytes: int,
    return_statistics: bool,
) -> tuple[Tensor, TokenStatistics | None]:
    """Loss of every token ``(N,)``, without weights and reduction, and statistics if asked for."""
    scalars = Scalars(
        options.label_smoothing,
        options.softcap or 0.0,
        options.temperature,
        options.logit_scale,
        options.z_loss,
        options.confidence_penalty,
        options.ignore_index,
    )
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
        found = FusedLoss.apply(*tensors, scalars, workspace_bytes, return_statistics, grad_enabled)
    token_loss, statistics, argmax, *_ = found
    if not return_statistics:
        return token_loss, None
    *differentiable, confidence = statistics.unbind(0)
    return token_loss, TokenStatistics._make([*differentiable, confidence.detach(), argmax])


def _plan(
    head: Head, scalars: Scalars, workspace_bytes: int, *, keep: bool, keep_in_gradient: bool, weight_gradient: bool
) -> Schedule:
    hidden, weight = head.hidden, head.weight
    kind = storage(hidden.dtype, scalars)
    return schedule(
        int(hidden.shape[0]),
        int(weight.shape[0]),
        int(weight.shape[1]),
        hidden.element_size(),
        int(workspace_bytes),
        keep=keep and kind != "",
        direct=kind == "softmax",
        keep_in_gradient=keep_in_gradient,
        weight_gradient=weight_gradient,
        processors=processors(hidden.device),
        table=launch_table(hidden.device, hidden.dtype),
    )


def _references(head: Head, scalars: Scalars, plan: Schedule) -> int:
    columns = launch_table(head.hidden.device, head.hidden.dtype).forward.columns
    return reference_rows(storage(head.hidden.dtype, scalars), scalars, plan, columns)


def _kept(head: Head, scalars: Scalars, plan: Schedule, memory: Tensor) -> Kept | None:
    if not plan.kept:
        return None
    kind = storage(head.hidden.dtype, scalars)
    return kept_views(memory, kind, plan, head.hidden.shape[0], _references(head, scalars, plan))


def _without_kept(head: Head, scalars: Scalars, workspace_bytes: int, needs: Sequence[bool]) -> Schedule:
    """The plan of a backward to which nothing that was kept is of use."""
    return _plan(head, scalars, workspace_bytes, keep=False, keep_in_gradient=False, weight_gradient=needs[1])


def _backward(
    head: Head,
    scalars: Scalars,
    upstream: Upstream,
    plan: Schedule,
    kept: Kept | None,
    workspace_bytes: int,
    needs: _Needs,
    gradient: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The backward, without a kept softmax where statistics have upstream gradients."""
    if upstream.statistics is not None and kept is not None and storage(head.hidden.dtype, scalars) == "softmax":
        plan, kept = _without_kept(head, scalars, workspace_bytes, needs), None
    return backward(head, scalars, upstream, plan, kept, needs, gradient)


def _compile_ahead(head: Head, scalars: Scalars, needs: _Needs, return_statistics: bool) -> None:
    """Compile every kernel of losses like this one, whatever their tokens and workspace."""
    hidden, weight, bias, _ = head
    kind, table = storage(hidden.dtype, scalars), launch_table(hidden.device, hidden.dtype)
    number_kinds = scalars.label_smoothing > 0, scalars.softcap > 0, scalars.z_loss > 0, scalars.confidence_penalty > 0
    layouts = hidden.stride(0) % 16, weight.shape, weight.stride(), weight.data_ptr() % 16, bias is None
    layouts += (None if bias is None else bias.data_ptr() % 16, uses_descriptors(hidden, weight))
    key = (hidden.device, hidden.dtype, layouts, number_kinds, kind, table, needs, return_statistics)
    compile_ahead(key, hidden.device, lambda: _every_launch(head, scalars, needs, return_statistics))


def _every_launch(head: Head, scalars: Scalars, needs: _Needs, return_statistics: bool) -> None:
    """Go through the launches of losses of a few tokens, and of their gradients if any are needed."""
    hidden = head.hidden[:_TRIAL_TOKENS]
    n, kind = hidden.shape[0], storage(hidden.dtype, scalars)
    head = Head(hidden, head.weight, head.bias, torch.zeros(n, dtype=torch.int64, device=hidden.device))
    if not any(needs):
        forward(head, scalars, None, packed=False, return_statistics=return_statistics)
        return
    table, programs = launch_table(hidden.device, hidden.dtype), processors(hidden.device)
    size = int(head.weight.shape[0]), int(head.weight.shape[1])
    for plan in every_kind(n, *size, keep=kind != "", direct=kind == "softmax", processors=programs, table=table):
        kept = _kept(head, scalars, plan, hidden.new_empty(n * plan.kept))
        found = forward(head, scalars, kept, packed=True, return_statistics=return_statistics)
        backward(head, scalars, _upstream(found, None), plan, kept, needs)
        if found.statistics is not None and (kept is None or kind != "softmax"):
            backward(head, scalars, _upstream(found, found.statistics), plan, kept, needs)


def _upstream(found: Forward, statistics: Tensor | None) -> Upstream:
    return Upstream(found.token_loss, statistics, found.lse, found.entropy, found.rows)


class FusedLoss(torch.autograd.Function):
    """Token losses in eager mode; statistics ``(4, N)`` and classes ``(N,)`` too, or nothing twice."""

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
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        head = Head(with_plain_rows(hidden), weight, bias, aligned(target))
        differentiable = grad_enabled and any(ctx.needs_input_grad[:3])
        needs: _Needs = tuple(ctx.needs_input_grad[:3]) if differentiable else (False, False, False)
        _compile_ahead(head, scalars, needs, return_statistics)
        ctx.set_materialize_grads(False)
        if not differentiable:
            found = forward(head, scalars, None, packed=False, return_statistics=return_statistics)
            return found.token_loss, found.statistics, found.argmax
        plan = _plan(head, scalars, workspace_bytes, keep=True, keep_in_gradient=needs[1], weight_gradient=needs[1])
        gradient, memory = None, weight
        if plan.kept and plan.in_gradient:
            gradient = weight.new_empty(weight.shape)
            memory = gradient.view(-1)
        elif plan.kept:
            memory = weight.new_empty(head.hidden.shape[0] * plan.kept)
        kept = _kept(head, scalars, plan, memory)
        found = forward(head, scalars, kept, packed=True, return_statistics=return_statistics)
        ctx.save_for_backward(*head, found.lse, found.entropy, found.row_index)
        ctx.scalars, ctx.plan, ctx.kept, ctx.gradient = scalars, plan, kept, gradient
        ctx.workspace_bytes = workspace_bytes
        if found.argmax is not None:
            ctx.mark_non_differentiable(found.argmax)
        return found.token_loss, found.statistics, found.argmax

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph=True; a detached gradient would be silently wrong
            raise RuntimeError("The fused loss has no second derivative; use implementation='reference'.")
        hidden, weight, bias, target, lse, entropy, index = ctx.saved_tensors
        head, needs = Head(hidden, weight, bias, target), ctx.needs_input_grad[:3]
        plan, kept, gradient = ctx.plan, ctx.kept, ctx.gradient
        if plan.in_gradient:  # handed out now: whoever comes again recomputes
            ctx.kept, ctx.gradient = None, None
            if gradient is None:
                plan = _without_kept(head, ctx.scalars, ctx.workspace_bytes, needs)
        upstream = _gathered(grad_outputs[0], grad_outputs[1], lse, entropy, index)
        gradients = _backward(head, ctx.scalars, upstream, plan, kept, ctx.workspace_bytes, needs, gradient)
        return (*gradients, None, None, None, None, None)


def _gathered(
    of_loss: Tensor | None, of_statistics: Tensor | None, lse: Tensor, entropy: Tensor | None, index: Tensor
) -> Upstream:
    """Upstream gradients as the kernels read them; None is that of an output that nothing was made of."""
    of_loss = torch.zeros_like(lse) if of_loss is None else aligned(of_loss.contiguous())
    of_statistics = None if of_statistics is None else aligned(of_statistics.contiguous())
    return Upstream(of_loss, of_statistics, lse, entropy, KeptRows.within(index, lse.shape[0]))


# Lists of options, in both operators: the numbers of Scalars.pack; ignore_index and workspace_bytes; whether any
# gradient is needed, the weight's is, and statistics are returned.


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
    (ignore_index, workspace_bytes), (differentiable, need_weight, return_statistics) = sizes, flags
    head, scalars = Head(with_plain_rows(hidden), weight, bias, aligned(target)), Scalars.unpack(numbers, ignore_index)
    # The operator is not told which of input and bias need a gradient: kernels for both are compiled.
    needs = (differentiable, need_weight, differentiable and bias is not None)
    _compile_ahead(head, scalars, needs, return_statistics)
    plan = _plan(
        head, scalars, workspace_bytes, keep=differentiable, keep_in_gradient=False, weight_gradient=need_weight
    )
    memory = weight.new_empty(hidden.shape[0] * plan.kept)
    kept = _kept(head, scalars, plan, memory)
    found = forward(head, scalars, kept, packed=differentiable, return_statistics=return_statistics)
    nothing = [hidden.new_empty(0, dtype=torch.float32) for _ in range(2)]
    return (
        found.token_loss,
        nothing[0] if found.statistics is None else found.statistics,
        target.new_empty(0) if found.argmax is None else found.argmax,
        found.lse,
        nothing[1] if found.entropy is None else found.entropy,
        found.row_index,
        memory,
        hidden.new_empty(0, dtype=torch.float32) if kept is None else kept.reference.view(-1),
    )


@fused_forward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    numbers: Sequence[float],
    sizes: Sequence[int],
    flags: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (ignore_index, workspace_bytes), (differentiable, need_weight, return_statistics) = sizes, flags
    head, scalars = Head(hidden, weight, bias, target), Scalars.unpack(numbers, ignore_index)
    plan = _plan(
        head, scalars, workspace_bytes, keep=differentiable, keep_in_gradient=False, weight_gradient=need_weight
    )
    n = hidden.shape[0]
    want_entropy = return_statistics or scalars.confidence_penalty > 0

    def new(*shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    return (
        new(n),
        new(4, n) if return_statistics else new(0),
        new(n if return_statistics else 0, dtype=torch.int64),
        new(n),
        new(n if want_entropy else 0),
        new(index_size(n), dtype=torch.int32),
        weight.new_empty(n * plan.kept),
        new(_references(head, scalars, plan) * n),
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
    ignore_index, workspace_bytes = sizes
    head, scalars = Head(with_plain_rows(hidden), weight, bias, aligned(target)), Scalars.unpack(numbers, ignore_index)
    plan = _plan(head, scalars, workspace_bytes, keep=True, keep_in_gradient=False, weight_gradient=needs[1])
    kept = _kept(head, scalars, plan, columns)
    if kept is not None:
        kept = kept._replace(reference=reference.view(-1, hidden.shape[0]))
    upstream = _gathered(of_loss, of_statistics, lse, entropy if entropy.numel() else None, index)
    gradients = _backward(head, scalars, upstream, plan, kept, workspace_bytes, (needs[0], needs[1], needs[2]))
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
