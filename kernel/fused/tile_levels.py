"""How much a tile's error counts beside what is allowed, in levels, and the tiles that are computed of these.

A tile's level is its score beside the limits of :mod:`.tile_limits`; of the levels the last is taken whose error still
fits. No number of these passes the host but the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks
from .sparse_tokens import SparseTokens
from .tile_errors import LEVELS

__all__ = ["FOUND", "choose_levels", "levels"]

FOUND = 4  # float32 numbers that the host is told: whether it is certified, both bounds, blocks with tokens
_PER_OCTAVE = tl.constexpr(4)  # thresholds
_LEVELS = tl.constexpr(LEVELS)


@triton.jit
def _level_of(score, limit):
    share = score / tl.where(limit > 0, limit, 1.0)  # with another limit nothing fits, whatever the levels
    octave = tl.log2(tl.where(share > 1e-30, share, 1e-30))
    level = tl.minimum(tl.maximum(tl.ceil(octave * _PER_OCTAVE) + (_LEVELS - 1), 0.0), _LEVELS)
    return tl.where(share >= 0, level, _LEVELS).to(tl.int32)  # what is no number is computed


@triton.jit(do_not_specialize=["plane", "tiles", "first_tile"])
def _level_kernel(
    of_input,  # (blocks, tiles)
    of_weight,  # (blocks, tiles)
    numbers,  # of limits
    tile_of,  # (N,) of the targets
    count,  # (1,)
    level,  # (2, plane) int32, written: (blocks, tiles) of each gradient
    plane,
    tiles,
    first_tile,
    INPUT: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    target = tl.load(tile_of + row, mask=row < tl.load(count), other=-1)
    has_target = tl.max((target[:, None] == tile[None, :]).to(tl.int32), 0) > 0
    anyway = has_target | (tile < first_tile)
    inside = tile < tiles
    address = tl.program_id(0).to(tl.int64) * tiles + tile
    out = level + address
    if INPUT:
        score = tl.load(of_input + address, mask=inside, other=0.0)
        tl.store(out, tl.where(anyway, _LEVELS, _level_of(score, tl.load(numbers))), mask=inside)
    if WEIGHT:
        score = tl.load(of_weight + address, mask=inside, other=0.0)
        tl.store(out + plane, tl.where(anyway, _LEVELS, _level_of(score, tl.load(numbers + 1))), mask=inside)


def levels(
    of_input: Tensor,
    of_weight: Tensor,
    numbers: Tensor,
    tokens: SparseTokens,
    count: Tensor,
    pilot: int,
    rows: int,
    needs: Sequence[bool],
) -> Tensor:
    """How large a tile's error is beside what is allowed ``(2, blocks x tiles or more)``, int32, of those needed.

    0 for next to nothing, LEVELS for all of it, for no number, in the pilot and where a token has its target.
    """
    row_blocks, tiles = of_input.shape
    plane = blocks(row_blocks * tiles, 4) * 4  # of both the address is a multiple of 16 bytes
    level = torch.empty(2, plane, dtype=torch.int32, device=of_input.device)
    run_kernel(
        _level_kernel,
        (row_blocks, blocks(tiles, 64)),
        of_input=of_input,
        of_weight=of_weight,
        numbers=numbers,
        tile_of=tokens.tile,
        count=count,
        level=level,
        plane=plane,
        tiles=tiles,
        first_tile=pilot,
        INPUT=needs[0],
        WEIGHT=needs[1],
        ROWS=rows,
        TILES=64,
    )
    return level


@triton.jit
def _last_that_fits(errors, limit, rounding, share):
    """The last level up to which all fit, -1 if none does, and the bound there."""
    index = tl.arange(0, _LEVELS)
    error = tl.load(errors + index) + rounding
    fits = error <= tl.where(limit > 0, limit, -1.0)
    chosen = tl.min(tl.where(fits, _LEVELS, index), 0) - 1
    bound = tl.sum(tl.where(index == chosen, error, 0.0), 0) / tl.where(limit > 0, limit, 1.0) * share
    return chosen, bound


@triton.jit(do_not_specialize=["plane", "tiles"])
def _active_kernel(
    level,  # (2, plane)
    plane,
    of_input,  # (LEVELS,) errors, if INPUT
    of_weight,  # (LEVELS,) errors, if WEIGHT
    numbers,  # of limits
    count,  # (1,)
    found,  # (4,) float32, written: see FOUND
    active,  # (blocks, tiles) bytes, written
    tiles,
    share,  # the tolerance at the limits
    INPUT: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    inside = tile < tiles
    address = tl.program_id(0).to(tl.int64) * tiles + tile
    first = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
    kept = tl.load(count)
    certified = tl.load(numbers + 4) > 0
    computed = tile < 0
    if INPUT:
        limit = tl.load(numbers)
        chosen, bound = _last_that_fits(of_input, limit, tl.load(numbers + 2), share)  # pyright: ignore[reportGeneralTypeIssues]
        certified = certified & (chosen >= 0) & (limit < float("inf"))
        computed = computed | (tl.load(level + address, mask=inside, other=0) > chosen)
        tl.store(found + 1, bound, mask=first)
    if WEIGHT:
        limit = tl.load(numbers + 1)
        chosen, bound = _last_that_fits(of_weight, limit, tl.load(numbers + 3), share)  # pyright: ignore[reportGeneralTypeIssues]
        certified = certified & (chosen >= 0) & (limit < float("inf"))
        computed = computed | (tl.load(level + plane + address, mask=inside, other=0) > chosen)
        tl.store(found + 2, bound, mask=first)
    tl.store(found, tl.where(certified, 1.0, 0.0), mask=first)
    tl.store(found + 3, tl.cdiv(kept, ROWS).to(tl.float32), mask=first)
    tl.store(active + address, (computed & (tl.program_id(0) * ROWS < kept)).to(tl.uint8), mask=inside)


def choose_levels(
    level: Tensor,
    shape: tuple[int, int],
    errors: Sequence[Tensor | None],
    numbers: Tensor,
    count: Tensor,
    share: float,
    rows: int,
    found: Tensor,
) -> Tensor:
    """Return which tiles are computed, in bytes ``(blocks, tiles)``, and write ``found`` (see FOUND)."""
    row_blocks, tiles = shape
    active = torch.empty(row_blocks, tiles, dtype=torch.uint8, device=level.device)
    run_kernel(
        _active_kernel,
        (row_blocks, blocks(tiles, 256)),
        level=level,
        plane=level.shape[1],
        of_input=errors[0],
        of_weight=errors[1],
        numbers=numbers,
        count=count,
        found=found,
        active=active,
        tiles=tiles,
        share=share,
        INPUT=errors[0] is not None,
        WEIGHT=errors[1] is not None,
        ROWS=rows,
        TILES=256,
    )
    return active
