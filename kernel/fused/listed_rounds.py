"""The list of tiles that enter the gradients as they are, in rounds whose dz fits a workspace.

The device makes it of one byte for each tile, and so need not wait for the host, which is told the rounds alone: while
the host listed in NumPy, and copied for each round, it was idle for 0.6 ms a round on Gemma-3-270M's head. Every place
in a list is a sum of whole numbers, so that no order of programs changes it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks

__all__ = ["BlockPieces", "ListedTiles", "Round", "most_extra_blocks", "rounds_of"]

_PIECES = 4  # of the input's gradient for each multiprocessor and round
_LEAST = 4  # entries of a piece, if its block has as many
_BLOCK = 1024


class Round(NamedTuple):
    """Entries and tiles of the vocabulary of a round: first and number of each."""

    first: int
    number: int
    first_tile: int
    tiles: int


class BlockPieces(NamedTuple):
    """What the input's gradient is told of all rounds, int32."""

    pieces: Tensor  # (rounds, blocks + extra, 3): first entry by block, entries, block of rows to write
    joins: Tensor  # (rounds, joins, 3): block, first block of rows to add to it, how many
    numbers: Tensor  # (rounds, 2) of both


def most_extra_blocks(programs: int, column_blocks: int) -> int:
    """Most blocks of rows that the pieces of a round take beyond those of the tokens' blocks."""
    return max(programs * _PIECES // column_blocks, 1)


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


@triton.jit(do_not_specialize=["tiles", "first_tile", "capacity", "most"])
def _round_kernel(
    entry_of,  # (tiles + 1,), becomes the first entry of each tile
    rounds,  # (1 + 4 tiles,), written: how many, then each as in Round
    tiles,
    first_tile,
    capacity,
    most,  # entries that the lists have room for: with more there is no round
    BLOCK: tl.constexpr,
):
    """One program."""
    total = 0
    tl.store(entry_of, 0)
    tl.store(rounds + 2, 0)  # entries of the first round: it may begin before the host knows that there is none
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        number = tl.load(entry_of + 1 + tile, mask=tile < tiles, other=0)
        tl.store(entry_of + 1 + tile, total + tl.cumsum(number, 0), mask=tile < tiles)
        total += tl.sum(number, 0)
    tl.debug_barrier()  # what other threads have written is read
    found = 0
    begin = tl.where(total > most, tiles, first_tile)
    while begin < tiles:
        first = tl.load(entry_of + begin)
        fitting = 0  # tiles up to whose end all entries fit
        for start in range(0, tiles, BLOCK):
            tile = start + tl.arange(0, BLOCK)
            end_of = tl.load(entry_of + 1 + tile, mask=tile < tiles, other=2147483647)
            fitting += tl.sum((end_of <= first + capacity).to(tl.int32), 0)
        end = tl.maximum(fitting, begin + 1)
        own = rounds + 1 + 4 * found
        tl.store(own, first)
        tl.store(own + 1, tl.load(entry_of + end) - first)
        tl.store(own + 2, begin)
        tl.store(own + 3, end - begin)
        begin = end
        found += 1
    tl.store(rounds, found)


@triton.jit(do_not_specialize=["row_blocks", "tiles", "first_tile"])
def _by_tile_kernel(
    active,
    entry_of,
    rounds,
    tile_of,  # (most,), written, as all that follow
    block_of,  # (most,)
    slot,  # (row_blocks, tiles) entry of each tile that is listed
    row_blocks,
    tiles,
    first_tile,
    BLOCK: tl.constexpr,
):
    tile = first_tile + tl.program_id(0)
    entry = tl.load(entry_of + tile)
    some = tl.load(rounds) > 0
    for start in range(0, row_blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        address = block.to(tl.int64) * tiles + tile
        listed = tl.load(active + address, mask=(block < row_blocks) & some, other=0).to(tl.int32)
        place = entry + tl.cumsum(listed, 0) - 1
        tl.store(tile_of + place, tile + tl.zeros_like(place), mask=listed > 0)
        tl.store(block_of + place, block, mask=listed > 0)
        tl.store(slot + address, place, mask=listed > 0)
        entry += tl.sum(listed, 0)


@triton.jit(do_not_specialize=["tiles", "first_tile"])
def _by_block_kernel(
    active,
    slot,
    rounds,
    slot_of,  # (row_blocks, tiles), written: entries of the block, in order
    own_tile,  # (row_blocks, tiles), written: their tiles
    rank,  # (row_blocks, tiles + 1), written: how many the block has before each tile
    tiles,
    first_tile,
    BLOCK: tl.constexpr,
):
    base = tl.program_id(0).to(tl.int64) * tiles
    some = tl.load(rounds) > 0
    before = 0
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        mask = (tile < tiles) & (tile >= first_tile) & some
        listed = tl.load(active + base + tile, mask=mask, other=0).to(tl.int32)
        place = before + tl.cumsum(listed, 0) - listed
        tl.store(rank + base + tl.program_id(0) + tile, place, mask=tile < tiles)
        tl.store(slot_of + base + place, tl.load(slot + base + tile, mask=listed > 0, other=0), mask=listed > 0)
        tl.store(own_tile + base + place, tile, mask=listed > 0)
        before += tl.sum(listed, 0)
    tl.store(rank + base + tl.program_id(0) + tiles, before)


@triton.jit(do_not_specialize=["row_blocks", "tiles", "extra", "joins"])
def _piece_kernel(
    rounds,
    rank,
    own,  # (rounds, row_blocks, 3), written and read: pieces, entries of the longest, rows of the second piece
    piece,  # (rounds, row_blocks + extra, 3), written, the longest first
    join,  # (rounds, joins, 3), written
    numbers,  # (rounds, 2), written: pieces and joins
    row_blocks,
    tiles,
    extra,
    joins,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cut what each block has in a round into equal pieces."""
    index = tl.program_id(0)
    this = rounds + 1 + 4 * index
    size = tl.maximum(LEAST, tl.cdiv(tl.load(this + 1), extra))
    first_tile = tl.load(this + 2)
    end_tile = first_tile + tl.load(this + 3)
    own += index * row_blocks * 3
    piece += index * (row_blocks + extra) * 3
    join += index * joins * 3
    total, further, several = 0, row_blocks, 0
    for start in range(0, row_blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        mask = block < row_blocks
        address = rank + block.to(tl.int64) * (tiles + 1)
        entries = tl.load(address + end_tile, mask=mask, other=0) - tl.load(address + first_tile, mask=mask, other=0)
        pieces = tl.where(entries > 0, tl.maximum((2 * entries + size) // (2 * size), 1), 0)
        more = tl.maximum(pieces - 1, 0)
        rows = further + tl.cumsum(more, 0) - more
        tl.store(own + block * 3, pieces, mask=mask)
        tl.store(own + block * 3 + 1, tl.cdiv(entries, tl.maximum(pieces, 1)), mask=mask)
        tl.store(own + block * 3 + 2, rows, mask=mask)
        is_cut = (more > 0).to(tl.int32)
        place = join + (several + tl.cumsum(is_cut, 0) - is_cut) * 3
        tl.store(place, block, mask=more > 0)
        tl.store(place + 1, rows, mask=more > 0)
        tl.store(place + 2, more, mask=more > 0)
        total += tl.sum(pieces, 0)
        further += tl.sum(more, 0)
        several += tl.sum(is_cut, 0)
    tl.store(numbers + 2 * index, total)
    tl.store(numbers + 2 * index + 1, several)
    tl.debug_barrier()  # what others have written is read
    for start in range(0, row_blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        mask = block < row_blocks
        pieces = tl.load(own + block * 3, mask=mask, other=0)
        longest = tl.load(own + block * 3 + 1, mask=mask, other=0)
        rows = tl.load(own + block * 3 + 2, mask=mask, other=0)
        place = tl.zeros((BLOCK,), dtype=tl.int32)
        for other in range(row_blocks):
            length = tl.load(own + other * 3 + 1)
            sooner = (length > longest) | ((length == longest) & (other < block))
            place += tl.where(sooner, tl.load(own + other * 3), 0)
        address = block.to(tl.int64) * (tiles + 1)
        begin = tl.load(rank + address + first_tile, mask=mask, other=0)
        entries = tl.load(rank + address + end_tile, mask=mask, other=0) - begin
        begin += block * tiles
        for i in range(tl.max(pieces, 0)):
            low = i * entries // tl.maximum(pieces, 1)
            high = (i + 1) * entries // tl.maximum(pieces, 1)
            out = piece + (place + i) * 3
            tl.store(out, begin + low, mask=i < pieces)
            tl.store(out + 1, high - low, mask=i < pieces)
            tl.store(out + 2, tl.where(i == 0, block, rows + i - 1), mask=i < pieces)


class ListedTiles:
    """The active tiles, from one on.

    Args:
        active: Which tiles are, ``(blocks, tiles)`` bytes on the device.
        capacity: Entries of a round; one tile of the vocabulary is never cut, whatever its entries.
        first_tile: Tiles before it are done in another way.
        extra: Most blocks of rows that the pieces of a round may take beside those of the tokens' blocks.
        most: Entries that are listed at most: with more there is no round.
        rounds: Memory ``(1 + 4 tiles,)`` int32, written: see :func:`rounds_of`.

    Attributes:
        rounds: As given.
        entry_of: First entry of each tile of the vocabulary ``(tiles + 1,)``, int32 as all lists.
        tile_of: Of each entry, by tile, then by block.
        block_of: Of each entry.
        slot_of: Entries of each block, by tile ``(blocks, tiles)``.
        own_tile: And their tiles.
    """

    def __init__(self, active: Tensor, capacity: int, first_tile: int, extra: int, most: int, rounds: Tensor) -> None:
        self.row_blocks, self.tiles = active.shape
        self._active, self._first_tile, self._extra, self.rounds = active, first_tile, extra, rounds
        self.entry_of, self.tile_of, self.block_of = (rounds.new_empty(n) for n in (self.tiles + 1, most, most))
        self.slot_of, self.own_tile = (rounds.new_empty(self.row_blocks, self.tiles) for _ in range(2))
        self._rank = rounds.new_empty(self.row_blocks, self.tiles + 1)
        run_kernel(
            _count_kernel,
            (blocks(self.tiles, 32),),
            active=active,
            entry_of=self.entry_of,
            row_blocks=self.row_blocks,
            tiles=self.tiles,
            first_tile=first_tile,
            ROWS=32,
            TILES=32,
        )
        run_kernel(
            _round_kernel,
            (1,),
            entry_of=self.entry_of,
            rounds=rounds,
            tiles=self.tiles,
            first_tile=first_tile,
            capacity=capacity,
            most=most,
            BLOCK=_BLOCK,
        )

    def make(self) -> None:
        """List the entries, of which the rounds are known to the device."""
        slot = torch.empty_like(self.slot_of)
        lists = {"active": self._active, "rounds": self.rounds, "slot": slot}
        lists |= {"tiles": self.tiles, "first_tile": self._first_tile, "BLOCK": _BLOCK}
        run_kernel(
            _by_tile_kernel,
            (self.tiles - self._first_tile,),
            **lists,
            entry_of=self.entry_of,
            tile_of=self.tile_of,
            block_of=self.block_of,
            row_blocks=self.row_blocks,
        )
        run_kernel(
            _by_block_kernel, (self.row_blocks,), **lists, slot_of=self.slot_of, own_tile=self.own_tile, rank=self._rank
        )

    def pieces(self, rounds: int) -> BlockPieces:
        """Cut the entries of each block in the first ``rounds`` rounds into pieces."""
        most = min(self.row_blocks, self._extra)
        found = BlockPieces(
            self.rounds.new_empty(rounds, self.row_blocks + self._extra, 3),
            self.rounds.new_empty(rounds, most, 3),
            self.rounds.new_empty(rounds, 2),
        )
        run_kernel(
            _piece_kernel,
            (rounds,),
            rounds=self.rounds,
            rank=self._rank,
            own=self.rounds.new_empty(rounds, self.row_blocks, 3),
            piece=found.pieces,
            join=found.joins,
            numbers=found.numbers,
            row_blocks=self.row_blocks,
            tiles=self.tiles,
            extra=self._extra,
            joins=most,
            LEAST=_LEAST,
            BLOCK=_BLOCK,
        )
        return found


def rounds_of(read: list[int]) -> list[Round]:
    """Return the rounds that the device found, read from its memory ``(1 + 4 tiles,)``."""
    return [Round(*read[1 + 4 * i : 5 + 4 * i]) for i in range(read[0])]
