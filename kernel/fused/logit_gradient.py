"""Kernels that write dz, the gradient of one vocabulary strip of logits: recomputed, or from what the forward kept.

    dz = (row_scale (p - (1 - b) [k = target] - b / V) + p (A + B log p) + C [k = target]) sech(z / c)^2

The first part is the cross entropy's. The others are there if MIXED: of z_loss, of the confidence penalty and of
upstream gradients of log-probability, log-partition and entropy (:mod:`.gradient_rows`).

p is formed in float32 from a float32 logit and the row's lse; dz is rounded once, to the dtype of the inputs. It is of
order one, the token's upstream gradients being divided by the largest one: in float16 the 1 / N of a mean would push
most of it under the smallest number. The common factor joins in float32, after the products
(:mod:`.weight_gradient`, :mod:`.input_gradient`). Rows beyond the kept tokens and columns beyond the vocabulary are
written as zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import bits_below, decode
from .tiles import capped, column_part, logit_argument, merged_strip, product, store_tile

__all__ = ["gradient_of", "gradient_of_logits", "kept_strip_kernel", "recomputed_strip_kernel"]

_LOWEST = tl.constexpr(-1e4)  # bits; there p is 0, and so is p log p


@triton.jit
def gradient_of(
    p,  # (BLOCK_ROWS, columns)
    log_p,  # bits, read if MIXED
    slope,  # read if SOFTCAP
    column,  # (columns,)
    hit,  # whether a column is the row's target
    vocab_size,
    scale,  # (BLOCK_ROWS,)
    mix,  # (3, N)
    row,
    inside,  # (BLOCK_ROWS,) whether the row exists
    n,
    label_smoothing,
    uniform,
    MIXED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
):
    """The gradient above from probabilities."""
    dz = p - tl.where(hit, 1.0 - label_smoothing + uniform, uniform)
    dz *= scale[:, None]
    if MIXED:  # after the difference: beside p_y near 1 the share of z_loss would be rounded away
        plain = tl.load(mix + row, mask=inside, other=0.0)[:, None]
        bend = tl.load(mix + n + row, mask=inside, other=0.0)[:, None]
        own = tl.load(mix + 2 * n + row, mask=inside, other=0.0)[:, None]
        dz += p * (plain + bend * tl.maximum(log_p, _LOWEST)) + tl.where(hit, own, 0.0)
    if SOFTCAP:
        dz *= slope
    if MASK_VOCAB:
        dz = tl.where((column < vocab_size)[None, :], dz, 0.0)
    return dz


@triton.jit
def gradient_of_logits(
    z,  # (BLOCK_ROWS, columns) bits
    slope,
    lse,  # (BLOCK_ROWS,)
    first,  # of the columns
    column,  # (columns,)
    vocab_size,
    scale,  # (BLOCK_ROWS,)
    label,
    mix,  # (3, N)
    row,
    inside,  # (BLOCK_ROWS,) whether the row exists
    n,
    label_smoothing,
    uniform,
    MIXED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
):
    """The formula above, for a tile of logits in bits and the slopes of their cap."""
    log_p = z - lse[:, None]
    p = tl.exp2(log_p)
    if MIXED or SOFTCAP:
        hit = column[None, :] == label[:, None]
        dz = gradient_of(
            p,
            log_p,
            slope,
            column,
            hit,
            vocab_size,
            scale,
            mix,
            row,
            inside,
            n,
            label_smoothing,
            uniform,
            MIXED,
            SOFTCAP,
            MASK_VOCAB,
        )
    else:
        # Few tiles hold a target: whether one does is asked once, not of each logit, which is left a product and a sum.
        here = (label >= first) & (label < first + column.shape[0])
        if tl.max(here.to(tl.int32), 0) > 0:
            p = tl.where(column[None, :] == label[:, None], p - (1.0 - label_smoothing), p)
        dz = p * scale[:, None] - (uniform * scale)[:, None]
        if MASK_VOCAB:
            dz = tl.where((column < vocab_size)[None, :], dz, 0.0)
    return dz


@triton.jit(do_not_specialize=["n", "vocab_size", "dz_rows"])
def recomputed_strip_kernel(
    hidden,  # (N, D) packed
    weight,  # (V, D)
    bias,  # (V,)
    count,  # (1,)
    lse,  # (N,) packed, bits
    row_scale,  # (N,) packed
    mix,  # (3, N) packed, if MIXED
    label,  # (N,) packed
    dz,  # (dz_rows, strip); see tiles.merged_strip
    dz_rows,
    n,
    vocab_size,
    hidden_size,
    run_start,  # first column of the run of strips
    run_columns,
    run_offset,  # of this strip
    strip_columns,  # padded to whole tiles
    dz_stride,
    hidden_row_stride,
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    label_smoothing,
    uniform,  # b / V, of the whole head's V
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MIXED: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
    FOLDED: tl.constexpr,
):
    """Write dz of a strip, or of several, from the logits themselves, computed once more."""
    row_count = tl.load(count)
    row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    rows, first, columns = merged_strip(row_count, dz_rows, strip_columns, run_offset, run_columns, BLOCK_ROWS)  # pyright: ignore[reportGeneralTypeIssues]
    strip_start = run_start + first
    tiles = row_blocks * tl.cdiv(columns, BLOCK_VOCAB)
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        row_start = (index % row_blocks) * BLOCK_ROWS
        strip_column = (index // row_blocks) * BLOCK_VOCAB
        strip = strip_column // strip_columns
        row = row_start + tl.arange(0, BLOCK_ROWS)
        acc = product(
            hidden,
            weight,
            row_start,
            row,
            strip_start + strip_column,
            row_count,
            vocab_size,
            hidden_size,
            hidden_row_stride,
            weight_row_stride,
            weight_column_stride,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_HIDDEN,
            DESCRIPTOR,
            False,
            PRECISION,
        )
        inside = row < row_count
        row_lse = tl.load(lse + row, mask=inside, other=float("inf"))  # p = 0 in the padding
        scale = tl.load(row_scale + row, mask=inside, other=0.0)
        row_label = tl.load(label + row, mask=inside, other=-1)
        for part in tl.static_range(PARTS):
            offset = part * (BLOCK_VOCAB // PARTS)
            column = strip_start + strip_column + offset + tl.arange(0, BLOCK_VOCAB // PARTS)
            u = logit_argument(
                column_part(acc, part, PARTS, BLOCK_ROWS, BLOCK_VOCAB),
                bias,
                column,
                vocab_size,
                product_gain,
                bias_gain,
                HAS_BIAS,
            )
            z, slope = capped(u, cap, SOFTCAP, PRECISE, FOLDED)
            gradient = gradient_of_logits(
                z,
                slope,
                row_lse,
                strip_start + strip_column + offset,
                column,
                vocab_size,
                scale,
                row_label,
                mix,
                row,
                inside,
                n,
                label_smoothing,
                uniform,
                MIXED,
                SOFTCAP,
                MASK_VOCAB,
            )
            store_tile(
                dz,
                gradient.to(dz.dtype if DESCRIPTOR else dz.dtype.element_ty),
                row_start + strip * rows,
                strip_column - strip * strip_columns + offset,
                dz_rows,
                strip_columns,
                dz_stride,
                BLOCK_ROWS,
                BLOCK_VOCAB // PARTS,
                DESCRIPTOR,
            )


@triton.jit(do_not_specialize=["n", "vocab_size", "dz_rows"])
def kept_strip_kernel(
    kept,  # strips of (N, kept_stride), one below the other: codes, or raw logits
    reference,  # (1 + kept tiles, N): the targets' raw logits and, without softcap, the peaks of the tiles; if CODE
    count,
    lse,
    row_scale,
    mix,
    label,
    dz,  # strips of (N, dz_stride), one below the other; may be the memory of the kept ones itself
    dz_rows,
    n,
    vocab_size,
    strip_start,
    boundary,  # first kept column
    kept_stride,
    dz_stride,
    cap,
    knee,  # of the code, as the next four
    offset,
    step,
    logit_step,
    tanh_step,
    label_smoothing,
    uniform,  # b / V, of the whole head's V
    CODE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MIXED: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    PRECISE: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
):
    """Write dz of columns ``strip_start ...`` from the kept logits, a tile in each program: read, then written."""
    row_count = tl.load(count)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.cdiv(row_count, ALIGNED_ROWS) * ALIGNED_ROWS
    if tl.program_id(0) * ROWS < rows:
        inside = row < row_count
        first = tl.program_id(1) * BLOCK_VOCAB
        column = strip_start + first + tl.arange(0, BLOCK_VOCAB)
        of_kept = (strip_start - boundary + first) // kept_stride
        of_dz = first // dz_stride
        row_lse = tl.load(lse + row, mask=inside, other=float("inf"))
        scale = tl.load(row_scale + row, mask=inside, other=0.0)
        row_label = tl.load(label + row, mask=inside, other=-1)
        address = kept + (row + of_kept * rows).to(tl.int64)[:, None] * kept_stride
        address += (column - boundary - of_kept * kept_stride)[None, :]
        stored = tl.load(address, mask=inside[:, None], other=0)
        if CODE:
            own = tl.load(reference + row, mask=inside, other=0.0)
            own_z, own_slope = capped(own, cap, SOFTCAP, True, False)
            hit = column[None, :] == row_label[:, None]
            if SOFTCAP:
                z, slope = decode(stored, knee, offset, step, logit_step, tanh_step, cap)
                slope = tl.where(hit, own_slope[:, None], slope)
            else:
                tile = (strip_start - boundary) // BLOCK_VOCAB + tl.program_id(1)
                peak = tl.load(reference + (tile + 1).to(tl.int64) * n + row, mask=inside, other=0.0)
                z = peak[:, None] - bits_below(stored)
                slope = z
            z = tl.where(hit, own_z[:, None], z)
        else:
            z, slope = capped(stored, cap, SOFTCAP, PRECISE, False)
        gradient = gradient_of_logits(
            z,
            slope,
            row_lse,
            strip_start + first,
            column,
            vocab_size,
            scale,
            row_label,
            mix,
            row,
            inside,
            n,
            label_smoothing,
            uniform,
            MIXED,
            SOFTCAP,
            MASK_VOCAB,
        )
        dz_row = row + of_dz * rows
        address = dz + dz_row.to(tl.int64)[:, None] * dz_stride + (column - strip_start - of_dz * dz_stride)[None, :]
        tl.store(address, gradient.to(dz.dtype.element_ty), mask=(dz_row < dz_rows)[:, None])
