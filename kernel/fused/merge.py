"""Small kernels of the forward: the targets' logits, and the losses from them and the partial statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import group_count
from .tiles import softcap_tanh

__all__ = ["merge_kernel", "target_logit_kernel"]


@triton.jit
def target_logit_kernel(
    hidden,  # (N, D) as given
    weight,  # (V, D)
    bias,  # (V,)
    target,  # (N,)
    position,  # (N,)
    target_logit,  # (N,) packed order, in bits, written
    n,
    hidden_size,
    hidden_row_stride,
    hidden_column_stride,
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Logits of the targets of ROWS tokens, through the same arithmetic as the tiles' logits but for the sum's order.

    In float32 the two differ in the last bits of a logit, 1e-6 at a logit of 10: what is left of a loss and of
    gradients that should vanish, as those of a vocabulary of one class.
    """
    origin = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(position + origin, mask=origin < n, other=-1)
    valid = row >= 0
    label = tl.load(target + origin, mask=valid, other=0)
    h = hidden + origin.to(tl.int64)[:, None] * hidden_row_stride
    w = weight + label.to(tl.int64)[:, None] * weight_row_stride
    dot = tl.zeros((ROWS,), dtype=tl.float32)
    for k in range(0, hidden_size, BLOCK_HIDDEN):
        column = (k + tl.arange(0, BLOCK_HIDDEN)).to(tl.int64)[None, :]
        mask = valid[:, None] & (column < hidden_size)
        a = tl.load(h + column * hidden_column_stride, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(w + column * weight_column_stride, mask=mask, other=0.0).to(tl.float32)
        dot += tl.sum(a * b, 1)
    z = dot * product_gain
    if HAS_BIAS:
        z += tl.load(bias + label, mask=valid, other=0.0).to(tl.float32) * bias_gain
    if SOFTCAP:
        z = softcap_tanh(z, PRECISE) * cap
    tl.store(target_logit + row, z, mask=valid)


@triton.jit
def merge_kernel(
    target_logit,  # (N,) packed order, in bits
    count,  # (1,) kept tokens
    again,  # (1,) if AGAIN: 0 skips the kernel
    position,  # (N,)
    partial,  # (parts, 2 or 3, units, BLOCK_ROWS)
    partial_stride,  # units x BLOCK_ROWS
    part_stride,
    token_loss,  # (N,) input order
    lse,  # (N,) packed order, in bits
    n,
    vocab_size,
    first_tiles,  # vocabulary tiles of the first part
    second_tiles,
    label_smoothing,
    z_loss,
    LOGIT_SUM: tl.constexpr,
    AGAIN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Token losses, lse - (1 - b) z_target - (b / V) sum_k z_k + z_loss lse^2 for ROWS tokens; 0 for ignored ones."""
    if AGAIN:  # noqa: SIM102 - the first is settled at compile time
        if tl.load(again) == 0:
            return
    row_count = tl.load(count)
    row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    origin = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(position + origin, mask=origin < n, other=-1)
    valid = row >= 0

    peak = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    logit_sum = tl.zeros((ROWS,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        tile_count = first_tiles if part == 0 else second_tiles
        groups = group_count(row_blocks, tile_count, partial_stride // BLOCK_ROWS)
        for start in range(0, groups, GROUPS):  # several at a time: of few tokens there are hundreds of groups
            group = start + tl.arange(0, GROUPS)
            unit = group[None, :] * row_blocks + (row // BLOCK_ROWS)[:, None]
            slot = partial + part * part_stride + unit.to(tl.int64) * BLOCK_ROWS + (row % BLOCK_ROWS)[:, None]
            inside = valid[:, None] & (group < groups)[None, :]
            part_peak = tl.load(slot, mask=inside, other=float("-inf"))
            part_total = tl.load(slot + partial_stride, mask=inside, other=0.0)
            new = tl.where(valid, tl.maximum(peak, tl.max(part_peak, 1)), 0.0)
            total = total * tl.exp2(peak - new) + tl.sum(part_total * tl.exp2(part_peak - new[:, None]), 1)
            peak = new
            if LOGIT_SUM:
                logit_sum += tl.sum(tl.load(slot + 2 * partial_stride, mask=inside, other=0.0), 1)
    log_total = tl.log2(tl.where(valid, total, 1.0))

    z = tl.load(target_logit + row, mask=valid, other=0.0)
    # lse - z = log2(total) + (peak - z): the difference of the two large numbers is taken first.
    loss = (1.0 - label_smoothing) * (log_total + (peak - z))
    if LOGIT_SUM:
        loss += label_smoothing * (log_total + (peak - logit_sum / vocab_size))
    bits = peak + log_total
    loss *= 0.6931471805599453  # to nats
    log_partition = bits * 0.6931471805599453
    loss += z_loss * log_partition * log_partition
    tl.store(token_loss + origin, tl.where(valid, loss, 0.0), mask=origin < n)
    tl.store(lse + row, bits, mask=valid)
