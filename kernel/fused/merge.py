"""Kernel that makes losses and statistics of the targets' logits and the partial statistics of the sweep."""

from __future__ import annotations

import triton
import triton.language as tl

from .keep import LIMIT
from .logits import FLOOR, row_largest
from .units import group_count

__all__ = ["merge_kernel"]

_FLOOR = tl.constexpr(FLOOR)
_LIMIT = tl.constexpr(LIMIT)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(
    do_not_specialize=[
        "n",
        "vocab_size",
        "parts",
        "first_tiles",
        "second_tiles",
        "third_tiles",
        "fourth_tiles",
        "rerun",
    ]
)
def merge_kernel(
    target_logit,  # (N,) packed order, in bits
    count,  # (1,) kept tokens
    outside,  # (1,): if rerun 0 skips the kernel; else the count, if a kept softmax would leave its range (.keep)
    source,  # (N,)
    partial,  # (parts, planes of the forward, units, BLOCK_ROWS)
    partial_stride,  # units x BLOCK_ROWS
    part_stride,
    token_loss,  # (N,) input order
    lse,  # (N,) packed order, in bits
    reference,  # (N,) packed, written if rerun, as the next two: lse, 1 and -1, of a softmax that is stored again
    ones,
    label,
    entropy,  # (N,) packed order, in nats, written if ENTROPY
    statistics,  # (4, N) input order, written if ARGMAX: log-probability, lse and entropy in nats, confidence; and the
    # largest logit, in nats, if LARGEST
    argmax,  # (N,) input order, int64, written if ARGMAX
    n,
    vocab_size,
    parts,  # 1 to 4
    first_tiles,  # vocabulary tiles of the first part
    second_tiles,
    third_tiles,
    fourth_tiles,
    rerun,
    label_smoothing,
    z_loss,
    confidence_penalty,
    LOGIT_SUM: tl.constexpr,
    ENTROPY: tl.constexpr,
    ARGMAX: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Losses and statistics of ROWS tokens; ignored ones get a loss of 0, statistics of nan and a class of -1.

    The loss is lse - (1 - b) z_target - (b / V) sum_k z_k + z_loss lse^2 - confidence_penalty H.
    """
    if (rerun != 0) & (tl.load(outside) == 0):
        return
    row_count = tl.load(count)
    row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < row_count
    inside = row < n
    origin = tl.load(source + row, mask=inside, other=0)

    peak = tl.full((ROWS,), _FLOOR, dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    logit_sum = tl.zeros((ROWS,), dtype=tl.float32)
    weighted = tl.zeros((ROWS,), dtype=tl.float32)
    highest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    best = tl.zeros((ROWS,), dtype=tl.int32)
    for part in range(parts):
        later = tl.where(part == 2, third_tiles, fourth_tiles)
        tile_count = tl.where(part == 0, first_tiles, tl.where(part == 1, second_tiles, later))
        groups = group_count(row_blocks, tile_count, partial_stride // BLOCK_ROWS)
        for start in range(0, groups, GROUPS):  # several at a time: of few tokens there are hundreds of groups
            group = start + tl.arange(0, GROUPS)
            unit = group[None, :] * row_blocks + (row // BLOCK_ROWS)[:, None]
            slot = partial + part * part_stride + unit.to(tl.int64) * BLOCK_ROWS + (row % BLOCK_ROWS)[:, None]
            present = valid[:, None] & (group < groups)[None, :]
            part_peak = tl.load(slot, mask=present, other=_FLOOR)
            part_total = tl.load(slot + partial_stride, mask=present, other=0.0)
            new = tl.where(valid, tl.maximum(peak, tl.max(part_peak, 1)), 0.0)
            old_factor = tl.exp2(peak - new)
            rise = part_peak - new[:, None]
            factor = tl.exp2(rise)
            if ENTROPY:
                part_weighted = tl.load(slot + 3 * partial_stride, mask=present, other=0.0)
                weighted = (weighted + total * (peak - new)) * old_factor + tl.sum(
                    (part_weighted + part_total * rise) * factor, 1
                )
            total = total * old_factor + tl.sum(part_total * factor, 1)
            peak = new
            if LOGIT_SUM:
                logit_sum += tl.sum(tl.load(slot + 2 * partial_stride, mask=present, other=0.0), 1)
            if ARGMAX:
                values = tl.load(slot + 4 * partial_stride, mask=present, other=float("-inf"))
                classes = tl.load(slot + 5 * partial_stride, mask=present, other=0.0).to(tl.int32, bitcast=True)
                part_highest, part_best = row_largest(values, classes)
                best = tl.where(part_highest > highest, part_best, best)
                highest = tl.maximum(highest, part_highest)
    total = tl.where(valid, total, 1.0)
    log_total = tl.log2(total)

    z = tl.load(target_logit + row, mask=valid, other=0.0)
    # lse - z = log2(total) + (peak - z): the difference of the two large numbers is taken first.
    surprise = log_total + (peak - z)
    loss = (1.0 - label_smoothing) * surprise
    if LOGIT_SUM:
        loss += label_smoothing * (log_total + (peak - logit_sum / vocab_size))
    bits = peak + log_total
    loss *= _LN2  # to nats
    log_partition = bits * _LN2
    loss += z_loss * log_partition * log_partition
    tl.store(lse + row, bits, mask=valid)
    if rerun != 0:
        # Of a slice all logits may be -inf, whose softmax is to be 0.
        tl.store(reference + row, tl.where(bits < _FLOOR, _FLOOR, bits) if LARGEST else bits, mask=valid)
        tl.store(ones + row, tl.full((ROWS,), 1.0, tl.float32), mask=valid)
        tl.store(label + row, tl.full((ROWS,), -1, tl.int32), mask=valid)
    else:
        beyond = valid & ~(bits - z <= _LIMIT)  # an overflown sum makes lse inf or nan
        if tl.max(beyond.to(tl.int32), 0) > 0:
            tl.atomic_max(outside, row_count)
    if ENTROPY:
        nats = (log_total - weighted / total) * _LN2
        loss -= confidence_penalty * nats
        tl.store(entropy + row, nats, mask=valid)
        if ARGMAX:
            nothing = float("nan")
            tl.store(statistics + origin, tl.where(valid, -surprise * _LN2, nothing), mask=inside)
            tl.store(statistics + n + origin, tl.where(valid, log_partition, nothing), mask=inside)
            tl.store(statistics + 2 * n + origin, tl.where(valid, nats, nothing), mask=inside)
            confidence = tl.exp2(highest - peak) / total
            # the sum may hold another rounding of the target's logit (of kept columns that of a float32 sum); nan stays
            confidence = tl.where(confidence > 1.0, 1.0, confidence)
            tl.store(statistics + 3 * n + origin, tl.where(valid, confidence, nothing), mask=inside)
            if LARGEST:
                tl.store(statistics + 4 * n + origin, tl.where(valid, highest * _LN2, nothing), mask=inside)
            tl.store(argmax + origin, tl.where(valid, best, -1).to(tl.int64), mask=inside)
    tl.store(token_loss + origin, tl.where(valid, loss, 0.0), mask=inside)
