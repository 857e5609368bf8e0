"""Forward kernel: row statistics of the logits without storing the logits.

The program of a unit of work (:mod:`.units`) keeps, per token in float32,

    peak       = max_k z_k
    total      = sum_k exp(z_k - peak)
    logit_sum  = sum_k z_k                              only for label smoothing
    weighted   = sum_k exp(z_k - peak) (z_k - peak)     only for the entropy
    highest, best = the largest logit and its class     only for statistics

over its group of tiles and writes them; :mod:`.merge` joins the groups of a token in a fixed order, so no atomics
are needed and the result is the same bit for bit in every run.

KEEP stores something of every tile for the backward, too (:mod:`.kept_tiles`).

TILE_SUMS also writes the sum of exponentials of every tile and token, in bits, and by what part of its square the sum
of their squares is smaller: what :mod:`.tile_sums` makes masses and spreads of. Both go in one number: each store of a
number a token passes it through shared memory, for which all threads wait.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import below_peak, encode
from .kept_tiles import keep_bytes, store_in_strip
from .logits import FLOOR, capped, largest, logit_argument
from .tiles import column_part, in_one, product
from .units import group_count, swept_blocks

__all__ = ["forward_kernel"]

_FLOOR = tl.constexpr(FLOOR)
_LOWEST = tl.constexpr(-1e4)  # bits below which 2^x is 0: of a class without mass 2^x x is 0 too


@triton.jit
def _write_unit(
    partial,
    partial_stride,
    unit,
    peak,
    total,
    logit_sum,
    weighted,
    highest,
    best,
    LOGIT_SUM: tl.constexpr,
    ENTROPY: tl.constexpr,
    ARGMAX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Store the statistics of a unit in its slot."""
    slot = partial + unit.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tl.store(slot, peak)
    tl.store(slot + partial_stride, total)
    if LOGIT_SUM:
        tl.store(slot + 2 * partial_stride, logit_sum)
    if ENTROPY:
        tl.store(slot + 3 * partial_stride, weighted)
    if ARGMAX:
        tl.store(slot + 4 * partial_stride, highest)
        tl.store(slot + 5 * partial_stride, best.to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["n", "vocab_size", "first_tile", "tile_count", "kept_rows"])
def forward_kernel(
    hidden,  # (N, D) packed, or as given if GATHER
    weight,  # (V, D)
    bias,  # (V,)
    count,  # (1,) kept tokens
    source,  # (N,) read if GATHER, of a softmax or of bytes
    target,  # (N,) input order, read of a softmax or of bytes
    partial,  # (up to 6, units, BLOCK_ROWS): peak, total, logit_sum, weighted, highest, best; in bits
    partial_stride,  # units x BLOCK_ROWS
    kept,  # strips of (N, kept_stride), one below the other, if KEEP
    reference,  # (1 + ..., N) packed, bits: read of the target (softmax, byte), written of the peaks (code, byte)
    tile_sums,  # (N, tile_stride) int64 packed, if TILE_SUMS
    n,
    vocab_size,
    hidden_size,
    tile_stride,
    kept_rows,
    kept_stride,
    first_tile,
    tile_count,
    hidden_row_stride,
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    knee,
    ratio,
    offset,
    gain,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOGIT_SUM: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    ENTROPY: tl.constexpr,
    ARGMAX: tl.constexpr,
    KEEP: tl.constexpr,  # "", "softmax", "code", "byte", "raw"
    TILE_SUMS: tl.constexpr,
    RUN_IF: tl.constexpr,  # of units.swept_blocks
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    PIECES: tl.constexpr,  # column blocks of a tile gone through one by one: 1, or PARTS (code, softcap)
    PEAKS: tl.constexpr,  # of a tile (byte)
    DESCRIPTOR: tl.constexpr,
    GATHER: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Statistics of vocabulary tiles ``first_tile ... first_tile + tile_count - 1`` for every kept token."""
    row_count = tl.load(count)
    row_blocks = swept_blocks(row_count, n, RUN_IF, BLOCK_ROWS)
    groups = group_count(row_blocks, tile_count, partial_stride // BLOCK_ROWS)
    programs = tl.num_programs(0)
    first = tl.program_id(0)
    steps = 0
    for own in range(first, row_blocks * groups, programs):
        g = own // row_blocks
        steps += (g + 1) * tile_count // groups - g * tile_count // groups

    unit = first - programs
    tile = -1
    tile_end = 0
    peak = tl.full((BLOCK_ROWS,), _FLOOR, dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    logit_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    highest = tl.full((BLOCK_ROWS,), _FLOOR, dtype=tl.float32)
    best = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
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
            1,
            weight_row_stride,
            weight_column_stride,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_HIDDEN,
            DESCRIPTOR,
            GATHER,
            PRECISION,
        )
        if KEEP == "softmax" or KEEP == "byte":
            token = tl.load(source + row, mask=row < row_count, other=0)
            label = tl.load(target + token, mask=row < row_count, other=-1).to(tl.int32)
            here = (label >= column_start) & (label < column_start + BLOCK_VOCAB)
        if KEEP == "byte":
            own_logit = tl.load(reference + row, mask=row < row_count, other=0.0)
        for piece in tl.static_range(PIECES):
            begins = fresh & (piece == 0)
            first_column = column_start + piece * (BLOCK_VOCAB // PIECES)
            column = first_column + tl.arange(0, BLOCK_VOCAB // PIECES)
            part_acc = column_part(acc, piece, PIECES, BLOCK_ROWS, BLOCK_VOCAB)
            u = logit_argument(part_acc, bias, column, vocab_size, product_gain, bias_gain, HAS_BIAS)
            z, _slope = capped(u, cap, SOFTCAP, PRECISE, False)
            if KEEP == "raw":
                stored = u
            elif KEEP == "code" and SOFTCAP:  # written at once: u and z of a whole tile would not fit the registers
                strip = tile * BLOCK_VOCAB // kept_stride
                store_in_strip(
                    kept,
                    encode(u, z, knee, ratio, offset, gain),
                    strip,
                    tile,
                    row_start,
                    row_blocks,
                    kept_rows,
                    kept_stride,
                    piece,
                    PIECES,
                    BLOCK_ROWS,
                    BLOCK_VOCAB,
                    DESCRIPTOR,
                )
            if LOGIT_SUM:
                logit_sum = tl.where(begins, 0.0, logit_sum) + tl.sum(z, 1)  # padded columns hold exact zeros so far
            if MASK_VOCAB:  # after the cap: tanh would turn -inf into -c and give the padding mass
                z = tl.where((column < vocab_size)[None, :], z, float("-inf"))
            if ARGMAX:
                tile_highest, tile_best = largest(z, first_column, WIDTH, BLOCK_ROWS, BLOCK_VOCAB // PIECES)
                old_highest = tl.where(begins, float("-inf"), highest)
                best = tl.where(begins | (tile_highest > old_highest), tile_best, best)
                highest = tl.maximum(old_highest, tile_highest)
            if KEEP == "softmax":
                peak = tl.load(reference + row, mask=row < row_count, other=float("inf"))  # of the padding nothing
                tile_peak = peak
                if tl.max(here.to(tl.int32), 0) > 0:  # the sum is to hold the very logit that the target's entry has
                    z = tl.where(column[None, :] == label[:, None], peak[:, None], z)
            elif KEEP == "byte":
                tile_peak, peaks, below, e = keep_bytes(
                    kept,
                    reference,
                    z,
                    tile,
                    column,
                    label,
                    here,
                    row,
                    row_start,
                    row_count,
                    row_blocks,
                    n,
                    vocab_size,
                    kept_rows,
                    kept_stride,
                    MASK_VOCAB,
                    PEAKS,
                    BLOCK_ROWS,
                    BLOCK_VOCAB,
                    DESCRIPTOR,
                )
                share = tl.exp2(peaks - tile_peak[:, None])
            else:
                tile_peak = tl.maximum(tl.max(z, 1), _FLOOR)
            if KEEP != "byte":
                below = z - tile_peak[:, None]
                e = tl.exp2(below)
            if KEEP == "softmax":
                stored = e
            elif KEEP == "code" and not SOFTCAP:
                stored = below_peak(-below)
            old_total = tl.where(begins, 0.0, total)
            total = tl.sum(tl.sum(e, 2) * share, 1) if KEEP == "byte" else tl.sum(e, 1)
            if TILE_SUMS:  # of one piece: there is no softcap; stored at once, which leaves fewer numbers to be held
                square = tl.where(total > 0, tl.sum(e * e, 1) / (total * total), 0.0)
                both = in_one(tile_peak + tl.log2(total), square)  # pyright: ignore[reportGeneralTypeIssues]
                tl.store(tile_sums + row.to(tl.int64) * tile_stride + (first_tile + tile), both, mask=row < row_count)
            if ENTROPY:
                old_weighted = tl.where(begins, 0.0, weighted)
                if KEEP == "byte":
                    of_peaks = tl.sum(e * tl.maximum(below, 0.25 * _LOWEST), 2) * 4
                    of_peaks += tl.sum(e, 2) * tl.maximum(peaks - tile_peak[:, None], _LOWEST)
                    weighted = tl.sum(of_peaks * share, 1)
                else:
                    weighted = tl.sum(e * tl.maximum(below, _LOWEST), 1)
            if KEEP == "softmax":
                total += old_total
                if ENTROPY:
                    weighted += old_weighted
            else:
                old_peak = tl.where(begins, _FLOOR, peak)
                peak = tl.maximum(old_peak, tile_peak)
                if KEEP == "byte":
                    peak = tl.where(here, tl.maximum(peak, own_logit), peak)
                    own_below = tl.where(here, own_logit - peak, float("-inf"))
                old = tl.exp2(old_peak - peak)
                new = tl.exp2(tile_peak - peak)
                if ENTROPY:
                    old_weighted += old_total * (old_peak - peak)
                    weighted = old_weighted * old + (weighted + total * (tile_peak - peak)) * new
                total = old_total * old + total * new
                if KEEP == "byte":
                    own_e = tl.exp2(own_below)
                    total += own_e
                    if ENTROPY:
                        weighted += own_e * tl.maximum(own_below, _LOWEST)

        # Each number a token passes through shared memory, for which all wait: once a unit. Where more is held Triton
        # (3.6, 3.7) cannot fuse loops around a store behind a condition; there each tile stores, and the last stays.
        if FLATTEN and (ENTROPY or ARGMAX or PIECES > 1):  # noqa: SIM114 - decided when it is compiled; the other when it runs
            _write_unit(
                partial, partial_stride, unit, peak, total, logit_sum, weighted, highest, best,
                LOGIT_SUM, ENTROPY, ARGMAX, BLOCK_ROWS,
            )  # fmt: skip
        elif tile + 1 == tile_end:
            _write_unit(
                partial, partial_stride, unit, peak, total, logit_sum, weighted, highest, best,
                LOGIT_SUM, ENTROPY, ARGMAX, BLOCK_ROWS,
            )  # fmt: skip
        if KEEP != "" and KEEP != "byte" and not (KEEP == "code" and SOFTCAP):
            if KEEP == "code":
                tl.store(reference + (tile + 1).to(tl.int64) * n + row, tile_peak, mask=row < row_count)
            strip = tile * BLOCK_VOCAB // kept_stride
            for part in tl.static_range(PARTS):
                store_in_strip(
                    kept,
                    column_part(stored, part, PARTS, BLOCK_ROWS, BLOCK_VOCAB).to(
                        kept.dtype if DESCRIPTOR else kept.dtype.element_ty
                    ),
                    strip,
                    tile,
                    row_start,
                    row_blocks,
                    kept_rows,
                    kept_stride,
                    part,
                    PARTS,
                    BLOCK_ROWS,
                    BLOCK_VOCAB,
                    DESCRIPTOR,
                )
