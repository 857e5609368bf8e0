"""Entries of a block of tokens in pieces, so that each multiprocessor has some of the input's gradient to do."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .listed_rounds import ROUND_FIELDS
from .tile_lists import ListedTiles

__all__ = ["BlockPieces", "block_pieces", "most_extra_blocks"]

_PIECES = 4  # of the input's gradient for each multiprocessor and round
_LEAST = 4  # entries of a piece, if its block has as many
_FIELDS = tl.constexpr(ROUND_FIELDS)


class BlockPieces(NamedTuple):
    """What the input's gradient is told of some rounds, int32."""

    pieces: Tensor  # (rounds, blocks + extra, 3): first entry by block, entries, block of rows to write
    joins: Tensor  # (rounds, joins, 3): block, first block of rows to add to it, how many
    numbers: Tensor  # (rounds, 2) of both


def most_extra_blocks(programs: int, column_blocks: int) -> int:
    """Most blocks of rows that the pieces of a round take beyond those of the tokens' blocks."""
    return max(programs * _PIECES // column_blocks, 1)


@triton.jit(do_not_specialize=["first_round", "row_blocks", "tiles", "extra", "joins"])
def _piece_kernel(
    rounds,
    rank,
    own,  # (rounds, row_blocks, 3), written and read: pieces, entries of the longest, rows of the second piece
    piece,  # (rounds, row_blocks + extra, 3), written, the longest first
    join,  # (rounds, joins, 3), written
    numbers,  # (rounds, 2), written: pieces and joins
    first_round,
    row_blocks,
    tiles,
    extra,
    joins,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,  # blocks that each is compared with at a time
):
    """Cut what each block has in a round into equal pieces."""
    index = tl.program_id(0)
    this = rounds + 1 + _FIELDS * (first_round + index)
    some = first_round + index < tl.load(rounds)
    size = tl.maximum(LEAST, tl.cdiv(tl.load(this + 1, mask=some, other=0), extra))
    first_tile = tl.load(this + 2, mask=some, other=0)
    end_tile = first_tile + tl.load(this + 3, mask=some, other=0)
    own += index * row_blocks * 3
    piece += index * (row_blocks + extra) * 3
    join += index * joins * 3
    row_blocks = tl.where(some, row_blocks, 0)  # a round that does not exist has no pieces
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
        for first_other in range(0, row_blocks, OTHERS):
            other = first_other + tl.arange(0, OTHERS)
            length = tl.load(own + other * 3 + 1, mask=other < row_blocks, other=-1)[None, :]
            number = tl.load(own + other * 3, mask=other < row_blocks, other=0)[None, :]
            sooner = (length > longest[:, None]) | ((length == longest[:, None]) & (other[None, :] < block[:, None]))
            place += tl.sum(tl.where(sooner, number, 0), 1)
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


def block_pieces(listed: ListedTiles, first: int, rounds: int, extra: int) -> BlockPieces:
    """Cut the entries of each block in ``rounds`` rounds from ``first`` on, as far as they exist, into pieces.

    They take at most ``extra`` blocks of rows beside those of the tokens' blocks.
    """
    memory, row_blocks = listed.rounds, listed.row_blocks
    most = min(row_blocks, extra)
    found = BlockPieces(
        memory.new_empty(rounds, row_blocks + extra, 3),
        memory.new_empty(rounds, most, 3),
        memory.new_empty(rounds, 2),
    )
    run_kernel(
        _piece_kernel,
        (rounds,),
        rounds=memory,
        rank=listed.rank,
        own=memory.new_empty(rounds, row_blocks, 3),
        piece=found.pieces,
        join=found.joins,
        numbers=found.numbers,
        first_round=first,
        row_blocks=row_blocks,
        tiles=listed.tiles,
        extra=extra,
        joins=most,
        LEAST=_LEAST,
        BLOCK=128,
        OTHERS=32,
    )
    return found
