"""Tile-level pieces that the kernels share: loads, matrix products, parts of their results, stores."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "add_product",
    "column_part",
    "in_one",
    "load_tile",
    "merged_strip",
    "no_product",
    "out_of_one",
    "product",
    "product_part",
    "store_tile",
]


@triton.jit
def merged_strip(row_count, dz_rows, width, offset, run_columns, BLOCK_ROWS: tl.constexpr):
    """The part of a run of strips that one launch works on, which with few kept tokens is several strips.

    The memory of dz, dz_rows x ``width``, holds as many strips as blocks of kept tokens go into its rows, one below the
    other: entry (row, column) is stored at (row + column // width * rows, column % width). The launches of the strips
    thereby done have nothing left to do; that at the run's ``offset`` takes the strips that follow those before it.

    Returns:
        Rows of a strip in memory, first column within the run and number of columns, which may be 0.
    """
    rows = tl.cdiv(row_count, BLOCK_ROWS) * BLOCK_ROWS
    merged = tl.minimum(tl.maximum(dz_rows // tl.maximum(rows, 1), 1), tl.cdiv(run_columns, width))
    first = tl.minimum(offset.to(tl.int64) * merged, run_columns).to(tl.int32)
    return rows, first, tl.minimum(merged * width, run_columns - first)


@triton.jit
def load_tile(
    source,  # tensor descriptor if DESCRIPTOR, else pointer
    row,
    column,
    rows,  # limits: what lies beyond reads as 0
    columns,
    row_stride,
    column_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """``source[row : row + BLOCK_ROWS, column : column + BLOCK_COLUMNS]``."""
    if DESCRIPTOR:
        tile = source.load([row, column])
    else:
        r = row + tl.arange(0, BLOCK_ROWS)
        c = column + tl.arange(0, BLOCK_COLUMNS)
        offsets = r.to(tl.int64)[:, None] * row_stride + c.to(tl.int64)[None, :] * column_stride
        tile = tl.load(source + offsets, mask=(r < rows)[:, None] & (c < columns)[None, :], other=0.0)
    return tile


@triton.jit
def store_tile(
    target,  # tensor descriptor if DESCRIPTOR, else pointer
    tile,
    row,
    column,
    rows,
    columns,
    row_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """``target[row : row + BLOCK_ROWS, column : column + BLOCK_COLUMNS] = tile``, clipped to (rows, columns)."""
    if DESCRIPTOR:
        target.store([row, column], tile)
    else:
        r = row + tl.arange(0, BLOCK_ROWS)
        c = column + tl.arange(0, BLOCK_COLUMNS)
        offsets = r.to(tl.int64)[:, None] * row_stride + c.to(tl.int64)[None, :]
        tl.store(target + offsets, tile, mask=(r < rows)[:, None] & (c < columns)[None, :])


@triton.jit
def in_one(low, high):
    """Two of float32 in one int64."""
    bits = low.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    return bits | (high.to(tl.int32, bitcast=True).to(tl.int64) << 32)


@triton.jit
def out_of_one(both):
    """What :func:`in_one` was given."""
    return both.to(tl.int32).to(tl.float32, bitcast=True), (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def column_part(tile, part: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One of ``PARTS`` (a power of two) equal column blocks of a tile.

    An accumulator's high column bits number registers of a thread, so a part of 16 columns or more costs nothing: an
    epilogue in parts needs less shared memory to store from, and fewer registers at a time.
    """
    if PARTS == 1:
        return tile
    else:  # noqa: RET505 - branches of one compile-time choice
        left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        if part < PARTS // 2:
            return column_part(left, part, PARTS // 2, ROWS, COLUMNS // 2)
        else:  # noqa: RET505
            return column_part(right, part - PARTS // 2, PARTS // 2, ROWS, COLUMNS // 2)


@triton.jit
def no_product(ROWS: tl.constexpr, COLUMNS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Zeros for :func:`add_product`, of a result of ROWS x COLUMNS."""
    return tl.zeros((COLUMNS, ROWS) if TRANSPOSED else (ROWS, COLUMNS), dtype=tl.float32)


@triton.jit
def add_product(acc, a, b, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a @ b``, or, where ``acc`` holds the transposed result, ``acc + b.T @ a.T`` (``launch.Launch``)."""
    return tl.dot(b.T if TRANSPOSED else a, a.T if TRANSPOSED else b, acc, input_precision=PRECISION)


@triton.jit
def product_part(
    acc,
    part: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """One of ``PARTS`` equal blocks of the result of :func:`add_product`: of its columns, or of its rows."""
    if TRANSPOSED:
        return column_part(acc, part, PARTS, COLUMNS, ROWS).T
    else:  # noqa: RET505 - branches of one compile-time choice
        return column_part(acc, part, PARTS, ROWS, COLUMNS)


@triton.jit
def product(
    hidden,  # (N, D), contiguous rows
    weight,  # (V, D)
    hidden_row,  # first row of the tile
    hidden_rows,  # (BLOCK_ROWS,) the rows, in any order; read only if GATHER
    weight_row,
    row_count,
    vocab_size,
    hidden_size,
    hidden_row_stride,
    hidden_column_stride,
    weight_row_stride,
    weight_column_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of ``hidden @ weight.T`` in float32; pointer loads need no alignment and take any strides."""
    acc = tl.zeros((BLOCK_ROWS, BLOCK_VOCAB), dtype=tl.float32)
    if DESCRIPTOR:
        for k in range(0, hidden_size, BLOCK_HIDDEN):
            a = hidden.load([hidden_row, k])
            b = weight.load([weight_row, k])
            acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
    else:
        r = hidden_row + tl.arange(0, BLOCK_ROWS)
        in_rows = r < row_count
        source_rows = hidden_rows if GATHER else r
        v = weight_row + tl.arange(0, BLOCK_VOCAB)
        d = tl.arange(0, BLOCK_HIDDEN)
        a_tile = hidden + source_rows.to(tl.int64)[:, None] * hidden_row_stride
        b_tile = weight + v.to(tl.int64)[None, :] * weight_row_stride
        for k in range(0, hidden_size, BLOCK_HIDDEN):
            c = (k + d).to(tl.int64)
            in_hidden = c < hidden_size
            a = tl.load(
                a_tile + c[None, :] * hidden_column_stride, mask=in_rows[:, None] & in_hidden[None, :], other=0.0
            )
            b = tl.load(
                b_tile + c[:, None] * weight_column_stride,
                mask=in_hidden[:, None] & (v < vocab_size)[None, :],
                other=0.0,
            )
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc
