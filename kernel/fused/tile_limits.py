"""From scores of tiles to the tiles that are computed, in four launches that read numbers of one another.

What is allowed follows from least norms of both gradients; a tile's level is its score beside that; of the levels the
last is taken whose error still fits. No number of these passes the host but the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .halves import HIDDEN_UNDERFLOW
from .launch import blocks
from .sparse_tokens import SAFE, SparseTokens
from .tile_errors import LEVELS

__all__ = ["FOUND", "choose_levels", "levels", "limits"]

FOUND = 4  # float32 numbers that the host is told: whether it is certified, both bounds, blocks with tokens
_SMALLEST, _LARGEST = SAFE
_PER_OCTAVE = tl.constexpr(4)  # thresholds
_LEVELS = tl.constexpr(LEVELS)
_BLOCK = 1024


@triton.jit(do_not_specialize=["n", "programs"])
def _limit_kernel(
    norm,  # (N,) of the input's gradient up to what lies behind, if INPUT
    behind,  # (N,)
    rounding,  # (N,)
    sums,  # (4, programs) of the tokens
    products,  # (programs,) of the tokens
    longest,  # (1,) norm of the head's longest row
    pilot_norm,  # () of the pilot's rows of the weight's gradient, if WEIGHT
    largest,  # (1,) what the upstream gradients are divided by
    numbers,  # (5,), written: limits of both gradients, what rounding adds to their errors, whether all is safe
    n,
    programs,
    share,  # of the norms
    factor,  # that the weight's gradient is multiplied by
    per_row,  # 1 / sqrt(C)
    underflow,  # of a token's product with its factor, beside the longest of them
    INPUT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    longest_product = tl.zeros((BLOCK,), dtype=tl.float32)
    product = tl.zeros((BLOCK,), dtype=tl.float32)
    square = tl.zeros((BLOCK,), dtype=tl.float32)
    unsafe = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, programs, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < programs
        most = tl.maximum(most, tl.load(sums + index, mask=mask, other=0.0))
        product += tl.load(sums + programs + index, mask=mask, other=0.0)
        square += tl.load(sums + 2 * programs + index, mask=mask, other=0.0)
        unsafe += tl.load(sums + 3 * programs + index, mask=mask, other=0.0)
        longest_product = tl.maximum(longest_product, tl.load(products + index, mask=mask, other=0.0))
    of_row = tl.load(longest)
    of_token = tl.max(most, 0)
    safe = (of_row > _SMALLEST) & (of_row < _LARGEST) & (of_token > _SMALLEST) & (tl.sum(unsafe, 0) == 0)
    tl.store(numbers + 4, tl.where(safe, 1.0, 0.0))
    tl.store(numbers + 2, tl.sqrt(tl.sum(square, 0)) * of_row)
    rounded = (tl.sum(product, 0) + n.to(tl.float32) * underflow * tl.max(longest_product, 0)) * per_row
    tl.store(numbers + 3, rounded)
    if INPUT:
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, n, BLOCK):
            row = start + tl.arange(0, BLOCK)
            mask = row < n
            least = tl.load(norm + row, mask=mask, other=0.0) - tl.load(behind + row, mask=mask, other=0.0)
            least -= tl.load(rounding + row, mask=mask, other=0.0) * of_row
            least = tl.where(least < 0, 0.0, least)  # what is no number stays none
            total += least * least
        tl.store(numbers, tl.sqrt(tl.sum(total, 0)) * share)
    if WEIGHT:
        tl.store(numbers + 1, (tl.load(pilot_norm) / (tl.load(largest) * factor) - rounded) * share)


def limits(
    tokens: SparseTokens,
    behind: Tensor,
    longest: Tensor,
    largest: Tensor,
    norm: Tensor | None,
    pilot_norm: Tensor | None,
    share: float,
    factor: float,
    columns: int,
    hidden_size: int,
) -> Tensor:
    """Return what errors are allowed, and what rounding adds to them; see the kernel's ``numbers``."""
    numbers = behind.new_empty(5)
    run_kernel(
        _limit_kernel,
        (1,),
        norm=norm,
        behind=behind,
        rounding=tokens.rounding,
        sums=tokens.sums,
        products=tokens.products,
        longest=longest,
        pilot_norm=pilot_norm,
        largest=largest,
        numbers=numbers,
        n=behind.shape[0],
        programs=tokens.sums.shape[1],
        share=share,
        factor=factor,
        per_row=columns**-0.5,
        underflow=hidden_size**0.5 * HIDDEN_UNDERFLOW,
        INPUT=norm is not None,
        WEIGHT=pilot_norm is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )
    return numbers


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
