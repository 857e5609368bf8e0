"""What a sparse backward needs of each token: its place in the new order, factors, length and what may be rounded."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Scalars
from .compile_ahead import run_kernel
from .gradient_rows import GradientRows, Upstream
from .launch import blocks

__all__ = ["SAFE", "SparseTokens", "reordered", "sparse_tokens"]

SAFE = tl.constexpr(1e-12), tl.constexpr(1e12)  # norms of rows at which float32 keeps the bounds
_LARGEST = SAFE[1]
# Of products of the mean field: each factor is two numbers of float16 (2^-22), whose product lacks that of the second
# ones (2^-22), and the rest of 2^-19 is for sums in float32. Of masses, by bits of the log-partition: 2^-23.
_PRODUCT, _MASS = tl.constexpr(2.0**-19), tl.constexpr(2.0**-23)
_ROWS = 32  # tokens of a program


class SparseTokens(NamedTuple):
    """Numbers of the tokens; 0 where there is none."""

    factor: Tensor  # (N,) of a token's softmax in dz
    own: Tensor  # (N,) of its target's row of the head, beside softmax and uniform term; 0 if the pilot has the target
    length: Tensor  # (N,) norm of its hidden states
    rounding: Tensor  # (N,) what float32 may round of its terms of the mean field
    tile: Tensor  # (N,) int32, the whole tile that holds its target; -1 where none does
    sums: Tensor  # (4, programs): longest, sum of rounding * length, of its square, tokens with unsafe lengths
    products: Tensor  # (programs,) longest product of hidden states and factor


@triton.jit(do_not_specialize=["n", "tiles", "first_tile"])
def _token_kernel(
    hidden,  # (N, D), contiguous
    count,  # (1,)
    lse,  # (N,) bits
    row_scale,  # (N,)
    mix,  # (3, N), if MIXED
    label,  # (N,)
    factor,  # written, as all that follow
    own,
    length,
    rounding,
    tile_of,
    sums,
    products,
    n,
    hidden_size,
    tiles,
    first_tile,  # behind the pilot
    own_share,  # b - 1
    MIXED: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < tl.load(count)
    square = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, hidden_size, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        address = hidden + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
        h = tl.load(address, mask=valid[:, None] & (column < hidden_size)[None, :], other=0.0).to(tl.float32)
        square += tl.sum(h * h, 1)
    long = tl.sqrt(square)
    scale = tl.load(row_scale + row, mask=valid, other=0.0)
    softmax = scale
    of_target = own_share * scale
    size = tl.abs(scale)
    if MIXED:
        third = tl.load(mix + 2 * n + row, mask=valid, other=0.0)
        softmax += tl.load(mix + row, mask=valid, other=0.0)
        of_target += third
        size += tl.abs(third)
    size += tl.abs(softmax)
    rounded = size * (tl.abs(tl.load(lse + row, mask=valid, other=0.0)) * _MASS + _PRODUCT)
    tile = tl.load(label + row, mask=valid, other=-1)
    tile = tl.where(tile >= 0, tile // TILE, -1)
    tile = tl.where(tile < tiles, tile, -1)
    written = row < n
    tl.store(factor + row, softmax, mask=written)
    tl.store(own + row, tl.where(tile >= first_tile, of_target, 0.0), mask=written)
    tl.store(length + row, long, mask=written)
    tl.store(rounding + row, rounded, mask=written)
    tl.store(tile_of + row, tile, mask=written)
    out = sums + tl.program_id(0)
    programs = tl.num_programs(0)
    tl.store(out, tl.max(long, 0))
    tl.store(out + programs, tl.sum(rounded * long, 0))
    tl.store(out + 2 * programs, tl.sum(rounded * rounded, 0))
    unsafe = tl.where(long < _LARGEST, 0.0, 1.0)  # also one that is no number, which a maximum passes over
    tl.store(out + 3 * programs, tl.sum(unsafe, 0))
    tl.store(products + tl.program_id(0), tl.max(tl.abs(softmax) * long, 0))


def sparse_tokens(
    hidden: Tensor, count: Tensor, lse: Tensor, of: GradientRows, scalars: Scalars, tile: int, tiles: int, pilot: int
) -> SparseTokens:
    """Compute them for the ``count`` tokens, in packed order."""
    n, hidden_size = hidden.shape
    programs = blocks(n, _ROWS)
    numbers = torch.empty(4, blocks(n, 4) * 4, dtype=torch.float32, device=hidden.device)[:, :n]
    factor, own, length, rounding = numbers.unbind(0)
    tile_of = torch.empty(n, dtype=torch.int32, device=hidden.device)
    sums, products = (torch.empty(*k, programs, dtype=torch.float32, device=hidden.device) for k in ((4,), ()))
    found = SparseTokens(factor, own, length, rounding, tile_of, sums, products)
    run_kernel(
        _token_kernel,
        (programs,),
        hidden=hidden,
        count=count,
        lse=lse,
        row_scale=of.row_scale,
        mix=of.mix,
        label=of.label,
        factor=factor,
        own=own,
        length=length,
        rounding=rounding,
        tile_of=tile_of,
        sums=sums,
        products=products,
        n=n,
        hidden_size=hidden_size,
        tiles=tiles,
        first_tile=pilot,
        own_share=scalars.label_smoothing - 1,
        MIXED=of.mix is not None,
        TILE=tile,
        ROWS=_ROWS,
        COLUMNS=128,
    )
    return found


@triton.jit(do_not_specialize=["n"])
def _reorder_kernel(
    order,  # (N,) int64, packed row that each new one comes from; those of tokens first
    count,  # (1,)
    lse,  # (N,)
    entropy,  # (N,), if ENTROPY
    source,  # (N,)
    order_out,  # written, as all that follow: int32
    lse_out,
    entropy_out,
    source_out,
    n,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    valid = row < tl.load(count)
    from_row = tl.load(order + row, mask=inside, other=0)
    tl.store(order_out + row, from_row.to(tl.int32), mask=inside)
    tl.store(lse_out + row, tl.load(lse + from_row, mask=valid, other=0.0), mask=inside)
    if ENTROPY:
        tl.store(entropy_out + row, tl.load(entropy + from_row, mask=valid, other=0.0), mask=inside)
    origin = tl.load(source + from_row, mask=inside, other=0)
    tl.store(source_out + row, origin, mask=inside)


def reordered(upstream: Upstream, order: Tensor) -> tuple[Upstream, Tensor]:
    """The same tokens in another packed order, and that order, in int32."""
    rows, n = upstream.rows, order.shape[0]
    entropy = None if upstream.entropy is None else torch.empty_like(upstream.entropy)
    moved = rows._replace(source=torch.empty_like(rows.source), position=None)
    lse, short = torch.empty_like(upstream.lse), torch.empty_like(rows.source)
    run_kernel(
        _reorder_kernel,
        (blocks(n, 1024),),
        order=order,
        count=rows.number,
        lse=upstream.lse,
        entropy=upstream.entropy,
        source=rows.source,
        order_out=short,
        lse_out=lse,
        entropy_out=entropy,
        source_out=moved.source,
        n=n,
        ENTROPY=entropy is not None,
        BLOCK=1024,
    )
    return upstream._replace(lse=lse, entropy=entropy, rows=moved), short
