"""The head in tiles of rows: their means, and how long a combination of the rows less their mean can be."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Tiles, product_arguments, tiling
from .compile_ahead import run_kernel
from .launch import blocks, launch_table, processors, uses_descriptors
from .tiles import column_part, product, store_tile

__all__ = ["HeadTiles", "head_tiles"]

_AT_A_TIME = 256  # tiles whose Gram matrices are held
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


@triton.jit(do_not_specialize=["first", "number", "vocab_size"])
def _gram_kernel(
    hidden,  # (V, D), the head, whose rows are both factors
    weight,
    dots,  # (tiles, TILE) products of each row with the mean
    size,  # (tiles,) what is divided by
    gram,  # (tiles of this launch x TILE, TILE) dtype of the head, written
    squares,  # (tiles, TILE // BLOCK_ROWS, 2), of which the first is written: of the entries
    first,  # tile of this launch
    number,  # tiles of this launch
    vocab_size,
    hidden_size,
    weight_row_stride,
    weight_column_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,  # of a tile
    BLOCK_HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of the rows less their mean: those of the rows, less what either has of the mean."""
    STEPS: tl.constexpr = BLOCK_VOCAB // BLOCK_ROWS
    for index in tl.range(tl.program_id(0), number * STEPS, tl.num_programs(0), flatten=FLATTEN):  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
        tile = first + index // STEPS
        column_start = tile * BLOCK_VOCAB
        row_start = column_start + index % STEPS * BLOCK_ROWS
        row = row_start + tl.arange(0, BLOCK_ROWS)
        acc = product(
            hidden,
            weight,
            row_start,
            row,
            column_start,
            vocab_size,
            vocab_size,
            hidden_size,
            weight_row_stride,
            weight_column_stride,
            weight_row_stride,
            weight_column_stride,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_HIDDEN,
            DESCRIPTOR,
            False,
            PRECISION,
        )
        own = tl.load(dots + row)
        of_mean = tl.sum(tl.load(dots + column_start + tl.arange(0, BLOCK_VOCAB)), 0) / BLOCK_VOCAB
        factor = 1.0 / tl.load(size + tile)
        square = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        for part in tl.static_range(PARTS):
            offset = part * (BLOCK_VOCAB // PARTS)
            other = tl.load(dots + column_start + offset + tl.arange(0, BLOCK_VOCAB // PARTS))
            part_acc = column_part(acc, part, PARTS, BLOCK_ROWS, BLOCK_VOCAB)
            values = (part_acc - (own - of_mean)[:, None] - other[None, :]) * factor
            square += tl.sum(values * values, 1)
            store_tile(
                gram,
                values.to(gram.dtype if DESCRIPTOR else gram.dtype.element_ty),
                index * BLOCK_ROWS,
                offset,
                number * BLOCK_VOCAB,
                BLOCK_VOCAB,
                BLOCK_VOCAB,
                BLOCK_ROWS,
                BLOCK_VOCAB // PARTS,
                DESCRIPTOR,
            )
        tl.store(squares + (first * STEPS + index) * 2, tl.sum(square, 0))


@triton.jit(do_not_specialize=["first", "number", "vocab_size"])
def _square_kernel(
    hidden,  # (tiles of this launch x TILE, TILE), Gram matrices, whose rows are both factors
    weight,
    squares,  # (tiles, TILE // BLOCK_ROWS, 2), of which the second is written: of the entries of G G^T
    first,
    number,
    vocab_size,  # rows of all
    hidden_size,  # TILE
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    STEPS: tl.constexpr = BLOCK_VOCAB // BLOCK_ROWS
    # What is multiplied here must have no other use: Triton then gave it a buffer less, and wrote the next numbers to
    # it while the tensor cores still read.
    for index in tl.range(tl.program_id(0), number * STEPS, tl.num_programs(0), flatten=FLATTEN):  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
        row_start = index * BLOCK_ROWS
        acc = product(
            hidden,
            weight,
            row_start,
            row_start + tl.arange(0, BLOCK_ROWS),
            index // STEPS * BLOCK_VOCAB,
            vocab_size,
            vocab_size,
            hidden_size,
            hidden_size,
            1,
            hidden_size,
            1,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_HIDDEN,
            DESCRIPTOR,
            False,
            PRECISION,
        )
        tl.store(squares + (first * STEPS + index) * 2 + 1, tl.sum(tl.sum(acc * acc, 1), 0))


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
    launch = launch_table(weight.device, weight.dtype).logit_gradient
    launch = replace(launch, rows=min(launch.rows, rows), columns=rows)
    part = launch.rows
    numbers = torch.empty(3, blocks(tiles, 4) * 4, dtype=torch.float32, device=weight.device)
    size, whole, longest = numbers[:, :tiles].unbind(0)
    dots = torch.empty(tiles, rows, dtype=torch.float32, device=weight.device)
    squares = torch.empty(tiles, rows // part, 2, dtype=torch.float32, device=weight.device)
    mean = torch.empty(tiles, hidden_size, dtype=torch.float32, device=weight.device)
    strides = {"weight_row_stride": weight.stride(0), "weight_column_stride": weight.stride(1)}
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
        **strides,
        TILE=rows,
        BLOCK_HIDDEN=64 // weight.element_size() if weight.is_cuda else 16,
        num_warps=8,
    )
    handed = Tiles(uses_descriptors(weight))
    gram = weight.new_empty(min(tiles, _AT_A_TIME) * rows, rows)
    for first in range(0, tiles, _AT_A_TIME):
        number = min(_AT_A_TIME, tiles - first)
        run_kernel(
            _gram_kernel,
            (processors(weight.device),),
            **product_arguments(handed, weight, weight, launch),
            **tiling(launch),
            **strides,
            dots=dots,
            size=size,
            gram=handed(gram, launch.rows, rows // launch.parts),
            squares=squares,
            first=first,
            number=number,
            hidden_size=hidden_size,
        )
        run_kernel(
            _square_kernel,
            (processors(weight.device),),
            **product_arguments(handed, gram, gram, launch),
            **tiling(launch, "PARTS"),
            squares=squares,
            first=first,
            number=number,
            hidden_size=rows,
        )
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
        PARTS=rows // part,
        BLOCK=1024,
        num_warps=8,
    )
    return HeadTiles(mean, sigma, longest_of_all)
