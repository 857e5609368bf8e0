"""The head in tiles of rows: their means, and how long a combination of the rows less their mean can be."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .gram_squares import gram_squares
from .launch import blocks

__all__ = ["HeadTiles", "head_tiles"]

# Of an entry of a Gram matrix that is kept in the head's dtype, at most: no less than its unit roundoff.
_ROUNDING = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-8}
_FLOOR = {torch.float16: 2.0**-25}  # what an entry of it may lose that float16 has no number for


class HeadTiles(NamedTuple):
    """Whole tiles of the head."""

    mean: Tensor  # (tiles, D) float32
    sigma: Tensor  # (tiles,) that the largest singular value of the tile less its mean row does not exceed
    longest: Tensor  # (1,) norm of the longest row of all, inf where one is no number


@triton.jit
def _mean_kernel(
    weight,  # (V, D)
    mean,  # (tiles, D) float32, written, as all that follow
    size,  # (tiles,) what a Gram matrix is divided by
    whole,  # (tiles,) squares of the rows
    dots,  # (tiles, TILE) products of each row with the mean
    longest,  # (tiles,) norm of the longest row
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
    dot = tl.zeros((TILE,), dtype=tl.float32)
    for start in range(0, hidden_size, BLOCK_HIDDEN):
        column = start + tl.arange(0, BLOCK_HIDDEN)
        inside = column < hidden_size
        address = weight + row[:, None] * weight_row_stride + column.to(tl.int64)[None, :] * weight_column_stride
        w = tl.load(address, mask=inside[None, :], other=0.0).to(tl.float32)
        own = tl.sum(w, 0) / TILE
        tl.store(mean + tile.to(tl.int64) * hidden_size + column, own, mask=inside)
        square += tl.sum(w * w, 1)
        dot += tl.sum(w * own[None, :], 1)
        w -= own[None, :]
        centred += tl.sum(w * w, 1)
    of_rows = tl.sum(square, 0)
    squares = tl.sum(centred, 0)
    tl.store(whole + tile, of_rows)
    # Where the rows hardly differ the rounding of their products, a part of their squares, is what remains.
    tl.store(size + tile, tl.maximum(tl.maximum(squares, of_rows * 0.001), 1e-30))
    tl.store(dots + tile * TILE + tl.arange(0, TILE), dot)
    tl.store(longest + tile, tl.sqrt(tl.max(square, 0)))


@triton.jit(do_not_specialize=["tiles"])
def _sigma_kernel(
    squares,  # (tiles, PARTS, 2)
    size,
    whole,
    longest,
    sigma,  # (tiles,), written
    longest_of_all,  # (1,), written
    tiles,
    rounding,
    floor,
    of_products,  # of float32 sums of products of rows, beside their squares
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
        largest = tl.sqrt(tl.sqrt(of_square)) + rounding * tl.sqrt(of_gram) + floor
        largest *= tl.load(size + tile, mask=mask, other=0.0)
        own_sigma = tl.sqrt(largest + of_products * tl.load(whole + tile, mask=mask, other=0.0))
        # What is below the rounding of the head's largest rows counts no more.
        tl.store(sigma + tile, own_sigma + 1e-7 * of_all, mask=mask)


def head_tiles(weight: Tensor, rows: int) -> HeadTiles:
    """Look at every whole tile of ``rows`` rows.

    With G the Gram matrix of its rows less their mean, divided by a number: the largest eigenvalue of G is at most the
    square root of the norm of G G^T. G is rounded to the head's dtype on the way, and its float32 sums of D products,
    of which four make an entry, to (D + 64) 2^-24 of the squares of the rows, or a sixteenth of D on tensor cores,
    which round once for 16 products, but towards zero; sigma covers both.
    """
    tiles, hidden_size = weight.shape[0] // rows, weight.shape[1]
    numbers = torch.empty(3, blocks(tiles, 4) * 4, dtype=torch.float32, device=weight.device)
    size, whole, longest = numbers[:, :tiles].unbind(0)
    dots = torch.empty(tiles, rows, dtype=torch.float32, device=weight.device)
    mean = torch.empty(tiles, hidden_size, dtype=torch.float32, device=weight.device)
    run_kernel(
        _mean_kernel,
        (tiles,),
        weight=weight,
        mean=mean,
        size=size,
        whole=whole,
        dots=dots,
        longest=longest,
        hidden_size=hidden_size,
        weight_row_stride=weight.stride(0),
        weight_column_stride=weight.stride(1),
        TILE=rows,
        BLOCK_HIDDEN=64 // weight.element_size() if weight.is_cuda else 16,
        num_warps=8,
    )
    squares = gram_squares(weight, dots, size)
    sigma, longest_of_all = torch.empty_like(size), torch.empty(1, dtype=torch.float32, device=weight.device)
    adds = hidden_size if weight.dtype == torch.float32 or not weight.is_cuda else hidden_size / 8
    run_kernel(
        _sigma_kernel,
        (1,),
        squares=squares,
        size=size,
        whole=whole,
        longest=longest,
        sigma=sigma,
        longest_of_all=longest_of_all,
        tiles=tiles,
        rounding=_ROUNDING[weight.dtype],
        floor=rows * _FLOOR.get(weight.dtype, 0.0),
        of_products=4 * (adds + 64) * 2.0**-24,
        PARTS=squares.shape[1],
        BLOCK=1024,
        num_warps=8,
    )
    return HeadTiles(mean, sigma, longest_of_all)
