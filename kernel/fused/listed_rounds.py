"""The rounds in which the listed tiles are computed (:mod:`.tile_lists`), whose dz fits a memory.

A round's dz lies in the workspace, or in the weight's gradient behind the rows that the round writes, which nothing has
written yet: where more of the next tiles fit. Where the first round's lies follows from sizes alone (:meth:`Room.of`).

The device finds them, and so need not wait for the host, which is told the rounds alone.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks

__all__ = ["ROUND_FIELDS", "Room", "Round", "find_rounds", "rounds_of"]

ROUND_FIELDS = 5  # numbers of a round
_FIELDS = tl.constexpr(ROUND_FIELDS)
_BLOCK = 1024
_FEW_WAVES = tl.constexpr(3)


class Round(NamedTuple):
    """Entries and tiles of the vocabulary of a round, first and number of each, and where its dz lies."""

    first: int
    number: int
    first_tile: int
    tiles: int
    start: int  # row of dz in the weight's gradient (see Room), of which it never is the first; 0: in the workspace

    @property
    def in_gradient(self) -> bool:
        """Whether dz lies in the weight's gradient, and not in the workspace."""
        return self.start > 0


class Room(NamedTuple):
    """What holds dz of a round: the workspace, or the weight's gradient, in rows of as many numbers as a tile has."""

    capacity: int  # entries that the workspace holds, one tile of the vocabulary at all blocks of tokens or more
    tile_rows: int  # such rows in a tile's rows of the weight's gradient; 0 if there is none
    entry_rows: int  # and in dz of an entry
    first_in_gradient: bool  # whether the first round's lies there, which the host has to know before the device does
    programs: int = 0  # of the weight's gradient, of which each takes a block of columns of a tile at a time
    column_blocks: int = 1  # such blocks

    @classmethod
    def of(cls, capacity: int, hidden_size: int, rows: int, tiles: int, *, gradient: bool) -> Room:
        """Choose for the first of ``tiles`` behind the pilot, of ``rows`` tokens each.

        In the gradient its own rows are not free, so that it takes what the others hold.
        """
        tile_rows = hidden_size if gradient else 0
        return cls(capacity, tile_rows, rows, (tiles - 1) * tile_rows // rows > capacity)


@triton.jit(do_not_specialize=["row_blocks", "tiles", "first_tile"])
def _count_kernel(
    active,  # (row_blocks, tiles) bytes
    entry_of,  # (tiles + 1,), written: entries of tile t at t + 1
    row_blocks,
    tiles,
    first_tile,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    listed = (tile >= first_tile) & (tile < tiles)
    number = tl.zeros((TILES,), dtype=tl.int32)
    for start in range(0, row_blocks, ROWS):
        block = start + tl.arange(0, ROWS)
        address = active + block.to(tl.int64)[:, None] * tiles + tile[None, :]
        mask = (block < row_blocks)[:, None] & listed[None, :]
        number += tl.sum(tl.load(address, mask=mask, other=0).to(tl.int32), 0)
    tl.store(entry_of + 1 + tile, number, mask=tile < tiles)


@triton.jit(do_not_specialize=["tiles", "first_tile", "capacity", "tile_rows", "first_in_gradient", "most", "programs"])
def _round_kernel(
    entry_of,  # (tiles + 1,), becomes the first entry of each tile
    certified,  # () float32, above 0 if the choice is
    rounds,  # (1 + 5 tiles,), written: how many, then each as in Round
    tiles,
    first_tile,
    capacity,
    tile_rows,
    first_in_gradient,
    most,  # entries that the lists have room for: with more there is no round
    programs,
    COLUMN_BLOCKS: tl.constexpr,
    ENTRY_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program.

    The weight's gradient does a round's tiles in waves of as many blocks of columns as there are programs. The first
    rounds have few tiles of many entries: what would fill less than half of a fourth wave waits for the next round.
    """
    total = 0
    tl.store(entry_of, 0)
    field = tl.arange(0, 8)  # of the first round, which begins before the host knows of none
    tl.store(rounds + 1 + field, tl.zeros((8,), dtype=tl.int32), mask=field < _FIELDS)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        number = tl.load(entry_of + 1 + tile, mask=tile < tiles, other=0)
        tl.store(entry_of + 1 + tile, total + tl.cumsum(number, 0), mask=tile < tiles)
        total += tl.sum(number, 0)
    tl.debug_barrier()  # what other threads have written is read
    found = 0
    begin = tl.where((total > most) | (tl.load(certified) <= 0), tiles, first_tile)
    while begin < tiles:
        first = tl.load(entry_of + begin)
        fitting = 0  # tiles up to whose end all entries fit the workspace
        behind = 0  # and what lies behind them of the gradient
        for start in range(0, tiles, BLOCK):
            tile = start + tl.arange(0, BLOCK)
            end_of = tl.load(entry_of + 1 + tile, mask=tile < tiles, other=2147483647)
            fitting += tl.sum((end_of <= first + capacity).to(tl.int32), 0)
            free = (tiles - 1 - tile).to(tl.int64) * tile_rows // ENTRY_ROWS
            behind += tl.sum(((tile < tiles) & (end_of - first <= free)).to(tl.int32), 0)
        in_gradient = tl.where(found == 0, first_in_gradient != 0, behind > tl.maximum(fitting, begin + 1))
        end = tl.maximum(tl.where(in_gradient, behind, fitting), begin + 1)
        waves = (end - begin) * COLUMN_BLOCKS // tl.maximum(programs, 1)
        beyond = (end - begin) * COLUMN_BLOCKS - waves * programs
        few = (waves >= 1) & (waves <= _FEW_WAVES) & (beyond * 2 < programs) & (end < tiles)
        end = tl.where(few, tl.maximum(begin + waves * programs // COLUMN_BLOCKS, begin + 1), end)
        own = rounds + 1 + _FIELDS * found
        tl.store(own, first)
        tl.store(own + 1, tl.load(entry_of + end) - first)
        tl.store(own + 2, begin)
        tl.store(own + 3, end - begin)
        tl.store(own + 4, tl.where(in_gradient, end * tile_rows, 0))
        begin = end
        found += 1
    tl.store(rounds, found)


def find_rounds(
    active: Tensor, certified: Tensor, room: Room, first_tile: int, most: int, entry_of: Tensor, rounds: Tensor
) -> None:
    """Write ``entry_of`` and ``rounds``, as :class:`.tile_lists.ListedTiles` has them, of the active tiles."""
    row_blocks, tiles = active.shape
    run_kernel(
        _count_kernel,
        (blocks(tiles, 32),),
        active=active,
        entry_of=entry_of,
        row_blocks=row_blocks,
        tiles=tiles,
        first_tile=first_tile,
        ROWS=32,
        TILES=32,
    )
    run_kernel(
        _round_kernel,
        (1,),
        entry_of=entry_of,
        certified=certified,
        rounds=rounds,
        tiles=tiles,
        first_tile=first_tile,
        capacity=room.capacity,
        tile_rows=room.tile_rows,
        first_in_gradient=int(room.first_in_gradient),
        most=most,
        programs=room.programs,
        COLUMN_BLOCKS=room.column_blocks,
        ENTRY_ROWS=room.entry_rows,
        BLOCK=_BLOCK,
    )


def rounds_of(read: list[int]) -> list[Round]:
    """Return the rounds that the device found, read from its memory ``(1 + 5 tiles,)``."""
    places = range(1, 1 + ROUND_FIELDS * read[0], ROUND_FIELDS)
    return [Round(*read[place : place + ROUND_FIELDS]) for place in places]
