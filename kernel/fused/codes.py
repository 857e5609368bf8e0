"""Logits in 16 bits: what the forward keeps where the backward needs each probability and slope anew.

Half precision would not do. A rounded logit of 20 nats is off by 6 %; a rounded softmax hides the slope of a saturated
cap. A code is a fixed-point number instead, of 65,536 equal steps over a range that is known beforehand.

Without softcap it counts the bits below the peak of the tile, of which 44 matter: steps of 5e-4 nats. With softcap it
is a monotone function of the logit. Where the cap is nearly linear its unit is a bit of the logit z; where the logit
hardly moves any more, a bit of the slope's logarithm, that is of u = 2 x log2(e) for z = c tanh(x) / T:

    code = r z                    up to the knee, where r dz / du = 1
    code = u + (r z - u)(knee)    beyond, up to u = 126, where the slope is 2^-124

so that a step of code is at most a step of the slope's logarithm, and r times less of the logit. Steps of the slope are
0.0035 nats for caps of up to 31 T, an error half of that of a bfloat16. What is left of the 65,536 goes into r = 31 T /
c: where p is close to the smoothed target, errors of p are larger than their difference, while those of the
slope only scale it. Caps of more than 40 T are not kept. The target's own logit, whose probability is next to 1 in a
trained model, comes in float32 from elsewhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

__all__ = ["LARGEST_CAP", "Code", "below_peak", "bits_below", "decode", "encode"]

LARGEST_CAP = 40.0  # c / T
_SATURATED = 126.0  # u from where on nothing changes in float32
_STEPS = 32760  # to each side of 0
_ROOMY_CAP = 31.3  # c / T at which r = 1 leaves 200 steps to a bit of u
_RANGE = tl.constexpr(44.0)  # bits below a tile's peak
# Added to a number in [0, 65535] this gives a float32 whose low 16 bits are the number, rounded.
_SHIFT = tl.constexpr(8388608.0)
_ZERO = tl.constexpr(8388608.0 + 32768.0)  # the same for numbers from -32768 on
_SHIFT_BITS = tl.constexpr(0x4B000000)


class Code(NamedTuple):
    """Constants of the code under a softcap."""

    knee: float  # u from where on steps are those of the slope
    ratio: float  # r
    offset: float  # r z - u at the knee
    gain: float  # steps in a bit of u

    @classmethod
    def of(cls, softcap: float, temperature: float) -> Code:
        """The code for a cap and a temperature; all 0 without cap.

        Args:
            softcap: The cap c; 0 for none.
            temperature: The temperature T.
        """
        if not softcap:
            return cls(0.0, 0.0, 0.0, 0.0)
        cap = softcap / temperature
        ratio = max(1.0, _ROOMY_CAP / cap)
        t = math.sqrt(1 - 2 / (cap * ratio))  # at the knee; dz / du = cap sech(x)^2 / 2
        knee = 2 * math.atanh(t) * math.log2(math.e)
        offset = ratio * cap * t * math.log2(math.e) - knee
        return cls(knee, ratio, offset, _STEPS / (_SATURATED + offset))

    def steps(self, cap: float) -> dict[str, float]:
        """Steps of u, of the logit in bits and of the tanh, as ``decode`` takes them; ``cap`` is c log2(e) / T."""
        if not self.gain:
            return {"step": 0.0, "logit_step": 0.0, "tanh_step": 0.0}
        logit_step = 1 / (self.gain * self.ratio)
        return {"step": 1 / self.gain, "logit_step": logit_step, "tanh_step": logit_step / cap}


@triton.jit
def _pack(number, zero):
    return (number + zero).to(tl.int32, bitcast=True).to(tl.int16)


@triton.jit
def _unpack(code, zero):
    return ((code.to(tl.int32) & 0xFFFF) | _SHIFT_BITS).to(tl.float32, bitcast=True) - zero


@triton.jit
def below_peak(bits):
    """Code of a logit ``bits`` below the peak of its tile."""
    return _pack(tl.minimum(bits, _RANGE) * (65535 / _RANGE), _SHIFT)


@triton.jit
def bits_below(code):
    """How far below the peak of its tile a logit lies."""
    return _unpack(code, _SHIFT) * (_RANGE / 65535)


@triton.jit
def encode(u, z, knee, ratio, offset, gain):
    """Code of the logit z = c tanh(x) / T in bits, with u = 2 x log2(e)."""
    magnitude = tl.abs(u)
    far = tl.minimum(magnitude, 126.0) + offset
    sign = u.to(tl.int32, bitcast=True) & -0x80000000
    far = (far.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return _pack(tl.where(magnitude < knee, z * ratio, far) * gain, _ZERO)


@triton.jit
def decode(code, knee, offset, step, logit_step, tanh_step, cap):
    """Logit in bits and slope of the softcap from a code ``(rows, columns)``; the steps are those of ``Code.steps``."""
    s = _unpack(code, _ZERO)
    u = tl.abs(s) * step - offset  # beyond the knee
    t = s * tanh_step
    z = s * logit_step
    slope = 1.0 - t * t
    if tl.max(tl.max(u, 1), 0) > knee:  # rare at the caps of language models
        e = tl.exp2(-u)
        r = 1.0 / (1.0 + e)
        far = u > knee
        z = tl.where(far, tl.where(s > 0, cap, -cap) * ((1.0 - e) * r), z)
        slope = tl.where(far, 4.0 * (e * r) * r, slope)
    return z, slope
