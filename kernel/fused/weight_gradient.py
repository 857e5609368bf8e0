"""Kernels for the head's gradients of one vocabulary strip: ``scale dz.T @ hidden`` and the bias's column sums of dz.

Each entry of the weight gradient is summed over all tokens in float32 registers and rounded once; the strips of the
vocabulary are disjoint, so that no launch adds to what it has written. The sum stops at the last kept token.

Where tokens come in chunks (:mod:`.run_chunks`) ACCUMULATE adds the sum over earlier ones, in float32, before it is
rounded. Of half precision it is IN_FLOAT16 between chunks: float16, with a power of two for each column
(:mod:`.chunk_sums`). With REDUCE the copy engine adds a part, rounded to float16, to that in the L2 cache, but for the
last chunk's: nothing waits for what is there, and the shared memory that would hold it holds one stage more of the
operands. Each address is added to once in a launch.

Of very many tokens the workspace holds strips of so few columns that most multiprocessors would have no tile. There the
sum is cut along the tokens (``launch.weight_splits``): each piece goes to float32 memory of its own, and a second
kernel adds the pieces of an entry in their order. No address is added to, and the same call gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .chunk_sums import powers_of, reciprocals_of
from .early import let_next_begin
from .tiles import add_product, load_tile, merged_strip, no_product, product_part, store_tile

__all__ = ["bias_gradient_kernel", "join_sums_kernel", "weight_gradient_kernel"]


@triton.jit
def _pieces(splits, columns, strip_columns):
    """Pieces of each sum: of several strips in one launch fewer, in the memory that one strip has."""
    return tl.maximum(splits // tl.maximum(tl.cdiv(columns, strip_columns), 1), 1)


@triton.jit(do_not_specialize=["dz_rows", "vocab_size", "first_strip", "splits", "power_shift", "last"])
def weight_gradient_kernel(
    dz,  # (dz_rows, strip); see tiles.merged_strip
    hidden,  # (N, D) packed
    gradient,  # (V, D), the strip's rows written; float16 if IN_FLOAT16
    count,  # (1,)
    scale,  # () factor common to all tokens
    uniform,  # (D,): subtracted from every row of the product
    sums,  # (splits, strip, D) float32 for the pieces of sums that are cut; None if none is
    possible,  # (D,) if IN_FLOAT16, as the next: see chunk_sums.SumPowers
    power_shift,
    last,  # whether the sums are complete: rounded to the dtype of hidden, in any case
    splits,
    dz_rows,
    vocab_size,
    hidden_size,
    run_start,
    run_columns,
    run_offset,
    strip_columns,
    first_strip,  # of the strips that lie one below the other in dz, if they are kept ones
    dz_stride,
    hidden_row_stride,
    gradient_row_stride,
    constant,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,  # of a tile of dz
    PARTS: tl.constexpr,
    PART_VOCAB: tl.constexpr,  # of a part
    PART_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    IN_FLOAT16: tl.constexpr,
    REDUCE: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    NEXT_EARLY: tl.constexpr,
):
    """Persistent; hidden-size blocks vary fastest, so that a strip of dz is read from memory once."""
    let_next_begin(NEXT_EARLY)
    row_count = tl.load(count)
    factor = tl.load(scale) * constant
    rows, first, columns = merged_strip(row_count, dz_rows, strip_columns, run_offset, run_columns, ALIGNED_ROWS)  # pyright: ignore[reportGeneralTypeIssues]
    strip_start = run_start + first
    column_blocks = tl.cdiv(hidden_size, BLOCK_COLUMNS)
    tiles = tl.cdiv(columns, BLOCK_VOCAB) * column_blocks
    if ACCUMULATE:
        adds = row_count > 0
        if IN_FLOAT16:  # of no tokens there is nothing to add, but what is complete is to be rounded
            adds = adds | (last != 0)
        tiles = tl.where(adds, tiles, 0)
    pieces = 1
    if sums is not None:
        pieces = _pieces(splits, columns, strip_columns)
    piece_rows = tl.cdiv(tl.cdiv(row_count, BLOCK_ROWS), pieces) * BLOCK_ROWS
    for item in tl.range(tl.program_id(0), tiles * pieces, tl.num_programs(0), flatten=FLATTEN):
        index = item
        begin = 0
        end = row_count
        if sums is not None:
            index = item % tiles
            begin = item // tiles * piece_rows
            end = tl.minimum(begin + piece_rows, row_count)
        vocab_row = (index // column_blocks) * BLOCK_VOCAB
        column = (index % column_blocks) * BLOCK_COLUMNS
        strip = vocab_row // strip_columns
        first_row = (first_strip + strip) * rows
        strip_row = vocab_row - strip * strip_columns
        acc = no_product(BLOCK_VOCAB, BLOCK_COLUMNS, TRANSPOSED)
        for k in range(begin, end, BLOCK_ROWS):
            a = load_tile(
                dz,
                first_row + k,
                strip_row,
                first_row + row_count,
                strip_columns,
                dz_stride,
                1,
                BLOCK_ROWS,
                BLOCK_VOCAB,
                DESCRIPTOR,
            )
            b = load_tile(
                hidden, k, column, row_count, hidden_size, hidden_row_stride, 1, BLOCK_ROWS, BLOCK_COLUMNS, DESCRIPTOR
            )
            acc = add_product(acc, a.T, b, TRANSPOSED, PRECISION)
        for part in tl.static_range(PARTS):
            values = product_part(acc, part, PARTS, BLOCK_VOCAB, BLOCK_COLUMNS, TRANSPOSED)
            part_row = vocab_row + (part * PART_VOCAB if TRANSPOSED else 0)
            part_column = column + (0 if TRANSPOSED else part * PART_COLUMNS)
            d = part_column + tl.arange(0, PART_COLUMNS)
            if sums is not None:  # noqa: SIM102 - decided when it is compiled; the other when it runs
                if pieces > 1:
                    row = part_row + tl.arange(0, PART_VOCAB)
                    place = (item // tiles * columns + row).to(tl.int64) * hidden_size
                    inside = (row < columns)[:, None] & (d < hidden_size)[None, :]
                    tl.store(sums + place[:, None] + d[None, :], values, mask=inside)
            if sums is None or pieces == 1:
                values -= tl.load(uniform + d, mask=d < hidden_size, other=0.0)[None, :]
                values *= factor
                if IN_FLOAT16:  # apart: the power of a column without a sum is large
                    values *= powers_of(possible, d, hidden_size, power_shift)[None, :]
                v_start = strip_start + part_row
                if ACCUMULATE and not REDUCE:
                    before = load_tile(
                        gradient,
                        v_start,
                        part_column,
                        vocab_size,
                        hidden_size,
                        gradient_row_stride,
                        1,
                        PART_VOCAB,
                        PART_COLUMNS,
                        DESCRIPTOR,
                    )
                    values += before.to(tl.float32)
                rounded = values.to(gradient.dtype if DESCRIPTOR else gradient.dtype.element_ty)
                if IN_FLOAT16 and ACCUMULATE and not REDUCE:  # noqa: SIM102
                    if last != 0:
                        dtype = hidden.dtype if DESCRIPTOR else hidden.dtype.element_ty
                        complete = values * reciprocals_of(possible, d, hidden_size, power_shift)[None, :]
                        rounded = complete.to(dtype).to(rounded.dtype, bitcast=True)
                if REDUCE:
                    gradient.atomic_add([v_start, part_column], rounded)
                else:
                    store_tile(
                        gradient,
                        rounded,
                        v_start,
                        part_column,
                        vocab_size,
                        hidden_size,
                        gradient_row_stride,
                        PART_VOCAB,
                        PART_COLUMNS,
                        DESCRIPTOR,
                    )


@triton.jit(do_not_specialize=["dz_rows", "vocab_size", "splits"])
def join_sums_kernel(
    sums,  # (pieces, columns, D) float32, as the kernel above wrote them
    gradient,  # (V, D), the strip's rows written
    count,
    scale,
    uniform,  # (D,)
    splits,
    dz_rows,
    vocab_size,
    hidden_size,
    run_start,
    run_columns,
    run_offset,
    strip_columns,
    gradient_row_stride,
    constant,
    ALIGNED_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the pieces of each entry in their order and finish it; nothing where they were not cut after all."""
    row_count = tl.load(count)
    _, first, columns = merged_strip(row_count, dz_rows, strip_columns, run_offset, run_columns, ALIGNED_ROWS)  # pyright: ignore[reportGeneralTypeIssues]
    pieces = _pieces(splits, columns, strip_columns)
    factor = tl.load(scale) * constant
    column_blocks = tl.cdiv(hidden_size, COLUMNS)
    blocks = tl.where(pieces > 1, tl.cdiv(columns, ROWS) * column_blocks, 0)
    for index in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = (index // column_blocks) * ROWS + tl.arange(0, ROWS)
        d = (index % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row < columns)[:, None] & (d < hidden_size)[None, :]
        address = sums + row.to(tl.int64)[:, None] * hidden_size + d[None, :]
        piece = columns.to(tl.int64) * hidden_size
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for i in range(pieces):
            total += tl.load(address + i * piece, mask=inside, other=0.0)
        total = (total - tl.load(uniform + d, mask=d < hidden_size, other=0.0)[None, :]) * factor
        target = run_start + first + row
        address = gradient + target.to(tl.int64)[:, None] * gradient_row_stride + d[None, :]
        tl.store(address, total.to(gradient.dtype.element_ty), mask=inside & (target < vocab_size)[:, None])


@triton.jit(do_not_specialize=["dz_rows", "vocab_size"])
def bias_gradient_kernel(
    dz,  # (dz_rows, strip)
    gradient,  # (V,)
    count,
    scale,
    row_weight,  # (N,) packed: multiplies the rows
    uniform,  # (1,): subtracted from every sum
    dz_rows,
    vocab_size,
    run_start,
    run_columns,
    run_offset,
    strip_columns,
    dz_stride,
    constant,
    ALIGNED_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Sums of the columns of dz in a fixed order."""
    row_count = tl.load(count)
    rows, first, columns = merged_strip(row_count, dz_rows, strip_columns, run_offset, run_columns, ALIGNED_ROWS)  # pyright: ignore[reportGeneralTypeIssues]
    for index in range(tl.program_id(0), tl.cdiv(columns, BLOCK_COLUMNS), tl.num_programs(0)):
        strip = index * BLOCK_COLUMNS // strip_columns
        column = index * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        for start in range(0, row_count, BLOCK_ROWS):
            row = start + tl.arange(0, BLOCK_ROWS)
            mask = (row < row_count)[:, None] & (column < columns)[None, :]
            address = dz + (strip * rows + row).to(tl.int64)[:, None] * dz_stride
            values = tl.load(address + (column - strip * strip_columns)[None, :], mask=mask, other=0.0).to(tl.float32)
            acc += values * tl.load(row_weight + row, mask=row < row_count, other=0.0)[:, None]
        total = tl.sum(acc, 0) - tl.load(uniform)
        total *= tl.load(scale) * constant
        row = run_start + first + column
        inside = (column < columns) & (row < vocab_size)
        if ACCUMULATE:
            total += tl.load(gradient + row, mask=inside, other=0.0).to(tl.float32)
        tl.store(gradient + row, total.to(gradient.dtype.element_ty), mask=inside)
