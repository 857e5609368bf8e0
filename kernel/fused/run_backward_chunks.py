"""Launches of a backward in chunks of tokens (:mod:`.backward_chunks`): the gradients of one after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import Held
from .backward_chunks import rows_of_sums
from .call import LossCall, Needs
from .chunk_sums import SumPowers
from .gradient_rows import Upstream, largest_of
from .gradients import Destination
from .rows import pack_hidden, rows_in_chunks

__all__ = ["backward_in_chunks"]


def backward_in_chunks(call: LossCall, upstream: Upstream, size: int, needs: Needs) -> tuple[Tensor | None, ...]:
    """Gradients of ``sum(upstream.loss * token_loss)``, of ``size`` tokens at a time; upstream has no statistics.

    Chunks are made of the packed tokens, and of the ignored ones behind them: chunks of these alone have nothing to do.
    The rows of the input's gradient are complete with their chunk, the others' sums with the last one.
    """
    hidden, weight, bias, _ = call.head
    n, hidden_size = hidden.shape
    of_input = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if needs[0] else None
    of_weight = weight.new_empty(weight.shape) if needs[1] else None
    bias_sums = None if bias is None or not needs[2] else bias.new_zeros(bias.shape, dtype=torch.float32)
    powers = _powers(call, upstream) if needs[1] and weight.element_size() == 2 else None
    largest = largest_of(upstream.loss, None, upstream.rows)
    kinds = {"keep": False, "consumed": True, "weight_gradient": needs[1], "tokens": size}
    plans = [call.plan(**kinds, sums=sums) for sums in (False, True)]
    workspace = weight.new_empty(max(plan.workspace for plan in plans))
    packed = hidden.new_empty(size, hidden_size)
    most = rows_of_sums(n, size, packed.element_size())
    for i, chunk in enumerate(rows_in_chunks(upstream.rows, size)):
        part = slice(i * size, i * size + chunk.source.shape[0])
        of_chunk = packed[: chunk.source.shape[0]]
        pack_hidden(hidden, chunk, of_chunk)
        entropy = None if upstream.entropy is None else upstream.entropy[part]
        own = Upstream(upstream.loss, None, upstream.lse[part], entropy, chunk, largest=largest)
        powers = None if powers is None else powers._replace(last=(i + 1) * size >= n)
        into = Destination(of_chunk, of_input, of_weight, bias_sums, {}, accumulate=i > 0, powers=powers, rows=most)
        call.backward(own, plans[min(i, 1)], Held(workspace=workspace), needs, into=into)
    return of_input, of_weight, None if bias_sums is None else bias_sums.to(weight.dtype)


def _powers(call: LossCall, upstream: Upstream) -> SumPowers:
    """Powers of the sums of the head's gradient; a z-loss adds ``2 z_loss lse p`` to dz, which is known."""
    (hidden, _, _, target), scalars, most = call.head, call.scalars, upstream.loss
    if scalars.z_loss:
        position = upstream.rows.position
        assert position is not None
        of_tokens = upstream.lse.index_select(0, position.clamp(0, len(position) - 1))  # any for ignored ones
        most = most * (1 + 2 * scalars.z_loss * math.log(2) * of_tokens.abs())
    return SumPowers.of(hidden, most, target, scalars.ignore_index, scalars.confidence_penalty)
