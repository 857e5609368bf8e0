"""Sums of the head's gradient between chunks of tokens, in 16 bits that keep more of a number than bfloat16 does.

The head's gradient of one chunk after the other is added up in the memory of the gradient itself. Rounded to bfloat16
after each chunk the sum would lose more with each of them: of k chunks whose parts are alike, about k / 3 times the
squared error of one rounding. Until the last chunk, which rounds the sum to bfloat16 once, entries therefore are codes,
of numbers relative to the largest one that is possible:

    from 2^0 to 2^-24 of it       sign, exponent and 10 bits of mantissa
    from 2^-24 to 2^-55           sign, exponent and 8 bits of mantissa
    below                         equal steps of 2^-63

where bfloat16 has 7 bits of mantissa: the large entries, which are most of the gradient, are rounded 8 times as finely,
their squared error is 1 / 64, and that of small ones 1 / 4. What is possible is known before the first chunk. An entry
is the sum over N tokens of dz times a hidden state, and dz at most the upstream gradient: 8 N units, the unit being a
power of two below the largest upstream gradient of a token, times that of a hidden state, times the logits' factor; the
product of what the three leave of it is less than 4, and 2 is for rounding. A confidence penalty c adds c p (log p + H)
to dz, at most 4 c of the upstream gradient for vocabularies up to 2^22 (p (log p + H) is largest where all other tokens
share what p leaves, at p near a half: 3.9), and the units are as many more. What a z-loss adds grows with the
log-partition: a backward that comes after the forward of all tokens takes it for part of the upstream gradient
(:mod:`.run_backward_chunks`); where nobody knows it before, nothing is cut with one
(:meth:`.call.LossCall.serves_chunks`). What is larger still, and what is no number, becomes infinite, and stays so.

A float32's bits, its sign apart, rise with the number, a step of the exponent being 2^23 of them. A code has 256 steps
in one where these bits are below a limit, and 1024 beyond: two lines, of which the upper one holds, and back the lower
one. Sums are multiplied by a power of two that takes the largest possible one to 2^-71, whose exponent's bits are 56,
and float32 arithmetic goes on with the bits that the lines give.
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
_SMALL, _LARGE = tl.constexpr(2.0**-71), tl.constexpr(2.0**71)  # what the largest possible sum becomes, 56 - 127
_INFINITE = tl.constexpr(0x7FFF)  # the code
# Beyond 32 steps of the exponent, 32 x 256 codes: the code of a float32's bits m is (m - _BEND) / 2^13.
_BEND = tl.constexpr((32 << 23) - (32 * 256 << 13))
_INFINITE_BITS = tl.constexpr((32 << 23) - (32 * 256 << 13) + (0x7FFF << 13))  # of the number that _INFINITE would be


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
    return factor * _power_of_two(-_exponent(largest, shift)) * _SMALL


@triton.jit
def of_units(values, largest, shift):
    """Sums as they are, of sums that might have been encoded."""
    return values * _LARGE * _power_of_two(_exponent(largest, shift))


@triton.jit
def encoded(values):
    """Codes, int16, of numbers below 2^-70."""
    bits = values.to(tl.int32, bitcast=True)
    magnitude = tl.minimum(bits & 0x7FFFFFFF, _INFINITE_BITS)
    code = tl.maximum((magnitude + 0x4000) >> 15, (magnitude + (0x1000 - _BEND)) >> 13)
    return (code | ((bits >> 16) & 0x8000)).to(tl.int16)


@triton.jit
def decoded(code):
    """Numbers that codes stand for."""
    wide = code.to(tl.int32)  # the sign fills the upper half
    magnitude = wide & 0x7FFF
    bits = tl.minimum(magnitude << 15, (magnitude << 13) + _BEND)
    bits = tl.where(magnitude == _INFINITE, 0x7F800000, bits)
    return (bits | (wide & -0x80000000)).to(tl.float32, bitcast=True)
