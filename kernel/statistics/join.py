"""Triton kernel of head_statistics that joins the groups of vocabulary tiles of a token and writes its statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from ..fused.units import group_count
from .tile import FLOOR

__all__ = ["join_kernel"]

_FLOOR = tl.constexpr(FLOOR)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _join(
    first, best, second, total, square, weighted, first2, best2, second2, total2, square2, weighted2, inverse
):  # fmt: skip
    """Statistics of two disjoint sets of classes, the second of higher indices; ``inverse`` is 1 / T ``(1, K)``."""
    new_first = tl.maximum(first, first2)
    loser = tl.minimum(first, first2)
    new_second = tl.maximum(tl.maximum(second, second2), loser)
    a = (second - new_second)[:, None] * inverse
    b = (second2 - new_second)[:, None] * inverse
    c = (loser - new_second)[:, None] * inverse
    fa = tl.exp2(a)
    fb = tl.exp2(b)
    fc = tl.exp2(c)
    return (
        new_first,
        tl.where(first2 > first, best2, best),
        new_second,
        total * fa + total2 * fb + fc,
        square * fa * fa + square2 * fb * fb + fc * fc,
        (weighted + total * a) * fa + (weighted2 + total2 * b) * fb + c * fc,
    )


@triton.jit(do_not_specialize=["plane", "n", "vocab_size", "tile_count", "temperatures"])
def join_kernel(
    count,
    position,  # (N,) packed row, -1 where ignored
    target,  # (N,) if HAS_TARGET
    target_logit,  # (N,) packed order, bits, if HAS_TARGET
    inverse_temperature,  # (K,)
    partial,
    classes,
    stride,  # units x BLOCK_ROWS
    scores,  # (6, N, temperatures): lse, entropy, participation, log_probability, confidence, log1m_confidence
    logits,  # (3, N): max_logit, target_logit, mean_logit
    indices,  # (2, N) int64: argmax, rank
    plane,  # N x temperatures
    n,
    vocab_size,
    tile_count,
    temperatures,
    HAS_TARGET: tl.constexpr,
    K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Joins the groups of ROWS tokens and writes their statistics in nats; nan and -1 for ignored tokens."""
    row_blocks = tl.cdiv(tl.load(count), BLOCK_ROWS)
    groups = group_count(row_blocks, tile_count, stride // BLOCK_ROWS)
    origin = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(position + origin, mask=origin < n, other=-1)
    valid = row >= 0
    k = tl.arange(0, K)[None, :]
    inverse = tl.load(inverse_temperature + k)

    first = tl.full((ROWS,), _FLOOR, dtype=tl.float32)
    second = tl.full((ROWS,), _FLOOR, dtype=tl.float32)
    best = tl.zeros((ROWS,), dtype=tl.int32)
    rank = tl.zeros((ROWS,), dtype=tl.int32)
    logit_sum = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS, K), dtype=tl.float32)
    square = tl.zeros((ROWS, K), dtype=tl.float32)
    weighted = tl.zeros((ROWS, K), dtype=tl.float32)
    for group in range(groups):
        unit = group * row_blocks + row // BLOCK_ROWS
        slot = unit.to(tl.int64) * BLOCK_ROWS + row % BLOCK_ROWS
        table = partial + 3 * stride + slot[:, None] + k * stride
        first, best, second, total, square, weighted = _join(
            first,
            best,
            second,
            total,
            square,
            weighted,
            tl.load(partial + slot, mask=valid, other=0.0),
            tl.load(classes + slot, mask=valid, other=0),
            tl.load(partial + stride + slot, mask=valid, other=0.0),
            tl.load(table, mask=valid[:, None], other=0.0),
            tl.load(table + K * stride, mask=valid[:, None], other=0.0),
            tl.load(table + 2 * K * stride, mask=valid[:, None], other=0.0),
            inverse,
        )
        logit_sum += tl.load(partial + 2 * stride + slot, mask=valid, other=0.0)
        rank += tl.load(classes + stride + slot, mask=valid, other=0)

    gap = (second - first)[:, None] * inverse
    factor = tl.exp2(gap)
    rest = total * factor  # (1 - p_max) / p_max
    series = rest * (1.0 - rest * (0.5 - rest * (0.3333333333 - rest * 0.25)))
    log1p = tl.where(rest < 0.01, series, tl.log(1.0 + rest))
    confidence = 1.0 / (1.0 + rest)
    peak = first[:, None] * inverse * _LN2
    nothing = float("nan")
    keep = valid[:, None]
    out = scores + origin.to(tl.int64)[:, None] * temperatures + k
    mask = (origin < n)[:, None] & (k < temperatures)
    # total counts second itself, so it is 1 or more; 0 only in rows that are ignored
    log1m = gap * _LN2 + tl.log(tl.maximum(total, 1.0)) - log1p
    log1m = tl.where(second[:, None] > 0.5 * _FLOOR, log1m, float("-inf"))  # a vocabulary of one class
    tl.store(out, tl.where(keep, peak + log1p, nothing), mask=mask)
    entropy = log1p - confidence * factor * (weighted + total * gap) * _LN2
    tl.store(out + plane, tl.where(keep, entropy, nothing), mask=mask)
    participation = (1.0 + square * factor * factor) * confidence * confidence
    tl.store(out + 2 * plane, tl.where(keep, participation, nothing), mask=mask)
    tl.store(out + 4 * plane, tl.where(keep, confidence, nothing), mask=mask)
    tl.store(out + 5 * plane, tl.where(keep, log1m, nothing), mask=mask)
    inside = origin < n
    tl.store(logits + origin, tl.where(valid, first * _LN2, nothing), mask=inside)
    tl.store(logits + 2 * n + origin, tl.where(valid, logit_sum / vocab_size * _LN2, nothing), mask=inside)
    tl.store(indices + origin, tl.where(valid, best, -1).to(tl.int64), mask=inside)
    if HAS_TARGET:
        label = tl.load(target + origin, mask=valid, other=0).to(tl.int32)
        own = tl.load(target_logit + row, mask=valid, other=0.0)
        # The target's own product may round otherwise than its tile's: the argmax decides, if the target is one of
        # these classes.
        top = label == best
        here = (label >= 0) & (label < vocab_size)
        own = tl.where(top, first, tl.where(here, tl.minimum(own, first), own))
        rank = tl.where(top, 0, tl.where(here, tl.maximum(rank, 1), rank))
        log_p = (own - first)[:, None] * inverse * _LN2 - log1p
        tl.store(out + 3 * plane, tl.where(keep, log_p, nothing), mask=mask)
        tl.store(logits + n + origin, tl.where(valid, own * _LN2, nothing), mask=inside)
        tl.store(indices + n + origin, tl.where(valid, rank, -1).to(tl.int64), mask=inside)
