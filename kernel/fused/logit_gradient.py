"""Kernels that write dz, the gradient of one vocabulary strip of logits: recomputed, or from what the forward kept.

The formula is :mod:`.tile_gradient`'s. dz is rounded once, to the dtype of the inputs. It is of order one, the token's
upstream gradients being divided by the largest one: in float16 the 1 / N of a mean would push most of it under the
smallest number. The common factor joins in float32, after the products (:mod:`.weight_gradient`,
:mod:`.input_gradient`). Rows beyond the kept tokens and columns beyond the vocabulary are written as zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import bits_below, decode
from .early import wait_for_previous
from .logits import capped, logit_argument
from .tile_gradient import gradient_of_logits
from .tiles import column_part, merged_strip, product, store_tile

__all__ = ["kept_strip_kernel", "recomputed_strip_kernel"]


@triton.jit(do_not_specialize=["n", "vocab_size", "dz_rows", "independent"])
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
    independent,  # whether it is of the kernel ahead (.early)
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
    EARLY: tl.constexpr,
):
    """Write dz of a strip, or of several, from the logits themselves, computed once more."""
    if independent == 0:
        wait_for_previous(EARLY)
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
            1,
            weight_row_stride,
            weight_column_stride,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_HIDDEN,
            DESCRIPTOR,
            False,
            PRECISION,
        )
        wait_for_previous(EARLY)
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
    wait_for_previous(EARLY)


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
