"""Sums of the head's gradient between chunks of tokens, in float16 relative to what is possible in each column.

The head's gradient of one chunk after the other is added up in the memory of the gradient itself. Rounded to bfloat16
after each chunk the sum would lose more with each of them: of k chunks whose parts are alike, about k / 3 times the
squared error of one rounding. Until the last chunk, which rounds the sum to bfloat16 once, entries therefore are
float16 with 10 bits of mantissa in place of 7, whose squared error is 1 / 64. The device converts both
ways by itself, in few instructions, and its copy engine adds such numbers. (Codes with more exponents, made of a
float32's bits by arithmetic of integers, take many more.) What the copy engine adds is rounded before, too: next to
nothing beside the rounding of the sums, since a part is a fraction of what all add up to.

What float16 lacks is range. So each column of the gradient, an entry of the hidden states, has a power of two of its
own, by which the largest sum that is possible in it becomes 2^13 to 2^15: the rest is room for rounding. Down to 2^-27
of that sum, or less, all 10 bits are there, and below it steps are equal, 2^-37 of it at most. What is possible is the
sum over the kept tokens of the magnitudes of upstream gradient and hidden state: an entry sums dz times a hidden state,
and dz is at most the upstream gradient. So ignored tokens count for nothing, and an outlier, or a token of large
weight, only for what it is.

The logits' factor multiplies what is possible. A confidence penalty c adds c p (log p + H) to dz, at most 4 c of the
upstream gradient for vocabularies up to 2^22 (p (log p + H) is largest where all other tokens share what p leaves, at p
near a half: 3.9), and as much more is possible. What a z-loss adds grows with the log-partition: a backward that comes
after the forward of all tokens takes it for part of the upstream gradient (:mod:`.run_backward_chunks`); where nobody
knows it before, nothing is cut with one (:meth:`.call.LossCall.serves_chunks`). What is larger still becomes infinite,
and stays so, as what is no number does.
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

__all__ = ["SumPowers", "powers_of", "reciprocals_of"]

_ROWS, _COLUMNS, _PROGRAMS = 32, 256, 64  # of a tile, and that share the tokens: their sums are added in one order
_ROOM = 2  # bits: one for rounding, one for what the exponent leaves of a possible sum
_OF_PENALTY = 4.0  # of the upstream gradient, what a confidence penalty of 1 adds to dz at most
_LARGEST = tl.constexpr(16)  # the exponent that the largest possible sum gets; without its room for rounding 15


class SumPowers(NamedTuple):
    """Powers of two that the sums between chunks are stored in, one for each column."""

    possible: Tensor  # (D,) float32: sums over kept tokens of the magnitude of upstream gradient times hidden state
    penalty: float = 0.0  # confidence penalty
    last: bool = False  # whether this chunk is the last one, which rounds the sums to the inputs' dtype

    @classmethod
    def of(cls, hidden: Tensor, upstream: Tensor, target: Tensor, ignore_index: int, penalty: float = 0.0) -> SumPowers:
        """Add up what all tokens may come to, before any is computed; bit for bit the same in every run."""
        n, hidden_size = hidden.shape
        programs = min(_PROGRAMS, blocks(n, _ROWS))
        parts = torch.empty(programs, hidden_size, dtype=torch.float32, device=hidden.device)
        run_kernel(
            _possible_kernel,
            (programs, blocks(hidden_size, _COLUMNS)),
            hidden=hidden,
            upstream=upstream,
            target=target,
            parts=parts,
            n=n,
            hidden_size=hidden_size,
            row_stride=hidden.stride(0),
            ignore_index=ignore_index,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
        )
        return cls(parts.sum(0), penalty)

    def shift(self, factor: float) -> int:
        """Exponent of the largest possible sum, but for those of ``possible``; ``factor`` is the logits' own."""
        of_penalty = math.ceil(math.log2(1 + _OF_PENALTY * self.penalty))
        return math.frexp(factor)[1] + _ROOM + of_penalty


@triton.jit(do_not_specialize=["n", "ignore_index"])
def _possible_kernel(
    hidden,  # (N, D), contiguous rows
    upstream,  # (N,)
    target,  # (N,)
    parts,  # (programs, D), written
    n,
    hidden_size,
    row_stride,
    ignore_index,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, n, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        kept = tl.load(target + row, mask=row < n, other=ignore_index) != ignore_index
        of_token = tl.abs(tl.load(upstream + row, mask=kept, other=0.0).to(tl.float32))
        kept &= of_token != 0.0  # NaN counts; a token of weight 0 has no gradient
        address = hidden + row.to(tl.int64)[:, None] * row_stride + column[None, :]
        values = tl.load(address, mask=kept[:, None] & (column < hidden_size)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(tl.abs(values) * of_token[:, None], 0)
    address = parts + tl.program_id(0).to(tl.int64) * hidden_size + column
    tl.store(address, total, mask=column < hidden_size)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponents(possible, columns, hidden_size, shift):
    """Of the largest possible sum in each column, such that both powers of two below are float32."""
    bits = tl.load(possible + columns, mask=columns < hidden_size, other=0.0).to(tl.int32, bitcast=True)
    return tl.minimum(tl.maximum(((bits >> 23) & 255) + (shift - 127), -100), 126)


@triton.jit
def powers_of(possible, columns, hidden_size, shift):
    """What sums in these columns are multiplied by in float16; ``shift`` is that of :class:`SumPowers`."""
    return _power_of_two(-_exponents(possible, columns, hidden_size, shift) + _LARGEST)


@triton.jit
def reciprocals_of(possible, columns, hidden_size, shift):
    """What they are multiplied by afterwards: the reciprocals."""
    return _power_of_two(_exponents(possible, columns, hidden_size, shift) - _LARGEST)
