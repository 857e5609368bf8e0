"""What a tile of the vocabulary carries of each token's probability, known once the forward has ended.

With m the mass of a tile, the sum of its probabilities p, the softmax differs there from its mean field m / C, of C
columns, by a residual of norm::

    |r| = sqrt(sum p^2 - m^2 / C)

The forward writes log-sum-exp and sum p^2 / m^2 of every tile and token (``TILE_SUMS`` in :mod:`.forward`); with the
token's log-partition they become m and an upper bound of the norm that covers the rounding of both sums. From these the
sizes of errors follow: what leaving a tile out may do to a token's part of the input's gradient, of which a block of
tokens takes the norm, and to the tile's part of the weight's, of which it takes the sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks

__all__ = ["LEVELS", "TokenTiles", "finish_tile_sums", "input_error", "new_tile_sums", "scores", "weight_error"]

LEVELS = 64  # thresholds that are tried at once
_AT_ONCE = 8  # of these in one program
_SLACK = tl.constexpr(4e-6)  # of sum p^2 / m^2: rounding of two sums of 256 numbers in float32
_FLOOR = tl.constexpr(1e-18)  # of a residual: squares below 2^-126 count as 0


def new_tile_sums(n: int, tiles: int, device: torch.device) -> Tensor:
    """Memory ``(2, n, tiles or more)`` for masses and spreads."""
    return torch.empty(2, n, blocks(tiles, 16) * 16, dtype=torch.float32, device=device)


@triton.jit(do_not_specialize=["n", "tiles", "count_above"])
def _finish_kernel(
    sums,  # (2, N, stride): log-sum-exp in bits and sum p^2 / m^2; then m and |r|
    lse,  # (N,) packed, bits
    count,  # (1,)
    wide,  # (N,) int32, written: tiles whose residual exceeds count_above; very many where there is no token
    n,
    tiles,
    stride,
    count_above,
    COLUMNS_OF_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < tl.load(count)
    bits = tl.load(lse + row, mask=valid, other=0.0)[:, None]
    found = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        mask = valid[:, None] & (tile < tiles)[None, :]
        of_mass = sums + row.to(tl.int64)[:, None] * stride + tile[None, :]
        of_spread = of_mass + n.to(tl.int64) * stride
        mass = tl.exp2(tl.load(of_mass, mask=mask, other=float("-inf")) - bits)
        square = tl.load(of_spread, mask=mask, other=0.0)
        spread = mass * tl.sqrt(tl.maximum(square - 1.0 / COLUMNS_OF_TILE, 0.0) + _SLACK * square) + _FLOOR
        tl.store(of_mass, mass, mask=mask)
        tl.store(of_spread, spread, mask=mask)
        found += tl.sum((mask & (spread > count_above)).to(tl.int32), 1)
    tl.store(wide + row, tl.where(valid, found, 2147483647), mask=row < n)


def finish_tile_sums(sums: Tensor, lse: Tensor, count: Tensor, tiles: int, columns: int, count_above: float) -> Tensor:
    """Make masses and spreads of what the forward wrote, in place; return each token's number of tiles that count."""
    n = sums.shape[1]
    wide = torch.empty(n, dtype=torch.int32, device=sums.device)
    run_kernel(
        _finish_kernel,
        (blocks(n, 8),),
        sums=sums,
        lse=lse,
        count=count,
        wide=wide,
        n=n,
        tiles=tiles,
        stride=sums.shape[2],
        count_above=count_above,
        COLUMNS_OF_TILE=columns,
        ROWS=8,
        TILES=128,
    )
    return wide


class TokenTiles:
    """Masses and spreads of tiles, by token in a new order.

    Args:
        sums: Finished, ``(2, N, tiles or more)``, in packed order.
        order: Packed row that each row of the new order comes from ``(N,)``, int32.
        count: Kept tokens ``(1,)``, int32.
        factor: Of a token's softmax in dz ``(N,)``, in the new order.
        tiles: Whole tiles.
        rows: Tokens of a block.
    """

    def __init__(self, sums: Tensor, order: Tensor, count: Tensor, factor: Tensor, tiles: int, rows: int) -> None:
        self.mass, self.spread = sums.unbind(0)
        self.order, self.count, self.factor, self.tiles, self.rows = order, count, factor, tiles, rows
        self.blocks = blocks(order.shape[0], rows)

    def arguments(self) -> dict[str, object]:
        """What every kernel that reads them is told."""
        return {
            "order": self.order,
            "count": self.count,
            "factor": self.factor,
            "tiles": self.tiles,
            "stride": self.mass.shape[1],
        }


@triton.jit
def load_sizes(values, order, count, factor, row, tile, tiles, stride):
    """``factor * values`` of tokens ``row`` and tiles ``tile``, 0 where there is none."""
    valid = row < tl.load(count)
    source = tl.load(order + row, mask=valid, other=0).to(tl.int64)
    mask = valid[:, None] & (tile < tiles)[None, :]
    found = tl.load(values + source[:, None] * stride + tile[None, :], mask=mask, other=0.0)
    return found * tl.load(factor + row, mask=valid, other=0.0)[:, None], mask


@triton.jit(do_not_specialize=["tiles"])
def _score_kernel(
    spread,
    order,
    count,
    factor,
    length,  # (N,) of the hidden states
    sigma,  # (tiles,)
    of_input,  # (blocks, tiles), written
    of_weight,  # (blocks, tiles), written
    tiles,
    stride,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    size, _mask = load_sizes(spread, order, count, factor, row, tile, tiles, stride)  # pyright: ignore[reportGeneralTypeIssues]
    size = tl.abs(size)
    long = tl.load(length + row, mask=row < tl.load(count), other=0.0)
    inside = tile < tiles
    out = tl.program_id(0).to(tl.int64) * tiles + tile
    tl.store(of_weight + out, tl.sum(size * long[:, None], 0), mask=inside)
    size *= tl.load(sigma + tile, mask=inside, other=0.0)[None, :]
    tl.store(of_input + out, tl.sqrt(tl.sum(size * size, 0)), mask=inside)


def scores(of: TokenTiles, length: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds ``(blocks, tiles)`` of the error of either gradient if a tile is left out for a block of tokens."""
    of_input, of_weight = (sigma.new_empty(of.blocks, of.tiles) for _ in range(2))
    run_kernel(
        _score_kernel,
        (of.blocks, blocks(of.tiles, 64)),
        spread=of.spread,
        **of.arguments(),
        length=length,
        sigma=sigma,
        of_input=of_input,
        of_weight=of_weight,
        ROWS=of.rows,
        TILES=64,
    )
    return of_input, of_weight


@triton.jit(do_not_specialize=["tiles", "levels"])
def _input_error_kernel(
    spread,
    order,
    count,
    factor,
    sigma,
    level,  # (blocks, tiles) int32
    squares,  # (blocks, levels), written
    tiles,
    stride,
    levels,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    block = tl.program_id(0)
    row = block * ROWS + tl.arange(0, ROWS)
    limit = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    total = tl.zeros((ROWS, AT_ONCE), dtype=tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        size, _mask = load_sizes(spread, order, count, factor, row, tile, tiles, stride)  # pyright: ignore[reportGeneralTypeIssues]
        size = tl.abs(size) * tl.load(sigma + tile, mask=tile < tiles, other=0.0)[None, :]
        own = tl.load(level + block.to(tl.int64) * tiles + tile, mask=tile < tiles, other=2147483647)
        left_out = own[None, :, None] <= limit[None, None, :]
        total += tl.sum(tl.where(left_out, size[:, :, None], 0.0), 1)
    tl.store(squares + block * levels + limit, tl.sum(total * total, 0))


def input_error(of: TokenTiles, sigma: Tensor, level: Tensor, levels: int) -> Tensor:
    """Bound ``(levels,)`` of the error of the input's gradient if all tiles up to a level are left out."""
    squares = sigma.new_empty(of.blocks, levels)
    run_kernel(
        _input_error_kernel,
        (of.blocks, levels // _AT_ONCE),
        spread=of.spread,
        **of.arguments(),
        sigma=sigma,
        level=level,
        squares=squares,
        levels=levels,
        ROWS=of.rows,
        TILES=16 if sigma.is_cuda else 64,
        AT_ONCE=_AT_ONCE,
    )
    return squares.sum(0).sqrt()


@triton.jit(do_not_specialize=["tiles", "row_blocks"])
def _weight_error_kernel(
    score,  # (blocks, tiles)
    level,  # (blocks, tiles) int32
    squares,  # (tiles, LEVELS), written
    tiles,
    row_blocks,
    TILES: tl.constexpr,
    LEVELS: tl.constexpr,
):
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    limit = tl.arange(0, LEVELS)
    total = tl.zeros((TILES, LEVELS), dtype=tl.float32)
    for block in range(row_blocks):
        address = block * tiles.to(tl.int64) + tile
        size = tl.load(score + address, mask=tile < tiles, other=0.0)
        own = tl.load(level + address, mask=tile < tiles, other=2147483647)
        total += tl.where(own[:, None] <= limit[None, :], size[:, None], 0.0)
    tl.store(squares + tile[:, None] * LEVELS + limit[None, :], total * total, mask=(tile < tiles)[:, None])


def weight_error(score: Tensor, level: Tensor) -> Tensor:
    """Bound ``(LEVELS,)`` of the error of the weight's gradient if all tiles up to a level are left out."""
    row_blocks, tiles = score.shape
    squares = score.new_empty(tiles, LEVELS)
    run_kernel(
        _weight_error_kernel,
        (blocks(tiles, 16),),
        score=score,
        level=level,
        squares=squares,
        tiles=tiles,
        row_blocks=row_blocks,
        TILES=16,
        LEVELS=LEVELS,
    )
    return squares.sum(0).sqrt()
