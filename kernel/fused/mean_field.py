"""Kernels for the mean field of the tiles behind the pilot: both products of dz's mean over each of them.

With a the factor of a token's softmax and g that of smoothing's uniform term, the mean of dz over a tile of C columns
that does not hold the target is (a m - g b C / V) / C, exact but for the rounding of the masses m. Its products are a
C-th of the dense ones: with the mean rows of the head, and with the hidden states for a row that all of the tile share.
A tile that is computed enters with what dz has beyond the same number: the two add up to dz, whatever that number is.

They are as exact as float32 whatever the dtype of the head: tiles that are left out may cancel each other, so that the
rounding of their terms to half precision could exceed what is certified, and a factor with a z-loss may be large. Each
number is two of float16 (:mod:`.halves`), of which three products make one (:mod:`.sparse_tokens` says how exact): a
sixth of what tensor cores take for float32 in three parts. The uniform term is the same for all tiles, so that it takes
a sum of the mean rows and one of the hidden states.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .halves import MASS_SCALE, mean_halves, scale_of, scaled_halves
from .head_tiles import HeadTiles
from .launch import blocks, processors
from .sparse_tokens import SparseTokens
from .tile_sums import TokenTiles, load_tokens

__all__ = ["MeanField"]

_MASS_SCALE = tl.constexpr(MASS_SCALE)


class _FieldTile(NamedTuple):
    """Tile of both products: a step's four operands take 64 KiB with the larger ones, of which three fit Hopper."""

    rows: int
    columns: int
    depth: int
    warps: int


_HOPPER, _OTHERS, _INTERPRETER = _FieldTile(128, 128, 64, 8), _FieldTile(64, 64, 32, 4), _FieldTile(64, 64, 64, 1)


@triton.jit(do_not_specialize=["first_step"])
def _input_kernel(
    mass,  # (N, 2, stride) float16
    order,
    count,
    factor,
    row_scale,  # (N,)
    halves,  # (2, stride, D) float16, of the mean rows
    total,  # (D,) sum of the mean rows
    longest,  # (1,)
    accumulator,  # (blocks x ROWS, D) float32
    squares,  # (column blocks, blocks x ROWS), written
    weight,  # (V, D), the next two for the squares
    label,  # (N,)
    own,  # (N,) factor of the target's row of the head
    weight_row_stride,
    weight_column_stride,
    first_step,
    stride,
    hidden_size,
    tile_uniform,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the mean field to the accumulator, and take the squares of that and the target's row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < hidden_size)[None, :]
    valid, source, own_factor = load_tokens(order, count, factor, row)  # pyright: ignore[reportGeneralTypeIssues]
    of_row = mass + source[:, None] * (2 * stride)
    plane = stride.to(tl.int64) * hidden_size
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(first_step, stride // DEPTH):
        tile = step * DEPTH + tl.arange(0, DEPTH)  # a multiple, which Triton sees: memory is read in wide pieces
        own_mass = of_row + tile[None, :]
        own_rows = halves + tile.to(tl.int64)[:, None] * hidden_size + column[None, :]
        first = tl.load(own_mass, mask=valid[:, None], other=0.0)
        second = tl.load(own_mass + stride, mask=valid[:, None], other=0.0)
        first_rows = tl.load(own_rows, mask=inside, other=0.0)
        second_rows = tl.load(own_rows + plane, mask=inside, other=0.0)
        acc = tl.dot(first, second_rows, acc)
        acc = tl.dot(second, first_rows, acc)
        acc = tl.dot(first, first_rows, acc)
    of_uniform = tl.load(row_scale + row, mask=valid, other=0.0) * tile_uniform
    mean_total = tl.load(total + column, mask=column < hidden_size, other=0.0)
    acc *= (own_factor / (scale_of(tl.load(longest)) * _MASS_SCALE))[:, None]
    acc -= of_uniform[:, None] * mean_total[None, :]
    address = accumulator + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
    acc += tl.load(address, mask=inside, other=0.0)
    tl.store(address, acc, mask=inside)
    target = tl.load(label + row, mask=valid, other=0).to(tl.int64)[:, None] * weight_row_stride
    of_target = tl.load(weight + target + column.to(tl.int64)[None, :] * weight_column_stride, mask=inside, other=0.0)
    acc += tl.load(own + row, mask=valid, other=0.0)[:, None] * of_target.to(tl.float32)
    acc = tl.where(valid[:, None], acc, 0.0)
    tl.store(squares + tl.program_id(1) * tl.num_programs(0) * ROWS + row, tl.sum(acc * acc, 1))


@triton.jit(do_not_specialize=["n", "programs", "tiles", "first_block"])
def _weight_kernel(
    mass,  # (N, 2, stride) float16
    count,
    halves,  # (2, N, D) float16, of the hidden states times their factors, in packed order
    products,  # (programs,) whose largest says by what they were multiplied
    uniform,  # (D,) sum of the hidden states times row_scale
    shared,  # (pieces, tiles, D) float32, written behind the pilot: what every row of a tile gets
    n,
    programs,
    first_block,
    tiles,
    stride,
    hidden_size,
    tile_uniform,
    COLUMNS_OF_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = (first_block + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < hidden_size)[None, :]
    listed = (tile < stride)[None, :]
    piece = tl.program_id(2)
    kept = tl.load(count)
    steps = tl.cdiv(kept, DEPTH)
    plane = n.to(tl.int64) * hidden_size
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(piece * steps // tl.num_programs(2), (piece + 1) * steps // tl.num_programs(2)):
        row = step * DEPTH + tl.arange(0, DEPTH)
        valid = (row < kept)[:, None]
        own_mass = mass + row.to(tl.int64)[:, None] * (2 * stride) + tile[None, :]
        own_rows = halves + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
        first = tl.load(own_mass, mask=valid & listed, other=0.0)
        second = tl.load(own_mass + stride, mask=valid & listed, other=0.0)
        first_rows = tl.load(own_rows, mask=valid & inside, other=0.0)
        second_rows = tl.load(own_rows + plane, mask=valid & inside, other=0.0)
        acc = tl.dot(tl.trans(first), second_rows, acc)
        acc = tl.dot(tl.trans(second), first_rows, acc)
        acc = tl.dot(tl.trans(first), first_rows, acc)
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, programs, BLOCK):
        index = start + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(products + index, mask=index < programs, other=0.0))
    acc /= scale_of(tl.max(most, 0)) * _MASS_SCALE
    of_uniform = tl.load(uniform + column, mask=(column < hidden_size) & (piece == 0), other=0.0) * tile_uniform
    address = shared + (piece * tiles + tile).to(tl.int64)[:, None] * hidden_size + column[None, :]
    tl.store(address, (acc - of_uniform[None, :]) / COLUMNS_OF_TILE, mask=(tile < tiles)[:, None] & inside)


class MeanField:
    """Products of the mean field of the tiles behind the pilot.

    Args:
        of: Masses, by token.
        tokens: Numbers of each token.
        head: Tiles of the head.
        row_scale: Factor of a token's uniform term ``(N,)``.
        uniform: Smoothing's share of a whole tile, b C / V.
        columns: C.
        pilot: Tiles that have none.

    Attributes:
        shared: Row that the mean field adds to all of a tile's rows of the weight's gradient, ``(tiles, D)`` float32,
            written behind the pilot by :meth:`add_weight`.
    """

    def __init__(
        self,
        of: TokenTiles,
        tokens: SparseTokens,
        head: HeadTiles,
        row_scale: Tensor,
        uniform: float,
        columns: int,
        pilot: int,
    ) -> None:
        self.of, self.tokens, self.head, self.row_scale, self.uniform = of, tokens, head, row_scale, uniform
        self.columns, self.pilot = columns, pilot
        self.sizes = _INTERPRETER if not of.mass.is_cuda else _HOPPER if columns > 128 else _OTHERS
        self.shared: Tensor | None = None

    def arguments(self) -> dict[str, object]:
        """What a kernel is told that subtracts the mean field."""
        return self.of.arguments() | {"mass": self.of.mass, "row_scale": self.row_scale, "tile_uniform": self.uniform}

    def _shared(self, columns: int) -> dict[str, object]:
        """What both products are told."""
        return {
            "mass": self.of.mass,
            "count": self.of.count,
            "stride": self.of.spread.shape[1],
            "hidden_size": columns,
            "tile_uniform": self.uniform,
            "DEPTH": self.sizes.depth,
            "COLUMNS": self.sizes.columns,
            "num_warps": self.sizes.warps,
            "num_stages": 3,
        }

    def add_input(self, accumulator: Tensor, weight: Tensor, label: Tensor, own: Tensor) -> Tensor:
        """Add to the input's gradient the mean field of all tiles; return norms of what is there then ``(N,)``.

        Of the norms alone, ``own`` times the target's row of the head is a part, too.
        """
        rows, hidden_size = min(self.of.rows, self.sizes.rows), accumulator.shape[1]
        width, stride = blocks(hidden_size, self.sizes.columns), self.of.spread.shape[1]
        squares = accumulator.new_empty(width, self.of.blocks * self.of.rows)
        run_kernel(
            _input_kernel,
            (self.of.blocks * self.of.rows // rows, width),
            **self._shared(hidden_size),
            order=self.of.order,
            factor=self.of.factor,
            row_scale=self.row_scale,
            halves=mean_halves(self.head.mean, self.head.longest, self.pilot, stride),
            total=self.head.mean[self.pilot :].sum(0),
            longest=self.head.longest,
            accumulator=accumulator,
            squares=squares,
            weight=weight,
            label=label,
            own=own,
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            first_step=self.pilot // self.sizes.depth,  # the pilot in it has no mean rows
            ROWS=rows,
        )
        return squares.sum(0).sqrt()[: self.of.order.shape[0]]

    def add_weight(self, hidden: Tensor, memory: Tensor | None = None) -> None:
        """Make what every row of a tile gets of the mean field, ``shared``; in ``memory``, flat, if that is enough."""
        n, hidden_size = hidden.shape
        products, of = self.tokens.products, self.of
        halves, uniform = scaled_halves(hidden, of.order, of.count, of.factor, self.row_scale, products, memory)
        rows = self.sizes.rows
        begin = self.pilot // rows  # what it makes of the pilot is not read
        grid = blocks(self.of.tiles, rows) - begin, blocks(hidden_size, self.sizes.columns)
        pieces = max(processors(hidden.device) // (grid[0] * grid[1]), 1)
        sums = torch.empty(pieces, self.of.tiles, hidden_size, dtype=torch.float32, device=hidden.device)
        run_kernel(
            _weight_kernel,
            (*grid, pieces),
            **self._shared(hidden_size),
            products=products,
            n=n,
            programs=products.shape[0],
            BLOCK=1024,
            halves=halves,
            uniform=uniform,
            shared=sums,
            first_block=begin,
            tiles=self.of.tiles,
            COLUMNS_OF_TILE=self.columns,
            ROWS=rows,
        )
        self.shared = sums.sum(0) if pieces > 1 else sums[0]
