"""Sizes of errors, from the residuals of tiles: what leaving some out may do to each gradient.

To a token's part of the input's gradient, of which a block of tokens takes the norm, and to the tile's part of the
weight's, of which it takes the sum. A level is how much a tile counts beside others: a threshold leaves out all that
have at most so much.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks
from .tile_sums import TokenTiles, load_spreads, load_tokens

__all__ = ["LEVELS", "input_error", "scores", "weight_error"]

LEVELS = 64  # thresholds that are tried at once


@triton.jit(do_not_specialize=["tiles", "first_tile"])
def _score_kernel(
    spread,
    order,
    count,
    factor,
    length,  # (N,) of the hidden states
    sigma,  # (tiles,)
    of_input,  # (blocks, tiles), written
    of_weight,  # (blocks, tiles), written
    behind,  # (tile blocks, blocks x ROWS), written
    first_tile,
    tiles,
    stride,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    valid, source, own_factor = load_tokens(order, count, factor, row)  # pyright: ignore[reportGeneralTypeIssues]
    size = load_spreads(spread, valid, source, tile, tiles, stride) * tl.abs(own_factor)[:, None]
    long = tl.load(length + row, mask=valid, other=0.0)
    inside = tile < tiles
    out = tl.program_id(0).to(tl.int64) * tiles + tile
    tl.store(of_weight + out, tl.sum(size * long[:, None], 0), mask=inside)
    size *= tl.load(sigma + tile, mask=inside, other=0.0)[None, :]
    tl.store(of_input + out, tl.sqrt(tl.sum(size * size, 0)), mask=inside)
    total = tl.sum(tl.where((tile >= first_tile)[None, :], size, 0.0), 1)
    tl.store(behind + tl.program_id(1) * tl.num_programs(0) * ROWS + row, total)


def scores(of: TokenTiles, length: Tensor, sigma: Tensor, first_tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of errors: ``(blocks, tiles)`` of either gradient if a tile is left out for a block of tokens.

    And of each token's part of the input's gradient if all tiles from ``first_tile`` on are, ``(N,)``.
    """
    of_input, of_weight = (sigma.new_empty(of.blocks, of.tiles) for _ in range(2))
    behind = sigma.new_empty(blocks(of.tiles, 64), of.blocks * of.rows)
    run_kernel(
        _score_kernel,
        (of.blocks, blocks(of.tiles, 64)),
        spread=of.spread,
        **of.arguments(),
        length=length,
        sigma=sigma,
        of_input=of_input,
        of_weight=of_weight,
        behind=behind,
        first_tile=first_tile,
        ROWS=of.rows,
        TILES=64,
    )
    return of_input, of_weight, behind.sum(0)[: of.order.shape[0]]


@triton.jit
def _short(x):
    """The least number of TF32, which has 11 bits, that is not below x >= 0; infinity where it is no finite number."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1FFF) & ~0x1FFF
    return tl.where(x < 1e38, bits, 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["tiles"])
def _input_error_kernel(
    spread,
    order,
    count,
    factor,
    sigma,
    level,  # (blocks, tiles) int32
    squares,  # (blocks x PARTS, LEVELS), written
    tiles,
    stride,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,  # of a block of tokens
    TILES: tl.constexpr,
    LEVELS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(0) // PARTS
    limit = tl.arange(0, LEVELS)
    valid, source, own_factor = load_tokens(order, count, factor, row)  # pyright: ignore[reportGeneralTypeIssues]
    total = tl.zeros((ROWS, LEVELS), dtype=tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        size = load_spreads(spread, valid, source, tile, tiles, stride)
        own_sigma = _short(tl.load(sigma + tile, mask=tile < tiles, other=0.0))  # pyright: ignore[reportGeneralTypeIssues]
        own = tl.load(level + block.to(tl.int64) * tiles + tile, mask=tile < tiles, other=2147483647)
        left_out = tl.where(own[:, None] <= limit[None, :], own_sigma[:, None], 0.0)
        total = tl.dot(size, left_out, total, input_precision="tf32")  # of numbers of so few bits it is exact
    total *= tl.abs(own_factor)[:, None]
    tl.store(squares + tl.program_id(0) * LEVELS + limit, tl.sum(total * total, 0))


def input_error(of: TokenTiles, sigma: Tensor, level: Tensor) -> Tensor:
    """Bound ``(LEVELS,)`` of the error of the input's gradient if all tiles up to a level are left out."""
    rows = min(of.rows, 32)  # more make slower products of float32: see mean_field
    parts = of.rows // rows
    squares = sigma.new_empty(of.blocks * parts, LEVELS)
    run_kernel(
        _input_error_kernel,
        (of.blocks * parts,),
        spread=of.spread,
        **of.arguments(),
        sigma=sigma,
        level=level,
        squares=squares,
        ROWS=rows,
        PARTS=parts,
        TILES=32,
        LEVELS=LEVELS,
    )
    return squares.sum(0).sqrt()


@triton.jit(do_not_specialize=["tiles", "row_blocks"])
def _weight_error_kernel(
    score,  # (blocks, tiles)
    level,  # (blocks, tiles) int32
    squares,  # (tiles, LEVELS), written
    tiles,
    row_blocks,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    LEVELS: tl.constexpr,
):
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    limit = tl.arange(0, LEVELS)
    total = tl.zeros((TILES, LEVELS), dtype=tl.float32)
    for start in range(0, row_blocks, ROWS):  # many loads at a time, not one after the other
        block = start + tl.arange(0, ROWS)
        address = block.to(tl.int64)[:, None] * tiles + tile[None, :]
        mask = (block < row_blocks)[:, None] & (tile < tiles)[None, :]
        size = tl.load(score + address, mask=mask, other=0.0)
        own = tl.load(level + address, mask=mask, other=2147483647)
        total += tl.sum(tl.where(own[:, :, None] <= limit[None, None, :], size[:, :, None], 0.0), 0)
    tl.store(squares + tile[:, None] * LEVELS + limit[None, :], total * total, mask=(tile < tiles)[:, None])


def weight_error(score: Tensor, level: Tensor) -> Tensor:
    """Bound ``(LEVELS,)`` of the error of the weight's gradient if all tiles up to a level are left out."""
    row_blocks, tiles = score.shape
    squares = score.new_empty(tiles, LEVELS)
    run_kernel(
        _weight_error_kernel,
        (blocks(tiles, 4),),
        score=score,
        level=level,
        squares=squares,
        tiles=tiles,
        row_blocks=row_blocks,
        ROWS=32,
        TILES=4,
        LEVELS=LEVELS,
    )
    return squares.sum(0).sqrt()
