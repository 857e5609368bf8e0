"""The loss of a head whose rows are split over several processes: each computes its slice, one exchange joins them.

Each process calls with the same tokens and its own rows. Its slice is a head of its own, for which any implementation
gives log-partition, target logit, mean logit and entropy with exact gradients; what is gathered are these few numbers a
token. The gradient of the hidden states is the sum over the processes, that of the rows stays where they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .options import LossOptions
from .reference import compute_dtype, reduced
from .token_statistics import TokenStatistics
from .validation import check_target_range, check_token_weight_range

__all__ = ["Share", "SummedGradient", "agree", "loss"]


class Share(NamedTuple):
    """Which rows of the whole head a process holds.

    Attributes:
        offset: Index of its first row.
        vocab_size: Rows of the whole head.
        rows: Rows of each process, in the order of the group.
    """

    offset: int
    vocab_size: int
    rows: tuple[int, ...]


def agree(group: Any, check: Callable[[], LossOptions], input: Any, linear_weight: Any) -> tuple[LossOptions, Share]:
    """Check the arguments everywhere before anything else is exchanged, so that no process waits for one that failed.

    Args:
        group: Process group, of a backend that works on input's device.
        check: Returns the options, or raises an error where this process's arguments are wrong.
        input: Hidden states ``(..., D)``, the same in every process.
        linear_weight: This process's rows ``(V_r, D)``.

    Returns:
        The options, the same in every process, and which rows this one holds.

    Raises:
        RuntimeError: In the processes whose own arguments are right, where those of others are not.
        ValueError: If tokens, hidden size, dtype or options differ between processes.
    """
    options, failed = None, None
    try:
        options = check()
        same = zlib.crc32(repr((tuple(input.shape), input.dtype, input.requires_grad, options)).encode())
        told = [0, linear_weight.shape[0], same]
    except Exception as error:  # told to the others, then raised
        failed, told = error, [1, 0, 0]
    device = input.device if isinstance(input, Tensor) else torch.device("cpu")
    mine = torch.tensor(told, device=device)
    all_told = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_told, mine, group=group)
    if failed is not None or options is None:
        raise failed or AssertionError
    wrong, rows, digests = zip(*(t.tolist() for t in all_told), strict=True)
    if any(wrong):
        raise RuntimeError(f"process {wrong.index(1)} of process_group refused its arguments; its error says why.")
    if len(set(digests)) > 1:
        raise ValueError(
            "input's shape, dtype and requires_grad and the options must be the same in every process of the group, "
            f"got {tuple(input.shape)}, {input.dtype}, {input.requires_grad} and {options} here, not elsewhere."
        )
    return options, Share(sum(rows[: dist.get_rank(group)]), sum(rows), rows)


def loss(
    local: Callable[..., tuple[Tensor, TokenStatistics]],
    input: Tensor,  # (..., D)
    target: Tensor,  # (...)
    token_weight: Tensor | None,  # (...)
    options: LossOptions,
    *,
    group: Any,
    share: Share,
) -> tuple[Tensor, TokenStatistics]:
    """The loss of the whole head, and its statistics; the same in every process.

    Args:
        local: ``local(input, target, label_smoothing)`` computes losses ``(...)`` and statistics of the rows that
            are here, with softcap, temperature and scale, without z-loss and penalty.
        input: Hidden states, the same in every process.
        target: Indices into the whole vocabulary.
        token_weight: Weight of each token.
        options: What the loss is.
        group: Process group.
        share: Which rows are here (:func:`agree`).

    Returns:
        Loss, reduced as ``options`` say, and statistics.
    """
    check_target_range(target, share.vocab_size, options.ignore_index)
    kept, here = target != options.ignore_index, target - share.offset
    rows = share.rows[dist.get_rank(group)]
    owned = kept & (here >= 0) & (here < rows)
    own_target = torch.where(owned, here, torch.where(kept, 0, options.ignore_index))
    # With all weight on uniform targets the local loss is lse - mean z.
    smoothed, found = local(SummedGradient.apply(input, group), own_target, 1.0 if options.label_smoothing else 0.0)
    lse = found.lse
    mine = {
        "lse": torch.where(kept, lse, 0),
        "target": torch.where(owned, found.log_probability + lse, 0),
        "mean": torch.where(kept, lse - smoothed, 0) if options.label_smoothing else torch.zeros_like(lse),
        "expected": torch.where(kept, lse - found.entropy, 0),
        "largest": torch.where(kept, found.confidence.log() + lse, 0).detach(),
        "argmax": (found.argmax + share.offset).to(lse.dtype),  # exact: float32 counts to 2^24
    }
    every = dict(zip(mine, _Gather.apply(torch.stack(tuple(mine.values())), group).unbind(1), strict=True))
    whole = torch.logsumexp(every["lse"], 0)
    part = (every["lse"] - whole).exp()  # the probability of each process's rows
    log_p = every["target"].sum(0) - whole
    entropy = whole - (part * every["expected"]).sum(0)
    token_loss = -(1 - options.label_smoothing) * log_p
    if options.label_smoothing:
        sizes = torch.tensor(share.rows, dtype=whole.dtype, device=whole.device)
        mean = torch.tensordot(sizes / share.vocab_size, every["mean"], 1)
        token_loss = token_loss + options.label_smoothing * (whole - mean)
    if options.confidence_penalty:
        token_loss = token_loss - options.confidence_penalty * entropy
    if options.z_loss:
        token_loss = token_loss + options.z_loss * whole.square()
    if token_weight is not None:
        check_token_weight_range(token_weight)
    weight = kept.to(whole.dtype) if token_weight is None else torch.where(kept, token_weight.to(whole.dtype), 0)
    largest, first = every["largest"].max(0)
    argmax = every["argmax"].gather(0, first.unsqueeze(0)).squeeze(0).long()
    scores = (torch.where(kept, x, torch.nan) for x in (log_p, whole, entropy, (largest - whole.detach()).exp()))
    statistics = TokenStatistics._make([*scores, torch.where(kept, argmax, -1)])
    return reduced(torch.where(kept, token_loss, 0) * weight, weight, options.reduction), statistics


class SummedGradient(torch.autograd.Function):
    """Hidden states as they are; their gradient is summed over the processes, in float32 at least."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, group: Any) -> Tensor:
        """Return the hidden states."""
        ctx.group = group
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        """Return the sum of all processes' gradients."""
        (given,) = upstream
        total = given.to(compute_dtype(given.dtype), copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.to(given.dtype), None


class _Gather(torch.autograd.Function):
    """The numbers ``(K, ...)`` of every process, ``(processes, K, ...)``.

    All compute the same of them, so that each takes its own part of the gradient and nothing is exchanged.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Any) -> Tensor:
        ctx.rank = dist.get_rank(group)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, mine.contiguous(), group=group)
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0][ctx.rank], None
