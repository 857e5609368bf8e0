"""The gradient dz of a tile of logits, as the kernels of each strip compute it.

    dz = (row_scale (p - (1 - b) [k = target] - b / V) + p (A + B log p) + C [k = target]) sech(z / c)^2

The first part is the cross entropy's. The others are there if MIXED: of z_loss, of the confidence penalty and of
upstream gradients of log-probability, log-partition and entropy (:mod:`.gradient_rows`). p is formed in float32 from a
float32 logit and the row's lse.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["gradient_of", "gradient_of_logits"]

_LOWEST = tl.constexpr(-1e4)  # bits; there p is 0, and so is p log p


@triton.jit
def gradient_of(
    p,  # (BLOCK_ROWS, columns)
    less,  # p - (1 - b) [k = target]
    log_p,  # bits, read if MIXED
    slope,  # read if SOFTCAP
    column,  # (columns,)
    hit,  # whether a column is the row's target, read if MIXED
    vocab_size,
    scale,  # (BLOCK_ROWS,)
    mix,  # (3, N)
    row,
    inside,  # (BLOCK_ROWS,) whether the row exists
    n,
    uniform,
    MIXED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
):
    """The gradient above from probabilities."""
    rest = -(uniform * scale)[:, None]
    if MIXED:  # apart from the difference: beside p_y near 1 the share of z_loss would be rounded away
        plain = tl.load(mix + row, mask=inside, other=0.0)[:, None]
        bend = tl.load(mix + n + row, mask=inside, other=0.0)[:, None]
        own = tl.load(mix + 2 * n + row, mask=inside, other=0.0)[:, None]
        rest = p * (plain + bend * tl.maximum(log_p, _LOWEST)) + tl.where(hit, own + rest, rest)
    dz = less * scale[:, None] + rest
    if SOFTCAP:
        dz *= slope
    if MASK_VOCAB:
        dz = tl.where((column < vocab_size)[None, :], dz, 0.0)
    return dz


@triton.jit
def gradient_of_logits(
    z,  # (BLOCK_ROWS, columns) bits
    slope,
    lse,  # (BLOCK_ROWS,)
    first,  # of the columns
    column,  # (columns,)
    vocab_size,
    scale,  # (BLOCK_ROWS,)
    label,
    mix,  # (3, N)
    row,
    inside,  # (BLOCK_ROWS,) whether the row exists
    n,
    label_smoothing,
    uniform,
    MIXED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
):
    """The gradient above from a tile of logits in bits and the slopes of their cap.

    Few tiles hold a target. Without MIXED and a softcap, whether one does is asked once, not of each logit, which is
    left a product and a sum.
    """
    log_p = z - lse[:, None]
    p = tl.exp2(log_p)
    less = p
    hit = p  # not read
    if MIXED or SOFTCAP:
        hit = column[None, :] == label[:, None]
        less = tl.where(hit, p - (1.0 - label_smoothing), p)
    else:
        here = (label >= first) & (label < first + column.shape[0])
        if tl.max(here.to(tl.int32), 0) > 0:
            less = tl.where(column[None, :] == label[:, None], p - (1.0 - label_smoothing), p)
    return gradient_of(
        p,
        less,
        log_p,
        slope,
        column,
        hit,
        vocab_size,
        scale,
        mix,
        row,
        inside,
        n,
        uniform,
        MIXED,
        SOFTCAP,
        MASK_VOCAB,
    )
