"""Sums of the head's gradient between chunks of tokens, in float16 relative to what is possible in each column.

The head's gradient of one chunk after the other is added up in the memory of the gradient itself. Rounded to bfloat16
after each chunk the sum would lose more with each of them: of k chunks whose parts are alike, about k / 3 times the
squared error of one rounding. Until the last chunk, which rounds the sum to bfloat16 once, entries therefore are
float16 with 10 bits of mantissa in place of 7, whose squared error is 1 / 64. The device converts both ways by itself,
and an addition costs next to nothing beside what it reads and writes. (Codes with more exponents, made of a float32's
bits by arithmetic of integers, took longer than the memory.)

What float16 lacks is range. So each column of the gradient, an entry of the hidden states, has a power of two of its
own, by which the largest sum that is possible in it becomes 2^16, with room for rounding: outliers, of which hidden
states have some, coarsen their own column alone. Down to 2^-30 of that sum all 10 bits are there, and below it steps
are equal, 2^-40 of it. (If 16,384 tokens give a word a probability of 2^-18 and hidden states are noise, its sums are
2^-28 to 2^-30 of what is possible.)

What is possible is known before the first chunk. An entry is the sum over N tokens of dz times a hidden state, and dz
at most the upstream gradient: 8 N units, the unit being a power of two below the largest upstream gradient of a token,
times that of the column's hidden states, times the logits' factor; the product of what the three leave of it is less
than 4, and 2 is for rounding. A confidence penalty c adds c p (log p + H) to dz, at most 4 c of the upstream gradient
for vocabularies up to 2^22 (p (log p + H) is largest where all other tokens share what p leaves, at p near a half:
3.9), and the units are as many more. What a z-loss adds grows with the log-partition: a backward that comes after the
forward of all tokens takes it for part of the upstream gradient (:mod:`.run_backward_chunks`); where nobody knows it
before, nothing is cut with one (:meth:`.call.LossCall.serves_chunks`). What is larger still becomes infinite, and stays
so, as what is no number does.
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

__all__ = ["CodedSums", "of_units", "units_of"]

_ROWS, _COLUMNS = 32, 256
_ROOM = 3  # 2^3 units of a token: 2 for rounding, 4 for what the unit leaves of its factors
_OF_PENALTY = 4.0  # of the upstream gradient, what a confidence penalty of 1 adds to dz at most
_LARGEST = tl.constexpr(16)  # the exponent that the largest possible sum gets; without its room for rounding 15


class CodedSums(NamedTuple):
    """What the sums of all chunks are relative to."""

    largest: Tensor  # (D + 1,) int32, bits: of kept tokens the largest magnitude in each column, and upstream
    tokens: int  # N
    penalty: float = 0.0  # confidence penalty
    last: bool = False  # whether this chunk is the last one, which rounds the sums to the inputs' dtype

    @classmethod
    def of(cls, hidden: Tensor, upstream: Tensor, target: Tensor, ignore_index: int, penalty: float = 0.0) -> CodedSums:
        """Look for the largest of all tokens, before any is computed: one launch and a memory of zeros."""
        n, hidden_size = hidden.shape
        largest = torch.zeros(hidden_size + 1, dtype=torch.int32, device=hidden.device)
        run_kernel(
            _extremes_kernel,
            (blocks(n, _ROWS), blocks(hidden_size, _COLUMNS)),
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
    largest,  # (D + 1,) zeros
    n,
    hidden_size,
    row_stride,
    ignore_index,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    kept = tl.load(target + row, mask=row < n, other=ignore_index) != ignore_index
    of_token = tl.load(upstream + row, mask=kept, other=0.0)
    kept &= of_token != 0.0  # NaN counts; a token of weight 0 has no gradient
    address = hidden + row.to(tl.int64)[:, None] * row_stride + column[None, :]
    values = tl.load(address, mask=kept[:, None] & (column < hidden_size)[None, :], other=0.0)
    tl.atomic_max(largest + column, tl.max(_magnitude_bits(values), 0), mask=column < hidden_size, sem="relaxed")
    if tl.program_id(1) == 0:
        tl.atomic_max(largest + hidden_size, tl.max(_magnitude_bits(of_token), 0), sem="relaxed")


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponents(largest, columns, hidden_size, shift):
    """Of the largest possible sum in each column, such that both powers of two below are float32."""
    of_columns = tl.load(largest + columns, mask=columns < hidden_size, other=0) >> 23
    exponents = of_columns + (tl.load(largest + hidden_size) >> 23) + (shift - 254)
    return tl.minimum(tl.maximum(exponents, -100), 126)


@triton.jit
def units_of(largest, columns, hidden_size, shift):
    """What sums in these columns are multiplied by in float16; ``shift`` is that of :class:`CodedSums`."""
    return _power_of_two(-_exponents(largest, columns, hidden_size, shift) + _LARGEST)


@triton.jit
def of_units(largest, columns, hidden_size, shift):
    """What they are multiplied by afterwards: the reciprocals."""
    return _power_of_two(_exponents(largest, columns, hidden_size, shift) - _LARGEST)
