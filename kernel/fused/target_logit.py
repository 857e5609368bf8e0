"""Logits of the targets, a product of two rows each: what losses and ranks are made of beside the sweep.

The kernel that reads the hidden states for it also moves those of the kept tokens together, where that is wanted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Head, Scalars, logit_arguments
from .compile_ahead import run_kernel
from .launch import blocks
from .logits import capped
from .rows import LARGEST_TILE, KeptRows

__all__ = ["target_logits"]


@triton.jit(do_not_specialize=["n"])
def target_logit_kernel(
    hidden,  # (N, D), input order, contiguous rows
    weight,  # (V, D)
    bias,  # (V,)
    target,  # (N,)
    count,  # (1,)
    source,  # (N,)
    target_logit,  # (N,) packed order, in bits, written
    argument,  # (N,) packed order, written: what the cap is taken of (logits.logit_argument)
    packed,  # (N, D) packed order: hidden, written up to the last tile's end; None if it is not wanted
    n,
    hidden_size,
    hidden_row_stride,
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Logits of the targets of ROWS tokens, through the same arithmetic as the tiles' logits but for the sum's order.

    In float32 the two differ in the last bits of a logit, 1e-6 at a logit of 10: what is left of a loss and of
    gradients that should vanish, as those of a vocabulary of one class.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_count = tl.load(count)
    valid = row < row_count
    written = row < tl.minimum(tl.cdiv(row_count, ALIGNED_ROWS) * ALIGNED_ROWS, n)
    origin = tl.load(source + row, mask=valid, other=0)
    label = tl.load(target + origin, mask=valid, other=0)
    h = hidden + origin.to(tl.int64)[:, None] * hidden_row_stride
    w = weight + label.to(tl.int64)[:, None] * weight_row_stride
    dot = tl.zeros((ROWS,), dtype=tl.float32)
    for k in range(0, hidden_size, BLOCK_HIDDEN):
        column = (k + tl.arange(0, BLOCK_HIDDEN)).to(tl.int64)[None, :]
        mask = valid[:, None] & (column < hidden_size)
        a = tl.load(h + column, mask=mask, other=0.0)
        if packed is not None:
            address = packed + row.to(tl.int64)[:, None] * hidden_size + column
            tl.store(address, a, mask=written[:, None] & (column < hidden_size))
        b = tl.load(w + column * weight_column_stride, mask=mask, other=0.0)
        dot += tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    z = dot * product_gain
    if HAS_BIAS:
        z += tl.load(bias + label, mask=valid, other=0.0).to(tl.float32) * bias_gain
    tl.store(argument + row, z, mask=valid)
    z, _slope = capped(z, cap, SOFTCAP, PRECISE, False)
    tl.store(target_logit + row, z, mask=valid)


def target_logits(
    head: Head,
    scalars: Scalars,
    rows: KeptRows,
    *,
    tokens: int,
    block_hidden: int,
    into: tuple[Tensor | None, Tensor | None] = (None, None),
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of the targets ``(N,)``, packed, in bits, and what the cap is taken of.

    Args:
        head: Inputs, the rows of ``hidden`` contiguous.
        scalars: Options.
        rows: Kept tokens.
        tokens: How many a program takes.
        block_hidden: Features that it loads at a time.
        into: Memory for both; None for new memory.
        packed: ``(N, D)``, where the tokens' hidden states are moved together, zeros up to the end of their last tile.
    """
    hidden, weight, bias, target = head
    n, device = rows.source.shape[0], hidden.device
    logit, argument = (torch.empty(n, dtype=torch.float32, device=device) if given is None else given for given in into)
    run_kernel(
        target_logit_kernel,
        (blocks(n, tokens),),
        hidden=hidden,
        weight=weight,
        target=target,
        count=rows.number,
        source=rows.source,
        target_logit=logit,
        argument=argument,
        packed=packed,
        **logit_arguments(hidden, weight, bias, scalars) | {"n": n},
        ALIGNED_ROWS=LARGEST_TILE,
        ROWS=tokens,
        BLOCK_HIDDEN=block_hidden,
    )
    return logit, argument
