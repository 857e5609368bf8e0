"""Triton kernels of head_statistics: one sweep over the vocabulary for all temperatures, then one join per token.

A program owns a block of tokens and a contiguous group of vocabulary tiles, as in :mod:`kernel.fused.forward`, and
keeps per token, in float32 and in bits (logits times log2 e, before the temperature),

    first, best    largest logit and its class
    second         second largest logit, the reference of the sums
    logit_sum      sum_k z_k
    rank           classes before the target

and per token and temperature, over all classes k but ``best``, with x_k = (z_k - second) / T <= 0,

    total = sum 2^x_k        square = sum 4^x_k        weighted = sum 2^x_k x_k

Leaving ``best`` out keeps what lies next to a confidence of 1; referring to ``second`` keeps it from underflow at low
temperatures. Two such sets of numbers join into one without loss, in a fixed order and without atomics: the result is
the same bit for bit in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fused.forward import group_count
from .fused.tiles import capped_logits, product

__all__ = ["FLOOR", "join_kernel", "sweep_kernel"]

# Stands for no logit: far below every float16 product, far above overflow when divided by a temperature.
FLOOR = -1e26
_FLOOR = tl.constexpr(FLOOR)
_EXCLUDED = tl.constexpr(-1e30)  # so far below the floor that even relative to it 2^x is 0
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


@triton.jit
def sweep_kernel(
    hidden,  # (N, D)
    weight,  # (V, D)
    bias,  # (V,)
    count,  # (1,) kept tokens
    source,  # (N,) input row of each kept token
    target,  # (N,) input order, if HAS_TARGET
    target_logit,  # (N,) packed order, bits, if HAS_TARGET
    inverse_temperature,  # (K,)
    partial,  # (3 + 3 K, units x BLOCK_ROWS): first, second, logit_sum, total, square, weighted
    classes,  # (2, units x BLOCK_ROWS) int32: best, rank
    stride,  # units x BLOCK_ROWS
    n,
    vocab_size,
    hidden_size,
    tile_count,
    hidden_row_stride,
    hidden_column_stride,
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    RUN_IF: tl.constexpr,  # "all kept", "some ignored", "always"
    K: tl.constexpr,  # temperatures, a power of two
    MAX_UNITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Statistics of each block of kept tokens over each group of vocabulary tiles."""
    row_count = tl.load(count)
    row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    if RUN_IF == "all kept":
        row_blocks = tl.where(row_count == n, row_blocks, 0)
    elif RUN_IF == "some ignored":
        row_blocks = tl.where(row_count == n, 0, row_blocks)
    groups = group_count(row_blocks, tile_count, MAX_UNITS)
    programs = tl.num_programs(0)
    start = tl.program_id(0)
    steps = 0
    for u in range(start, row_blocks * groups, programs):
        g = u // row_blocks
        steps += (g + 1) * tile_count // groups - g * tile_count // groups

    k = tl.arange(0, K)[None, :]
    inverse = tl.load(inverse_temperature + k)
    unit = start - programs
    tile = -1
    tile_end = 0
    first = tl.full((BLOCK_ROWS,), _FLOOR, dtype=tl.float32)
    second = tl.full((BLOCK_ROWS,), _FLOOR, dtype=tl.float32)
    best = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
    rank = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
    logit_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
    square = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
    for _ in tl.range(0, steps, flatten=FLATTEN):
        # Where the next tile lies follows from counters alone: its loads start before this tile's end.
        tile += 1
        fresh = tile == tile_end
        unit = tl.where(fresh, unit + programs, unit)
        group = unit // row_blocks
        tile = tl.where(fresh, group * tile_count // groups, tile)
        tile_end = (group + 1) * tile_count // groups
        row_start = (unit - group * row_blocks) * BLOCK_ROWS
        row = row_start + tl.arange(0, BLOCK_ROWS)
        origin = tl.load(source + row, mask=row < row_count, other=0)
        acc = product(
            hidden,
            weight,
            row_start,
            origin,
            tile * BLOCK_VOCAB,
            row_count,
            vocab_size,
            hidden_size,
            hidden_row_stride,
            hidden_column_stride,
            weight_row_stride,
            weight_column_stride,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_HIDDEN,
            DESCRIPTOR,
            not DESCRIPTOR,
            PRECISION,
        )
        column = tile * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
        z, _slope = capped_logits(
            acc, bias, column, vocab_size, product_gain, bias_gain, cap, HAS_BIAS, SOFTCAP, PRECISE
        )
        column = column[None, :]
        if MASK_VOCAB:  # after the cap, and out of the sum of logits
            logit_sum = tl.where(fresh, 0.0, logit_sum) + tl.sum(tl.where(column < vocab_size, z, 0.0), 1)
            z = tl.where(column < vocab_size, z, _EXCLUDED)
        else:
            logit_sum = tl.where(fresh, 0.0, logit_sum) + tl.sum(z, 1)
        tile_first = tl.max(z, 1)
        tile_best = tl.min(tl.where(z == tile_first[:, None], column, 2147483647), 1)
        if HAS_TARGET:
            label = tl.load(target + origin, mask=row < row_count, other=0).to(tl.int32)[:, None]
            own = tl.load(target_logit + row, mask=row < row_count, other=0.0)[:, None]
            before = ((z > own) & (column != label)) | ((z == own) & (column < label))
            rank = tl.where(fresh, 0, rank) + tl.sum(before.to(tl.int32), 1)
        z = tl.where(column == tile_best[:, None], _EXCLUDED, z)
        tile_second = tl.maximum(tl.max(z, 1), _FLOOR)
        z -= tile_second[:, None]
        tile_total = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
        tile_square = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
        tile_weighted = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
        for i in tl.static_range(K):
            x = z * tl.load(inverse_temperature + i)
            e = tl.exp2(x)
            tile_total = tl.where(k == i, tl.sum(e, 1)[:, None], tile_total)
            tile_square = tl.where(k == i, tl.sum(e * e, 1)[:, None], tile_square)
            tile_weighted = tl.where(k == i, tl.sum(e * x, 1)[:, None], tile_weighted)
        first, best, second, total, square, weighted = _join(
            tl.where(fresh, _FLOOR, first),
            best,
            tl.where(fresh, _FLOOR, second),
            tl.where(fresh, 0.0, total),
            tl.where(fresh, 0.0, square),
            tl.where(fresh, 0.0, weighted),
            tile_first,
            tile_best,
            tile_second,
            tile_total,
            tile_square,
            tile_weighted,
            inverse,
        )
        done = (row < row_count) & (tile + 1 == tile_end)
        slot = unit.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        tl.store(partial + slot, first, mask=done)
        tl.store(partial + stride + slot, second, mask=done)
        tl.store(partial + 2 * stride + slot, logit_sum, mask=done)
        table = partial + 3 * stride + slot[:, None] + k * stride
        tl.store(table, total, mask=done[:, None])
        tl.store(table + K * stride, square, mask=done[:, None])
        tl.store(table + 2 * K * stride, weighted, mask=done[:, None])
        tl.store(classes + slot, best, mask=done)
        tl.store(classes + stride + slot, rank, mask=done)


@triton.jit
def join_kernel(
    count,
    position,  # (N,) packed row, -1 where ignored
    target,  # (N,) if HAS_TARGET
    target_logit,  # (N,) packed order, bits, if HAS_TARGET
    inverse_temperature,  # (K,)
    partial,
    classes,
    stride,
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
    MAX_UNITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Joins the groups of ROWS tokens and writes their statistics in nats; nan and -1 for ignored tokens."""
    row_blocks = tl.cdiv(tl.load(count), BLOCK_ROWS)
    groups = group_count(row_blocks, tile_count, MAX_UNITS)
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
        # The target's own product may round otherwise than its tile's: the argmax decides.
        top = label == best
        own = tl.where(top, first, tl.minimum(own, first))
        rank = tl.where(top, 0, tl.maximum(rank, 1))
        log_p = (own - first)[:, None] * inverse * _LN2 - log1p
        tl.store(out + 3 * plane, tl.where(keep, log_p, nothing), mask=mask)
        tl.store(logits + n + origin, tl.where(valid, own * _LN2, nothing), mask=inside)
        tl.store(indices + n + origin, tl.where(valid, rank, -1).to(tl.int64), mask=inside)
