"""Gram matrices of the head's tiles, and of each the sums of its squared entries and of those of G G^T."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Tiles, product_arguments, tiling
from .compile_ahead import run_kernel
from .launch import launch_table, processors, uses_descriptors
from .tiles import column_part, product, store_tile

__all__ = ["gram_squares"]

_AT_A_TIME = 256  # tiles whose Gram matrices are held


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


def gram_squares(weight: Tensor, dots: Tensor, size: Tensor) -> Tensor:
    """Sums of the squared entries of G and of G G^T, with G the Gram matrix of a tile's rows less their mean.

    Args:
        weight: The head ``(V, D)``.
        dots: Products of each row with the mean of its tile ``(tiles, rows of a tile)``.
        size: What each G is divided by ``(tiles,)``; it is then rounded to the head's dtype.

    Returns:
        ``(tiles, parts, 2)`` float32: a tile's sums are those over its parts.
    """
    tiles, rows = dots.shape
    launch = launch_table(weight.device, weight.dtype).logit_gradient
    launch = replace(launch, rows=min(launch.rows, rows), columns=rows)
    part = launch.rows
    squares = torch.empty(tiles, rows // part, 2, dtype=torch.float32, device=weight.device)
    handed = Tiles(uses_descriptors(weight))
    gram = weight.new_empty(min(tiles, _AT_A_TIME) * rows, rows)
    for first in range(0, tiles, _AT_A_TIME):
        number = min(_AT_A_TIME, tiles - first)
        run_kernel(
            _gram_kernel,
            (processors(weight.device),),
            **product_arguments(handed, weight, weight, launch),
            **tiling(launch),
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            dots=dots,
            size=size,
            gram=handed(gram, launch.rows, rows // launch.parts),
            squares=squares,
            first=first,
            number=number,
            hidden_size=weight.shape[1],
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
    return squares
