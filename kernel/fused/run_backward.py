"""Launches of the backward: the gradients, strip by strip of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .arguments import Head, Held, Kept, Scalars, Tiles, tiling
from .compile_ahead import recording, run_kernel
from .gradient_rows import Upstream, gradient_rows
from .input_gradient import input_gradient_kernel, unpack_kernel
from .keep import column_sum, of_upstream, store_targets
from .last_round import CUTS, extra_row_blocks
from .launch import blocks, launch_table, processors, uses_descriptors, weight_splits
from .rows import pack_hidden
from .run_strip import StripColumns, convert_kept, decode_kept, recompute_strip
from .schedule import Schedule, Strip
from .weight_gradient import bias_gradient_kernel, join_sums_kernel, weight_gradient_kernel

__all__ = ["Destination", "Gradients", "Reduction", "backward", "widest_last"]


class Reduction(Protocol):
    """A sum of the input's gradient over processes that goes on while the rest of the weight's is computed."""

    values: Tensor  # (N, D), where the own part is written

    def begin(self) -> None:
        """Start it: ``values`` are complete."""

    def end(self) -> Tensor:
        """Return the sum; on a GPU what follows waits for it, not the host."""
        ...


class Destination(NamedTuple):
    """Where the gradients of a chunk of the tokens go."""

    input: Tensor | None  # (n, D), contiguous
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,) float32: sums, at first zeros, that these are added to
    column_sums: dict[tuple[int, int], Tensor]  # of the head's rows, by the range: for all chunks
    accumulate: bool = False  # whether the weight's holds sums over earlier chunks, which these are added to


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
    state.add_strips(made, held.kept, workspace, last=not (as_they_are or anew))
    if as_they_are:
        state.add_kept(plan, as_they_are, last=not anew)
    state.add_strips(anew if state.reduction is None else widest_last(anew), (), workspace, last=True)
    return state.finish()


def widest_last(strips: Sequence[Strip]) -> list[Strip]:
    """Sort those at the end whose dz lies in the workspace: beside the last one's weights the input's is reduced."""
    begin = len(strips)
    while begin and strips[begin - 1].offset is None:
        begin -= 1
    return [*strips[:begin], *sorted(strips[begin:], key=lambda strip: strip.padded)]


class Gradients:
    """Gradients in the making."""

    def __init__(
        self,
        head: Head,
        scalars: Scalars,
        upstream: Upstream,
        held: Held,
        needs: tuple[bool, bool, bool],
        reduction: Reduction | None = None,
        accumulator: Tensor | None = None,  # zeros, for whoever has added memory of its own to it
        into: Destination | None = None,
    ) -> None:
        hidden, weight, bias, _ = head
        self.reduction, self.reducing = reduction, False
        self.scalars, self.rows, self.number = scalars, upstream.rows, upstream.rows.number
        self.n, self.hidden_size = hidden.shape
        self.vocab_size, device = weight.shape[0], hidden.device
        self.programs, self.table = processors(device), launch_table(device, hidden.dtype)
        self.need_input, self.lse, self.target_logit = needs[0], upstream.lse, held.target_logit
        self.factor = scalars.logit_scale / scalars.temperature
        # The packed hidden states live where the input's gradient will be written at the very end.
        self.into = into
        packed = hidden.new_empty(hidden.shape) if into is None or into.input is None else into.input
        self.unpacked, self.head = hidden, head._replace(hidden=packed)
        pack_hidden(hidden, self.rows, self.head.hidden)
        self.accumulator = accumulator
        if self.need_input and accumulator is None:
            launch = self.table.input_gradient
            row_blocks, column_blocks = blocks(self.n, launch.rows), blocks(self.hidden_size, launch.columns)
            row_blocks += extra_row_blocks(row_blocks, column_blocks, self.programs)
            shape = row_blocks * launch.rows, self.hidden_size
            self.accumulator = torch.zeros(shape, dtype=torch.float32, device=device)
        self.weight_gradient = None
        if needs[1]:
            given = held.gradient if into is None else into.weight
            self.weight_gradient = weight.new_empty(weight.shape) if given is None else given
        self.pieces: Tensor | None = None  # see piece_memory
        self.bias_gradient = None
        if needs[2] and bias is not None:
            self.bias_gradient = weight.new_empty(self.vocab_size) if into is None else into.bias
        self.ones = torch.ones(self.n, dtype=torch.float32, device=device)
        self.zeros = torch.zeros(self.hidden_size, dtype=torch.float32, device=device)
        self.uniform = self.zeros  # times row_scale, to be subtracted from the input's gradient
        as_it_is = next((run for run in held.kept if not run.in_bytes), None)
        self.of = gradient_rows(head, scalars, upstream, as_it_is)
        self.tiles = Tiles(uses_descriptors(self.head.hidden, weight))

    def add_strips(self, strips: Sequence[Strip], kept: Sequence[Kept], workspace: Tensor, *, last: bool) -> None:
        """Add the products of strips whose dz is made for itself: of what was kept, or of the logits anew.

        ``last`` says that nothing follows: the input's gradient is then complete before the last of the weight's.
        """
        for index, part in enumerate(strips):
            memory, start = workspace, 0
            if part.offset is not None and self.weight_gradient is not None:
                memory, start = self.weight_gradient.view(-1), part.offset
            dz = memory[start : start + self.n * part.padded].view(self.n, part.padded)
            columns = StripColumns(part.run_start, part.run_columns, part.start - part.run_start, part.padded)
            common = self.head, self.scalars, self.number, self.lse, self.of, dz
            if part.kept:
                run = next(run for run in kept if run.start <= part.start)  # the last columns come first
                if run.in_bytes:
                    decode_kept(*common, run, part.start)
                else:
                    convert_kept(*common, run, part.start, part.padded)
            else:
                recompute_strip(*common, columns, self.tiles)
            first = last and index == len(strips) - 1
            if first:
                self.add_input(dz, columns, self.ones)
                self.reduce()
            self.add_weight(dz, self.head.hidden, columns, self.zeros)
            self.add_bias(dz, columns, self.ones, self.zeros)
            if not first:
                self.add_input(dz, columns, self.ones)

    def add_kept(self, plan: Schedule, kept: Sequence[Kept], *, last: bool) -> None:
        """Add the products of kept columns: of the softmax as it is (:mod:`.keep`), or of dz made of kept logits.

        The input's gradient comes first, in one launch: the rows of the weight's are then written, from the last strip
        to the first, where strips lay that are no longer needed (:mod:`kernel.fused.schedule`).
        """
        packed, row_factor = self.head.hidden, self.of.row_factor
        direct = row_factor is not None
        uniform: Any = self.scalars.uniform(self.vocab_size) if direct else 0.0
        uses = uniform > 0
        scaled, of_weight, of_bias = packed, self.zeros, self.zeros
        if row_factor is not None and (self.of.mix is not None or self.scalars.whole):
            holds_softmax = self.revise(kept, row_factor)
            row_factor = torch.where(holds_softmax, row_factor, 1.0)
            uniform = uniform * holds_softmax
        if uses and self.weight_gradient is not None:
            of_weight = column_sum(packed, 0, self.of.row_scale, self.number) * uniform
        if row_factor is None:
            row_factor = self.ones
        elif self.weight_gradient is not None:
            if plan.scaled_in_gradient:
                scaled = self.weight_gradient.view(-1)[: packed.numel()].view_as(packed)
            elif not all(strip.kept for strip in plan.strips):  # which come later and need them as they are
                scaled = torch.empty_like(packed)
            pack_hidden(self.unpacked, self.rows, scaled, row_factor)
        if uses and self.bias_gradient is not None:
            of_bias = column_sum(self.of.row_scale.unsqueeze(1), 0, self.ones, self.number) * uniform
        if uses and self.accumulator is not None:
            end = kept[0].start + kept[0].number * kept[0].width
            known, columns = {} if self.into is None else self.into.column_sums, (kept[-1].start, end)
            if columns not in known:
                known[columns] = column_sum(self.head.weight[:end], columns[0])
            self.uniform = known[columns] * uniform
        for run in kept:
            columns, dz = run.number * run.width, run.columns.view(packed.dtype)
            if not direct:
                common = self.head, self.scalars, self.number, self.lse, self.of, dz
                convert_kept(*common, run, run.start, columns)
            whole = StripColumns(run.start, columns, 0, run.width)
            self.add_input(dz, whole, row_factor)
            if run is kept[-1] and last:
                self.reduce()
            self.add_bias(dz, whole, row_factor, of_bias)
            for index in reversed(range(run.number)):
                strip = StripColumns(run.start + index * run.width, run.width, 0, run.width)
                self.add_weight(dz, scaled, strip, of_weight, index)
        self.tiles.forget()  # the memory of the scaled hidden states

    def revise(self, kept: Sequence[Kept], row_factor: Tensor) -> Tensor:
        """Write the targets' entries of a kept softmax; false, ``(1,)``, if dz stands in all of it instead.

        That is left to the backward where statistics have upstream gradients, and of a slice of a head, whose forward
        does not know the lse that counts.
        """
        own = self.of.row_scale * (self.scalars.label_smoothing - 1)
        if self.of.mix is not None:
            own = own + self.of.mix[2]
        if self.scalars.whole:
            own = torch.where(self.of.label >= 0, own, 0)  # else the row is elsewhere
        again = of_upstream(own, row_factor, self.rows)
        assert self.target_logit is not None
        for run in kept:
            part = self.head.target, self.rows, self.target_logit, run, self.lse, self.scalars.label_smoothing
            store_targets(*part, own, row_factor)
            whole = StripColumns(run.start, run.number * run.width, 0, run.width)
            recompute_strip(self.head, self.scalars, again, self.lse, self.of, run.columns, whole, self.tiles)
        return again == 0

    def strip(self, dz: Tensor, columns: StripColumns) -> dict[str, Any]:
        """What the kernels of all three products are told of a strip."""
        return {
            "count": self.number,
            "dz_rows": dz.shape[0],
            "vocab_size": self.vocab_size,
            **columns._asdict(),
            "dz_stride": dz.stride(0),
            "ALIGNED_ROWS": self.table.logit_gradient.rows,
        }

    def add_weight(
        self, dz: Tensor, hidden: Tensor, columns: StripColumns, uniform: Tensor, first_strip: int = 0
    ) -> None:
        """Write the weight's gradient of the strip: ``dz.T @ hidden``, less ``uniform`` in every row."""
        if self.weight_gradient is None:
            return
        launch, width = self.table.weight_gradient, columns.strip_columns
        splits = weight_splits(self.n, width, self.hidden_size, launch, self.programs)
        if self.into is not None and self.into.accumulate:
            self.launch_weight(dz, hidden, columns, uniform, first_strip, 1)
            return
        for number in (1, max(splits, 2)) if recording() else (splits,):  # the tokens choose between two kernels
            self.launch_weight(dz, hidden, columns, uniform, first_strip, number)

    def launch_weight(
        self, dz: Tensor, hidden: Tensor, columns: StripColumns, uniform: Tensor, first_strip: int, splits: int
    ) -> None:
        """Launch what :meth:`add_weight` needs, the sums over the tokens in ``splits`` pieces."""
        gradient, launch, programs = self.weight_gradient, self.table.weight_gradient, self.programs
        assert gradient is not None
        accumulate = self.into is not None and self.into.accumulate
        if accumulate:  # beside four stages the shared memory has no room for what is there
            launch = replace(launch, stages=min(launch.stages, 3))
        sums = self.piece_memory(splits * columns.strip_columns * self.hidden_size) if splits > 1 else None
        if self.reducing:  # whole rounds of tiles; a fifth of the multiprocessors or more is left to NCCL's channels
            tiles = blocks(columns.strip_columns, launch.rows) * blocks(self.hidden_size, launch.columns) * splits
            programs = blocks(tiles, blocks(tiles, programs - programs // 5))
        strip = self.strip(dz, columns)
        common = {
            "sums": sums,
            "gradient": gradient,
            "scale": self.of.largest,
            "uniform": uniform,
            "splits": splits,
            "hidden_size": self.hidden_size,
            "gradient_row_stride": gradient.stride(0),
            "constant": self.factor,
        }
        run_kernel(
            weight_gradient_kernel,
            (programs,),
            dz=self.tiles(dz, launch.depth, launch.rows),
            hidden=self.tiles(hidden, launch.depth, launch.columns),
            **common | {"gradient": self.tiles(gradient, launch.rows, launch.columns // launch.parts)},
            **strip,
            ACCUMULATE=accumulate,
            first_strip=first_strip,
            hidden_row_stride=hidden.stride(0),
            BLOCK_VOCAB=launch.rows,
            BLOCK_COLUMNS=launch.columns,
            BLOCK_ROWS=launch.depth,
            DESCRIPTOR=self.tiles.descriptor,
            **tiling(launch),
        )
        if sums is not None:
            del strip["dz_stride"]
            run_kernel(
                join_sums_kernel,
                (blocks(columns.strip_columns, 16) * blocks(self.hidden_size, 128),),
                **common,
                **strip,
                ROWS=16,
                COLUMNS=128,
            )

    def piece_memory(self, elements: int) -> Tensor:
        """Float32 memory for the pieces of cut sums, the same for all strips."""
        if recording():
            elements = 1
        if self.pieces is None or self.pieces.numel() < elements:
            self.pieces = torch.empty(elements, dtype=torch.float32, device=self.ones.device)
        return self.pieces

    def add_bias(self, dz: Tensor, columns: StripColumns, row_weight: Tensor, uniform: Tensor) -> None:
        """Write the bias's gradient of the strip: the sum of the rows, weighted, less the first of ``uniform``."""
        if self.bias_gradient is None:
            return
        width = min(64, self.table.logit_gradient.columns)
        run_kernel(
            bias_gradient_kernel,
            (blocks(dz.shape[1], width),),
            dz=dz,
            gradient=self.bias_gradient,
            scale=self.of.largest,
            row_weight=row_weight,
            uniform=uniform,
            **self.strip(dz, columns),
            constant=1 / self.scalars.temperature,
            BLOCK_ROWS=64,
            BLOCK_COLUMNS=width,
            ACCUMULATE=self.into is not None,
        )

    def add_input(self, dz: Tensor, columns: StripColumns, row_factor: Tensor) -> None:
        """Add ``dz @ weight`` of the strip, its rows multiplied by ``row_factor``."""
        accumulator = self.accumulator
        if accumulator is None:
            return
        weight, launch = self.head.weight, self.table.input_gradient
        reduce = self.tiles.descriptor and launch.reduce
        memory = self.tiles(accumulator, launch.rows, launch.columns // launch.parts) if reduce else accumulator
        run_kernel(
            input_gradient_kernel,
            (self.programs,),
            dz=self.tiles(dz, launch.rows, launch.depth),
            weight=self.tiles(weight, launch.depth, launch.columns),
            accumulator=memory,
            hidden_size=self.hidden_size,
            memory_blocks=accumulator.shape[0] // launch.rows,
            **self.strip(dz, columns),
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            row_factor=row_factor,
            BLOCK_ROWS=launch.rows,
            BLOCK_COLUMNS=launch.columns,
            BLOCK_VOCAB=launch.depth,
            **CUTS,
            DESCRIPTOR=self.tiles.descriptor,
            REDUCE=reduce,
            **tiling(launch),
        )

    def reduce(self) -> None:
        """Start the reduction of the input's gradient, which is complete, if there is one."""
        if self.reduction is not None:
            self.unpack(self.reduction.values)
            self.accumulator = None
            self.reduction.begin()
            self.reducing = True

    def finish(self) -> tuple[Tensor | None, ...]:
        """Round the input's gradient into the memory of the packed hidden states, and return all gradients."""
        gradient = self.head.hidden if self.need_input else None
        if gradient is not None and self.reduction is not None:
            gradient.copy_(self.reduction.end())
        elif gradient is not None:
            self.unpack(gradient)
        return gradient, self.weight_gradient, self.bias_gradient

    def unpack(self, gradient: Tensor) -> None:
        """Write the input's gradient, in the order of the tokens."""
        if self.accumulator is not None:
            launch = self.table.input_gradient
            run_kernel(
                unpack_kernel,
                (blocks(self.n, 16),),
                accumulator=self.accumulator,
                gradient=gradient,
                count=self.number,
                position=self.rows.position,
                row_scale=self.of.row_scale,
                uniform=self.uniform,
                scale=self.of.largest,
                n=self.n,
                hidden_size=self.hidden_size,
                constant=self.factor,
                programs=self.programs,
                memory_blocks=self.accumulator.shape[0] // launch.rows,
                BLOCK_ROWS=launch.rows,
                BLOCK_COLUMNS=launch.columns,
                **CUTS,
                ROWS=16,
                COLUMNS=128,
            )
