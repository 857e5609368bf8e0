"""The loss of a split head in the fused kernels: one GPU's own forward and backward, of the rows that are here.

The gradient of a logit, p - (1 - b) [k = target] - b / V and what options add to it, is a function of the logit and of
the whole head's log-partition, entropy and V. So the forward tells the others only what the loss needs
(:func:`.join.numbers_of`), and the backward is that of a head in one piece, given the joined log-partition and entropy
in place of its own. The sum of the hidden states' gradient goes on while the last rows of the weight's are computed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..fused import available
from ..options import LossOptions
from ..token_statistics import TokenStatistics
from .agreement import Agreement, Share
from .exchange import Sum, gather
from .join import join, numbers_of
from .split_loss import check_values, weighted

if TYPE_CHECKING:
    from ..fused.run_forward import ForwardResult

__all__ = ["loss"]

_ELSEWHERE, _IGNORED = -1, -2  # the local targets of tokens whose row another process has, and of ignored ones
_LN2 = 0.6931471805599453


def loss(
    input: Tensor,  # (..., D), of one token at least
    linear_weight: Tensor,  # (V_r, D)
    linear_bias: Tensor | None,  # (V_r,)
    target: Tensor,  # (...)
    token_weight: Tensor | None,  # (...)
    agreement: Agreement[LossOptions],
    *,
    workspace_bytes: int | None,
    return_statistics: bool,
) -> tuple[Tensor, TokenStatistics | None]:
    """The loss of the whole head, and its statistics if asked for; the same in every process.

    Args as :func:`.split_loss.loss`; the host learns whether the processes agree once it has enqueued the forward.
    """
    options = agreement.checked
    labels, weights = target.reshape(-1), None if token_weight is None else token_weight.reshape(-1)
    run = _Run(agreement, labels, weights, workspace_bytes, return_statistics, torch.is_grad_enabled())
    bias = None if linear_bias is None else linear_bias.contiguous()
    token_loss, *fields = _Slice.apply(input.reshape(-1, input.shape[-1]), linear_weight, bias, run)
    found = weighted(token_loss, labels != options.ignore_index, weights, options)
    found = found.reshape(target.shape) if options.reduction == "none" else found
    return found, TokenStatistics._make(x.reshape(target.shape) for x in fields) if fields else None


class _Run(NamedTuple):
    """What a call is told besides its differentiable tensors."""

    agreement: Agreement[LossOptions]
    target: Tensor  # (N,), of the whole head
    token_weight: Tensor | None  # (N,)
    workspace_bytes: int | None
    return_statistics: bool
    grad_enabled: bool


class _Slice(torch.autograd.Function):
    """Token losses ``(N,)`` and, if asked for, the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V_r, D)
        bias: Tensor | None,  # (V_r,)
        run: _Run,
    ) -> tuple[Tensor, ...]:
        options = run.agreement.checked
        names, kept = numbers_of(options, run.return_statistics), run.target != options.ignore_index
        needs = tuple(run.grad_enabled and need for need in ctx.needs_input_grad[:3])
        ctx.set_materialize_grads(False)
        share = run.agreement.assumed or run.agreement.confirm()
        made: list[_SliceForward] = []

        def compute() -> Tensor:
            made.clear()  # of rows that were wrongly assumed
            made.append(_forward(hidden, weight, bias, run, share, needs))
            return made[0].numbers(names, kept, share)

        def confirmed() -> bool:
            nonlocal share
            assumed, share = share, run.agreement.confirm()
            return assumed == share

        like = hidden.new_empty(0, dtype=torch.float32)
        every = gather(compute, (len(names), len(hidden)), run.agreement, like, confirmed)
        check_values(run.target, run.token_weight, share, options)
        of, joined = made[0], join(every, names, share)
        statistics = joined.statistics(kept)
        if any(needs):
            place = of.found.rows.source.long()
            lse, entropy = (None if x is None else x[place] for x in (joined.lse / _LN2, joined.entropy))
            ctx.save_for_backward(*of.call.head, lse, entropy, of.found.row_index)
            ctx.options = of.call.scalars, of.call.workspace_bytes
            ctx.plan, ctx.held, ctx.group = of.plan, of.held, run.agreement.group
            ctx.of_hidden = hidden.shape, hidden.device
        token_loss = torch.where(kept, joined.token_loss(options), 0)
        if statistics is None:
            return (token_loss,)
        ctx.mark_non_differentiable(statistics.confidence, statistics.argmax)
        return token_loss, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from ..fused.arguments import Head
        from ..fused.call import LossCall
        from ..fused.gradient_rows import gathered

        needs = ctx.needs_input_grad[:3]
        shape, device = ctx.of_hidden
        total = Sum(shape, ctx.group, torch.empty(0, dtype=torch.float32, device=device)) if needs[0] else None
        found: list[tuple[Tensor | None, ...]] = []

        def compute() -> None:
            *tensors, lse, entropy, index = ctx.saved_tensors  # raises where one was changed since
            call = LossCall(Head(*tensors), *ctx.options)
            given = gathered(upstream[0], upstream[1:4] or None, lse, entropy, index)
            plan, held = call.usable(ctx.plan, ctx.held, given, needs)
            if ctx.plan.kept:  # used up now: whoever comes again recomputes
                ctx.held = None
            found.append(call.backward(given, plan, held, needs, total))

        if total is None:
            compute()
        else:
            total.guard(compute)
            total.end()
        return (*found[0], None)


class _SliceForward(NamedTuple):
    """The slice's own forward."""

    call: Any
    plan: Any
    held: Any
    found: ForwardResult

    def numbers(self, names: tuple[str, ...], kept: Tensor, share: Share) -> Tensor:
        """What this process tells of its rows ``(len(names), N)``, in nats and in the order of the tokens."""
        found, owned = self.found, self.call.head.target >= 0
        assert found.rows.position is not None
        place = found.rows.position.clamp(min=0).long()
        lse = torch.where(kept, found.lse[place] * _LN2, 0)
        some = kept & (lse != -torch.inf)  # else the mean is what the log-partition is, and the rest nothing
        columns = {"lse": lse, "target": torch.where(owned, found.target_logit[place] * _LN2, 0)}
        if "mean" in names:
            columns["mean"] = torch.where(some, lse - found.token_loss, lse)
        if found.entropy is not None:
            columns["entropy"] = torch.where(some, found.entropy[place], 0)
        if found.statistics is not None and found.argmax is not None:
            confidence, largest = found.statistics[3:]
            columns["confidence"] = torch.where(some, confidence, 0)
            columns["largest"] = torch.where(some, largest, lse)
            columns["argmax"] = (found.argmax + share.offset).to(lse.dtype)  # exact: float32 counts to 2^24
        return torch.stack([columns[name] for name in names])


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, run: _Run, share: Share, needs: tuple[bool, ...]
) -> _SliceForward:
    if reason := available(hidden.device, hidden.dtype):
        raise ValueError(f"implementation='triton' cannot run here: {reason}.")
    from ..fused.arguments import Head, Held, Scalars
    from ..fused.call import LossCall
    from ..fused.compile_call import compile_call
    from ..fused.rows import with_plain_rows
    from ..fused.run_forward import forward

    options, here = run.agreement.checked, run.target - share.offset
    owned = (here >= 0) & (here < weight.shape[0])
    here = torch.where(owned, here, _ELSEWHERE)
    here = torch.where(run.target == options.ignore_index, _IGNORED, here)
    scalars = replace(Scalars.of(options), ignore_index=_IGNORED, whole=share.vocab_size)
    call = LossCall(Head(with_plain_rows(hidden), weight, bias, here), scalars, run.workspace_bytes)
    wanted = needs[0], needs[1], needs[2]
    compile_call(call, wanted, run.return_statistics)
    if not any(needs):
        found = forward(call.head, scalars, packed=False, return_statistics=run.return_statistics)
        return _SliceForward(call, None, Held(), found)
    plan = call.plan(keep=True, consumed=True, weight_gradient=needs[1])
    held = call.held(plan)
    found = forward(call.head, scalars, held.kept, packed=True, return_statistics=run.return_statistics)
    return _SliceForward(call, plan, held._replace(target_logit=found.target_logit), found)
