"""Kernels around a softmax that the forward keeps for the backward's products as it is.

The forward stores K = exp(z - r) with one reference r per token, the logit of its target. Then, with g the upstream
gradient,

    dz = a K' - g b / V,    a = g exp(r - lse),    K' = K but for the target's column: (p_y - (1 - b)) exp(lse - r)

so that the products of the backward need no dz: the factors a scale the rows of ``hidden`` on one side and of the
result on the other, and the uniform part is a sum of rows of ``hidden`` and of ``weight``. K may not overflow: a token
whose lse exceeds its reference by 100 bits makes the forward recompute all of K with the lse as reference, which
:mod:`.merge` notices; no probability that matters underflows, the target's own logit being the reference.

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
from .rows import LARGEST_TILE, KeptRows

__all__ = ["LIMIT", "column_sum", "of_upstream", "partial_sums", "store_targets", "sum_of"]

LIMIT = 100.0  # bits; float32 and bfloat16 hold 127
_SPLITS = 64


@triton.jit
def _target_column_kernel(
    kept,  # strips of (N, kept_stride), one below the other
    count,  # (1,)
    target,  # (N,)
    source,  # (N,)
    target_logit,  # (N,) packed, bits
    lse,  # (N,) packed, bits
    reference,  # (N,) packed, bits
    own,  # (N,) packed: l - g (1 - b) above, if UPSTREAM
    row_factor,  # (N,) packed: a, if UPSTREAM
    start,  # first kept column
    columns,  # how many are kept
    kept_stride,
    label_smoothing,
    ALIGNED_ROWS: tl.constexpr,  # of a tile
    BLOCK: tl.constexpr,
    UPSTREAM: tl.constexpr,
):
    """Overwrite each token's target entry: K' above, from the target's float32 logit."""
    row_count = tl.load(count)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    origin = tl.load(source + row, mask=row < row_count, other=0)
    column = tl.load(target + origin, mask=row < row_count, other=0) - start
    here = (row < row_count) & (column >= 0) & (column < columns)
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
    row += (strip * (tl.cdiv(row_count, ALIGNED_ROWS) * ALIGNED_ROWS)).to(tl.int32)
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
    run_kernel(
        _target_column_kernel,
        (blocks(rows.source.shape[0], 256),),
        kept=kept.columns,
        count=rows.number,
        target=target,
        source=rows.source,
        target_logit=target_logit,
        lse=lse,
        reference=kept.reference,
        own=own,
        row_factor=row_factor,
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
    row_factor,  # (rows,) if SCALED
    scaled,  # (rows, columns) written if SCALED, up to the last tile's end; may be the matrix
    first,
    rows,
    columns,
    row_stride,
    column_stride,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    ALIGNED_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    last = tl.load(count) if WEIGHTED else rows
    end = tl.minimum(tl.cdiv(last, ALIGNED_ROWS) * ALIGNED_ROWS, rows) if SCALED else last
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    step = tl.num_programs(0) * BLOCK_ROWS
    for start in range(first + tl.program_id(0) * BLOCK_ROWS, end, step):
        row = start + tl.arange(0, BLOCK_ROWS)
        offsets = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
        mask = (row < last)[:, None] & (column < columns)[None, :]
        values = tl.load(matrix + offsets, mask=mask, other=0.0).to(tl.float32)
        if SCALED:
            factor = tl.load(row_factor + row, mask=row < last, other=0.0)[:, None]
            address = scaled + row.to(tl.int64)[:, None] * columns + column.to(tl.int64)[None, :]
            written = (row < end)[:, None] & (column < columns)[None, :]
            tl.store(address, (values * factor).to(scaled.dtype.element_ty), mask=written)
        if WEIGHTED:
            values *= tl.load(weight + row, mask=row < last, other=0.0)[:, None]
        acc += values
    tl.store(partial + tl.program_id(0) * columns + column, tl.sum(acc, 0), mask=column < columns)


@triton.jit
def _join_columns_kernel(partial, result, columns, factor, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    address = partial + tl.arange(0, SPLITS)[:, None] * columns + column[None, :]
    total = tl.sum(tl.load(address, mask=(column < columns)[None, :], other=0.0), 0)
    tl.store(result + column, total * factor, mask=column < columns)


def partial_sums(
    matrix: Tensor,
    first: int = 0,
    weight: Tensor | None = None,
    count: Tensor | None = None,
    row_factor: Tensor | None = None,
    scaled: Tensor | None = None,
) -> Tensor:
    """Sums of the columns over a part of the rows ``first ...`` each, float32, in a fixed order.

    With ``weight`` they are weighted and go over ``count`` rows. Given ``scaled``, ``row_factor`` times these rows is
    written there, too, and zeros up to the end of their last tile.
    """
    rows, columns = matrix.shape
    partial = torch.empty(_SPLITS, columns, dtype=torch.float32, device=matrix.device)
    run_kernel(
        _column_sum_kernel,
        (_SPLITS, blocks(columns, 256)),
        matrix=matrix,
        weight=weight,
        count=count,
        partial=partial,
        row_factor=row_factor,
        scaled=scaled,
        first=first,
        rows=rows,
        columns=columns,
        row_stride=matrix.stride(0),
        column_stride=matrix.stride(1),
        WEIGHTED=weight is not None,
        SCALED=scaled is not None,
        ALIGNED_ROWS=LARGEST_TILE,
        BLOCK_ROWS=16,
        BLOCK_COLUMNS=256,
    )
    return partial


def sum_of(partial: Tensor, factor: float) -> Tensor:
    """``factor`` times the sum of :func:`partial_sums`."""
    columns = partial.shape[1]
    result = torch.empty(columns, dtype=torch.float32, device=partial.device)
    run_kernel(
        _join_columns_kernel,
        (blocks(columns, 32),),
        partial=partial,
        result=result,
        columns=columns,
        factor=factor,
        SPLITS=_SPLITS,
        BLOCK=32,
    )
    return result


def column_sum(
    matrix: Tensor, first: int, factor: float, weight: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """``factor`` times the sum over rows ``first ...``, with ``weight`` the weighted one over ``count`` rows."""
    return sum_of(partial_sums(matrix, first, weight, count), factor)


def of_upstream(own: Tensor, row_factor: Tensor, rows: KeptRows) -> Tensor:
    """The number of kept tokens, ``(1,)`` int32, if ``own / row_factor``, K' of one, leaves its range; else 0."""
    valid = torch.arange(own.shape[0], device=own.device) < rows.number
    outside = valid & ~(own.abs() <= row_factor.abs() * 2.0**LIMIT)
    return outside.any().to(torch.int32) * rows.number
