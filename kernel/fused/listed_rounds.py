"""The list of tiles that enter the gradients as they are, in rounds whose dz fits a workspace.

Made on the host, of one byte for each tile, in NumPy: nothing in it depends on a number that the device computed but
which tiles they are. What only the input's gradient needs is made round by round, while the device has work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["ByBlock", "ListedTiles", "Round", "most_extra_blocks"]

_PIECES = 4  # of the input's gradient for each multiprocessor and round
_LEAST = 4  # entries of a piece, if its block has as many


class Round(NamedTuple):
    """Entries and tiles of the vocabulary of a round: first and number of each."""

    first: int
    number: int
    first_tile: int
    tiles: int


class ByBlock(NamedTuple):
    """The entries of a round by block of tokens, int32."""

    slot_of: np.ndarray  # (entries,) where in the round dz lies
    tile_of: np.ndarray  # (entries,)
    piece: np.ndarray  # (pieces, 3): first entry, entries, block of rows to write
    join: np.ndarray  # (joins, 3): block, first block of rows to add to it, how many


def most_extra_blocks(programs: int, column_blocks: int) -> int:
    """Most blocks of rows that the pieces of a round take beyond those of the tokens' blocks."""
    return max(programs * _PIECES // column_blocks, 1)


class ListedTiles:
    """The active tiles, from one on; int32 arrays that kernels read.

    Args:
        active: Which tiles are, ``(blocks, tiles)`` bool.
        capacity: Entries of a round; one tile of the vocabulary is never cut, whatever its entries.
        first_tile: Tiles before it are done in another way.
        extra: Most blocks of rows that the pieces of a round may take beside those of the tokens' blocks.

    Attributes:
        entry_of: First entry of each tile of the vocabulary ``(tiles + 1,)``.
        tile_of: Of each entry, by tile, then by block.
        block_of: Of each entry.
        rounds: In order.
    """

    def __init__(self, active: np.ndarray, capacity: int, first_tile: int, extra: int) -> None:
        row_blocks, tiles = active.shape
        self._extra, self._active = extra, active.copy()
        self._active[:, :first_tile] = False
        tile_of, block_of = np.nonzero(self._active.T)
        entry_of = np.concatenate([[0], np.cumsum(self._active.sum(0))])
        self._slots = np.empty((row_blocks, tiles), dtype=np.int32)
        self._slots[block_of, tile_of] = np.arange(len(tile_of))
        self.rounds: list[Round] = []
        start = first_tile
        while start < tiles:
            first = int(entry_of[start])
            end = int(np.searchsorted(entry_of, first + capacity, side="right")) - 1
            end = min(max(end, start + 1), tiles)
            self.rounds.append(Round(first, int(entry_of[end]) - first, start, end - start))
            start = end
        self.entry_of, self.tile_of, self.block_of = (a.astype(np.int32) for a in (entry_of, tile_of, block_of))

    def by_block(self, part: Round) -> ByBlock:
        """List the entries of a round by block, and cut them into pieces."""
        end = part.first_tile + part.tiles
        blocks, columns = np.nonzero(self._active[:, part.first_tile : end])  # by block, then by tile
        columns += part.first_tile
        entries = np.bincount(blocks, minlength=len(self._active))
        piece, join = _pieces(entries, max(_LEAST, -(-part.number // self._extra)))
        arrays = self._slots[blocks, columns] - part.first, columns, piece, join
        return ByBlock(*(array.astype(np.int32) for array in arrays))


def _pieces(entries: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of about ``size`` entries, of a block equal ones, the longest first; and how they join."""
    begin = np.cumsum(entries) - entries
    counts = np.where(entries > 0, np.maximum((2 * entries + size) // (2 * size), 1), 0)
    block = np.repeat(np.arange(len(entries)), counts)
    index = np.arange(len(block)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece within its block
    starts, ends = (i * entries[block] // np.maximum(counts[block], 1) for i in (index, index + 1))
    extra = index > 0
    target = np.where(extra, len(entries) + np.cumsum(extra) - 1, block)
    piece = np.stack([begin[block] + starts, ends - starts, target], 1)
    several = np.flatnonzero(counts > 1)
    more = counts[several] - 1
    join = np.stack([several, len(entries) + np.cumsum(more) - more, more], 1)
    return piece[np.argsort(starts - ends, kind="stable")], join
