"""The list of tiles that enter the gradients as they are, in rounds whose dz fits a workspace.

Made on the host, of one byte for each tile, in NumPy: nothing in it depends on a number that the device computed with
but which tiles they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Round", "Rounds", "list_rounds", "most_extra_blocks"]

_PIECES = 4  # of the input's gradient for each multiprocessor and round
_LEAST = 4  # entries of a piece that is not a block's last


class Round(NamedTuple):
    """Entries, tiles of the vocabulary, pieces and joins of a round: first and number of each."""

    first: int
    number: int
    first_tile: int
    tiles: int
    first_piece: int
    pieces: int
    first_join: int
    joins: int


class Rounds(NamedTuple):
    """The rounds, and what kernels read of them, int32."""

    rounds: list[Round]
    entry_of: np.ndarray  # (tiles + 1,) first entry of each tile of the vocabulary, from the first listed one on
    tile_of: np.ndarray  # (entries,)
    block_of: np.ndarray  # (entries,)
    slot_by_block: np.ndarray  # (entries,) of each round by block: where in the round its dz lies
    tile_by_block: np.ndarray  # (entries,)
    piece: np.ndarray  # (pieces, 3): first entry by block within the round, entries, block of rows to write
    join: np.ndarray  # (joins, 3): block, first block of rows to add to it, how many


def most_extra_blocks(programs: int, column_blocks: int) -> int:
    """Most blocks of rows that the pieces of a round take beyond those of the tokens' blocks."""
    return max(programs * _PIECES // column_blocks, 1)


def list_rounds(active: np.ndarray, capacity: int, first_tile: int, programs: int, column_blocks: int) -> Rounds:
    """List the active tiles from ``first_tile`` on.

    Args:
        active: Which tiles are, ``(blocks, tiles)`` bool.
        capacity: Entries of a round; one tile of the vocabulary is never cut, whatever its entries.
        first_tile: Tiles before it are done in another way.
        programs: Multiprocessors.
        column_blocks: Programs that a piece of the input's gradient occupies.
    """
    row_blocks, tiles = active.shape
    active = active.copy()
    active[:, :first_tile] = False
    tile_of, block_of = np.nonzero(active.T)  # by tile, then by block
    entry_of = np.concatenate([[0], np.cumsum(active.sum(0))])
    slots = np.empty((row_blocks, tiles), dtype=np.int32)
    slots[block_of, tile_of] = np.arange(len(tile_of))
    extra = most_extra_blocks(programs, column_blocks)
    rounds, slot_by_block, tile_by_block, pieces, joins = [], [], [], [], []
    start, piece_count, join_count = first_tile, 0, 0
    while start < tiles:
        first = int(entry_of[start])
        end = int(np.searchsorted(entry_of, first + capacity, side="right")) - 1
        end = min(max(end, start + 1), tiles)
        number = int(entry_of[end]) - first
        blocks, columns = np.nonzero(active[:, start:end])  # by block, then by tile
        tile_by_block.append(columns + start)
        slot_by_block.append(slots[blocks, columns + start] - first)
        piece, join = _pieces(np.bincount(blocks, minlength=row_blocks), max(_LEAST, -(-number // extra)))
        pieces.append(piece)
        joins.append(join)
        rounds.append(Round(first, number, start, end - start, piece_count, len(piece), join_count, len(join)))
        piece_count, join_count, start = piece_count + len(piece), join_count + len(join), end

    def joined(arrays: list[np.ndarray], *shape: int) -> np.ndarray:
        return np.concatenate([np.empty((0, *shape)), *arrays]).astype(np.int32)

    return Rounds(
        rounds,
        entry_of.astype(np.int32),
        tile_of.astype(np.int32),
        block_of.astype(np.int32),
        joined(slot_by_block),
        joined(tile_by_block),
        joined(pieces, 3),
        joined(joins, 3),
    )


def _pieces(entries: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of at most so many entries, of blocks with ``entries`` each, longest first; and how they join."""
    begin = np.concatenate([[0], np.cumsum(entries)[:-1]])
    counts = -(-entries // most)
    block = np.repeat(np.arange(len(entries)), counts)
    index = np.arange(len(block)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece within its block
    length = np.minimum(entries[block] - index * most, most)
    extra = index > 0
    target = np.where(extra, len(entries) + np.cumsum(extra) - 1, block)
    piece = np.stack([begin[block] + index * most, length, target], 1)
    several = np.flatnonzero(counts > 1)
    more = counts[several] - 1
    join = np.stack([several, len(entries) + np.cumsum(more) - more, more], 1)
    return piece[np.argsort(-length, kind="stable")], join
