"""What a tile of the vocabulary carries of each token's probability, known once the forward has ended.

With m the mass of a tile, the sum of its probabilities p, the softmax differs there from its mean field m / C, of C
columns, by a residual of norm::

    |r| = sqrt(sum p^2 - m^2 / C)

The forward writes log-sum-exp and sum p^2 / m^2 of every tile and token (``TILE_SUMS`` in :mod:`.forward`); with the
token's log-partition they become m and an upper bound of the norm that covers the rounding of both sums. What follows
from them for the errors of the gradients is in :mod:`.tile_errors`.

From the forward on, as long as the loss lives, they take six bytes. A mass is two numbers of float16, the second what
the first has rounded off, as tensor cores multiply them: 22 bits, and 2^-40 where it is next to nothing. A norm is
rounded up to bfloat16, so that it remains a bound.

A token's reach is the number of tiles up to the last from which on its residuals sum to more than a part of the
tolerance. In a vocabulary sorted by frequency it needs about as many; tokens of like reach make good blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Head
from .compile_ahead import run_kernel
from .halves import MASS_SCALE, in_two
from .launch import blocks, launch_table
from .tiles import out_of_one

__all__ = [
    "SparseTiles",
    "TokenTiles",
    "finish_tile_sums",
    "load_mass",
    "load_spreads",
    "load_tokens",
    "new_tile_sums",
]

_MASS_SCALE = tl.constexpr(MASS_SCALE)

_SLACK = tl.constexpr(4e-6)  # of sum p^2 / m^2: rounding of two sums of 256 numbers in float32
_FLOOR = tl.constexpr(1e-18)  # of a residual: squares below 2^-126 count as 0
# Of the tolerance: what a token's residuals behind its reach sum to at most. Any part makes an order of tokens, whose
# blocks leave out more tiles or fewer; no bound depends on it.
_REST = 0.2
_ALIGNED = 64  # tiles that a product takes at once: whole ones, so that it reads memory in wide pieces


def new_tile_sums(n: int, tiles: int, device: torch.device) -> Tensor:
    """Memory ``(n, tiles or more)`` that the forward writes: two numbers in one."""
    return torch.empty(n, blocks(tiles, 16) * 16, dtype=torch.int64, device=device)


@triton.jit
def _rounded_up(x):
    """The upper half of the least bfloat16 that is not below x >= 0; of infinity where it is no finite number."""
    bits = x.to(tl.int32, bitcast=True) + 0xFFFF
    return (tl.where(x < 1e38, bits, 0x7F800000) >> 16).to(tl.int16)


@triton.jit(do_not_specialize=["n", "tiles", "rest"])
def _finish_kernel(
    sums,  # (N, from_stride) int64: log-sum-exp in bits and sum p^2 / m^2
    lse,  # (N,) packed, bits
    count,  # (1,)
    mass,  # (N, 2, stride) float16, written: m, 0 behind the last tile
    spread,  # (N, stride) int16, written: |r|
    reach,  # (N,) int16, written: tiles up to the last from which on |r| sum to more than rest; very many if no token
    n,
    tiles,
    from_stride,
    stride,
    rest,
    COLUMNS_OF_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < tl.load(count)
    bits = tl.load(lse + row, mask=valid, other=0.0)[:, None]
    found = tl.zeros((ROWS,), dtype=tl.int32)
    behind = tl.zeros((ROWS,), dtype=tl.float32)
    long_row = row.to(tl.int64)[:, None]
    steps = tl.cdiv(stride, TILES)
    for step in range(steps):  # from the last tiles to the first
        tile = (steps - 1 - step) * TILES + tl.arange(0, TILES)
        mask = valid[:, None] & (tile < tiles)[None, :]
        address = sums + long_row * from_stride + tile[None, :]
        own, square = out_of_one(tl.load(address, mask=mask, other=0))  # pyright: ignore[reportGeneralTypeIssues]
        own = tl.where(mask, tl.exp2(own - bits), 0.0)
        size = own * tl.sqrt(tl.maximum(square - 1.0 / COLUMNS_OF_TILE, 0.0) + _SLACK * square) + _FLOOR
        written = (row < n)[:, None] & (tile < stride)[None, :]
        first, second = in_two(own * _MASS_SCALE)  # pyright: ignore[reportGeneralTypeIssues]
        tl.store(mass + long_row * (2 * stride) + tile[None, :], first, mask=written)
        tl.store(mass + long_row * (2 * stride) + stride + tile[None, :], second, mask=written)
        tl.store(spread + long_row * stride + tile[None, :], _rounded_up(size), mask=written)
        size = tl.where(mask, size, 0.0)
        behind += tl.sum(size, 1)
        from_here = behind[:, None] - (tl.cumsum(size, 1) - size)
        found += tl.sum((mask & (from_here > rest)).to(tl.int32), 1)
    found = tl.minimum(found, 32766)  # of two bytes a key is sorted in half the passes
    tl.store(reach + row, tl.where(valid, found, 32767).to(tl.int16), mask=row < n)


def finish_tile_sums(sums: Tensor, lse: Tensor, count: Tensor, tiles: int, columns: int, rest: float) -> SparseTiles:
    """Make masses and norms of what the forward wrote, and each token's reach, behind which they sum to ``rest``."""
    n, stride = sums.shape[0], blocks(tiles, _ALIGNED) * _ALIGNED
    found = SparseTiles(
        torch.empty(n, 2, stride, dtype=torch.float16, device=sums.device),
        torch.empty(n, stride, dtype=torch.int16, device=sums.device),
        torch.empty(n, dtype=torch.int16, device=sums.device),
    )
    run_kernel(
        _finish_kernel,
        (blocks(n, 8),),
        sums=sums,
        lse=lse,
        count=count,
        mass=found.mass,
        spread=found.spread,
        reach=found.reach,
        n=n,
        tiles=tiles,
        from_stride=sums.shape[1],
        stride=stride,
        rest=rest,
        COLUMNS_OF_TILE=columns,
        ROWS=8,
        TILES=128,
    )
    return found


class SparseTiles(NamedTuple):
    """What the forward leaves for a sparse backward, in packed order."""

    mass: Tensor  # (N, 2, tiles or more) float16, MASS_SCALE times the mass
    spread: Tensor  # (N, tiles or more) int16, the upper half of float32
    reach: Tensor  # (N,) int16, tiles behind which its residuals are small together; the most there can be of no token

    @classmethod
    def memory(cls, head: Head) -> Tensor:
        """Memory that the forward writes."""
        hidden, weight, _, _ = head
        columns = launch_table(hidden.device, hidden.dtype).logit_gradient.columns
        return new_tile_sums(hidden.shape[0], blocks(weight.shape[0], columns), hidden.device)

    @classmethod
    def finish(cls, sums: Tensor, head: Head, lse: Tensor, count: Tensor, tolerance: float) -> SparseTiles:
        """Make masses and spreads of it."""
        columns = launch_table(head.hidden.device, head.hidden.dtype).logit_gradient.columns
        tiles = head.weight.shape[0] // columns
        return finish_tile_sums(sums, lse, count, tiles, columns, _REST * tolerance)


class TokenTiles:
    """Masses and spreads of tiles, by token in a new order.

    Args:
        found: Of the forward.
        order: Packed row that each row of the new order comes from ``(N,)``, int32.
        count: Kept tokens ``(1,)``, int32.
        factor: Of a token's softmax in dz ``(N,)``, in the new order.
        tiles: Whole tiles.
        rows: Tokens of a block.
    """

    def __init__(self, found: SparseTiles, order: Tensor, count: Tensor, factor: Tensor, tiles: int, rows: int) -> None:
        self.mass, self.spread = found.mass, found.spread
        self.order, self.count, self.factor, self.tiles, self.rows = order, count, factor, tiles, rows
        self.blocks = blocks(order.shape[0], rows)

    def arguments(self) -> dict[str, object]:
        """What every kernel that reads them is told."""
        return {
            "order": self.order,
            "count": self.count,
            "factor": self.factor,
            "tiles": self.tiles,
            "stride": self.spread.shape[1],
        }


@triton.jit
def load_tokens(order, count, factor, row):
    """Of tokens ``row``: whether there is one, its row in packed order and its factor, loaded once for many tiles."""
    valid = row < tl.load(count)
    source = tl.load(order + row, mask=valid, other=0).to(tl.int64)
    return valid, source, tl.load(factor + row, mask=valid, other=0.0)


@triton.jit
def load_spreads(spread, valid, source, tile, tiles, stride):
    """|r| of tokens and tiles ``tile``, 0 where there is none."""
    mask = valid[:, None] & (tile < stride)[None, :]  # which leaves wide reads, as the number of tiles would not
    found = tl.load(spread + source[:, None] * stride + tile[None, :], mask=mask, other=0).to(tl.int32) << 16
    return tl.where((tile < tiles)[None, :], found.to(tl.float32, bitcast=True), 0.0)


@triton.jit
def load_mass(mass, valid, source, tile, stride):
    """The mass of tokens in one tile."""
    address = mass + source * (2 * stride) + tile
    first = tl.load(address, mask=valid, other=0.0).to(tl.float32)
    return (first + tl.load(address + stride, mask=valid, other=0.0).to(tl.float32)) * (1.0 / _MASS_SCALE)
