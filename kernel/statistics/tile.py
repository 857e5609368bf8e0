"""Tile-level pieces of head_statistics: what a sweep needs of 128 x 256 logits, with few registers in flight.

A thread of the 128 x 256 tile holds 128 logits; any second array of that size does not fit beside them. Each function
here goes through the tile in column blocks of ``WIDTH`` and folds them elementwise into arrays of that width, which it
reduces across threads once at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..fused.tiles import column_part

__all__ = ["EXCLUDED", "FLOOR", "exponential_sums", "row_sum", "tile_rank", "two_largest"]

# Stands for no logit: far below every float16 product, far above overflow when divided by a temperature.
FLOOR = -1e26
EXCLUDED = -1e30  # so far below the floor that even relative to it 2^x is 0
_FLOOR = tl.constexpr(FLOOR)


@triton.jit
def row_sum(z, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum of the logits ``(ROWS,)``."""
    total = column_part(z, 0, COLUMNS // WIDTH, ROWS, COLUMNS)
    for part in tl.static_range(1, COLUMNS // WIDTH):
        total += column_part(z, part, COLUMNS // WIDTH, ROWS, COLUMNS)
    return tl.sum(total, 1)


@triton.jit
def _larger_two(first, second, best, first2, second2, best2):
    wins = (first2 > first) | ((first2 == first) & (best2 < best))
    loser = tl.minimum(first, first2)
    return tl.maximum(first, first2), tl.maximum(loser, tl.maximum(second, second2)), tl.where(wins, best2, best)


@triton.jit
def two_largest(z, start, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Largest and second largest logit (equal ones count twice) and the first class of the largest, each ``(ROWS,)``.

    ``start`` is the class of the tile's first column.
    """
    first = column_part(z, 0, COLUMNS // WIDTH, ROWS, COLUMNS)
    second = tl.full((ROWS, WIDTH), _FLOOR, dtype=tl.float32)
    best = tl.zeros((ROWS, WIDTH), dtype=tl.int32)
    for part in tl.static_range(1, COLUMNS // WIDTH):
        x = column_part(z, part, COLUMNS // WIDTH, ROWS, COLUMNS)
        best = tl.where(x > first, part * WIDTH, best)
        second = tl.maximum(second, tl.minimum(first, x))
        first = tl.maximum(first, x)
    best += start + tl.arange(0, WIDTH)[None, :]
    return tl.reduce((first, second, best), 1, _larger_two)


@triton.jit
def tile_rank(z, own, label, start, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Classes of the tile that come before the target ``(ROWS,)``: larger logits, and equal ones of smaller index.

    Where no target lies in the tile, as in most, all its classes come before or all after the target among equal
    logits: one comparison with the target's logit ``own``, or with the float32 below, decides.
    """
    bits = own.to(tl.int32, bitcast=True)
    below = tl.where(own > 0, bits - 1, bits + 1).to(tl.float32, bitcast=True)
    below = tl.where(own == 0, -1.2e-38, below)  # the largest normal number under 0
    limit = tl.where(label < start, own, below)[:, None]
    inside = (label >= start) & (label < start + COLUMNS)
    count = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    if tl.max(inside.to(tl.int32), 0) > 0:
        offset = label[:, None] - start - tl.arange(0, WIDTH)[None, :]
        for part in tl.static_range(COLUMNS // WIDTH):
            x = column_part(z, part, COLUMNS // WIDTH, ROWS, COLUMNS)
            higher = x > tl.where(part * WIDTH < offset, below[:, None], own[:, None])
            count += tl.where(higher & (part * WIDTH != offset), 1.0, 0.0)
    else:
        for part in tl.static_range(COLUMNS // WIDTH):
            x = column_part(z, part, COLUMNS // WIDTH, ROWS, COLUMNS)
            count += tl.where(x > limit, 1.0, 0.0)
    return tl.sum(count, 1).to(tl.int32)


@triton.jit
def exponential_sums(d, inverse, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of 2^x, 4^x and 2^x x for x = inverse d, each ``(ROWS,)``."""
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    square = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    weighted = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for part in tl.static_range(COLUMNS // WIDTH):
        x = column_part(d, part, COLUMNS // WIDTH, ROWS, COLUMNS) * inverse
        e = tl.exp2(x)
        total += e
        square += e * e
        weighted += e * x
    return tl.sum(total, 1), tl.sum(square, 1), tl.sum(weighted, 1)
