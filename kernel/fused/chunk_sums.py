"""Sums of the head's gradient between chunks of tokens, in 16 bits that keep more of a number than bfloat16 does.

The head's gradient of one chunk after the other is added up in the memory of the gradient itself. Rounded to bfloat16
after each chunk the sum would lose more with each of them: of k chunks whose parts are alike, about k / 3 times the
squared error of one rounding. Until the last chunk, which rounds the sum to bfloat16 once, entries therefore are codes:
the root of the magnitude, in float16, with the number's sign. A root has half the exponent, so that float16's few serve
2^60; and twice its relative error is that of the number, 2^-10 at most where that of bfloat16 is 2^-8: the squared
error is 1 / 16. Relative to the largest number that is possible this is so down to 2^-59, and below it numbers lie
between the squares of equal steps, of 2^-39.5 of the largest root. The device has instructions for all of it. (Codes
with 10 bits of mantissa for the large entries, made of a float32's bits by arithmetic of integers, took the kernel that
adds longer than to read and write them.)

What is possible is known before the first chunk. An entry is the sum over N tokens of dz times a hidden state, and dz
at most the upstream gradient: 8 N units, the unit being a power of two below the largest upstream gradient of a token,
times that of a hidden state, times the logits' factor; the product of what the three leave of it is less than 4, and 2
is for rounding. A confidence penalty c adds c p (log p + H) to dz, at most 4 c of the upstream gradient for
vocabularies up to 2^22 (p (log p + H) is largest where all other tokens share what p leaves, at p near a half: 3.9),
and the units are as many more. What a z-loss adds grows with the log-partition, which nobody knows before, so that
nothing is cut with one (:meth:`.call.LossCall.serves_chunks`). The largest possible sum becomes 2^31, whose root
float16 holds, too; what is twice as large becomes infinite, and stays so, as what is no number does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks

__all__ = ["CodedSums", "decoded", "encoded", "of_units", "to_units"]

_ROWS, _COLUMNS = 16, 256
_ROOM = 3  # 2^3 units of a token: 2 for rounding, 4 for what the unit leaves of its factors
_OF_PENALTY = 4.0  # of the upstream gradient, what a confidence penalty of 1 adds to dz at most
_LARGEST, _SMALLER = tl.constexpr(2.0**31), tl.constexpr(2.0**-31)  # what the largest possible sum becomes


class CodedSums(NamedTuple):
    """What the codes of all chunks are relative to."""

    largest: Tensor  # (2,) int32, bits: the largest magnitudes of hidden states and upstream gradients of kept tokens
    tokens: int  # N
    penalty: float = 0.0  # confidence penalty
    last: bool = False  # whether this chunk is the last one, which rounds the sums to the inputs' dtype

    @classmethod
    def of(cls, hidden: Tensor, upstream: Tensor, target: Tensor, ignore_index: int, penalty: float = 0.0) -> CodedSums:
        """Look for the largest of all tokens, before any is computed: one launch and a memory of zeros."""
        n, hidden_size = hidden.shape
        largest = torch.zeros(2, dtype=torch.int32, device=hidden.device)
        run_kernel(
            _extremes_kernel,
            (blocks(n, _ROWS),),
            hidden=hidden,
            upstream=upstream,
            target=target,
            largest=largest,
            n=n,
            hidden_size=hidden_size,
            row_stride=hidden.stride(0),
            ignore_index=ignore_index,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
        )
        return cls(largest, n, penalty)

    def shift(self, factor: float) -> int:
        """Exponent of the largest possible sum, but for those of ``largest``; ``factor`` is the logits' own."""
        of_penalty = math.ceil(math.log2(1 + _OF_PENALTY * self.penalty))
        return math.frexp(factor)[1] + (self.tokens - 1).bit_length() + _ROOM + of_penalty


@triton.jit
def _magnitude_bits(values):
    """Bits of the magnitude in float32, which are ordered as the numbers are; those of NaN come last."""
    return values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit(do_not_specialize=["n", "ignore_index"])
def _extremes_kernel(
    hidden,  # (N, D), contiguous rows
    upstream,  # (N,)
    target,  # (N,)
    largest,  # (2,) zeros
    n,
    hidden_size,
    row_stride,
    ignore_index,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    kept = tl.load(target + row, mask=row < n, other=ignore_index) != ignore_index
    of_token = tl.load(upstream + row, mask=kept, other=0.0)
    kept &= of_token != 0.0  # NaN counts; a token of weight 0 has no gradient
    most = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for start in range(0, hidden_size, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        address = hidden + row.to(tl.int64)[:, None] * row_stride + column[None, :]
        values = tl.load(address, mask=kept[:, None] & (column < hidden_size)[None, :], other=0.0)
        most = tl.maximum(most, _magnitude_bits(values))
    tl.atomic_max(largest, tl.max(tl.max(most, 1), 0), sem="relaxed")
    tl.atomic_max(largest + 1, tl.max(_magnitude_bits(of_token), 0), sem="relaxed")


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponent(largest, shift):
    """Of the largest possible sum, such that its reciprocal is a float32, too."""
    exponent = (tl.load(largest) >> 23) + (tl.load(largest + 1) >> 23) + (shift - 254)
    return tl.minimum(tl.maximum(exponent, -126), 126)


@triton.jit
def to_units(largest, shift, factor):
    """``factor`` for sums that are to be encoded instead; ``shift`` is that of :class:`CodedSums`."""
    return factor * _power_of_two(-_exponent(largest, shift)) * _LARGEST


@triton.jit
def of_units(values, largest, shift):
    """Sums as they are, of sums that might have been encoded."""
    return values * _SMALLER * _power_of_two(_exponent(largest, shift))


@triton.jit
def encoded(values):
    """Codes, int16, of numbers below 2^32."""
    sign = values.to(tl.int32, bitcast=True) & -0x80000000
    root = tl.sqrt(tl.abs(values)).to(tl.int32, bitcast=True) | sign
    return root.to(tl.float32, bitcast=True).to(tl.float16).to(tl.int16, bitcast=True)


@triton.jit
def decoded(code):
    """Numbers that codes stand for."""
    root = code.to(tl.float16, bitcast=True).to(tl.float32)
    return root * tl.abs(root)
