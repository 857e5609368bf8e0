"""What the codes of 64 columns in bytes are relative to: a peak, and how much of what lies below it 255 steps cover.

A code is even in the fourth root of a probability relative to a peak, from the peak down to the lowest root that it has
to tell,

    code = round(gain exp((z - peak) / 4)) - (gain - 255),    p = ((code + gain - 255) / gain)^4 exp(peak - lse)

With a gain of 255 that is 0: a step is 1.6% of the peak, whatever lies below. Where the logits of all 64 columns are
close to each other the gain is larger and the steps are finer: near a smoothed optimum the gradient is the small
difference of probabilities and b / V. In columns that lie within 7 bits below their peak it is 311 or more, and with
each of five halvings of that larger, 6015 within a fifth of a bit, where a step is 0.07% of the peak: two bytes of
bfloat16 round by up to 0.2%.

Of the peaks of a tile the largest is kept in float32, so that a constant added to all logits changes nothing, and a
byte for each says how far below it lies, rounded up, and which gain it has (``coded_peaks``): 8 bytes for a token
and 256 columns, one thirty-second of what the codes take.

- 0 to 63: the gain of 255; in quarters of a bit below, which cost up to 4% of the steps. One that lies further below
  counts as 15.75 bits below: what it holds is next to nothing beside the largest.
- 64 to 255: for each gain 32 steps, of an eighth of what it covers. What lies further below has the next smaller gain.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .plan import PEAK_ROWS

__all__ = ["coded_peaks", "load_peaks", "store_peaks"]

_ROWS = tl.constexpr(PEAK_ROWS)
_WIDE = tl.constexpr(64)  # numbers of the gain of 255
_PER_BIT_LOG2 = tl.constexpr(2)  # steps of its peaks
_STEPS_LOG2 = tl.constexpr(5)  # of each other gain
_STEPS_MASK = tl.constexpr(31)
_GAINS = tl.constexpr(6)
# Columns within 8 bits / 2^i below the peak have a gain of 127 + 184 2^i, of which 255 steps cover that and somewhat
# more; a peak that is rounded up takes an eighth of it, so that the others may lie within 7 bits / 2^i. A peak may be
# 32 such eighths below the tile's largest.
_TO_REACH = tl.constexpr(32 / 7)
_FIRST = tl.constexpr(127 + 4)  # the exponent's bits of what lies below 32 bits
_COVER = tl.constexpr(184.0)
_LEAST = tl.constexpr(127.0)
_ROUNDING = tl.constexpr(2.0**-22 * 32 / 7)  # of a peak below the largest, relative to it: codes stay in their byte
# 1.5 2^23 and a number: a float32 whose low bits are the number, rounded; 0.5 less of it is rounded down.
_SHIFT = tl.constexpr(12582912.0)
_SHIFT_BITS = tl.constexpr(0x4B400000)
_MOST = tl.constexpr(12582912.0 + 63)
_CODE = tl.constexpr(8388608.0 + 255)  # 2^23 serves where nothing is below 0
_ONE_SQUARED = tl.constexpr(254 << 23)  # less the bits of 2^i: those of 2^-i


@triton.jit
def coded_peaks(peaks, lowest):
    """The largest of a tile's peaks; what each becomes in a byte; and what that makes of it.

    Args:
        peaks: In bits ``(rows, PEAKS)``, at most a hundredth of what float32 holds.
        lowest: The lowest logits of the same columns.

    Returns:
        The largest ``(rows,)``, the peaks rounded up, the bytes, gains, and what takes a root times the gain to a
        float32 whose low 8 bits are the code.
    """
    largest = tl.max(peaks, 1)
    below = largest[:, None] - peaks
    reach = tl.maximum((peaks - lowest) * _TO_REACH + (tl.abs(largest) * _ROUNDING)[:, None], below)
    # The last gain that covers it: from the exponent. Of what is infinite or no number it is negative.
    which = tl.minimum(-(reach.to(tl.int32, bitcast=True) >> 23) + _FIRST, _GAINS - 1)
    fine = which >= 0
    power = (tl.where(fine, which, _PER_BIT_LOG2) + 127) << 23
    per_bit = power.to(tl.float32, bitcast=True)
    shifted = tl.minimum((below * per_bit - 0.5) + _SHIFT, _MOST)
    gain = tl.where(fine, per_bit * _COVER + _LEAST, 255.0)
    number = shifted.to(tl.int32, bitcast=True) + tl.where(fine, (which << _STEPS_LOG2) + _WIDE, 0) - _SHIFT_BITS
    bits_of_step = (-power + _ONE_SQUARED).to(tl.float32, bitcast=True)
    # The maximum: where float32 rounds logits of 2^20 bits, a code is still at most 255.
    rounded = tl.maximum(largest[:, None] - (shifted - _SHIFT) * bits_of_step, peaks)
    return largest, rounded, number, gain, -gain + _CODE


@triton.jit
def store_peaks(reference, tile, n, row, inside, largest, numbers, PEAKS: tl.constexpr):
    """Keep the peaks of a tile: the largest, and a byte for each, in one float32."""
    address = reference + (tile * _ROWS + 1).to(tl.int64) * n + row
    tl.store(address, largest, mask=inside)
    packed = tl.sum(numbers << (8 * tl.arange(0, PEAKS))[None, :], 1)
    tl.store(address + n, packed.to(tl.float32, bitcast=True), mask=inside)


@triton.jit
def load_peaks(reference, tile, n, row, inside, PEAKS: tl.constexpr):
    """The peaks of a tile in bits ``(rows, PEAKS)``, as they were rounded, and their gains."""
    address = reference + (tile * _ROWS + 1).to(tl.int64) * n + row
    largest = tl.load(address, mask=inside, other=0.0)[:, None]
    packed = tl.load(address + n, mask=inside, other=0.0).to(tl.int32, bitcast=True)
    number = (packed[:, None] >> (8 * tl.arange(0, PEAKS))[None, :]) & 255
    which = (number - _WIDE) >> _STEPS_LOG2
    fine = which >= 0
    power = (tl.where(fine, which, _PER_BIT_LOG2) + 127) << 23
    gain = tl.where(fine, power.to(tl.float32, bitcast=True) * _COVER + _LEAST, 255.0)
    steps = tl.where(fine, number & _STEPS_MASK, number).to(tl.float32)
    return largest - steps * (-power + _ONE_SQUARED).to(tl.float32, bitcast=True), gain
