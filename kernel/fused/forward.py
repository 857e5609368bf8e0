"""Forward kernel: row statistics of the logits without storing the logits.

A unit of work is a block of tokens and a contiguous group of vocabulary tiles. Its program keeps, per token in float32,

    peak       = max_k z_k
    total      = sum_k exp(z_k - peak)
    logit_sum  = sum_k z_k              only for label smoothing

over the group and writes them once; :mod:`.merge` joins the groups of a token in a fixed order, so no atomics are
needed and the result is the same bit for bit in every run. Token blocks vary fastest among the units that run at the
same time: they share a few vocabulary tiles, ``hidden`` stays in the L2 cache and ``weight`` streams from memory once.
The number of groups follows from the number of kept tokens, known on the device alone, so that few tokens still fill
every multiprocessor.

With KEEP, a tile's softmax is stored as well, in the dtype of the inputs: a relative error of 2^-9 on each probability
in bfloat16, where a rounded logit of 20 nats would be off by 6 %. Its reference is the tile's own peak, in float32;
with DIRECT it is one number per token, the target's logit, so that a column of the store is proportional to
probabilities and enters the backward's products as it is. (Should a logit exceed its target's by more than 2^100,
:mod:`.keep` notices and repairs it.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import capped_logits, column_part, product, store_tile

__all__ = ["MAX_UNITS", "forward_kernel", "group_count"]

MAX_UNITS = (
    2112  # 16 for each of the 132 multiprocessors of an H100: the imbalance is one tile in 500, partials are 3 MiB
)


@triton.jit
def group_count(row_blocks, tile_count, units):
    """Groups of vocabulary tiles a block of tokens is split into, so that there are at most ``units`` in all.

    Not a compile-time constant: it grows with the tokens where they are many.
    """
    return tl.minimum(tl.maximum(units // tl.maximum(row_blocks, 1), 1), tile_count)


@triton.jit
def forward_kernel(
    hidden,  # (N, D) packed, or as given if GATHER
    weight,  # (V, D)
    bias,  # (V,)
    count,  # (1,) kept tokens
    source,  # (N,) read if GATHER
    partial,  # (3, units, BLOCK_ROWS): peak, total, logit_sum, in bits
    partial_stride,  # units x BLOCK_ROWS
    kept,  # (N, kept columns) if KEEP
    kept_peak,  # (kept tiles, N) if KEEP and not DIRECT
    reference,  # (N,) packed, bits, if DIRECT
    n,
    vocab_size,
    hidden_size,
    kept_columns,
    kept_stride,
    first_tile,
    tile_count,
    hidden_row_stride,
    hidden_column_stride,
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOGIT_SUM: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    KEEP: tl.constexpr,
    DIRECT: tl.constexpr,
    RUN_IF: tl.constexpr,  # "always", "all kept", "some ignored"
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    GATHER: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Statistics of vocabulary tiles ``first_tile ... first_tile + tile_count - 1`` for every kept token."""
    row_count = tl.load(count)
    if RUN_IF == "all kept":
        row_blocks = tl.where(row_count == n, tl.cdiv(row_count, BLOCK_ROWS), 0)
    elif RUN_IF == "some ignored":
        row_blocks = tl.where(row_count == n, 0, tl.cdiv(row_count, BLOCK_ROWS))
    else:
        row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    groups = group_count(row_blocks, tile_count, partial_stride // BLOCK_ROWS)
    programs = tl.num_programs(0)
    first = tl.program_id(0)
    steps = 0
    for u in range(first, row_blocks * groups, programs):
        g = u // row_blocks
        steps += (g + 1) * tile_count // groups - g * tile_count // groups

    unit = first - programs
    tile = -1
    tile_end = 0
    peak = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    logit_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for _ in tl.range(0, steps, flatten=FLATTEN):
        # Where the next tile lies follows from counters alone: its loads start before this tile's end.
        tile += 1
        fresh = tile == tile_end
        unit = tl.where(fresh, unit + programs, unit)
        group = unit // row_blocks
        tile = tl.where(fresh, group * tile_count // groups, tile)
        tile_end = (group + 1) * tile_count // groups
        row_start = (unit - group * row_blocks) * BLOCK_ROWS
        column_start = (first_tile + tile) * BLOCK_VOCAB

        row = row_start + tl.arange(0, BLOCK_ROWS)
        rows = tl.load(source + row, mask=row < row_count, other=0) if GATHER else row
        acc = product(
            hidden,
            weight,
            row_start,
            rows,
            column_start,
            row_count,
            vocab_size,
            hidden_size,
            hidden_row_stride,
            hidden_column_stride,
            weight_row_stride,
            weight_column_stride,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_HIDDEN,
            DESCRIPTOR,
            GATHER,
            PRECISION,
        )
        column = column_start + tl.arange(0, BLOCK_VOCAB)
        z, slope = capped_logits(
            acc, bias, column, vocab_size, product_gain, bias_gain, cap, HAS_BIAS, SOFTCAP, PRECISE
        )
        if LOGIT_SUM:
            logit_sum = tl.where(fresh, 0.0, logit_sum) + tl.sum(z, 1)  # padded columns hold exact zeros so far
        if MASK_VOCAB:  # after the cap: tanh would turn -inf into -c and give the padding mass
            z = tl.where((column < vocab_size)[None, :], z, float("-inf"))
        if DIRECT:
            peak = tl.load(reference + row, mask=row < row_count, other=float("inf"))  # nothing is kept of the padding
            e = tl.exp2(z - peak[:, None])
            total = tl.where(fresh, 0.0, total) + tl.sum(e, 1)
            if SOFTCAP:
                e *= slope
        else:
            tile_peak = tl.max(z, 1)
            e = tl.exp2(z - tile_peak[:, None])
            old_peak = tl.where(fresh, float("-inf"), peak)
            peak = tl.maximum(old_peak, tile_peak)
            total = tl.where(fresh, 0.0, total) * tl.exp2(old_peak - peak) + tl.sum(e, 1) * tl.exp2(tile_peak - peak)

        # The unit's slot is written after every tile of its group; the last one stays.
        slot = partial + unit.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        tl.store(slot, peak)
        tl.store(slot + partial_stride, total)
        if LOGIT_SUM:
            tl.store(slot + 2 * partial_stride, logit_sum)
        if KEEP:
            if not DIRECT:
                tl.store(kept_peak + tile.to(tl.int64) * n + row, tile_peak, mask=row < row_count)
            for part in tl.static_range(PARTS):
                store_tile(
                    kept,
                    column_part(e, part, PARTS, BLOCK_ROWS, BLOCK_VOCAB).to(
                        kept.dtype if DESCRIPTOR else kept.dtype.element_ty
                    ),
                    row_start,
                    tile * BLOCK_VOCAB + part * (BLOCK_VOCAB // PARTS),
                    n,
                    kept_columns,
                    kept_stride,
                    BLOCK_ROWS,
                    BLOCK_VOCAB // PARTS,
                    DESCRIPTOR,
                )
