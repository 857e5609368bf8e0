"""The list of tiles that enter the gradients as they are: by tile of the vocabulary, and by block of tokens.

The device makes it of one byte for each tile, and so need not wait for the host: while the host listed in NumPy, and
copied for each round (:mod:`.listed_rounds`), it was idle for 0.6 ms a round on Gemma-3-270M's head. Every place in a
list is a sum of whole numbers, so that no order of programs changes it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .listed_rounds import Room, find_rounds

__all__ = ["ListedTiles"]

_BLOCK = 1024


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


class ListedTiles:
    """The active tiles, from one on.

    Args:
        active: Which tiles are, ``(blocks, tiles)`` bytes on the device.
        certified: Number above 0 if there is a choice, float32: else there is no round.
        room: For dz of a round; one tile of the vocabulary is never cut, whatever its entries.
        first_tile: Tiles before it are done in another way.
        most: Entries that are listed at most: with more there is no round.
        rounds: Memory ``(1 + 5 tiles,)`` int32, written: see :func:`.listed_rounds.rounds_of`.

    Attributes:
        rounds: As given.
        entry_of: First entry of each tile of the vocabulary ``(tiles + 1,)``, int32 as all lists.
        tile_of: Of each entry, by tile, then by block.
        block_of: Of each entry.
        slot_of: Entries of each block, by tile ``(blocks, tiles)``.
        own_tile: And their tiles.
        rank: How many a block has before each tile ``(blocks, tiles + 1)``.
    """

    def __init__(
        self, active: Tensor, certified: Tensor, room: Room, first_tile: int, most: int, rounds: Tensor
    ) -> None:
        self.row_blocks, self.tiles = active.shape
        self._active, self._first_tile, self.rounds = active, first_tile, rounds
        self.entry_of, self.tile_of, self.block_of = (rounds.new_empty(n) for n in (self.tiles + 1, most, most))
        self.slot_of, self.own_tile = (rounds.new_empty(self.row_blocks, self.tiles) for _ in range(2))
        self.rank = rounds.new_empty(self.row_blocks, self.tiles + 1)
        find_rounds(active, certified, room, first_tile, most, self.entry_of, rounds)

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
            _by_block_kernel, (self.row_blocks,), **lists, slot_of=self.slot_of, own_tile=self.own_tile, rank=self.rank
        )
