"""Kernels of both products of a round's listed tiles.

The weight's gradient of a tile is the sum over its entries, written once. For the input's gradient the entries of a
block are cut into pieces of at most so many; the first adds to the block's rows of the accumulator, the others write
rows of their own, which ``join_kernel`` adds in their order. No address is written by two programs at a time, and sums
have one order: results repeat bit for bit.

Items differ in length, and many are short. Each kernel therefore has a single loop over the steps of all of its items,
in which an item's end is a branch: loads of the next one are then on their way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .early import let_next_begin, wait_for_previous
from .listed_rounds import ROUND_FIELDS
from .tiles import add_product, column_part, load_tile, no_product, product_part, store_tile

__all__ = ["join_kernel", "listed_input_kernel", "listed_weight_kernel"]

_FIELDS = tl.constexpr(ROUND_FIELDS)
_WAVES = tl.constexpr(32)  # of items whose steps a program counts at once


@triton.jit
def _item_of(wave):
    """The program's item in a wave of as many items as programs: the longest come first, and to others in turn."""
    own = tl.where(wave % 2 == 0, tl.program_id(0), tl.num_programs(0) - 1 - tl.program_id(0))
    return wave * tl.num_programs(0) + own


@triton.jit(do_not_specialize=["dz_rows", "vocab_size", "index", "place", "most", "own_blocks", "independent"])
def listed_input_kernel(
    dz,  # (dz_rows, TILE)
    weight,  # (V, D)
    accumulator,  # (rows of blocks and of pieces, D) float32; tensor descriptor if REDUCE
    slot_of,  # entries by block: where in the list they are
    tile_of,  # and their tiles of the vocabulary
    piece,  # (rounds, most, 3): first entry, entries, block of rows to write, of a block's first piece to add to
    numbers,  # (rounds, 2): pieces, joins
    rounds,  # (1 + 5 tiles,) see listed_rounds
    index,  # of the round
    place,  # of the round in piece and numbers
    most,
    own_blocks,  # of the accumulator, before those of pieces
    dz_rows,
    vocab_size,
    hidden_size,
    weight_row_stride,
    weight_column_stride,
    independent,  # whether it is of the kernel ahead (.early)
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    REDUCE: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Products of pieces with the head: one loop over the steps of all items, with an item's end in it."""
    if independent == 0:
        wait_for_previous(EARLY)
    column_blocks = tl.cdiv(hidden_size, BLOCK_COLUMNS)
    first = tl.load(rounds + 1 + _FIELDS * index)
    start = tl.load(rounds + 5 + _FIELDS * index)
    items = tl.load(numbers + 2 * place) * column_blocks
    piece += place * most * 3
    STEPS: tl.constexpr = TILE // BLOCK_VOCAB
    steps = 0
    for begin in range(0, tl.cdiv(items, tl.num_programs(0)), _WAVES):
        own = _item_of(begin + tl.arange(0, _WAVES))
        steps += tl.sum(tl.load(piece + own // column_blocks * 3 + 1, mask=own < items, other=0), 0) * STEPS
    # Where a step lies in memory is read a step ahead, and where the next item does all the time: nothing waits for it.
    wave = 0
    item = _item_of(wave)
    own = piece + item // column_blocks * 3
    entry = tl.load(own, mask=item < items, other=0)
    end = entry + tl.load(own + 1, mask=item < items, other=0)
    target = tl.load(own + 2, mask=item < items, other=0)
    slot = tl.load(slot_of + entry, mask=entry < end, other=0)
    tile = tl.load(tile_of + entry, mask=entry < end, other=0)
    k = 0
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for _ in tl.range(0, steps):
        column_start = (item % column_blocks) * BLOCK_COLUMNS
        dz_row = start + (slot - first) * BLOCK_ROWS
        a = load_tile(dz, dz_row, k, dz_rows, TILE, TILE, 1, BLOCK_ROWS, BLOCK_VOCAB, DESCRIPTOR)
        b = load_tile(
            weight,
            tile * TILE + k,
            column_start,
            vocab_size,
            hidden_size,
            weight_row_stride,
            weight_column_stride,
            BLOCK_VOCAB,
            BLOCK_COLUMNS,
            DESCRIPTOR,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        whole = k == TILE - BLOCK_VOCAB
        last = whole & (entry + 1 == end)
        if last:
            for part in tl.static_range(PARTS):
                values = column_part(acc, part, PARTS, BLOCK_ROWS, BLOCK_COLUMNS)
                column = column_start + part * (BLOCK_COLUMNS // PARTS)
                if REDUCE:
                    if target < own_blocks:
                        accumulator.atomic_add([target * BLOCK_ROWS, column], values)
                    else:
                        accumulator.store([target * BLOCK_ROWS, column], values)
                else:
                    d = column + tl.arange(0, BLOCK_COLUMNS // PARTS)
                    row = target * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
                    address = accumulator + row.to(tl.int64)[:, None] * hidden_size + d[None, :]
                    mask = (d < hidden_size)[None, :]
                    old = tl.load(address, mask=mask & (target < own_blocks), other=0.0)
                    tl.store(address, old + values, mask=mask)
            acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        following = _item_of(wave + 1)
        own = piece + following // column_blocks * 3
        next_entry = tl.load(own, mask=following < items, other=0)
        next_end = next_entry + tl.load(own + 1, mask=following < items, other=0)
        next_target = tl.load(own + 2, mask=following < items, other=0)
        wave = tl.where(last, wave + 1, wave)
        item = tl.where(last, following, item)
        entry = tl.where(last, next_entry, tl.where(whole, entry + 1, entry))
        end = tl.where(last, next_end, end)
        target = tl.where(last, next_target, target)
        k = tl.where(whole, 0, k + BLOCK_VOCAB)
        slot = tl.load(slot_of + entry, mask=entry < end, other=0)
        tile = tl.load(tile_of + entry, mask=entry < end, other=0)
    wait_for_previous(EARLY)


@triton.jit(do_not_specialize=["place", "hidden_size"])
def join_kernel(
    accumulator,
    join,  # (rounds, programs, 3): block, first and number of the blocks of rows to add to it
    numbers,  # (rounds, 2): pieces, joins
    place,  # of the round in both
    hidden_size,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add pieces to the rows of their block, in order."""
    if tl.program_id(0) < tl.load(numbers + 2 * place + 1):
        own = join + (place * tl.num_programs(0) + tl.program_id(0)) * 3
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
        mask = (column < hidden_size)[None, :]
        offset = row.to(tl.int64)[:, None] * hidden_size + column[None, :]
        size = BLOCK_ROWS * hidden_size.to(tl.int64)
        address = accumulator + tl.load(own) * size + offset
        total = tl.load(address, mask=mask, other=0.0)
        source = accumulator + tl.load(own + 1) * size + offset
        for _ in range(tl.load(own + 2)):
            total += tl.load(source, mask=mask, other=0.0)
            source += size
        tl.store(address, total, mask=mask)


@triton.jit(do_not_specialize=["dz_rows", "vocab_size", "index", "n"])
def listed_weight_kernel(
    dz,  # (dz_rows, TILE)
    hidden,  # (N, D)
    gradient,  # (V, D), the rows of the round's tiles written
    shared,  # (all tiles, D) float32: what every row of a tile gets beside
    scale,  # () factor common to all tokens
    entry_of,  # (all tiles + 1,) first entry of each
    block_of,
    rounds,  # (1 + 5 tiles,) see listed_rounds
    index,  # of the round
    dz_rows,
    n,
    vocab_size,
    hidden_size,
    hidden_row_stride,
    gradient_row_stride,
    constant,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,  # tokens of a block
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PART_ROWS: tl.constexpr,  # of a part
    PART_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    NEXT_EARLY: tl.constexpr,
):
    """Products of the round's tiles with the hidden states, in one loop as above; without entries a step of zeros."""
    let_next_begin(NEXT_EARLY)
    factor = tl.load(scale) * constant
    first = tl.load(rounds + 1 + _FIELDS * index)
    first_tile = tl.load(rounds + 3 + _FIELDS * index)
    start = tl.load(rounds + 5 + _FIELDS * index)
    column_blocks = tl.cdiv(hidden_size, BLOCK_COLUMNS)
    items = tl.load(rounds + 4 + _FIELDS * index) * column_blocks
    entry_of += first_tile
    STEPS: tl.constexpr = ROWS // BLOCK_ROWS
    steps = 0
    for begin in range(0, tl.cdiv(items, tl.num_programs(0)), _WAVES):
        own = _item_of(begin + tl.arange(0, _WAVES))
        of_tile = entry_of + own // column_blocks
        entries = tl.load(of_tile + 1, mask=own < items, other=0) - tl.load(of_tile, mask=own < items, other=0)
        steps += tl.sum(tl.where(own < items, tl.maximum(entries * STEPS, 1), 0), 0)
    wave = 0
    item = _item_of(wave)
    of_tile = entry_of + item // column_blocks
    entry = tl.load(of_tile, mask=item < items, other=0)
    end = tl.load(of_tile + 1, mask=item < items, other=0)
    block = tl.load(block_of + entry, mask=entry < end, other=0)
    k = 0
    acc = no_product(TILE, BLOCK_COLUMNS, TRANSPOSED)
    for _ in tl.range(0, steps):
        column_start = (item % column_blocks) * BLOCK_COLUMNS
        some = entry < end  # else it reads behind both: zeros
        dz_row = tl.where(some, start + (entry - first) * ROWS + k, dz_rows)
        row = tl.where(some, block * ROWS + k, n)
        a = load_tile(dz, dz_row, 0, dz_rows, TILE, TILE, 1, BLOCK_ROWS, TILE, DESCRIPTOR)
        b = load_tile(
            hidden, row, column_start, n, hidden_size, hidden_row_stride, 1, BLOCK_ROWS, BLOCK_COLUMNS, DESCRIPTOR
        )
        acc = add_product(acc, a.T, b, TRANSPOSED, PRECISION)
        whole = k == ROWS - BLOCK_ROWS
        last = (whole & (entry + 1 == end)) | (entry >= end)
        if last:
            tile = first_tile + item // column_blocks
            for part in tl.static_range(PARTS):
                part_row = tile * TILE + (part * PART_ROWS if TRANSPOSED else 0)
                column = column_start + (0 if TRANSPOSED else part * PART_COLUMNS)
                d = column + tl.arange(0, PART_COLUMNS)
                beside = tl.load(shared + tile.to(tl.int64) * hidden_size + d, mask=d < hidden_size, other=0.0)
                values = product_part(acc, part, PARTS, TILE, BLOCK_COLUMNS, TRANSPOSED)
                values = (values + beside[None, :]) * factor
                store_tile(
                    gradient,
                    values.to(gradient.dtype if DESCRIPTOR else gradient.dtype.element_ty),
                    part_row,
                    column,
                    vocab_size,
                    hidden_size,
                    gradient_row_stride,
                    PART_ROWS,
                    PART_COLUMNS,
                    DESCRIPTOR,
                )
            acc = no_product(TILE, BLOCK_COLUMNS, TRANSPOSED)
        following = _item_of(wave + 1)
        of_tile = entry_of + following // column_blocks
        next_entry = tl.load(of_tile, mask=following < items, other=0)
        next_end = tl.load(of_tile + 1, mask=following < items, other=0)
        wave = tl.where(last, wave + 1, wave)
        item = tl.where(last, following, item)
        entry = tl.where(last, next_entry, tl.where(whole, entry + 1, entry))
        end = tl.where(last, next_end, end)
        k = tl.where(whole | last, 0, k + BLOCK_ROWS)
        block = tl.load(block_of + entry, mask=entry < end, other=0)
