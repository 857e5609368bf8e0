"""Launches over the tiles that were chosen: dz of them and its products, in rounds whose dz fits a memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .arguments import logit_arguments, product_arguments, tiling
from .compile_ahead import run_kernel
from .early import begins_early
from .launch import blocks
from .listed_pieces import BlockPieces, block_pieces
from .listed_products import join_kernel, listed_input_kernel, listed_weight_kernel
from .listed_rounds import Room, Round
from .listed_tiles import listed_gradient_kernel
from .sparse_state import SparseState
from .tile_lists import ListedTiles

__all__ = ["ListedRun", "run_listed"]

_PIECES_OF = 8  # rounds, at once


def run_listed(run: ListedRun, rounds: Sequence[Round]) -> tuple[Tensor | None, ...]:
    """Compute all rounds but the first, which is on its way, and finish both gradients."""
    run.go_on(1, [each.in_gradient for each in rounds[1:]])
    return run.gradients.finish()


class ListedRun:
    """The list and dz on the device, where kernels look what a round has: the first is queued before the host knows."""

    def __init__(self, state: SparseState, listed: ListedTiles, room: Room) -> None:
        self.state, self.gradients, self.listed, self.room = state, state.gradients, listed, room
        self.workspace = state.workspace[: state.capacity * state.row * state.tile].view(-1, state.tile)
        self.dz = self.workspace  # of the round
        self.pieces: BlockPieces | None = None  # of several rounds

    def begin(self) -> None:
        """Queue the first round, of nothing where there turns out to be none."""
        self.go_on(0, [self.room.first_in_gradient])

    def go_on(self, first: int, in_gradient: Sequence[bool]) -> None:
        """Compute rounds from ``first`` on, of each of which is told whether its dz lies in the weight's gradient."""
        state = self.state
        for index, inside in enumerate(in_gradient, first):
            if state.memory is not None and index % _PIECES_OF == 0:
                self.pieces = block_pieces(self.listed, index, _PIECES_OF, state.most_extra_blocks())
            self.dz = self.workspace
            if inside:
                assert self.gradients.weight_gradient is not None
                whole = state.tiles * state.tile * state.hidden_size
                self.dz = self.gradients.weight_gradient.view(-1)[:whole].view(-1, state.tile)
            self.make_dz(index)
            if self.gradients.weight_gradient is not None:
                self.write_weight(self.gradients.weight_gradient, index)
            if self.pieces is not None:
                self.add_input(index, self.pieces, index % _PIECES_OF)

    def make_dz(self, index: int) -> None:
        """Make dz of a round's tiles, less the mean field."""
        state = self.state
        head, launch, of = self.gradients.head, state.table.logit_gradient, state.of
        run_kernel(
            listed_gradient_kernel,
            (state.programs,),
            lse=state.upstream.lse,
            mix=of.mix,
            label=of.label,
            tile_of=self.listed.tile_of,
            block_of=self.listed.block_of,
            dz=self.gradients.tiles(self.dz, launch.rows, launch.columns // launch.parts),
            dz_rows=self.dz.shape[0],
            rounds=self.listed.rounds,
            index=index,
            **logit_arguments(head.hidden, head.weight, head.bias, state.scalars),
            label_smoothing=state.scalars.label_smoothing,
            uniform=state.scalars.uniform(state.vocab_size),
            **state.mean_field.arguments(),
            MIXED=of.mix is not None,
            **product_arguments(self.gradients.tiles, head.hidden, head.weight, launch),
            **tiling(launch),
        )

    def add_input(self, index: int, pieces: BlockPieces, place: int) -> None:
        """Add its product with the head, in pieces, of which the round's are at ``place``."""
        state = self.state
        weight, launch, tiles = self.gradients.head.weight, state.table.input_gradient, self.gradients.tiles
        assert state.memory is not None
        reduce = tiles.descriptor and launch.reduce
        if reduce:  # narrower steps: as many bytes on their way
            launch = replace(launch, stages=launch.stages * launch.columns // state.columns)
        run_kernel(
            listed_input_kernel,
            (state.programs,),
            dz=tiles(self.dz, launch.rows, launch.depth),
            weight=tiles(weight, launch.depth, state.columns),
            accumulator=tiles(state.memory, launch.rows, state.columns // launch.parts) if reduce else state.memory,
            slot_of=self.listed.slot_of,
            tile_of=self.listed.own_tile,
            piece=pieces.pieces,
            numbers=pieces.numbers,
            rounds=self.listed.rounds,
            index=index,
            place=place,
            most=pieces.pieces.shape[1],
            own_blocks=state.row_blocks,
            dz_rows=self.dz.shape[0],
            vocab_size=state.vocab_size,
            hidden_size=state.hidden_size,
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            independent=int(self.gradients.weight_gradient is not None),  # of the same dz, and behind it
            TILE=state.tile,
            BLOCK_ROWS=launch.rows,
            BLOCK_COLUMNS=state.columns,
            BLOCK_VOCAB=launch.depth,
            DESCRIPTOR=tiles.descriptor,
            REDUCE=reduce,
            **tiling(launch, "FLATTEN"),
            **begins_early(launch, descriptor=tiles.descriptor),
        )
        rows, columns = min(state.row, 32), min(state.columns, 128)
        joins = pieces.joins.shape[1]
        run_kernel(
            join_kernel,
            (joins, state.row // rows, blocks(state.hidden_size, columns)),
            accumulator=state.memory,
            join=pieces.joins,
            numbers=pieces.numbers,
            place=place,
            hidden_size=state.hidden_size,
            BLOCK_ROWS=state.row,
            ROWS=rows,
            COLUMNS=columns,
        )

    def write_weight(self, gradient: Tensor, index: int) -> None:
        """Write its product with the hidden states, and the mean field's."""
        state = self.state
        hidden, launch, tiles = self.gradients.head.hidden, state.weight_launch, self.gradients.tiles
        run_kernel(
            listed_weight_kernel,
            (state.programs,),
            dz=tiles(self.dz, launch.depth, state.tile),
            hidden=tiles(hidden, launch.depth, launch.columns),
            gradient=tiles(gradient, *launch.part),
            shared=state.mean_field.shared,
            scale=state.of.largest,
            entry_of=self.listed.entry_of,
            block_of=self.listed.block_of,
            rounds=self.listed.rounds,
            index=index,
            dz_rows=self.dz.shape[0],
            n=state.n,
            vocab_size=state.vocab_size,
            hidden_size=state.hidden_size,
            hidden_row_stride=hidden.stride(0),
            gradient_row_stride=gradient.stride(0),
            constant=self.gradients.factor,
            TILE=state.tile,
            ROWS=state.row,
            BLOCK_COLUMNS=launch.columns,
            BLOCK_ROWS=launch.depth,
            PART_ROWS=launch.part[0],
            PART_COLUMNS=launch.part[1],
            TRANSPOSED=launch.transposed,
            DESCRIPTOR=tiles.descriptor,
            **tiling(launch, "FLATTEN"),
            NEXT_EARLY=tiles.descriptor and state.memory is not None and state.table.input_gradient.early,
        )
