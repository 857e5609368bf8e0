"""Sums of the head's gradient between chunks of tokens, in 16 bits that keep more of a number than bfloat16 does.

The head's gradient of one chunk after the other is added up in the memory of the gradient itself. Rounded to bfloat16
after each chunk the sum would lose more with each of them: of k chunks whose parts are alike, about k / 3 times the
squared error of one rounding. Until the last chunk, which rounds the sum to bfloat16 once, entries therefore are codes:

    sign, 6 bits of exponent, 9 bits of mantissa        of x / (2^24 unit)

Bfloat16 has 8 bits of exponent and 7 of mantissa, so a code is rounded 4 times as finely, its squared error 1 / 16. It
spans 2^63 in size, with equal steps of 2^-71 of the largest below that. The unit is known before the first chunk: a
power of two near the largest upstream gradient of a token, times that of a hidden state, times the logits' factor. An
entry is the sum over tokens of dz times a hidden state, and dz at most about the upstream gradient, so that 2^24 units
hold four million tokens that all point one way. What is larger still, and what is no number, becomes infinite, and
stays so.

A code is what a float32 has after the two highest bits of its exponent, which are zero for numbers below 2^-63. Sums
are therefore multiplied by 2^-87 / unit, and float32 arithmetic takes their bits as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks

__all__ = ["CodedSums", "decoded", "encoded", "of_units", "to_units"]

_ROWS, _COLUMNS = 16, 256
_INFINITE = tl.constexpr(0x7FFF)  # the code
_INFINITE_BITS = tl.constexpr(0x1FFFC000)  # of the number that it would stand for
_SMALL = tl.constexpr(2.0**-87)  # 2^-63 / 2^24
_LARGE = tl.constexpr(2.0**87)


class CodedSums(NamedTuple):
    """What the codes of all chunks are relative to."""

    largest: Tensor  # (2,) int32, bits: the largest magnitudes of hidden states and upstream gradients of kept tokens
    last: bool = False  # whether this chunk is the last one, which rounds the sums to the inputs' dtype

    @classmethod
    def of(cls, hidden: Tensor, upstream: Tensor, target: Tensor, ignore_index: int) -> CodedSums:
        """Look for the largest of all tokens, before any is computed: one launch and a memory of zeros."""
        n, hidden_size = hidden.shape
        largest = torch.zeros(2, dtype=torch.int32, device=hidden.device)
        run_kernel(
            _largest_kernel,
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
        return cls(largest)


@triton.jit
def _magnitude_bits(values):
    """Bits of the magnitude in float32, which are ordered as the numbers are; those of NaN come last."""
    return values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit(do_not_specialize=["n", "ignore_index"])
def _largest_kernel(
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
    most = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for start in range(0, hidden_size, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        address = hidden + row.to(tl.int64)[:, None] * row_stride + column[None, :]
        values = tl.load(address, mask=kept[:, None] & (column < hidden_size)[None, :], other=0.0)
        most = tl.maximum(most, _magnitude_bits(values))
    tl.atomic_max(largest, tl.max(tl.max(most, 1), 0), sem="relaxed")
    of_tokens = _magnitude_bits(tl.load(upstream + row, mask=kept, other=0.0))
    tl.atomic_max(largest + 1, tl.max(of_tokens, 0), sem="relaxed")


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponent(largest, shift):
    """Of the unit, such that its reciprocal is a float32, too; ``shift`` is that of the logits' factor."""
    exponent = (tl.load(largest) >> 23) + (tl.load(largest + 1) >> 23) + (shift - 254)
    return tl.minimum(tl.maximum(exponent, -126), 126)


@triton.jit
def to_units(largest, shift, factor):
    """``factor`` for sums that are to be encoded instead."""
    return factor * _power_of_two(-_exponent(largest, shift)) * _SMALL


@triton.jit
def of_units(values, largest, shift):
    """Sums as they are, of sums that might have been encoded."""
    return values * _LARGE * _power_of_two(_exponent(largest, shift))


@triton.jit
def encoded(values):
    """Codes, int16, of numbers below 2^-63."""
    bits = values.to(tl.int32, bitcast=True)
    magnitude = (tl.minimum(bits & 0x7FFFFFFF, _INFINITE_BITS) + 0x2000) >> 14
    return (magnitude | ((bits >> 16) & 0x8000)).to(tl.int16)


@triton.jit
def decoded(code):
    """Numbers that codes stand for."""
    wide = code.to(tl.int32)  # the sign fills the upper half
    magnitude = wide & 0x7FFF
    bits = tl.where(magnitude == _INFINITE, 0x7F800000, magnitude << 14)
    return (bits | (wide & -0x80000000)).to(tl.float32, bitcast=True)
