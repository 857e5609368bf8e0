"""What errors are allowed of both gradients, which follows from their least norms.

The numbers stay on the device, where :mod:`.tile_levels` reads them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .halves import HIDDEN_UNDERFLOW
from .sparse_tokens import SAFE, SparseTokens

__all__ = ["limits"]

_SMALLEST, _LARGEST = SAFE
_BLOCK = 1024


@triton.jit(do_not_specialize=["n", "programs"])
def _limit_kernel(
    norm,  # (N,) of the input's gradient up to what lies behind, if INPUT
    behind,  # (N,)
    rounding,  # (N,)
    sums,  # (4, programs) of the tokens
    products,  # (programs,) of the tokens
    longest,  # (1,) norm of the head's longest row
    pilot_norm,  # () of the pilot's rows of the weight's gradient, if WEIGHT
    largest,  # (1,) what the upstream gradients are divided by
    numbers,  # (5,), written: limits of both gradients, what rounding adds to their errors, whether all is safe
    n,
    programs,
    share,  # of the norms
    factor,  # that the weight's gradient is multiplied by
    per_row,  # 1 / sqrt(C)
    underflow,  # of a token's product with its factor, beside the longest of them
    INPUT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    longest_product = tl.zeros((BLOCK,), dtype=tl.float32)
    product = tl.zeros((BLOCK,), dtype=tl.float32)
    square = tl.zeros((BLOCK,), dtype=tl.float32)
    unsafe = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, programs, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < programs
        most = tl.maximum(most, tl.load(sums + index, mask=mask, other=0.0))
        product += tl.load(sums + programs + index, mask=mask, other=0.0)
        square += tl.load(sums + 2 * programs + index, mask=mask, other=0.0)
        unsafe += tl.load(sums + 3 * programs + index, mask=mask, other=0.0)
        longest_product = tl.maximum(longest_product, tl.load(products + index, mask=mask, other=0.0))
    of_row = tl.load(longest)
    of_token = tl.max(most, 0)
    safe = (of_row > _SMALLEST) & (of_row < _LARGEST) & (of_token > _SMALLEST) & (tl.sum(unsafe, 0) == 0)
    tl.store(numbers + 4, tl.where(safe, 1.0, 0.0))
    tl.store(numbers + 2, tl.sqrt(tl.sum(square, 0)) * of_row)
    rounded = (tl.sum(product, 0) + n.to(tl.float32) * underflow * tl.max(longest_product, 0)) * per_row
    tl.store(numbers + 3, rounded)
    if INPUT:
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, n, BLOCK):
            row = start + tl.arange(0, BLOCK)
            mask = row < n
            least = tl.load(norm + row, mask=mask, other=0.0) - tl.load(behind + row, mask=mask, other=0.0)
            least -= tl.load(rounding + row, mask=mask, other=0.0) * of_row
            least = tl.where(least < 0, 0.0, least)  # what is no number stays none
            total += least * least
        tl.store(numbers, tl.sqrt(tl.sum(total, 0)) * share)
    if WEIGHT:
        tl.store(numbers + 1, (tl.load(pilot_norm) / (tl.load(largest) * factor) - rounded) * share)


def limits(
    tokens: SparseTokens,
    behind: Tensor,
    longest: Tensor,
    largest: Tensor,
    norm: Tensor | None,
    pilot_norm: Tensor | None,
    share: float,
    factor: float,
    columns: int,
    hidden_size: int,
) -> Tensor:
    """Return what errors are allowed, and what rounding adds to them; see the kernel's ``numbers``."""
    numbers = behind.new_empty(5)
    run_kernel(
        _limit_kernel,
        (1,),
        norm=norm,
        behind=behind,
        rounding=tokens.rounding,
        sums=tokens.sums,
        products=tokens.products,
        longest=longest,
        pilot_norm=pilot_norm,
        largest=largest,
        numbers=numbers,
        n=behind.shape[0],
        programs=tokens.sums.shape[1],
        share=share,
        factor=factor,
        per_row=columns**-0.5,
        underflow=hidden_size**0.5 * HIDDEN_UNDERFLOW,
        INPUT=norm is not None,
        WEIGHT=pilot_norm is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )
    return numbers
