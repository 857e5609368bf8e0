"""Launches of the backward for columns that the forward kept as the products take them, or as logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Kept
from .gradients import Gradients
from .keep import column_sum, of_upstream, partial_sums, store_targets, sum_of
from .run_products import add_bias, add_input, add_weight
from .run_strip import StripColumns, convert_kept, recompute_strip
from .schedule import Schedule

__all__ = ["add_kept"]


def add_kept(state: Gradients, plan: Schedule, kept: Sequence[Kept], *, last: bool) -> None:
    """Add the products of kept columns: of the softmax as it is (:mod:`.keep`), or of dz made of kept logits.

    The input's gradient comes first, in one launch: the rows of the weight's are then written, from the last strip
    to the first, where strips lay that are no longer needed (:mod:`kernel.fused.schedule`).
    """
    packed, row_factor = state.head.hidden, state.of.row_factor
    direct = row_factor is not None
    uniform = state.scalars.uniform(state.vocab_size) if direct else 0.0
    holds_softmax = None
    scaled, of_weight, of_bias = packed, state.zeros, state.zeros
    if row_factor is not None and (state.of.mix is not None or state.scalars.whole):
        holds_softmax = _revise(state, kept, row_factor)
        row_factor = torch.where(holds_softmax, row_factor, 1.0)
    if row_factor is None:
        row_factor = state.ones
    elif state.weight_gradient is not None:
        if plan.scaled_in_gradient:
            scaled = state.weight_gradient.view(-1)[: packed.numel()].view_as(packed)
        elif not all(strip.kept for strip in plan.strips):  # which come later and need them as they are
            scaled = torch.empty_like(packed)
        partial = partial_sums(packed, 0, state.of.row_scale, state.number, row_factor, scaled)
        of_weight = sum_of(partial, uniform) if uniform else of_weight
    if uniform and state.bias_gradient is not None:
        of_bias = column_sum(state.of.row_scale.unsqueeze(1), 0, uniform, state.ones, state.number)
    if uniform and state.accumulator is not None:
        end = kept[0].start + kept[0].number * kept[0].width
        known, columns = {} if state.into is None else state.into.column_sums, (kept[-1].start, end)
        if columns not in known:
            known[columns] = column_sum(state.head.weight[:end], columns[0], uniform)
        state.uniform = known[columns]
    if uniform and holds_softmax is not None:
        of_weight, of_bias, state.uniform = (part * holds_softmax for part in (of_weight, of_bias, state.uniform))
    for run in kept:
        columns, dz = run.number * run.width, run.columns.view(packed.dtype)
        if not direct:
            common = state.head, state.scalars, state.number, state.lse, state.of, dz
            convert_kept(*common, run, run.start, columns)
        whole = StripColumns(run.start, columns, 0, run.width)
        add_input(state, dz, whole, row_factor)
        if run is kept[-1] and last:
            state.reduce()
        add_bias(state, dz, whole, row_factor, of_bias)
        for index in reversed(range(run.number)):
            strip = StripColumns(run.start + index * run.width, run.width, 0, run.width)
            add_weight(state, dz, scaled, strip, of_weight, index)
    state.tiles.forget()  # the memory of the scaled hidden states


def _revise(state: Gradients, kept: Sequence[Kept], row_factor: Tensor) -> Tensor:
    """Write the targets' entries of a kept softmax; false, ``(1,)``, if dz stands in all of it instead.

    That is left to the backward where statistics have upstream gradients, and of a slice of a head, whose forward
    does not know the lse that counts.
    """
    own = state.of.row_scale * (state.scalars.label_smoothing - 1)
    if state.of.mix is not None:
        own = own + state.of.mix[2]
    if state.scalars.whole:
        own = torch.where(state.of.label >= 0, own, 0)  # else the row is elsewhere
    again = of_upstream(own, row_factor, state.rows)
    assert state.target_logit is not None
    for run in kept:
        part = state.head.target, state.rows, state.target_logit, run, state.lse, state.scalars.label_smoothing
        store_targets(*part, own, row_factor)
        whole = StripColumns(run.start, run.number * run.width, 0, run.width)
        recompute_strip(state.head, state.scalars, again, state.lse, state.of, run.columns, whole, state.tiles)
    return again == 0
