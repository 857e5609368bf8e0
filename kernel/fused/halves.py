"""Numbers as two of float16, whose products on the tensor cores are as exact as those of float32.

The second is what the first has rounded off: 22 bits together. Of three products of two such numbers, without that of
both second ones, the sum lacks 2^-22 of it. A power of two brings the largest numbers to the upper end of float16, so
that what is lost to its least ones, 2^-25, is next to nothing beside them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks

__all__ = ["HIDDEN_UNDERFLOW", "MASS_SCALE", "in_two", "mean_halves", "scale_of", "scaled_halves"]

MASS_SCALE = 2.0**15  # that a mass is multiplied by: float16 ends at 65504
HIDDEN_UNDERFLOW = 2.0**-39  # the largest number is made 2^14 to 2^15, and float16 rounds to 2^-25 at least


@triton.jit
def in_two(x):
    """Two of float16 whose sum is x but for 2^-22 of it, or 2^-25."""
    first = x.to(tl.float16)
    return first, (x - first.to(tl.float32)).to(tl.float16)


@triton.jit
def scale_of(longest):
    """The power of two that makes it 2^14 to 2^15."""
    return tl.exp2(15.0 - tl.ceil(tl.log2(tl.maximum(longest, 1e-30))))


@triton.jit(do_not_specialize=["tiles", "first_tile"])
def _split_kernel(
    mean,  # (tiles, D) float32
    longest,  # (1,) norm of the head's longest row
    halves,  # (2, stride, D) float16, written: 0 before first_tile and behind the last one
    first_tile,
    tiles,
    stride,
    hidden_size,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < hidden_size)[None, :]
    address = tile.to(tl.int64)[:, None] * hidden_size + column[None, :]
    listed = ((tile >= first_tile) & (tile < tiles))[:, None]
    rows = tl.load(mean + address, mask=listed & inside, other=0.0) * scale_of(tl.load(longest))
    first, second = in_two(rows)  # pyright: ignore[reportGeneralTypeIssues]
    written = (tile < stride)[:, None] & inside
    tl.store(halves + address, first, mask=written)
    tl.store(halves + stride.to(tl.int64) * hidden_size + address, second, mask=written)


def mean_halves(mean: Tensor, longest: Tensor, first_tile: int, stride: int) -> Tensor:
    """Two float16 numbers of the tiles' mean rows ``(2, stride, D)``, 0 before the first tile and behind the last.

    Args:
        mean: ``(tiles, D)`` float32.
        longest: Norm of the head's longest row ``(1,)``, by which they are scaled (``scale_of``).
        first_tile: Of those that count.
        stride: Tiles or more.
    """
    tiles, hidden_size = mean.shape
    halves = torch.empty(2, stride, hidden_size, dtype=torch.float16, device=mean.device)
    run_kernel(
        _split_kernel,
        (blocks(stride, 16), blocks(hidden_size, 128)),
        mean=mean,
        longest=longest,
        halves=halves,
        first_tile=first_tile,
        tiles=tiles,
        stride=stride,
        hidden_size=hidden_size,
        TILES=16,
        COLUMNS=128,
    )
    return halves


@triton.jit(do_not_specialize=["n", "programs"])
def _scaled_kernel(
    hidden,  # (N, D) in the new order
    order,  # (N,)
    count,  # (1,)
    factor,  # (N,)
    row_scale,  # (N,)
    products,  # (programs,) whose largest is the longest product of a token's factor and hidden states
    halves,  # (2, N, D) float16, written: those products, in packed order
    uniform,  # (programs of this launch, D) float32, written: sums of the hidden states times row_scale
    n,
    programs,
    hidden_size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid, inside = row < tl.load(count), (column < hidden_size)[None, :]
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, programs, BLOCK):
        index = start + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(products + index, mask=index < programs, other=0.0))
    scale = tl.load(factor + row, mask=valid, other=0.0) * scale_of(tl.max(most, 0))
    address = row.to(tl.int64)[:, None] * hidden_size + column[None, :]
    h = tl.load(hidden + address, mask=valid[:, None] & inside, other=0.0).to(tl.float32)
    first, second = in_two(h * scale[:, None])  # pyright: ignore[reportGeneralTypeIssues]
    written = (row < n)[:, None] & inside
    packed = tl.load(order + row, mask=row < n, other=0).to(tl.int64)
    address = packed[:, None] * hidden_size + column[None, :]
    tl.store(halves + address, first, mask=written)
    tl.store(halves + n.to(tl.int64) * hidden_size + address, second, mask=written)
    of_uniform = tl.sum(h * tl.load(row_scale + row, mask=valid, other=0.0)[:, None], 0)
    tl.store(uniform + tl.program_id(0).to(tl.int64) * hidden_size + column, of_uniform, mask=column < hidden_size)


def scaled_halves(
    hidden: Tensor,
    order: Tensor,
    count: Tensor,
    factor: Tensor,
    row_scale: Tensor,
    products: Tensor,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Two float16 numbers of each token's factor times its hidden states, and a sum of those times ``row_scale``.

    Args:
        hidden: ``(N, D)`` in the new order.
        order: Packed row of each ``(N,)``.
        count: Tokens ``(1,)``.
        factor: ``(N,)``.
        row_scale: ``(N,)``.
        products: Norms ``(programs,)``, of which the largest is that of the longest product: the scale.
        memory: Where the numbers go if it has room for them, flat; else to new memory.

    Returns:
        ``(2, N, D)`` in packed order, 0 where there is no token, and ``(D,)`` float32.
    """
    n, hidden_size = hidden.shape
    memory = hidden.new_empty(0) if memory is None else memory
    halves = memory.view(torch.float16)[: 2 * n * hidden_size]
    if halves.numel() < 2 * n * hidden_size:
        halves = torch.empty(2 * n * hidden_size, dtype=torch.float16, device=hidden.device)
    halves = halves.view(2, n, hidden_size)
    uniform = torch.empty(blocks(n, 32), hidden_size, dtype=torch.float32, device=hidden.device)
    run_kernel(
        _scaled_kernel,
        (blocks(n, 32), blocks(hidden_size, 128)),
        hidden=hidden,
        order=order,
        count=count,
        factor=factor,
        row_scale=row_scale,
        products=products,
        halves=halves,
        uniform=uniform,
        n=n,
        programs=products.shape[0],
        hidden_size=hidden_size,
        ROWS=32,
        COLUMNS=128,
        BLOCK=1024,
    )
    return halves, uniform.sum(0)
