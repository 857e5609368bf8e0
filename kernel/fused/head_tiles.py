"""The head in tiles of rows: their means, and how long a combination of the rows less their mean can be."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel

__all__ = ["HeadTiles", "head_tiles"]

_AT_A_TIME = 256  # tiles whose Gram matrices are held
_ROUNDING = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


class HeadTiles(NamedTuple):
    """Whole tiles of the head."""

    mean: Tensor  # (tiles, D) float32
    sigma: Tensor  # (tiles,) that the largest singular value of the tile less its mean row does not exceed
    longest: Tensor  # (1,) norm of the longest row of all, inf where one is no number


@triton.jit
def _mean_kernel(
    weight,  # (V, D)
    mean,
    trace,
    longest,
    hidden_size,
    weight_row_stride,
    weight_column_stride,
    TILE: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    tile = tl.program_id(0)
    row = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    square = tl.zeros((TILE,), dtype=tl.float32)
    centred = tl.zeros((TILE,), dtype=tl.float32)
    for start in range(0, hidden_size, BLOCK_HIDDEN):
        column = start + tl.arange(0, BLOCK_HIDDEN)
        inside = column < hidden_size
        address = weight + row[:, None] * weight_row_stride + column.to(tl.int64)[None, :] * weight_column_stride
        w = tl.load(address, mask=inside[None, :], other=0.0).to(tl.float32)
        own = tl.sum(w, 0) / TILE
        tl.store(mean + tile.to(tl.int64) * hidden_size + column, own, mask=inside)
        square += tl.sum(w * w, 1)
        w -= own[None, :]
        centred += tl.sum(w * w, 1)
    tl.store(trace + tile, tl.sum(centred, 0))
    tl.store(longest + tile, tl.sqrt(tl.max(square, 0)))


@triton.jit(do_not_specialize=["first"])
def _gram_kernel(
    weight,
    mean,
    trace,
    gram,  # (tiles of this launch, TILE, TILE) dtype of the head, written
    first,  # tile of this launch
    hidden_size,
    weight_row_stride,
    weight_column_stride,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of the rows less their mean, divided by their trace."""
    tile = first + tl.program_id(0)
    own_row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    other_row = tl.arange(0, TILE)
    start_row = (tile * TILE).to(tl.int64)
    # Times a power of two that makes the trace 1 to 4: float16 would flush the differences of small rows to zero.
    squares = tl.maximum(tl.load(trace + tile), 1e-30)
    scale = tl.exp2(-tl.floor(tl.log2(squares) / 2))
    acc = tl.zeros((ROWS, TILE), dtype=tl.float32)
    for start in range(0, hidden_size, BLOCK_HIDDEN):
        column = start + tl.arange(0, BLOCK_HIDDEN)
        inside = (column < hidden_size)[None, :]
        offset = column.to(tl.int64)[None, :] * weight_column_stride
        rows = tl.load(weight + (start_row + other_row)[:, None] * weight_row_stride + offset, mask=inside, other=0.0)
        part = tl.load(weight + (start_row + own_row)[:, None] * weight_row_stride + offset, mask=inside, other=0.0)
        own = tl.load(mean + tile.to(tl.int64) * hidden_size + column, mask=column < hidden_size, other=0.0)
        rows = ((rows.to(tl.float32) - own[None, :]) * scale).to(weight.dtype.element_ty)
        part = ((part.to(tl.float32) - own[None, :]) * scale).to(weight.dtype.element_ty)
        acc = tl.dot(part, tl.trans(rows), acc, input_precision=PRECISION)
    acc = acc / (squares * scale * scale)
    address = gram + (tl.program_id(0) * TILE + own_row).to(tl.int64)[:, None] * TILE + other_row[None, :]
    tl.store(address, acc.to(gram.dtype.element_ty))


@triton.jit(do_not_specialize=["first"])
def _square_kernel(
    gram,
    squares,  # (tiles, TILE // ROWS, 2), written: of the entries of G and of G^2
    first,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    own_row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)
    start = gram + tl.program_id(0).to(tl.int64) * TILE * TILE
    acc = tl.zeros((ROWS, TILE), dtype=tl.float32)
    norm = tl.zeros((ROWS,), dtype=tl.float32)
    for k in range(0, TILE, DEPTH):
        inner = k + tl.arange(0, DEPTH)
        a = tl.load(start + own_row[:, None] * TILE + inner[None, :])
        b = tl.load(start + inner[:, None] * TILE + column[None, :])
        norm += tl.sum(a.to(tl.float32) * a.to(tl.float32), 1)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    out = squares + ((first + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(out, tl.sum(norm, 0))
    tl.store(out + 1, tl.sum(tl.sum(acc * acc, 1), 0))


@triton.jit(do_not_specialize=["tiles"])
def _sigma_kernel(
    squares,  # (tiles, PARTS, 2)
    trace,
    longest,
    sigma,  # (tiles,), written
    longest_of_all,  # (1,), written
    tiles,
    rounding,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What :func:`head_tiles` says of sigma; one program."""
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        length = tl.load(longest + tile, mask=tile < tiles, other=0.0)
        most = tl.maximum(most, tl.where(length < float("inf"), length, float("inf")))
    of_all = tl.max(most, 0)
    tl.store(longest_of_all, of_all)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        mask = tile < tiles
        of_gram = tl.zeros((BLOCK,), dtype=tl.float32)
        of_square = tl.zeros((BLOCK,), dtype=tl.float32)
        for part in tl.static_range(PARTS):
            own = squares + (tile * PARTS + part) * 2
            of_gram += tl.load(own, mask=mask, other=0.0)
            of_square += tl.load(own + 1, mask=mask, other=0.0)
        largest = tl.sqrt(tl.sqrt(of_square)) + rounding * tl.sqrt(of_gram)
        own_sigma = tl.sqrt(tl.load(trace + tile, mask=mask, other=0.0)) * (tl.sqrt(largest) + rounding)
        # What is below the rounding of the head's largest rows counts no more.
        tl.store(sigma + tile, own_sigma + 1e-7 * of_all, mask=mask)


def head_tiles(weight: Tensor, rows: int) -> HeadTiles:
    """Look at every whole tile of ``rows`` rows.

    With G the Gram matrix of its rows less their mean, divided by the trace: the largest eigenvalue of G is at most the
    square root of the norm of G^2. Halves are rounded on the way, the rows less their mean and G; sigma covers both.
    """
    tiles, hidden_size = weight.shape[0] // rows, weight.shape[1]
    # Of a step, whose two operands take 144 KiB in three stages.
    depth = 128 // weight.element_size() if weight.is_cuda else 16
    part = min(rows, 128)
    trace, longest = (torch.empty(tiles, dtype=torch.float32, device=weight.device) for _ in range(2))
    squares = torch.empty(tiles, rows // part, 2, dtype=torch.float32, device=weight.device)
    mean = torch.empty(tiles, hidden_size, dtype=torch.float32, device=weight.device)
    matrix = {
        "weight": weight,
        "hidden_size": hidden_size,
        "weight_row_stride": weight.stride(0),
        "weight_column_stride": weight.stride(1),
        "TILE": rows,
        "BLOCK_HIDDEN": depth,
    }
    run_kernel(_mean_kernel, (tiles,), **matrix, mean=mean, trace=trace, longest=longest, num_warps=8)
    gram = weight.new_empty(min(tiles, _AT_A_TIME), rows, rows)
    sizes = {"ROWS": part, "PRECISION": "ieee", "num_warps": 8, "num_stages": 3}
    for first in range(0, tiles, _AT_A_TIME):
        grid = min(_AT_A_TIME, tiles - first), rows // part
        run_kernel(_gram_kernel, grid, **matrix, **sizes, mean=mean, trace=trace, gram=gram, first=first)
        run_kernel(_square_kernel, grid, **sizes, gram=gram, squares=squares, first=first, TILE=rows, DEPTH=depth)
    sigma, longest_of_all = torch.empty_like(trace), torch.empty(1, dtype=torch.float32, device=weight.device)
    run_kernel(
        _sigma_kernel,
        (1,),
        squares=squares,
        trace=trace,
        longest=longest,
        sigma=sigma,
        longest_of_all=longest_of_all,
        tiles=tiles,
        rounding=_ROUNDING[weight.dtype],
        PARTS=rows // part,
        BLOCK=1024,
        num_warps=8,
    )
    return HeadTiles(mean, sigma, longest_of_all)
