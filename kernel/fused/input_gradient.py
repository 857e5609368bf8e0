"""Kernels for the gradient of the input: float32 sums of ``dz @ weight[strip]``, rounded and unpacked at the end.

The tiles of the last round are cut along the sum into pieces (:mod:`.last_round`); those after the first add up in rows
of their own behind those of the kept tokens and join once, when all strips are done. Every address is added to by one
program a strip: no race, one order of summation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .early import let_next_begin, wait_for_previous
from .last_round import last_round
from .tiles import add_product, load_tile, merged_strip, no_product, product_part

__all__ = ["input_gradient_kernel", "unpack_kernel"]


@triton.jit
def _add_tile(
    dz,
    weight,
    accumulator,
    row_start,
    column_start,
    target_row,
    first,
    last,
    row_count,
    vocab_size,
    hidden_size,
    strip_start,
    strip_columns,
    strip_rows,
    dz_stride,
    weight_row_stride,
    weight_column_stride,
    row_factor,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    PARTS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    PART_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    REDUCE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the product over columns ``first ... last - 1`` of the strip to the accumulator, from ``target_row`` on."""
    acc = no_product(BLOCK_ROWS, BLOCK_COLUMNS, TRANSPOSED)
    for k in range(first, last, BLOCK_VOCAB):
        strip = k // strip_columns
        a = load_tile(
            dz,
            row_start + strip * strip_rows,
            k - strip * strip_columns,
            row_count + strip * strip_rows,
            strip_columns,
            dz_stride,
            1,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            DESCRIPTOR,
        )
        b = load_tile(
            weight,
            strip_start + k,
            column_start,
            vocab_size,
            hidden_size,
            weight_row_stride,
            weight_column_stride,
            BLOCK_VOCAB,
            BLOCK_COLUMNS,
            DESCRIPTOR,
        )
        acc = add_product(acc, a, b, TRANSPOSED, PRECISION)
    for part in tl.static_range(PARTS):
        values = product_part(acc, part, PARTS, BLOCK_ROWS, BLOCK_COLUMNS, TRANSPOSED)
        part_row = part * PART_ROWS if TRANSPOSED else 0
        part_start = column_start + (0 if TRANSPOSED else part * PART_COLUMNS)
        r = row_start + part_row + tl.arange(0, PART_ROWS)
        values *= tl.load(row_factor + r, mask=r < row_count, other=0.0)[:, None]
        if REDUCE:
            accumulator.atomic_add([target_row + part_row, part_start], values)
        else:
            row = target_row + part_row + tl.arange(0, PART_ROWS)
            column = part_start + tl.arange(0, PART_COLUMNS)
            address = accumulator + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
            mask = (r < row_count)[:, None] & (column < hidden_size)[None, :]  # the memory may end with the kept tokens
            tl.store(address, tl.load(address, mask=mask, other=0.0) + values, mask=mask)


@triton.jit(do_not_specialize=["dz_rows", "vocab_size", "memory_blocks", "independent"])
def input_gradient_kernel(
    dz,  # (dz_rows, strip); see tiles.merged_strip
    weight,  # (V, D)
    accumulator,  # (padded N + extra, D) float32, packed; tensor descriptor if REDUCE
    count,  # (1,)
    dz_rows,
    vocab_size,
    hidden_size,
    memory_blocks,  # of the accumulator
    run_start,
    run_columns,
    run_offset,
    strip_columns,
    dz_stride,
    weight_row_stride,
    weight_column_stride,
    row_factor,  # (N,) packed: multiplies the rows of the product
    independent,  # whether it is of the kernel ahead (.early)
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,  # of a tile of dz
    MAX_CUTS: tl.constexpr,
    STEPS: tl.constexpr,
    PIECE: tl.constexpr,
    PARTS: tl.constexpr,
    PART_ROWS: tl.constexpr,
    PART_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    REDUCE: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
    NEXT_EARLY: tl.constexpr,
):
    """Add the products of a strip, or of several, to an accumulator that was 0 at first; persistent over its tiles.

    With REDUCE the copy engine adds in the L2 cache; without it the program loads, adds and stores.
    """
    let_next_begin(NEXT_EARLY)
    if independent == 0:
        wait_for_previous(EARLY)
    row_count = tl.load(count)
    strip_rows, first, columns = merged_strip(row_count, dz_rows, strip_columns, run_offset, run_columns, ALIGNED_ROWS)  # pyright: ignore[reportGeneralTypeIssues]
    strip_start = run_start + first
    row_blocks = tl.where(columns > 0, tl.cdiv(row_count, BLOCK_ROWS), 0)
    column_blocks = tl.cdiv(hidden_size, BLOCK_COLUMNS)
    programs = tl.num_programs(0)
    whole, cuts = last_round(row_blocks, column_blocks, programs, memory_blocks, MAX_CUTS, STEPS, PIECE)
    for tile in tl.range(tl.program_id(0), whole, programs, flatten=FLATTEN):
        row_start = (tile // column_blocks) * BLOCK_ROWS
        _add_tile(
            dz,
            weight,
            accumulator,
            row_start,
            (tile % column_blocks) * BLOCK_COLUMNS,
            row_start,
            0,
            columns,
            row_count,
            vocab_size,
            hidden_size,
            strip_start,
            strip_columns,
            strip_rows,
            dz_stride,
            weight_row_stride,
            weight_column_stride,
            row_factor,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_VOCAB,
            PARTS,
            PART_ROWS,
            PART_COLUMNS,
            TRANSPOSED,
            DESCRIPTOR,
            REDUCE,
            PRECISION,
        )
    extra = row_blocks - whole // column_blocks  # rows of tiles with cut ones: the last of the kept tokens'
    steps = tl.cdiv(tl.cdiv(columns, BLOCK_VOCAB), cuts) * BLOCK_VOCAB
    for item in range(tl.program_id(0), (row_blocks * column_blocks - whole) * cuts, programs):
        tile = whole + item // cuts
        cut = item % cuts
        row_block = tile // column_blocks
        _add_tile(
            dz,
            weight,
            accumulator,
            row_block * BLOCK_ROWS,
            (tile % column_blocks) * BLOCK_COLUMNS,
            (row_block + cut * extra) * BLOCK_ROWS,
            cut * steps,
            tl.minimum((cut + 1) * steps, columns),
            row_count,
            vocab_size,
            hidden_size,
            strip_start,
            strip_columns,
            strip_rows,
            dz_stride,
            weight_row_stride,
            weight_column_stride,
            row_factor,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_VOCAB,
            PARTS,
            PART_ROWS,
            PART_COLUMNS,
            TRANSPOSED,
            DESCRIPTOR,
            REDUCE,
            PRECISION,
        )
    wait_for_previous(EARLY)


@triton.jit(do_not_specialize=["n", "memory_blocks"])
def unpack_kernel(
    accumulator,  # (padded N + extra, D) float32, packed
    gradient,  # (N, D) input order
    count,  # (1,)
    source,  # (N,)
    row_scale,  # (N,) packed
    uniform,  # (D,): row_scale times this is subtracted
    scale,  # ()
    n,
    hidden_size,
    constant,
    programs,  # of the kernel above
    memory_blocks,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    MAX_CUTS: tl.constexpr,
    STEPS: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Join the pieces of cut tiles, scale, round and move kept tokens to their places; ignored ones get 0."""
    row_count = tl.load(count)
    row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    column_blocks = tl.cdiv(hidden_size, BLOCK_COLUMNS)
    whole, cuts = last_round(row_blocks, column_blocks, programs, memory_blocks, MAX_CUTS, STEPS, PIECE)
    extra = row_blocks - whole // column_blocks
    factor = tl.load(scale) * constant
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kept = row < row_count
    origin = tl.load(source + row, mask=row < n, other=0)
    share = tl.load(row_scale + row, mask=kept, other=0.0)[:, None]
    for start in range(0, hidden_size, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (column < hidden_size)[None, :]
        address = accumulator + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
        values = tl.load(address, mask=kept[:, None] & inside, other=0.0)
        is_cut = (row // BLOCK_ROWS)[:, None] * column_blocks + (column // BLOCK_COLUMNS)[None, :] >= whole
        for cut in range(1, cuts):
            offset = (cut * extra * BLOCK_ROWS).to(tl.int64) * hidden_size
            values += tl.load(address + offset, mask=kept[:, None] & inside & is_cut, other=0.0)
        values -= share * tl.load(uniform + column, mask=column < hidden_size, other=0.0)[None, :]
        target = gradient + origin.to(tl.int64)[:, None] * hidden_size + column[None, :]
        tl.store(target, (values * factor).to(gradient.dtype.element_ty), mask=(row < n)[:, None] & inside)
