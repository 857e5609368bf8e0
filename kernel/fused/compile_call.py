"""What a first call compiles: every kernel of losses like it, found by going through the launches of a few tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Head, Scalars
from .call import LossCall, Needs
from .chunk_sums import SumPowers
from .compile_ahead import compile_ahead
from .gradient_rows import Upstream
from .gradients import Destination
from .launch import launch_table, processors, uses_descriptors
from .run_backward import backward
from .run_forward import ForwardResult, forward
from .run_sparse import Sparse, SparseTiles, sparse_backward
from .scale import scale
from .schedule import Schedule, every_kind

__all__ = ["compile_call", "every_launch"]

_TRIAL_TOKENS = 16  # of the launches that are only noted down


def compile_call(
    call: LossCall, needs: Needs, return_statistics: bool, sparse: bool = False, eager: bool = False
) -> None:
    """Compile every kernel of losses like this one, whatever their tokens, workspace and reduction.

    ``eager`` says that all of it may be computed in chunks: neither in compiled code nor by a slice of the head.
    """
    (hidden, weight, bias, _), scalars = call.head, call.scalars
    kind, table = scalars.storage(hidden.dtype), launch_table(hidden.device, hidden.dtype)
    numbers = scalars.label_smoothing, scalars.softcap, scalars.z_loss, scalars.confidence_penalty
    layouts = hidden.stride(0) % 16, weight.shape, weight.stride(), weight.data_ptr() % 16, bias is None
    layouts += (None if bias is None else bias.data_ptr() % 16, uses_descriptors(hidden, weight))
    number_kinds = tuple(number > 0 for number in numbers)
    layouts += (scalars.whole > 0,)
    chunks = eager and call.serves_chunks(needs, return_statistics, sparse)
    chunks |= any(needs) and call.serves_backward_chunks(needs) and not (return_statistics or sparse)
    key = (
        hidden.device,
        hidden.dtype,
        layouts,
        number_kinds,
        kind,
        table,
        needs,
        return_statistics,
        sparse,
        chunks,
    )
    compile_ahead(key, hidden.device, lambda: every_launch(call, needs, return_statistics, sparse, chunks))


def every_launch(
    call: LossCall, needs: Needs, return_statistics: bool, sparse: bool = False, chunks: bool = False
) -> None:
    """Go through the launches of losses of a few tokens, and of their gradients if any are needed."""
    (hidden, weight, bias, _), scalars = call.head, call.scalars
    hidden = hidden[:_TRIAL_TOKENS]
    n, kind = hidden.shape[0], scalars.storage(hidden.dtype)
    head = Head(hidden, weight, bias, torch.zeros(n, dtype=torch.int64, device=hidden.device))
    if not any(needs):
        forward(head, scalars, packed=False, return_statistics=return_statistics)
        return
    table, programs = launch_table(hidden.device, hidden.dtype, hidden.shape[1]), processors(hidden.device)
    size = int(weight.shape[0]), int(weight.shape[1])
    kinds = {"keep": kind != "", "direct": kind == "softmax", "in_bytes": scalars.in_bytes(hidden.dtype)}
    # One memory for the weight's gradient, the only one that is large whatever the tokens: a call holds it once, too.
    gradient = weight.new_empty(weight.shape) if needs[1] else None
    for plan in every_kind(n, *size, **kinds, processors=programs, table=table):
        _launches(LossCall(head, scalars, 0), plan, gradient, needs, return_statistics, chunks)
    del gradient
    if sparse:  # never of a slice of a head, whose gradients are exact
        _sparse_launches(head, scalars, needs, return_statistics)


def _launches(
    call: LossCall, plan: Schedule, gradient: Tensor | None, needs: Needs, return_statistics: bool, chunks: bool
) -> None:
    """Go through those of one plan; in a function of its own, so that what it holds is free before the next."""
    head, scalars = call.head, call.scalars
    held = call.held(plan, gradient=gradient)
    found = forward(head, scalars, held.kept, packed=True, return_statistics=return_statistics)
    reduction = _NoReduction(head.hidden) if scalars.whole else None
    if reduction is not None or found.statistics is not None:
        held = held._replace(target_logit=found.target_logit)
    gradients = backward(head, scalars, _upstream(found, None), plan, held, needs, reduction)
    if chunks:
        scale(gradients, found.token_loss[:1])
        bias_sums = None if head.bias is None else head.bias.new_zeros(head.bias.shape, dtype=torch.float32)
        powers = None
        if needs[1] and head.weight.element_size() == 2:
            powers = SumPowers.of(head.hidden, found.token_loss, head.target, scalars.ignore_index)
        assert found.packed is not None
        into = Destination(found.packed, gradients[0], gradients[1], bias_sums, {}, powers=powers)
        for accumulate, last in ((True, True),) if powers is None else ((False, False), (True, False), (True, True)):
            own = None if powers is None else powers._replace(last=last)
            into = into._replace(accumulate=accumulate, powers=own)
            backward(head, scalars, _upstream(found, None), plan, held, needs, into=into)
    if found.statistics is not None:
        backward(head, scalars, _upstream(found, found.statistics), plan, held, needs, reduction)


def _sparse_launches(head: Head, scalars: Scalars, needs: Needs, return_statistics: bool) -> None:
    sums = SparseTiles.memory(head)
    found = forward(head, scalars, packed=True, return_statistics=return_statistics, tile_sums=sums)
    tiles = SparseTiles.finish(sums, head, found.lse, found.rows.number, 0.5)
    for statistics in (None, found.statistics):
        upstream = _upstream(found, statistics)
        sparse_backward(head, scalars, upstream, tiles, Sparse(0.5, None), 0, needs, 0.5)


class _NoReduction:
    """Takes the place of one where launches are only noted down."""

    def __init__(self, hidden: Tensor) -> None:
        self.values = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)

    def begin(self) -> None:
        pass

    def end(self) -> Tensor:
        return self.values


def _upstream(found: ForwardResult, statistics: Tensor | None) -> Upstream:
    return Upstream(found.token_loss, statistics, found.lse, found.entropy, found.rows)
