"""Kernels around a softmax that the forward keeps for the backward's products as it is.

The forward stores K = exp(z - r) with one reference r per token, the logit of its target. Then, with g the upstream
gradient,

    dz = a K' - g b / V,    a = g exp(r - lse),    K' = K but for the target's column: (p_y - (1 - b)) exp(lse - r)

so that the products of the backward need no dz: the factors a scale the rows of ``hidden`` on one side and of the
result on the other, and the uniform part is a sum of rows of ``hidden`` and of ``weight``. K may not overflow: a token
whose lse exceeds its reference by 100 bits makes the forward recompute all of K with the lse as reference
(:func:`overflow`); no probability that matters underflows, the target's own logit being the reference.

Where log-probabilities and log-partitions have upstream gradients l and s, too, the rows' factors change, and the
target's entry is written once more (:func:`of_upstream`):

    a = (g - l + s) exp(r - lse),    K' = K but for the target's column: exp(z_y - r) + (l - g (1 - b)) / a

So a head split over processes, whose lse is that of its own rows, uses what it kept. Where a is too small beside the
target's part, K holds dz itself, computed anew, as if nothing had been kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Kept
from .compile_ahead import run_kernel
from .launch import blocks, launch_table
from .rows import KeptRows

__all__ = ["column_sum", "of_upstream", "overflow", "store_targets"]

_LIMIT = 100.0  # bits; float32 and bfloat16 hold 127
_SPLITS = 64


@triton.jit(do_not_specialize=["n"])
def _target_column_kernel(
    kept,  # strips of (N, kept_stride), one below the other
    count,  # (1,)
    target,  # (N,)
    position,  # (N,)
    target_logit,  # (N,) packed, bits
    lse,  # (N,) packed, bits
    reference,  # (N,) packed, bits
    own,  # (N,) packed: l - g (1 - b) above, if UPSTREAM
    row_factor,  # (N,) packed: a, if UPSTREAM
    n,
    start,  # first kept column
    columns,  # how many are kept
    kept_stride,
    label_smoothing,
    ALIGNED_ROWS: tl.constexpr,  # of a tile
    BLOCK: tl.constexpr,
    UPSTREAM: tl.constexpr,
):
    """Overwrite each token's target entry: K' above, from the target's float32 logit."""
    origin = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(position + origin, mask=origin < n, other=-1)
    column = tl.load(target + origin, mask=row >= 0, other=0) - start
    here = (row >= 0) & (column >= 0) & (column < columns)
    z = tl.load(target_logit + row, mask=here, other=0.0)
    origin_bits = tl.load(reference + row, mask=here, other=0.0)
    if UPSTREAM:
        factor = tl.load(row_factor + row, mask=here, other=1.0)
        value = tl.exp2(z - origin_bits)
        value += tl.load(own + row, mask=here, other=0.0) / tl.where(factor == 0.0, 1.0, factor)
    else:
        bits = tl.load(lse + row, mask=here, other=0.0)
        value = tl.exp2(z - bits) - (1.0 - label_smoothing)
        value *= tl.exp2(bits - origin_bits)
    strip = column // kept_stride
    row += (strip * (tl.cdiv(tl.load(count), ALIGNED_ROWS) * ALIGNED_ROWS)).to(tl.int32)
    address = kept + row.to(tl.int64) * kept_stride + (column - strip * kept_stride)
    tl.store(address, value.to(kept.dtype.element_ty), mask=here)


def store_targets(
    target: Tensor,  # (N,)
    rows: KeptRows,
    target_logit: Tensor,  # (N,) packed, bits
    kept: Kept,
    lse: Tensor,  # (N,) packed, bits
    label_smoothing: float,
    own: Tensor | None = None,  # (N,) packed: the target's part of the gradient, and what K is multiplied by, where
    row_factor: Tensor | None = None,  # statistics have upstream gradients
) -> None:
    """Write the entries of the targets among kept columns."""
    n = target.shape[0]
    run_kernel(
        _target_column_kernel,
        (blocks(n, 256),),
        kept=kept.columns,
        count=rows.number,
        target=target,
        position=rows.position,
        target_logit=target_logit,
        lse=lse,
        reference=kept.reference,
        own=own,
        row_factor=row_factor,
        n=n,
        start=kept.start,
        columns=kept.number * kept.width,
        kept_stride=kept.width,
        label_smoothing=label_smoothing,
        ALIGNED_ROWS=launch_table(kept.columns.device, kept.columns.dtype).logit_gradient.rows,
        BLOCK=256,
        UPSTREAM=own is not None,
    )


@triton.jit(do_not_specialize=["first", "rows"])
def _column_sum_kernel(
    matrix,  # (rows, columns)
    weight,  # (rows,) if WEIGHTED
    count,  # (1,) if WEIGHTED: rows that exist
    partial,  # (splits, columns) float32
    first,
    rows,
    columns,
    row_stride,
    column_stride,
    WEIGHTED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    last = tl.load(count) if WEIGHTED else rows
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    step = tl.num_programs(0) * BLOCK_ROWS
    for start in range(first + tl.program_id(0) * BLOCK_ROWS, last, step):
        row = start + tl.arange(0, BLOCK_ROWS)
        offsets = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
        mask = (row < last)[:, None] & (column < columns)[None, :]
        values = tl.load(matrix + offsets, mask=mask, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weight + row, mask=row < last, other=0.0)[:, None]
        acc += values
    tl.store(partial + tl.program_id(0) * columns + column, tl.sum(acc, 0), mask=column < columns)


def column_sum(matrix: Tensor, first: int, weight: Tensor | None = None, count: Tensor | None = None) -> Tensor:
    """Sum over rows ``first ...`` in float32, in a fixed order; with ``weight`` weighted and over ``count`` rows."""
    rows, columns = matrix.shape
    partial = torch.empty(_SPLITS, columns, dtype=torch.float32, device=matrix.device)
    run_kernel(
        _column_sum_kernel,
        (_SPLITS, blocks(columns, 256)),
        matrix=matrix,
        weight=weight,
        count=count,
        partial=partial,
        first=first,
        rows=rows,
        columns=columns,
        row_stride=matrix.stride(0),
        column_stride=matrix.stride(1),
        WEIGHTED=weight is not None,
        BLOCK_ROWS=16,
        BLOCK_COLUMNS=256,
    )
    return partial.sum(0)


def overflow(lse: Tensor, reference: Tensor, rows: KeptRows) -> Tensor:
    """The number of kept tokens, ``(1,)`` int32, if any of them leaves the range of K; else 0. Stays on the device."""
    valid = torch.arange(lse.shape[0], device=lse.device) < rows.number
    outside = valid & ~(lse - reference <= _LIMIT)  # an overflown sum makes lse inf or nan
    return outside.any().to(torch.int32) * rows.number


def of_upstream(own: Tensor, row_factor: Tensor, rows: KeptRows) -> Tensor:
    """The number of kept tokens, ``(1,)`` int32, if ``own / row_factor``, K' of one, leaves its range; else 0."""
    valid = torch.arange(own.shape[0], device=own.device) < rows.number
    outside = valid & ~(own.abs() <= row_factor.abs() * 2.0**_LIMIT)
    return outside.any().to(torch.int32) * rows.number
