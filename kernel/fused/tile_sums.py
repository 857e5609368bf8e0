"""What a tile of the vocabulary carries of each token's probability, known once the forward has ended.

With m the mass of a tile, the sum of its probabilities p, the softmax differs there from its mean field m / C, of C
columns, by a residual of norm::

    |r| = sqrt(sum p^2 - m^2 / C)

The forward writes log-sum-exp and sum p^2 / m^2 of every tile and token (``TILE_SUMS`` in :mod:`.forward`); with the
token's log-partition they become m and an upper bound of the norm that covers the rounding of both sums. What follows
from them for the errors of the gradients is in :mod:`.tile_errors`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Head
from .compile_ahead import run_kernel
from .launch import blocks, launch_table

__all__ = ["SparseTiles", "TokenTiles", "finish_tile_sums", "load_sizes", "load_tokens", "new_tile_sums"]

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


class SparseTiles(NamedTuple):
    """What the forward leaves for a sparse backward."""

    sums: Tensor  # (2, N, tiles or more), finished
    wide: Tensor  # (N,) int32

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
        return cls(sums, finish_tile_sums(sums, lse, count, tiles, columns, tolerance / max(tiles, 1)))


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
def load_tokens(order, count, factor, row):
    """Of tokens ``row``: whether there is one, its row in packed order and its factor, loaded once for many tiles."""
    valid = row < tl.load(count)
    source = tl.load(order + row, mask=valid, other=0).to(tl.int64)
    return valid, source, tl.load(factor + row, mask=valid, other=0.0)


@triton.jit
def load_sizes(values, valid, source, own_factor, tile, tiles, stride):
    """``factor * values`` of tokens and tiles ``tile``, 0 where there is none."""
    mask = valid[:, None] & (tile < tiles)[None, :]
    found = tl.load(values + source[:, None] * stride + tile[None, :], mask=mask, other=0.0)
    return found * own_factor[:, None]
