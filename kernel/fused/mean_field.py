"""Kernels for the mean field of tiles that are left out: both products of dz's mean over each of them.

With a the factor of a token's softmax and g that of smoothing's uniform term, the mean of dz over a tile of C columns
that does not hold the target is (a m - g b C / V) / C, exact but for the rounding of the masses m. Its products are a
C-th of the dense ones: with the mean rows of the head, and with the hidden states for a row that all of the tile share.

They are taken in float32 whatever the dtype of the head. Tiles that are left out may cancel each other, so that the
rounding of their terms to half precision could exceed what is certified, and a factor with a z-loss may be large.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .head_tiles import HeadTiles
from .launch import blocks
from .tile_sums import TokenTiles, load_sizes

__all__ = ["MeanField"]


@triton.jit
def _coefficients(
    mass, order, count, factor, row_scale, left_out, block, row, tile, tiles, stride, uniform, ROWS: tl.constexpr
):
    """(a m - g b C / V) of tiles that are left out, else 0: (rows, tiles)."""
    found, mask = load_sizes(mass, order, count, factor, row, tile, tiles, stride)  # pyright: ignore[reportGeneralTypeIssues]
    g = tl.load(row_scale + row, mask=row < tl.load(count), other=0.0)
    out = tl.load(left_out + tiles.to(tl.int64) * block + tile, mask=tile < tiles, other=0)
    return tl.where(mask & (out != 0)[None, :], found - (g * uniform)[:, None], 0.0)


@triton.jit(do_not_specialize=["tiles"])
def _input_kernel(
    mass,
    order,
    count,
    factor,
    row_scale,  # (N,)
    left_out,  # (blocks, tiles) uint8
    mean,  # (tiles, D) float32
    accumulator,  # (blocks x ROWS, D) float32
    squares,  # (blocks, column blocks), written if NORM
    weight,  # (V, D), the next two read if NORM
    label,  # (N,)
    own,  # (N,) factor of the target's row of the head
    weight_row_stride,
    weight_column_stride,
    tiles,
    stride,
    hidden_size,
    uniform,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the mean field to the accumulator, or take the squares of what that would give."""
    block = tl.program_id(0)
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < hidden_size)[None, :]
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        of_mass = _coefficients(
            mass, order, count, factor, row_scale, left_out, block, row, tile, tiles, stride, uniform, ROWS
        )
        address = mean + tile.to(tl.int64)[:, None] * hidden_size + column[None, :]
        rows = tl.load(address, mask=(tile < tiles)[:, None] & inside, other=0.0)
        acc = tl.dot(of_mass, rows, acc, input_precision=PRECISION)
    address = accumulator + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
    acc += tl.load(address, mask=inside, other=0.0)
    if NORM:
        valid = row < tl.load(count)
        target = tl.load(label + row, mask=valid, other=0).to(tl.int64)[:, None] * weight_row_stride
        of_target = tl.load(
            weight + target + column.to(tl.int64)[None, :] * weight_column_stride, mask=inside, other=0.0
        )
        acc += tl.load(own + row, mask=valid, other=0.0)[:, None] * of_target.to(tl.float32)
        acc = tl.where((row < tl.load(count))[:, None], acc, 0.0)
        tl.store(squares + block * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(acc * acc, 1), 0))
    else:
        tl.store(address, acc, mask=inside)


@triton.jit(do_not_specialize=["tiles", "row_blocks"])
def _weight_kernel(
    mass,
    order,
    count,
    factor,
    row_scale,
    left_out,
    hidden,  # (N, D) in the new order
    shared,  # (tiles, D) float32, written: what every row of a tile gets
    tiles,
    stride,
    hidden_size,
    row_blocks,
    uniform,
    COLUMNS_OF_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < hidden_size)[None, :]
    number = tl.load(count)
    acc = tl.zeros((TILES, COLUMNS), dtype=tl.float32)
    for part in range(tl.minimum(row_blocks, tl.cdiv(number, ROWS)) * (ROWS // DEPTH)):
        row = part * DEPTH + tl.arange(0, DEPTH)
        block = part // (ROWS // DEPTH)
        of_mass = _coefficients(
            mass, order, count, factor, row_scale, left_out, block, row, tile, tiles, stride, uniform, DEPTH
        )
        address = hidden + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
        rows = tl.load(address, mask=(row < number)[:, None] & inside, other=0.0)
        acc = tl.dot(tl.trans(of_mass), rows.to(tl.float32), acc, input_precision=PRECISION)
    address = shared + tile.to(tl.int64)[:, None] * hidden_size + column[None, :]
    tl.store(address, acc / COLUMNS_OF_TILE, mask=(tile < tiles)[:, None] & inside)


class MeanField:
    """Products of the mean field of tiles that are left out.

    Args:
        of: Masses, by token.
        head: Tiles of the head.
        row_scale: Factor of a token's uniform term ``(N,)``.
        uniform: Smoothing's share of a whole tile, b C / V.
        columns: C.
        dtype: Of the head. Half-precision calls take products of float32 on the tensor cores, in three parts.
    """

    def __init__(
        self, of: TokenTiles, head: HeadTiles, row_scale: Tensor, uniform: float, columns: int, dtype: torch.dtype
    ) -> None:
        self.of, self.head, self.row_scale, self.uniform, self.columns = of, head, row_scale, uniform, columns
        self.precision = "ieee" if dtype == torch.float32 else "tf32x3"

    def _shared(self, left_out: Tensor) -> dict[str, object]:
        return self.of.arguments() | {
            "mass": self.of.mass,
            "row_scale": self.row_scale,
            "left_out": left_out,
            "hidden_size": self.head.mean.shape[1],
            "uniform": self.uniform,
            "ROWS": self.of.rows,
            "PRECISION": self.precision,
        }

    def _columns(self) -> int:
        return 128 if self.of.mass.is_cuda else 16

    def add_input(self, left_out: Tensor, accumulator: Tensor) -> None:
        """Add to the input's gradient the mean field of tiles for which ``left_out`` ``(blocks, tiles)`` is not 0."""
        self._input(left_out, accumulator, None, self.head.mean, self.of.order, self.of.factor)

    def norm_with(self, left_out: Tensor, accumulator: Tensor, weight: Tensor, label: Tensor, own: Tensor) -> Tensor:
        """Norm that the accumulator would have with it, and with ``own`` times the target's row of the head."""
        width = blocks(accumulator.shape[1], self._columns())
        squares = accumulator.new_empty(self.of.blocks, width)
        self._input(left_out, accumulator, squares, weight, label, own)
        return squares.sum().sqrt()

    def _input(
        self,
        left_out: Tensor,
        accumulator: Tensor,
        squares: Tensor | None,
        weight: Tensor,
        label: Tensor,
        own: Tensor,
    ) -> None:
        columns = self._columns()
        run_kernel(
            _input_kernel,
            (self.of.blocks, blocks(accumulator.shape[1], columns)),
            **self._shared(left_out),
            mean=self.head.mean,
            accumulator=accumulator,
            squares=squares,
            weight=weight,
            label=label,
            own=own,
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            NORM=squares is not None,
            TILES=16,  # in parts of tf32, 32 take more shared memory than consumer cards have
            COLUMNS=columns,
            num_warps=8,
        )

    def of_weight(self, left_out: Tensor, hidden: Tensor) -> Tensor:
        """Row that the mean field adds to all of a tile's rows of the weight's gradient, ``(tiles, D)`` float32."""
        shared = torch.empty(self.of.tiles, hidden.shape[1], dtype=torch.float32, device=hidden.device)
        columns, tiles = self._columns(), 32 if hidden.is_cuda else 16
        run_kernel(
            _weight_kernel,
            (blocks(self.of.tiles, tiles), blocks(hidden.shape[1], columns)),
            **self._shared(left_out),
            hidden=hidden,
            shared=shared,
            row_blocks=self.of.blocks,
            COLUMNS_OF_TILE=self.columns,
            DEPTH=16,
            TILES=tiles,
            COLUMNS=columns,
            num_warps=4,
        )
        return shared
