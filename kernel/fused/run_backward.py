"""Launches of the backward: the gradients, strip by strip of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .arguments import Head, Held, Kept, Scalars
from .gradient_rows import Upstream
from .gradients import Destination, Gradients, Reduction
from .run_kept import add_kept
from .run_products import add_bias, add_input, add_weight
from .run_strip import StripColumns, convert_kept, decode_kept, recompute_strip
from .schedule import Schedule, Strip

__all__ = ["backward", "widest_last"]


def backward(
    head: Head,
    scalars: Scalars,
    upstream: Upstream,
    plan: Schedule,
    held: Held,
    needs: tuple[bool, bool, bool],  # input, weight, bias
    reduction: Reduction | None = None,
    into: Destination | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``sum(upstream.loss * token_loss)`` and of the statistics alike; frozen arguments cost nothing.

    A softmax that was kept for the products themselves is no use where the entropy has an upstream gradient: the caller
    then passes a plan that keeps nothing. With ``reduction`` the input's gradient is the sum over processes: it is
    complete before the last product of the weight's, beside which it is reduced.
    """
    state = Gradients(head, scalars, upstream, held, needs, reduction if needs[0] else None, into=into)
    workspace = held.workspace if plan.consumed else None
    if workspace is None:
        workspace = head.hidden.new_empty(plan.workspace)
    made, anew = ([strip for strip in plan.strips if strip.kept == kept] for kept in (True, False))
    as_they_are = [run for run in held.kept if not run.in_bytes]
    if not (plan.consumed or state.of.row_factor is not None):
        as_they_are = []
    _add_strips(state, made, held.kept, workspace, last=not (as_they_are or anew))
    if as_they_are:
        add_kept(state, plan, as_they_are, last=not anew)
    _add_strips(state, anew if state.reduction is None else widest_last(anew), (), workspace, last=True)
    return state.finish()


def widest_last(strips: Sequence[Strip]) -> list[Strip]:
    """Sort those at the end whose dz lies in the workspace: beside the last one's weights the input's is reduced."""
    begin = len(strips)
    while begin and strips[begin - 1].offset is None:
        begin -= 1
    return [*strips[:begin], *sorted(strips[begin:], key=lambda strip: strip.padded)]


def _add_strips(
    state: Gradients, strips: Sequence[Strip], kept: Sequence[Kept], workspace: Tensor, *, last: bool
) -> None:
    """Add the products of strips whose dz is made for itself: of what was kept, or of the logits anew.

    ``last`` says that nothing follows: the input's gradient is then complete before the last of the weight's.
    """
    for index, part in enumerate(strips):
        memory, start = workspace, 0
        if part.offset is not None and state.weight_gradient is not None:
            memory, start = state.weight_gradient.view(-1), part.offset
        dz = memory[start : start + state.n * part.padded].view(state.n, part.padded)
        columns = StripColumns(part.run_start, part.run_columns, part.start - part.run_start, part.padded)
        common = state.head, state.scalars, state.number, state.lse, state.of, dz
        if part.kept:
            run = next(run for run in kept if run.start <= part.start)  # the last columns come first
            if run.in_bytes:
                decode_kept(*common, run, part.start)
            else:
                convert_kept(*common, run, part.start, part.padded)
        else:
            recompute_strip(*common, columns, state.tiles, independent=index > 0)
        first = last and index == len(strips) - 1
        if first:
            add_input(state, dz, columns, state.ones)
            state.reduce()
        add_bias(state, dz, columns, state.ones, state.zeros)  # not between the products (:mod:`.early`)
        add_weight(state, dz, state.head.hidden, columns, state.zeros)
        if not first:
            add_input(state, dz, columns, state.ones, independent=state.weight_gradient is not None)
