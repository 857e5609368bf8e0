"""What the codes of 64 columns in bytes are relative to: a peak, and how much of what lies below it 255 steps cover.

A code is even in the fourth root of a probability relative to a peak, from the peak down to the lowest root that it has
to tell,

    code = round(gain exp((z - peak) / 4)) - (gain - 255),    p = ((code + gain - 255) / gain)^4 exp(peak - lse)

With a gain of 255 that is 0: a step is 1.6% of the peak, whatever lies below. Where the logits of all 64 columns are
close to each other the gain is larger and the steps are finer: near a smoothed optimum the gradient is the small
difference of probabilities and b / V. In columns that lie within 8 bits below their peak it is 311, and with each of
five halvings of that larger, 6015 within a quarter of a bit, where a step is 0.07% of the peak: two bytes of bfloat16
round by up to 0.2%.

Of the peaks of a tile the largest is kept in float32, so that a constant added to all logits changes nothing, and a
byte for each says how far below it lies, rounded up, and which gain it has (:func:`coded_peaks`): 8 bytes for a token
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
_PER_BIT = tl.constexpr(4.0)  # steps of its peaks
_STEPS_LOG2 = tl.constexpr(5)  # of each other gain
_STEPS_MASK = tl.constexpr(31)
_GAINS = tl.constexpr(6)
# Columns within 8 bits / 2^i below the peak have a gain of 127 + 184 2^i, of which 255 steps cover that and somewhat
# more; a peak that is rounded up takes an eighth of it.
_TO_UNIT = tl.constexpr(1 / 7)
_REACH = tl.constexpr(1 / 32)  # 32 steps of an eighth of 8 bits
_COVER = tl.constexpr(184.0)
_LEAST = tl.constexpr(127.0)
_PLAIN = tl.constexpr(128.0)  # + 127: the gain of 255
_ROUNDING = tl.constexpr(2.0**-22)  # of a peak below the largest, relative to that: codes are not to leave their byte
# 2^23 and 255: a number in [0, 255] and 2^23 is a float32 whose low 8 bits are the number, rounded.
_SHIFT = tl.constexpr(8388608.0 + 255)


@triton.jit
def coded_peaks(peaks, lowest):
    """The largest of a tile's peaks; what each becomes in a byte; and what that makes of it.

    Args:
        peaks: In bits ``(rows, PEAKS)``.
        lowest: The lowest logits of the same columns.

    Returns:
        The largest ``(rows,)``, the peaks rounded up, the bytes, gains, and what takes a root times the gain to a
        float32 whose low 8 bits are the code.
    """
    largest = tl.max(peaks, 1)
    below = tl.minimum(largest[:, None] - peaks, 1 / _REACH)
    spread = (peaks - lowest) + tl.abs(largest)[:, None] * _ROUNDING
    share = tl.maximum(spread * _TO_UNIT, below * _REACH)
    # The last gain that covers 2^-i: from the exponent. Of what is infinite or no number it is negative.
    which = 126 - (share.to(tl.int32, bitcast=True) >> 23)
    which = tl.maximum(tl.minimum(which, _GAINS - 1), -1)
    fine = which >= 0
    power = ((which + 127) << 23).to(tl.float32, bitcast=True)
    steps = tl.floor(tl.minimum(below * tl.where(fine, power, _PER_BIT), _WIDE - 1.0))
    gain = tl.where(fine, power * _COVER, _PLAIN) + _LEAST
    number = steps.to(tl.int32) + tl.where(fine, (which << _STEPS_LOG2) + _WIDE, 0)
    # The maximum: where float32 rounds logits of 2^20 bits, a code is still at most 255.
    rounded = tl.maximum(largest[:, None] - steps * _bits_of_step(which), peaks)
    return largest, rounded, number, gain, -gain + _SHIFT


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
    power = ((which + 127) << 23).to(tl.float32, bitcast=True)
    steps = tl.where(fine, number & _STEPS_MASK, number)
    gain = tl.where(fine, power * _COVER, _PLAIN) + _LEAST
    return largest - steps.to(tl.float32) * _bits_of_step(which), gain


@triton.jit
def _bits_of_step(which):
    """By how much a step lowers a peak."""
    return tl.where(which >= 0, ((127 - which) << 23).to(tl.float32, bitcast=True), 1 / _PER_BIT)
