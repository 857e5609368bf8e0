"""The loss of a head whose rows are split over several processes: each computes its slice, one exchange joins them.

A slice is a head of its own, for which any implementation gives log-partition, target logit, mean logit and entropy
with exact gradients; what is gathered are these few numbers a token. The gradient of the hidden states is the sum over
the processes, that of the rows stays where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..options import LossOptions
from ..reference import compute_dtype, reduced
from ..token_statistics import TokenStatistics
from ..validation import check_target_range, check_token_weight_range
from .agreement import Share
from .exchange import gather, summed

__all__ = ["loss"]

_NUMBERS = ("lse", "target", "mean", "expected", "largest", "argmax")


def loss(
    local: Callable[..., tuple[Tensor, TokenStatistics]],
    input: Tensor,  # (..., D)
    linear_weight: Tensor,  # (V_r, D)
    linear_bias: Tensor | None,  # (V_r,)
    target: Tensor,  # (...)
    token_weight: Tensor | None,  # (...)
    options: LossOptions,
    *,
    return_statistics: bool,
    group: dist.ProcessGroup,
    share: Share,
) -> tuple[Tensor, TokenStatistics]:
    """The loss of the whole head, and its statistics; the same in every process.

    Args:
        local: ``local(input, linear_weight, linear_bias, target, label_smoothing)`` computes losses ``(...)`` and
            statistics of the rows that are here, with softcap, temperature and scale, without z-loss and penalty.
        input: Hidden states, the same in every process.
        linear_weight: The rows that are here.
        linear_bias: Their biases.
        target: Indices into the whole vocabulary, the same in every process.
        token_weight: Weight of each token.
        options: What the loss is.
        return_statistics: Whether the statistics may be differentiated. Where neither they nor the loss ask for the
            entropy's gradient, the fused kernels use what they kept (:mod:`kernel.fused.keep`).
        group: Process group.
        share: Which rows are here (:func:`.agreement.agree`).

    Returns:
        Loss, reduced as ``options`` say, and statistics.
    """
    check_target_range(target, share.vocab_size, options.ignore_index)
    kept, here = target != options.ignore_index, target - share.offset
    owned = kept & (here >= 0) & (here < share.rows[dist.get_rank(group)])

    need_entropy = return_statistics or options.confidence_penalty > 0

    def numbers(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:  # (K, ...)
        if token_weight is not None:
            check_token_weight_range(token_weight)
        own_target = torch.where(owned, here, torch.where(kept, 0, options.ignore_index))
        # With all weight on uniform targets the local loss is lse - mean z.
        smoothing = 1.0 if options.label_smoothing else 0.0
        smoothed, found = local(input, linear_weight, linear_bias, own_target, smoothing)
        lse, entropy = found.lse, found.entropy if need_entropy else found.entropy.detach()
        mine = {
            "lse": torch.where(kept, lse, 0),
            "target": torch.where(owned, found.log_probability + lse, 0),
            "mean": torch.where(kept, lse - smoothed, 0) if smoothing else torch.zeros_like(lse),
            "expected": torch.where(kept, lse - entropy, 0),
            "largest": torch.where(kept, found.confidence.log() + lse, 0).detach(),
            "argmax": (found.argmax + share.offset).to(lse.dtype),  # exact: float32 counts to 2^24
        }
        return torch.stack([mine[name] for name in _NUMBERS])

    whole = input.new_zeros(0, dtype=compute_dtype(input.dtype))
    gathered = _Joined.apply(input, linear_weight, linear_bias, numbers, whole, group, torch.is_grad_enabled())
    every = dict(zip(_NUMBERS, gathered.unbind(1), strict=True))
    whole = torch.logsumexp(every["lse"], 0)
    part = (every["lse"] - whole).exp()  # the probability of each process's rows
    log_p = every["target"].sum(0) - whole
    entropy = whole - (part * every["expected"]).sum(0)
    token_loss = -(1 - options.label_smoothing) * log_p
    if options.label_smoothing:
        # By numbers of the host: a tensor made of them would let it wait for the device.
        parts = zip(share.rows, every["mean"].unbind(), strict=True)
        mean = sum((rows / share.vocab_size * part_mean for rows, part_mean in parts), torch.zeros_like(whole))
        token_loss = token_loss + options.label_smoothing * (whole - mean)
    if options.confidence_penalty:
        token_loss = token_loss - options.confidence_penalty * entropy
    if options.z_loss:
        token_loss = token_loss + options.z_loss * whole.square()
    weight = kept.to(whole.dtype) if token_weight is None else torch.where(kept, token_weight.to(whole.dtype), 0)
    largest, first = every["largest"].max(0)
    argmax = every["argmax"].gather(0, first.unsqueeze(0)).squeeze(0).long()
    scores = (torch.where(kept, x, torch.nan) for x in (log_p, whole, entropy, (largest - whole.detach()).exp()))
    statistics = TokenStatistics._make([*scores, torch.where(kept, argmax, -1)])
    return reduced(torch.where(kept, token_loss, 0) * weight, weight, options.reduction), statistics


class _Joined(torch.autograd.Function):
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
        like: Tensor,
        group: dist.ProcessGroup,
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

        ctx.leaves, ctx.like, ctx.group = leaves, like, group
        every = gather(compute, (len(_NUMBERS), *input.shape[:-1]), group, like)
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
        return *(gradients.get(i) for i in range(3)), None, None, None, None
