"""Probabilities in one byte: how the forward keeps twice as many columns in the same memory, and dz made of them.

A code is the fourth root of a probability relative to the largest one among 64 columns of its token; where a token's
logits differ widely

    code = round(255 exp((z - peak) / 4)),    p = (code / 255)^4 exp(peak - lse)

so that a logit costs no function more: the forward has exp(z - peak) as the fourth power of what it rounds, and the
backward needs one exponential for 64 columns. A step is 1.6% of the peak, 5% of a hundredth of it and 16% of a
ten-thousandth: in a gradient, a sum of probabilities whose errors are independent, the large ones count. (In rows of
the head without a target even steps of the eighth root, or of the square root of the logarithm, are less exact, those
of the square root about as exact: ``python -m kernel.benchmark.byte_codes``.) Where the 64 logits are close to each
other the 255 steps cover only what lies between them (:mod:`.byte_peaks`): near a smoothed optimum the gradient is a
small difference of probabilities and b / V. bfloat16's own rounding of the gradients hides the rest. That of float16
does not, and under a softcap the slope is needed, which a rounded probability hides: both keep what they keep in two
bytes.

The target's probability comes from its float32 logit, and its column is left out of its peak: a target that takes
nearly all mass would leave the steps of the 63 others too coarse to see the runner-up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .byte_peaks import load_peaks
from .tile_gradient import gradient_of

__all__ = ["decoded_strip_kernel", "to_byte"]

_SHIFT = tl.constexpr(8388608.0 + 255)
_SHIFT_BITS = tl.constexpr(0x4B000000)  # with a byte in the low 8: 2^23 more than it


@triton.jit
def to_byte(root, gain, shift):
    """Code of a fourth root of at most 1, of :func:`.byte_peaks.coded_peaks`."""
    return (root * gain + shift).to(tl.int32, bitcast=True).to(tl.uint8)


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
        peaks, gains = load_peaks(reference, first // BLOCK_VOCAB, n, row, inside, PEAKS)
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
        shifted = tl.reshape(shifted.to(tl.float32, bitcast=True), (ROWS, PEAKS, BLOCK_VOCAB // PEAKS))
        root = shifted - (-gains + _SHIFT)[:, :, None]  # times the gain
        fourth = root * root
        fourth = fourth * fourth
        factor = 1 / (gains * gains)
        factor = tl.exp2(peaks - row_lse[:, None]) * (factor * factor)
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
