"""Statistics of a head whose rows are split over several processes: the local ones of each, joined.

With the largest logit m_r and the confidence c_r among the rows of process r, M = max_r m_r, and for a temperature T

    a_r     = (m_r - M) / T - log c_r                        log sum_k exp((z_k - M) / T) over its rows
    rest    = (1 - c_w) / c_w + sum_{r != w} exp(a_r)        (1 - p_max) / p_max; w is the first process with m_w = M
    lse     = M / T + log1p(rest)
    P_r     = exp(a_r - log1p(rest))                         the probability of its rows
    entropy = sum_r P_r (H_r - log P_r)                      a sum of terms of one sign

so that nothing is lost next to a confidence of 1 or at low temperatures, as in :mod:`kernel.statistics.chunked`. Ranks
need the logits of the targets first: who holds the row of a target tells the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from .. import vocab_parallel
from ..blocks import logits_of
from ..options import LossOptions
from ..reference import compute_dtype
from ..validation import check_target_range
from ..vocab_parallel.agreement import Agreement
from .fields import HeadStatistics

__all__ = ["statistics"]

_IGNORED = -(2**31)  # no difference of two classes, and an int32, as which the kernels take it
_SCORES = 4  # of each temperature: entropy, participation, confidence, log1m_confidence
_LOGITS = 5  # max_logit, argmax, mean_logit, target_logit, rank


def statistics(
    local: Callable[..., HeadStatistics],
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V_r, D)
    target: Tensor | None,  # (N,)
    linear_bias: Tensor | None,  # (V_r,)
    options: LossOptions,
    temperatures: tuple[float, ...],
    top_k: int,
    *,
    agreement: Agreement[Any],
) -> HeadStatistics:
    """The fields of :class:`kernel.HeadStatistics` over all rows, flat, the same in every process.

    ``local`` is an implementation of the statistics (:func:`kernel.statistics.chunked.statistics`), called with the
    rows that are here; ``agreement`` is what :func:`kernel.vocab_parallel.propose` returned. Targets are checked once
    they are known to be the same everywhere.
    """
    group, share = agreement.group, agreement.confirm()
    n, rows, dtype = input.shape[0], share.rows[dist.get_rank(group)], compute_dtype(input.dtype)
    like = input.new_empty(0, dtype=torch.float64)  # holds indices and float32 as they are
    label = own = None
    here = torch.zeros(n, dtype=torch.bool, device=input.device)
    if target is not None:
        label = torch.where(target != options.ignore_index, target - share.offset, _IGNORED)
        here = (label >= 0) & (label < rows)
        place = torch.where(here, label, 0)

        def logits() -> Tensor:
            return torch.where(here, logits_of(place, input, linear_weight, linear_bias, options), 0)

        own = vocab_parallel.gather(logits, (n,), agreement, like).sum(0).to(dtype)
        check_target_range(target, share.vocab_size, options.ignore_index)

    def compute() -> Tensor:
        ignoring, few = replace(options, ignore_index=_IGNORED), min(top_k, rows)
        mine = local(input, linear_weight, label, linear_bias, ignoring, temperatures, few, own)
        nothing = mine.max_logit.new_zeros(n)
        target_logit = nothing if mine.target_logit is None else torch.where(here, mine.target_logit, 0)
        columns = [mine.entropy, mine.participation, mine.confidence, mine.log1m_confidence]
        columns += [mine.max_logit, mine.argmax + share.offset, mine.mean_logit, target_logit]
        columns += [nothing if mine.rank is None else mine.rank]
        if mine.top_logits is not None and mine.top_indices is not None:
            columns += [pad(mine.top_logits, (0, top_k - few), value=-torch.inf)]
            columns += [pad(mine.top_indices + share.offset, (0, top_k - few))]
        return torch.cat([(x if x.ndim == 2 else x.unsqueeze(-1)).double() for x in columns], 1)

    size = _SCORES * len(temperatures) + _LOGITS + 2 * top_k
    every = vocab_parallel.gather(compute, (n, size), agreement, like)
    shares = every.new_tensor(share.rows).unsqueeze(-1) / share.vocab_size
    return _joined(every, shares, every.new_tensor(temperatures), target, options.ignore_index, dtype)


def _joined(
    every: Tensor,  # (processes, N, numbers)
    shares: Tensor,  # (processes, 1), of the rows
    temperatures: Tensor,  # (T,)
    target: Tensor | None,  # (N,)
    ignore_index: int,
    dtype: torch.dtype,
) -> HeadStatistics:
    t = len(temperatures)
    scores, logits, top = every.tensor_split([_SCORES * t, _SCORES * t + _LOGITS], -1)
    entropy, participation, confidence, log1m = scores.unflatten(-1, (_SCORES, t)).unbind(2)
    max_logit, argmax, mean_logit, target_logit, rank = logits.unbind(2)
    largest, winner = max_logit.max(0)  # the first of equal ones
    # c is rounded away next to 1, and log(1 - c) next to 0.
    log_total = torch.where(confidence < 0.5, -confidence.log(), -torch.log1p(-log1m.exp()))
    log_rest = torch.where(confidence < 0.5, torch.log1p(-confidence), log1m) + log_total
    a = (max_logit - largest).unsqueeze(-1) / temperatures + log_total
    wins = (torch.arange(len(every), device=every.device).unsqueeze(-1) == winner).unsqueeze(-1)
    log_rest = torch.logsumexp(torch.where(wins, log_rest, a), 0)
    log_total = torch.log1p(log_rest.exp())
    part = (a - log_total).exp()
    argmax = argmax.gather(0, winner.unsqueeze(0)).squeeze(0)
    target_logit, rank = target_logit.sum(0), rank.sum(0)
    keep = torch.ones_like(winner, dtype=torch.bool)
    if target is not None:
        keep = target != ignore_index
        rank = torch.where(argmax == target, 0, rank.clamp(min=1))

    def score(values: Tensor) -> Tensor:
        kept = keep if values.ndim == 1 else keep.unsqueeze(-1)
        return torch.where(kept, values, torch.nan).to(dtype)

    def index(values: Tensor) -> Tensor:
        kept = keep if values.ndim == 1 else keep.unsqueeze(-1)
        return torch.where(kept, values, -1).long()

    top_logits = top_indices = None
    if top.shape[-1]:
        values, classes = (x.movedim(0, 1).flatten(1) for x in top.tensor_split(2, -1))  # (N, processes x top_k)
        best = values.topk(top.shape[-1] // 2)
        top_logits, top_indices = score(best.values), index(classes.gather(1, best.indices))
    log_p = (target_logit - largest).unsqueeze(-1) / temperatures - log_total
    return HeadStatistics(
        lse=score(largest.unsqueeze(-1) / temperatures + log_total),
        entropy=score((part * (entropy + log_total - a)).sum(0)),
        participation=score((part.square() * participation).sum(0)),
        log_probability=None if target is None else score(log_p),
        confidence=score(1 / (1 + log_rest.exp())),
        log1m_confidence=score(log_rest - log_total),
        max_logit=score(largest),
        argmax=index(argmax),
        target_logit=None if target is None else score(target_logit),
        mean_logit=score((shares * mean_logit).sum(0)),
        rank=None if target is None else index(rank),
        top_logits=top_logits,
        top_indices=top_indices,
    )
