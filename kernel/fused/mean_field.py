"""Kernels for the mean field of the tiles behind the pilot: both products of dz's mean over each of them.

With a the factor of a token's softmax and g that of smoothing's uniform term, the mean of dz over a tile of C columns
that does not hold the target is (a m - g b C / V) / C, exact but for the rounding of the masses m. Its products are a
C-th of the dense ones: with the mean rows of the head, and with the hidden states for a row that all of the tile share.
A tile that is computed enters with what dz has beyond the same number: the two add up to dz, whatever that number is.

They are taken to float32's accuracy whatever the dtype of the head. Tiles that are left out may cancel each other, so
that the rounding of their terms to half precision could exceed what is certified, and a factor with a z-loss may be
large. Hidden states of bfloat16 are exact as they are: the coefficients enter as three such numbers, which takes half
the instructions of the tensor cores that float32 in three parts takes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .head_tiles import HeadTiles
from .launch import blocks, processors
from .tile_sums import TokenTiles, load_sizes, load_tokens

__all__ = ["MeanField"]

# Rows of a program's product. Hopper's instructions for more, 64, want float32 from shared memory, transposed: that
# made these products two to four times as slow.
_FEW = 32


@triton.jit(do_not_specialize=["tiles", "first_tile"])
def _input_kernel(
    mass,
    order,
    count,
    factor,
    row_scale,  # (N,)
    mean,  # (tiles, D) float32
    accumulator,  # (blocks x ROWS, D) float32
    squares,  # (column blocks, blocks x ROWS), written
    weight,  # (V, D), the next two for the squares
    label,  # (N,)
    own,  # (N,) factor of the target's row of the head
    weight_row_stride,
    weight_column_stride,
    first_tile,
    tiles,
    stride,
    hidden_size,
    tile_uniform,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the mean field to the accumulator, and take the squares of that and the target's row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < hidden_size)[None, :]
    valid, source, own_factor = load_tokens(order, count, factor, row)  # pyright: ignore[reportGeneralTypeIssues]
    of_uniform = tl.load(row_scale + row, mask=valid, other=0.0) * tile_uniform
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(first_tile, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        coefficient = load_sizes(mass, valid, source, own_factor, tile, tiles, stride) - of_uniform[:, None]
        address = mean + tile.to(tl.int64)[:, None] * hidden_size + column[None, :]
        rows = tl.load(address, mask=(tile < tiles)[:, None] & inside, other=0.0)  # 0 behind the last tile
        acc = tl.dot(coefficient, rows, acc, input_precision=PRECISION)
    address = accumulator + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
    acc += tl.load(address, mask=inside, other=0.0)
    tl.store(address, acc, mask=inside)
    target = tl.load(label + row, mask=valid, other=0).to(tl.int64)[:, None] * weight_row_stride
    of_target = tl.load(weight + target + column.to(tl.int64)[None, :] * weight_column_stride, mask=inside, other=0.0)
    acc += tl.load(own + row, mask=valid, other=0.0)[:, None] * of_target.to(tl.float32)
    acc = tl.where(valid[:, None], acc, 0.0)
    tl.store(squares + tl.program_id(1) * tl.num_programs(0) * ROWS + row, tl.sum(acc * acc, 1))


@triton.jit
def _in_three(x):
    """Three of bfloat16 whose sum is x but for 2^-24 of it."""
    first = x.to(tl.bfloat16)
    rest = x - first.to(tl.float32)
    second = rest.to(tl.bfloat16)
    return first, second, (rest - second.to(tl.float32)).to(tl.bfloat16)


@triton.jit(do_not_specialize=["tiles", "first_tile"])
def _weight_kernel(
    mass,
    order,
    count,
    factor,
    row_scale,
    hidden,  # (N, D) in the new order
    shared,  # (pieces, tiles, D) float32, written behind the pilot: what every row of a tile gets
    first_tile,
    tiles,
    stride,
    hidden_size,
    tile_uniform,
    COLUMNS_OF_TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = first_tile + tl.program_id(0) * TILES + tl.arange(0, TILES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < hidden_size)[None, :]
    piece = tl.program_id(2)
    steps = tl.cdiv(tl.load(count), DEPTH)
    acc = tl.zeros((TILES, COLUMNS), dtype=tl.float32)
    for step in range(piece * steps // tl.num_programs(2), (piece + 1) * steps // tl.num_programs(2)):
        row = step * DEPTH + tl.arange(0, DEPTH)
        valid, source, own_factor = load_tokens(order, count, factor, row)  # pyright: ignore[reportGeneralTypeIssues]
        of_uniform = tl.load(row_scale + row, mask=valid, other=0.0) * tile_uniform
        coefficient = load_sizes(mass, valid, source, own_factor, tile, tiles, stride) - of_uniform[:, None]
        address = hidden + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
        rows = tl.load(address, mask=valid[:, None] & inside, other=0.0)
        if rows.dtype == tl.bfloat16:  # its values are exact: only the coefficients take several numbers of as few bits
            first, second, third = _in_three(tl.trans(coefficient))  # pyright: ignore[reportGeneralTypeIssues]
            acc = tl.dot(third, rows, acc)
            acc = tl.dot(second, rows, acc)
            acc = tl.dot(first, rows, acc)
        else:
            acc = tl.dot(tl.trans(coefficient), rows.to(tl.float32), acc, input_precision=PRECISION)
    address = shared + (piece * tiles + tile).to(tl.int64)[:, None] * hidden_size + column[None, :]
    tl.store(address, acc / COLUMNS_OF_TILE, mask=(tile < tiles)[:, None] & inside)


class MeanField:
    """Products of the mean field of the tiles behind the pilot.

    Args:
        of: Masses, by token.
        head: Tiles of the head.
        row_scale: Factor of a token's uniform term ``(N,)``.
        uniform: Smoothing's share of a whole tile, b C / V.
        columns: C.
        pilot: Tiles that have none.
        dtype: Of the head. Half-precision calls take products of float32 on the tensor cores, in three parts.

    Attributes:
        shared: Row that the mean field adds to all of a tile's rows of the weight's gradient, ``(tiles, D)`` float32,
            written behind the pilot by :meth:`add_weight`.
    """

    def __init__(
        self,
        of: TokenTiles,
        head: HeadTiles,
        row_scale: Tensor,
        uniform: float,
        columns: int,
        pilot: int,
        dtype: torch.dtype,
    ) -> None:
        self.of, self.head, self.row_scale, self.uniform, self.columns = of, head, row_scale, uniform, columns
        self.pilot, self.precision = pilot, "ieee" if dtype == torch.float32 else "tf32x3"
        self.shared: Tensor | None = None

    def arguments(self) -> dict[str, object]:
        """What a kernel is told that subtracts the mean field."""
        return self.of.arguments() | {"mass": self.of.mass, "row_scale": self.row_scale, "tile_uniform": self.uniform}

    def _shared(self) -> dict[str, object]:
        return self.arguments() | {
            "first_tile": self.pilot,
            "hidden_size": self.head.mean.shape[1],
            "PRECISION": self.precision,
        }

    def _columns(self) -> int:
        return 128 if self.of.mass.is_cuda else 16

    def add_input(self, accumulator: Tensor, weight: Tensor, label: Tensor, own: Tensor) -> Tensor:
        """Add to the input's gradient the mean field of all tiles; return norms of what is there then ``(N,)``.

        Of the norms alone, ``own`` times the target's row of the head is a part, too.
        """
        columns, rows = self._columns(), min(self.of.rows, _FEW)
        width = blocks(accumulator.shape[1], columns)
        squares = accumulator.new_empty(width, self.of.blocks * self.of.rows)
        run_kernel(
            _input_kernel,
            (self.of.blocks * self.of.rows // rows, width),
            **self._shared(),
            mean=self.head.mean,
            accumulator=accumulator,
            squares=squares,
            weight=weight,
            label=label,
            own=own,
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            ROWS=rows,
            TILES=16,
            COLUMNS=columns,
            num_warps=4,
        )
        return squares.sum(0).sqrt()[: self.of.order.shape[0]]

    def add_weight(self, hidden: Tensor) -> None:
        """Make what every row of a tile gets of the mean field, ``shared``."""
        columns, tiles = self._columns(), _FEW if hidden.is_cuda else 16
        grid = blocks(self.of.tiles - self.pilot, tiles), blocks(hidden.shape[1], columns)
        pieces = blocks(5 * processors(hidden.device), grid[0] * grid[1])
        sums = torch.empty(pieces, self.of.tiles, hidden.shape[1], dtype=torch.float32, device=hidden.device)
        run_kernel(
            _weight_kernel,
            (*grid, pieces),
            **self._shared(),
            hidden=hidden,
            shared=sums,
            COLUMNS_OF_TILE=self.columns,
            DEPTH=16 if not hidden.is_cuda else 64 if hidden.dtype == torch.bfloat16 else 32,
            TILES=tiles,
            COLUMNS=columns,
            num_warps=4,
        )
        self.shared = sums.sum(0)
