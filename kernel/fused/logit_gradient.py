"""Kernels that write dz, the gradient of one vocabulary strip of logits: recomputed, or from the softmax that was kept.

    dz = row_scale (p (1 + 2 z_loss lse) - (1 - b) [k = target] - b / V) (1 - tanh(z / c)^2)

p is formed in float32 from a float32 logit and the row's lse; dz is rounded once, to the dtype of the inputs. It is of
order one, row_scale being the token's upstream gradient over the largest one: in float16 the 1 / N of a mean would
push most of it under the smallest number. The common factor joins in float32, after the products
(:mod:`.weight_gradient`, :mod:`.input_gradient`). Rows beyond the kept tokens and columns beyond the vocabulary are
written as zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import capped_logits, column_part, merged_strip, product, store_tile

__all__ = ["gradient_rows_kernel", "kept_strip_kernel", "largest_kernel", "recomputed_strip_kernel"]


@triton.jit
def largest_kernel(
    upstream,  # (N,) input order
    position,  # (N,)
    largest,  # (1,) written: max |upstream| of the kept tokens, 1 if that is 0
    n,
    BLOCK: tl.constexpr,
):
    """What the upstream gradients are divided by; one program."""
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, n, BLOCK):
        row = start + tl.arange(0, BLOCK)
        kept = tl.load(position + row, mask=row < n, other=-1) >= 0
        most = tl.maximum(most, tl.abs(tl.load(upstream + row, mask=kept, other=0.0)))
    magnitude = tl.max(most, 0)
    tl.store(largest, tl.where(magnitude > 0, magnitude, 1.0))


@triton.jit
def gradient_rows_kernel(
    upstream,  # (N,) input order
    largest,  # (1,) of the kernel above
    target,  # (N,)
    position,  # (N,)
    lse,  # (N,) packed, bits
    reference,  # (N,) packed, bits, if DIRECT
    row_scale,  # (N,) packed, written
    kept_scale,  # (N,) packed, written if DIRECT: factor of the kept softmax
    label,  # (N,) packed int32, written
    n,
    DIRECT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Move what the backward needs of each kept token to packed order."""
    origin = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(position + origin, mask=origin < n, other=-1)
    valid = row >= 0
    g = tl.load(upstream + origin, mask=valid, other=0.0)
    scale = g / tl.load(largest)
    tl.store(row_scale + row, scale, mask=valid)
    if DIRECT:
        difference = tl.load(reference + row, mask=valid, other=0.0) - tl.load(lse + row, mask=valid, other=0.0)
        tl.store(kept_scale + row, scale * tl.exp2(difference), mask=valid)
    tl.store(label + row, tl.load(target + origin, mask=valid, other=0).to(tl.int32), mask=valid)


@triton.jit
def _gradient(
    p,  # (BLOCK_ROWS, columns)
    slope,
    column,  # (columns,)
    vocab_size,
    scale,  # (BLOCK_ROWS,)
    label,
    lse,
    label_smoothing,
    z_loss,
    Z_LOSS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
):
    uniform = label_smoothing / vocab_size
    hit = column[None, :] == label[:, None]
    dz = p - tl.where(hit, 1.0 - label_smoothing + uniform, uniform)
    if Z_LOSS:  # after the difference: beside p_y near 1 the share of z_loss would be rounded away
        dz += p * (2.0 * z_loss * 0.6931471805599453 * lse)[:, None]
    if SOFTCAP:
        dz *= slope
    dz *= scale[:, None]
    if MASK_VOCAB:
        dz = tl.where((column < vocab_size)[None, :], dz, 0.0)
    return dz


@triton.jit
def recomputed_strip_kernel(
    hidden,  # (N, D) packed
    weight,  # (V, D)
    bias,  # (V,)
    count,  # (1,)
    lse,  # (N,) packed, bits
    row_scale,  # (N,) packed
    label,  # (N,) packed
    dz,  # (N, strip); see tiles.merged_strip
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
    z_loss,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    Z_LOSS: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    SOFTMAX: tl.constexpr,  # write p times the slope instead of dz
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Write dz of a strip, or of several, from the logits themselves, computed once more."""
    row_count = tl.load(count)
    row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    rows, first, columns = merged_strip(row_count, n, strip_columns, run_offset, run_columns, BLOCK_ROWS)  # pyright: ignore[reportGeneralTypeIssues]
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
        inside = row < row_count
        row_lse = tl.load(lse + row, mask=inside, other=float("inf"))  # p = 0 in the padding
        if not SOFTMAX:
            scale = tl.load(row_scale + row, mask=inside, other=0.0)
            row_label = tl.load(label + row, mask=inside, other=-1)
        for part in tl.static_range(PARTS):
            offset = part * (BLOCK_VOCAB // PARTS)
            column = strip_start + strip_column + offset + tl.arange(0, BLOCK_VOCAB // PARTS)
            z, slope = capped_logits(
                column_part(acc, part, PARTS, BLOCK_ROWS, BLOCK_VOCAB),
                bias,
                column,
                vocab_size,
                product_gain,
                bias_gain,
                cap,
                HAS_BIAS,
                SOFTCAP,
                PRECISE,
            )
            p = tl.exp2(z - row_lse[:, None])
            if SOFTMAX:
                gradient = p * slope if SOFTCAP else p
            else:
                gradient = _gradient(
                    p,
                    slope,
                    column,
                    vocab_size,
                    scale,
                    row_label,
                    tl.where(inside, row_lse, 0.0),
                    label_smoothing,
                    z_loss,
                    Z_LOSS,
                    SOFTCAP,
                    MASK_VOCAB,
                )
            store_tile(
                dz,
                gradient.to(dz.dtype if DESCRIPTOR else dz.dtype.element_ty),
                row_start + strip * rows,
                strip_column - strip * strip_columns + offset,
                n,
                strip_columns,
                dz_stride,
                BLOCK_ROWS,
                BLOCK_VOCAB // PARTS,
                DESCRIPTOR,
            )


@triton.jit
def _log2(e, PRECISE: tl.constexpr):
    """Logarithm of e >= 0 to base 2; of 0 some finite number.

    Without PRECISE a polynomial, to 2.5e-5 bits: e is then a value kept in bfloat16, off by 2^-9 itself, and the exact
    logarithm would take this kernel from the memory's speed to half of that.
    """
    if PRECISE:
        return tl.log2(tl.where(e > 0, e, 1.0))
    bits = e.to(tl.int32, bitcast=True)
    exponent = (bits >> 23).to(tl.float32) - 127.0
    x = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    series = 0.41684318783628466 + x * (-0.19380465549533982 + x * 0.04487537003870426)
    return exponent + x * (1.4420858708715578 + x * (-0.7099997677755997 + x * series))


@triton.jit
def kept_strip_kernel(
    kept,  # (N, kept columns): exp(z - peak of the tile)
    kept_peak,  # (kept tiles, N), bits
    count,
    lse,
    row_scale,
    label,
    dz,  # (N, strip)
    n,
    vocab_size,
    strip_start,
    strip_columns,
    boundary,  # first kept column
    kept_stride,
    dz_stride,
    inverse_cap,
    label_smoothing,
    z_loss,
    SOFTCAP: tl.constexpr,
    Z_LOSS: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    PRECISE: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
):
    """Write dz of columns ``strip_start ...`` from the kept softmax: p = kept exp(peak - lse), z from its logarithm."""
    row_count = tl.load(count)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS < tl.cdiv(row_count, ALIGNED_ROWS) * ALIGNED_ROWS:
        inside = row < row_count
        strip_column = tl.program_id(1) * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
        column = strip_start + strip_column
        tile = ((strip_start - boundary) // BLOCK_VOCAB + tl.program_id(1)).to(tl.int64)
        row_lse = tl.load(lse + row, mask=inside, other=0.0)
        peak = tl.load(kept_peak + tile * n + row, mask=inside, other=0.0)
        scale = tl.load(row_scale + row, mask=inside, other=0.0)
        row_label = tl.load(label + row, mask=inside, other=-1)
        wide = row.to(tl.int64)[:, None]
        mask = inside[:, None] & (strip_column < strip_columns)[None, :]
        e = tl.load(kept + wide * kept_stride + (column - boundary)[None, :], mask=mask, other=0.0).to(tl.float32)
        slope = e
        if SOFTCAP:
            t = (_log2(e, PRECISE) + peak[:, None]) * inverse_cap
            slope = 1.0 - t * t
        gradient = _gradient(
            e * tl.exp2(peak - row_lse)[:, None],
            slope,
            column,
            vocab_size,
            scale,
            row_label,
            row_lse,
            label_smoothing,
            z_loss,
            Z_LOSS,
            SOFTCAP,
            MASK_VOCAB,
        )
        gradient = tl.where(mask, gradient, 0.0)
        store_mask = (row < n)[:, None] & (strip_column < strip_columns)[None, :]
        tl.store(dz + wide * dz_stride + strip_column[None, :], gradient.to(dz.dtype.element_ty), mask=store_mask)
