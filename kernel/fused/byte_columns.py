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

Peaks are float32, one sixteenth of what the codes take, so that a constant added to all logits changes nothing. The
target's probability comes from its float32 logit, and its column is left out of its peak: a target that takes nearly
all mass would leave the steps of the 63 others too coarse to see the runner-up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .logit_gradient import gradient_of

__all__ = ["decoded_strip_kernel", "fourth_root", "to_byte"]

_STEPS = tl.constexpr(255.0)
_LOG2_STEPS = tl.constexpr(7.994353436858858)
# Added to a number in [0, 255] this gives a float32 whose low 8 bits are the number, rounded.
_SHIFT = tl.constexpr(8388608.0)
_SHIFT_BITS = tl.constexpr(0x4B000000)


@triton.jit
def fourth_root(below):
    """Of exp2(below)."""
    return tl.exp2(below * 0.25)


@triton.jit
def to_byte(root):
    """Code of a fourth root in [0, 1]."""
    return (root * _STEPS + _SHIFT).to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit(do_not_specialize=["n", "vocab_size", "dz_rows"])
def decoded_strip_kernel(
    kept,  # strips of (N, kept_stride), one below the other: codes
    reference,  # (1 + columns / PEAK, N), bits: the targets' logits, then the peaks
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
    PEAK: tl.constexpr,  # columns that share a peak
    ROWS: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
):
    """Write dz of the strip that begins at ``strip_start``, the columns of one peak in each program."""
    row_count = tl.load(count)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    rows = tl.cdiv(row_count, ALIGNED_ROWS) * ALIGNED_ROWS
    if tl.program_id(1) * ROWS < rows:
        inside = row < row_count
        first = strip_start - boundary + tl.program_id(0) * PEAK  # of the kept ones
        strip = first // kept_stride
        address = kept + (row + strip * rows).to(tl.int64)[:, None] * kept_stride
        address += (first - strip * kept_stride + tl.arange(0, PEAK))[None, :]
        stored = tl.load(address, mask=inside[:, None], other=0)
        peak = tl.load(reference + (1 + first // PEAK).to(tl.int64) * n + row, mask=inside, other=0.0)
        row_lse = tl.load(lse + row, mask=inside, other=float("inf"))  # p = 0 in the padding
        own = tl.load(reference + row, mask=inside, other=0.0)
        scale = tl.load(row_scale + row, mask=inside, other=0.0)
        row_label = tl.load(label + row, mask=inside, other=-1)
        column = strip_start + tl.program_id(0) * PEAK + tl.arange(0, PEAK)
        code = (stored.to(tl.int32) | _SHIFT_BITS).to(tl.float32, bitcast=True) - _SHIFT
        p = code * code
        p = p * p * tl.exp2(peak - row_lse - 4 * _LOG2_STEPS)[:, None]
        hit = column[None, :] == row_label[:, None]
        p = tl.where(hit, tl.exp2(own - row_lse)[:, None], p)
        log_p = p
        if MIXED:
            log_p = tl.where(hit, (own - row_lse)[:, None], tl.log2(tl.maximum(p, 1e-37)))  # of p = 0 nothing counts
        gradient = gradient_of(
            p,
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
            label_smoothing,
            uniform,
            MIXED,
            False,
            MASK_VOCAB,
        )
        address = dz + row.to(tl.int64)[:, None] * dz_stride + (column - strip_start)[None, :]
        tl.store(address, gradient.to(dz.dtype.element_ty), mask=(row < dz_rows)[:, None])
