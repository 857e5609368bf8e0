"""The head in tiles of rows: their means, and how long a combination of the rows less their mean can be."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks

__all__ = ["HeadTiles", "head_tiles"]

_ROUNDING = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


class HeadTiles(NamedTuple):
    """Whole tiles of the head."""

    mean: Tensor  # (tiles, D), dtype of the head
    sigma: Tensor  # (tiles,) that the largest singular value of the tile less its mean row does not exceed
    longest: Tensor  # (tiles,) norm of its longest row


@triton.jit
def _head_tile_kernel(
    weight,  # (V, D)
    mean,
    sigma,
    longest,
    hidden_size,
    weight_row_stride,
    weight_column_stride,
    rounding,
    TILE: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """With G the Gram matrix, its trace 1: its largest eigenvalue is at most the square root of the norm of G^2."""
    tile = tl.program_id(0)
    row = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    gram = tl.zeros((TILE, TILE), dtype=tl.float32)
    square = tl.zeros((TILE,), dtype=tl.float32)
    for start in range(0, hidden_size, BLOCK_HIDDEN):
        column = start + tl.arange(0, BLOCK_HIDDEN)
        inside = column < hidden_size
        address = weight + row[:, None] * weight_row_stride + column.to(tl.int64)[None, :] * weight_column_stride
        stored = tl.load(address, mask=inside[None, :], other=0.0)
        w = stored.to(tl.float32)
        own = tl.sum(w, 0) / TILE
        square += tl.sum(w * w, 1)
        tl.store(mean + tile.to(tl.int64) * hidden_size + column, own.to(mean.dtype.element_ty), mask=inside)
        centred = (w - own[None, :]).to(stored.dtype)
        gram = tl.dot(centred, tl.trans(centred), gram, input_precision=PRECISION)
    index = tl.arange(0, TILE)
    trace = tl.sum(tl.sum(tl.where(index[:, None] == index[None, :], gram, 0.0), 1), 0)
    gram = gram / tl.maximum(trace, 1e-30)
    norm = tl.sqrt(tl.sum(tl.sum(gram * gram, 1), 0))
    half = gram.to(weight.dtype.element_ty)
    twice = tl.dot(half, tl.trans(half), input_precision=PRECISION)
    largest = tl.sqrt(tl.sqrt(tl.sum(tl.sum(twice * twice, 1), 0))) + rounding * norm
    tl.store(sigma + tile, tl.sqrt(trace) * (tl.sqrt(largest) + rounding))
    tl.store(longest + tile, tl.sqrt(tl.max(square, 0)))


def head_tiles(weight: Tensor, rows: int) -> HeadTiles:
    """Look at every whole tile of ``rows`` rows, one program each.

    Halves are rounded twice on the way, the rows less their mean and their Gram matrix; sigma covers both.
    """
    tiles, hidden_size = weight.shape[0] // rows, weight.shape[1]
    sigma, longest = (torch.empty(tiles, dtype=torch.float32, device=weight.device) for _ in range(2))
    found = HeadTiles(weight.new_empty(tiles, hidden_size), sigma, longest)
    run_kernel(
        _head_tile_kernel,
        (tiles,),
        weight=weight,
        **found._asdict(),
        hidden_size=hidden_size,
        weight_row_stride=weight.stride(0),
        weight_column_stride=weight.stride(1),
        rounding=_ROUNDING[weight.dtype],
        TILE=rows,
        BLOCK_HIDDEN=min(64, max(16, blocks(hidden_size, 16) * 16)) if weight.is_cuda else 16,
        PRECISION="ieee",
        num_warps=16 if rows > 128 else 8,
        num_stages=2,
    )
    # What is below the rounding of the head's largest rows counts no more.
    return found._replace(sigma=sigma + 1e-7 * longest.amax() if tiles else sigma)
