"""The loss of a head whose rows are split over several processes: each computes its slice, one exchange joins them.

A slice is a head of its own, for which any implementation gives log-partition, target logit, mean logit and entropy
with exact gradients; what is gathered are these few numbers a token. The gradient of the hidden states is the sum over
the processes, that of the rows stays where they are. For the fused kernels :mod:`.fused_slice` does the same with less
work: the exchanges are alike, so that processes may differ in what they run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..blocks import logits_of
from ..options import LossOptions
from ..reference import compute_dtype, reduced
from ..token_statistics import TokenStatistics
from ..validation import check_target_range, check_token_weight_range
from .agreement import Agreement, Share
from .exchange import gather, summed
from .join import join, numbers_of

__all__ = ["check_values", "loss", "weighted"]


def loss(
    local: Callable[..., tuple[Tensor, TokenStatistics]],
    input: Tensor,  # (..., D)
    linear_weight: Tensor,  # (V_r, D)
    linear_bias: Tensor | None,  # (V_r,)
    target: Tensor,  # (...)
    token_weight: Tensor | None,  # (...)
    agreement: Agreement[LossOptions],
    *,
    return_statistics: bool,
) -> tuple[Tensor, TokenStatistics | None]:
    """The loss of the whole head, and its statistics if asked for; the same in every process.

    Args:
        local: ``local(input, linear_weight, linear_bias, target, label_smoothing, ignore_index)`` computes losses
            ``(...)`` and statistics of the rows that are here, with softcap, temperature and scale, without z-loss and
            penalty.
        input: Hidden states, the same in every process.
        linear_weight: The rows that are here.
        linear_bias: Their biases.
        target: Indices into the whole vocabulary, the same in every process.
        token_weight: Weight of each token.
        agreement: Options and group (:func:`.agreement.propose`).
        return_statistics: Whether to return the statistics.

    Returns:
        Loss, reduced as ``options`` say, and statistics or None.
    """
    options, share, group = agreement.checked, agreement.confirm(), agreement.group
    kept, here = target != options.ignore_index, target - share.offset
    owned = kept & (here >= 0) & (here < share.rows[dist.get_rank(group)])
    names = numbers_of(options, return_statistics)

    def numbers(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:  # (K, ...)
        own_target = torch.where(owned, here, torch.where(kept, 0, IGNORED))
        # With all weight on uniform targets the local loss is lse - mean z.
        smoothing = 1.0 if options.label_smoothing else 0.0
        smoothed, found = local(input, linear_weight, linear_bias, own_target, smoothing, IGNORED)
        some, nothing = kept, 0.0
        if (found.lse == -torch.inf).any():  # no logit but -inf: its softmax is nan, and is to be 0
            some = kept & (found.lse != -torch.inf)
            nothing = torch.zeros_like(found.lse).masked_fill(kept & ~some, -torch.inf)
            fields = local(input[some], linear_weight, linear_bias, own_target[some], smoothing, IGNORED)
            smoothed, *fields = (x.new_zeros(kept.shape).masked_scatter(some, x) for x in (fields[0], *fields[1]))
            found = TokenStatistics._make(fields)
        lse = found.lse

        def largest() -> Tensor:
            best, hidden = torch.where(some, found.argmax, 0).reshape(-1), input.reshape(-1, input.shape[-1])
            with torch.no_grad():
                z = logits_of(best, hidden, linear_weight, linear_bias, options) / options.temperature
            return torch.where(some, z.reshape(kept.shape), nothing)

        mine = {
            "lse": lambda: torch.where(some, lse, nothing),
            "target": lambda: torch.where(owned & some, found.log_probability + lse, torch.where(owned, nothing, 0)),
            "mean": lambda: torch.where(some, lse - smoothed, nothing),
            "entropy": lambda: torch.where(some, found.entropy, 0),
            "confidence": lambda: torch.where(some, found.confidence, 0),
            "largest": largest,
            "argmax": lambda: (found.argmax + share.offset).to(lse.dtype),  # exact: float32 counts to 2^24
        }
        return torch.stack([mine[name]() for name in names])

    like = input.new_zeros(0, dtype=compute_dtype(input.dtype))
    shape = (len(names), *input.shape[:-1])
    every = _Gathered.apply(input, linear_weight, linear_bias, numbers, shape, like, agreement, torch.is_grad_enabled())
    check_values(target, token_weight, share, options)
    found = join(every, names, share)
    return weighted(found.token_loss(options), kept, token_weight, options), found.statistics(kept)


IGNORED = -100  # the local targets' ignore_index: the caller's may be one of the rows that are here


def check_values(target: Tensor, token_weight: Tensor | None, share: Share, options: LossOptions) -> None:
    """Check targets and weights, once they are known to be the same in every process: an error is raised in all."""
    check_target_range(target, share.vocab_size, options.ignore_index)
    if token_weight is not None:
        check_token_weight_range(token_weight)


def weighted(token_loss: Tensor, kept: Tensor, token_weight: Tensor | None, options: LossOptions) -> Tensor:
    """Weigh the losses of tokens ``(...)`` and reduce them."""
    dtype = token_loss.dtype
    weight = kept.to(dtype) if token_weight is None else torch.where(kept, token_weight.to(dtype), 0)
    return reduced(torch.where(kept, token_loss, 0) * weight, weight, options.reduction)


class _Gathered(torch.autograd.Function):
    """Numbers ``(processes, K, ...)`` of every process's rows, and the gradients of what is made of them.

    All processes make the same of them, so that each takes its own part of the upstream gradient. The gradient of the
    hidden states is summed over the processes, in float32 at least. The graph of the own numbers lies inside: a process
    whose forward or backward fails can tell the others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        numbers: Callable[..., Tensor],
        shape: tuple[int, ...],
        like: Tensor,
        agreement: Agreement[Any],
        grad_enabled: bool,
    ) -> Tensor:
        needs = [grad_enabled and need for need in ctx.needs_input_grad[:3]]
        tensors = (input, linear_weight, linear_bias)
        leaves = [
            None if t is None else t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)
        ]
        kept: list[Tensor] = []

        def compute() -> Tensor:
            with torch.set_grad_enabled(any(needs)):
                kept.append(numbers(*leaves))
            return kept[0].detach()

        ctx.leaves, ctx.like, ctx.group = leaves, like, agreement.group
        every = gather(compute, shape, agreement, like)
        ctx.save_for_backward(*kept)  # with their graph, so that it goes when this one does
        return every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs, gradients = ctx.needs_input_grad[:3], {}
        own, wanted = upstream[0][dist.get_rank(ctx.group)], [i for i in range(3) if needs[i]]
        (mine,) = ctx.saved_tensors

        def compute() -> Tensor:
            found = torch.autograd.grad(mine, [ctx.leaves[i] for i in wanted], own, retain_graph=True)
            gradients.update(zip(wanted, found, strict=True))
            return found[0]

        if needs[0]:
            shape, dtype = ctx.leaves[0].shape, ctx.leaves[0].dtype
            gradients[0] = summed(compute, shape, ctx.group, ctx.like).to(dtype)
        else:
            compute()
        return *(gradients.get(i) for i in range(3)), None, None, None, None, None
