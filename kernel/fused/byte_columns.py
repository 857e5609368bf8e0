"""Probabilities in one byte: how the forward keeps twice as many columns in the same memory, and dz made of them.

A code is the fourth root of a probability relative to the largest one among 64 columns of its token,

    code = round(255 exp((z - peak) / 4)),    p = (code / 255)^4 exp(peak - lse)

so that a logit costs no function more: the forward has exp(z - peak) as the fourth power of what it rounds, and the
backward needs one exponential for 64 columns. A step is 1.6% of the peak, 5% of a hundredth of it and 16% of a
ten-thousandth: in a gradient, a sum of probabilities whose errors are independent, the large ones count. (Even steps
of the square or the eighth root, or of the square root of the logarithm, are less exact in rows of the head without a
target: ``python -m kernel.benchmark.byte_codes``.) bfloat16's own rounding of the gradients hides the rest. That of
float16 does not, and under a softcap the slope is needed, which a rounded probability hides: both keep what they keep
in two bytes.

Of the peaks of a tile the largest is kept in float32, so that a constant added to all logits changes nothing, and where
there are others all of them in a byte each, in eighths of a bit below it and rounded up: 8 bytes for a token and 256
columns, one thirty-second of what the codes take. A peak that is too high by less than an eighth costs 2% of the steps.
One that lies more than 32 bits below the largest counts as 32: no code would tell it from 0 in a tile's peak.

The target's probability comes from its float32 logit, and its column is left out of its peak: a target that takes
nearly all mass would leave the steps of the 63 others too coarse to see the runner-up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .plan import PEAK_STEPS
from .tile_gradient import gradient_of

__all__ = ["decoded_strip_kernel", "stepped_peaks", "store_peaks", "to_byte"]

_STEPS = tl.constexpr(255.0)
_PEAK_STEP = tl.constexpr(1 / PEAK_STEPS)  # bits
_LOWEST_PEAK = tl.constexpr(255 / PEAK_STEPS)
_LOG2_STEPS = tl.constexpr(7.994353436858858)
# Added to a number in [0, 255] this gives a float32 whose low 8 bits are the number, rounded.
_SHIFT = tl.constexpr(8388608.0)
_SHIFT_BITS = tl.constexpr(0x4B000000)


@triton.jit
def stepped_peaks(peaks):
    """The largest of a tile's peaks, and all of them in eighths of a bit below it, rounded up.

    Args:
        peaks: In bits ``(rows, PEAKS)``.

    Returns:
        The largest, the rounded ones, and how many steps these lie below it, at most 255.
    """
    largest = tl.max(peaks, 1)
    steps = tl.floor(tl.minimum(largest[:, None] - peaks, _LOWEST_PEAK) * (1 / _PEAK_STEP))
    # The maximum: where float32 rounds logits of 2^20 bits, a code is still at most 255.
    return largest, tl.maximum(largest[:, None] - steps * _PEAK_STEP, peaks), steps


@triton.jit
def store_peaks(reference, tile, n, row, inside, largest, steps, PEAKS: tl.constexpr):
    """Keep the peaks of a tile: the largest, and where there are others a byte of steps for each, in one float32."""
    each = 1 if PEAKS == 1 else 2
    address = reference + (1 + each * tile).to(tl.int64) * n + row
    tl.store(address, largest, mask=inside)
    if PEAKS > 1:
        packed = tl.sum(steps.to(tl.int32) << (8 * tl.arange(0, PEAKS))[None, :], 1)
        tl.store(address + n, packed.to(tl.float32, bitcast=True), mask=inside)


@triton.jit
def to_byte(root):
    """Code of a fourth root in [0, 1]."""
    return (root * _STEPS + _SHIFT).to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def load_peaks(reference, tile, n, row, inside, PEAKS: tl.constexpr):
    """The peaks of a tile in bits ``(rows, PEAKS)``, as they were rounded."""
    each = 1 if PEAKS == 1 else 2
    address = reference + (1 + each * tile).to(tl.int64) * n + row
    largest = tl.load(address, mask=inside, other=0.0)[:, None]
    if PEAKS > 1:
        packed = tl.load(address + n, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        steps = (packed[:, None] >> (8 * tl.arange(0, PEAKS))[None, :]) & 255
        largest = largest - steps.to(tl.float32) * _PEAK_STEP
    return largest


@triton.jit(do_not_specialize=["n", "vocab_size", "dz_rows"])
def decoded_strip_kernel(
    kept,  # strips of (N, kept_stride), one below the other: codes
    reference,  # (1 + ..., N), bits: the targets' logits, then the peaks of each tile
    count,
    lse,  # (N,) packed, bits
    row_scale,  # (N,) packed
    mix,  # (3, N) packed, if MIXED
    label,  # (N,) packed
    dz,  # (dz_rows, dz_stride)
    dz_rows,
    n,
    vocab_size,
    strip_start,
    boundary,  # first kept column
    kept_stride,
    dz_stride,
    label_smoothing,
    uniform,  # b / V, of the whole head's V
    MIXED: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    PEAKS: tl.constexpr,  # of a tile
    BLOCK_VOCAB: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
    PACKED: tl.constexpr,  # take bytes out of words of four by an instruction of the device
):
    """Write dz of the strip that begins at ``strip_start``, the columns of one tile in each program.

    A byte takes six instructions, which is what memory leaves time for: without MIXED dz is linear in the fourth power
    of the code, and the target, which few programs meet, is looked for once in each.
    """
    row_count = tl.load(count)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    rows = tl.cdiv(row_count, ALIGNED_ROWS) * ALIGNED_ROWS
    if tl.program_id(1) * ROWS < rows:
        inside = row < row_count
        start = strip_start + tl.program_id(0) * BLOCK_VOCAB
        first = start - boundary  # of the kept ones
        strip = first // kept_stride
        address = kept + (row + strip * rows).to(tl.int64)[:, None] * kept_stride
        address += (first - strip * kept_stride + tl.arange(0, BLOCK_VOCAB))[None, :]
        # A thread takes as many codes as it stores elements of dz at once: 16 would go through shared memory.
        address = tl.multiple_of(address, (1, 8))
        stored = tl.load(address, mask=inside[:, None], other=0)
        row_lse = tl.load(lse + row, mask=inside, other=float("inf"))  # p = 0 in the padding
        scale = tl.load(row_scale + row, mask=inside, other=0.0)
        own = tl.load(reference + row, mask=inside, other=0.0) - row_lse
        row_label = tl.load(label + row, mask=inside, other=-1)
        peaks = load_peaks(reference, first // BLOCK_VOCAB, n, row, inside, PEAKS)
        column = start + tl.arange(0, BLOCK_VOCAB)
        if PACKED:
            shifted = tl.inline_asm_elementwise(
                """{
                .reg .b32 high;
                mov.b32 high, 0x4B000000;
                prmt.b32 $0, $4, high, 0x7440;
                prmt.b32 $1, $4, high, 0x7441;
                prmt.b32 $2, $4, high, 0x7442;
                prmt.b32 $3, $4, high, 0x7443;
                }""",
                "=r,=r,=r,=r,r",
                [stored],
                dtype=tl.int32,
                is_pure=True,
                pack=4,
            )
        else:
            shifted = stored.to(tl.int32) | _SHIFT_BITS
        code = shifted.to(tl.float32, bitcast=True) - _SHIFT  # pyright: ignore[reportAttributeAccessIssue]
        fourth = code * code
        fourth = tl.reshape(fourth * fourth, (ROWS, PEAKS, BLOCK_VOCAB // PEAKS))
        factor = tl.exp2(peaks - (row_lse + 4 * _LOG2_STEPS)[:, None])
        if MIXED:
            p = tl.reshape(fourth * factor[:, :, None], (ROWS, BLOCK_VOCAB))
            hit = column[None, :] == row_label[:, None]
            p = tl.where(hit, tl.exp2(own)[:, None], p)
            log_p = tl.where(hit, own[:, None], tl.log2(tl.maximum(p, 1e-37)))  # of p = 0 nothing counts
            gradient = gradient_of(
                p,
                tl.where(hit, p - (1.0 - label_smoothing), p),
                log_p,
                p,
                column,
                hit,
                vocab_size,
                scale,
                mix,
                row,
                inside,
                n,
                uniform,
                MIXED,
                False,
                MASK_VOCAB,
            )
        else:
            gradient = fourth * (factor * scale[:, None])[:, :, None] - (uniform * scale)[:, None, None]
            gradient = tl.reshape(gradient, (ROWS, BLOCK_VOCAB))
            here = (row_label >= start) & (row_label < start + BLOCK_VOCAB)
            if tl.max(here.to(tl.int32), 0) > 0:
                of_target = (tl.exp2(own) - (1.0 - label_smoothing + uniform)) * scale
                gradient = tl.where(column[None, :] == row_label[:, None], of_target[:, None], gradient)
            if MASK_VOCAB:
                gradient = tl.where((column < vocab_size)[None, :], gradient, 0.0)
        address = dz + row.to(tl.int64)[:, None] * dz_stride + (column - strip_start)[None, :]
        tl.store(address, gradient.to(dz.dtype.element_ty), mask=(row < dz_rows)[:, None])
