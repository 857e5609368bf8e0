"""Triton kernel of head_statistics that sweeps the vocabulary, once for all temperatures.

A program owns a block of tokens and a contiguous group of vocabulary tiles, as in :mod:`kernel.fused.units`, and
keeps per token, in float32 and in bits (logits times log2 e, before the temperature),

    first, best    largest logit and its class
    second         second largest logit, the reference of the sums
    logit_sum      sum_k z_k
    rank           classes before the target

and per token and temperature, over all classes k but ``best``, with x_k = (z_k - second) / T <= 0,

    total = sum 2^x_k        square = sum 4^x_k        weighted = sum 2^x_k x_k

Leaving ``best`` out keeps what lies next to a confidence of 1; referring to ``second`` keeps it from underflow at low
temperatures. Two such sets of numbers join into one without loss (:mod:`kernel.statistics.join`), in a fixed order and
without atomics: the result is the same bit for bit in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..fused.logits import capped, logit_argument
from ..fused.tiles import product
from ..fused.units import group_count, swept_blocks
from .tile import EXCLUDED, FLOOR, exponential_sums, row_sum, tile_rank, two_largest

__all__ = ["sweep_kernel"]

_FLOOR = tl.constexpr(FLOOR)
_EXCLUDED = tl.constexpr(EXCLUDED)


@triton.jit(do_not_specialize=["n", "vocab_size", "tile_count"])
def sweep_kernel(
    hidden,  # (N, D), contiguous rows
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
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    MASK_VOCAB: tl.constexpr,
    RUN_IF: tl.constexpr,  # of units.swept_blocks
    K: tl.constexpr,  # temperatures, a power of two
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Statistics of each block of kept tokens over each group of vocabulary tiles."""
    row_count = tl.load(count)
    row_blocks = swept_blocks(row_count, n, RUN_IF, BLOCK_ROWS)
    groups = group_count(row_blocks, tile_count, stride // BLOCK_ROWS)
    k = tl.arange(0, K)[None, :]
    inverse = tl.load(inverse_temperature + k)
    for unit in range(tl.program_id(0), row_blocks * groups, tl.num_programs(0)):
        group = unit // row_blocks
        row_start = (unit - group * row_blocks) * BLOCK_ROWS
        row = row_start + tl.arange(0, BLOCK_ROWS)
        origin = tl.load(source + row, mask=row < row_count, other=0)
        label = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
        own = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        if HAS_TARGET:
            label = tl.load(target + origin, mask=row < row_count, other=0).to(tl.int32)
            own = tl.load(target_logit + row, mask=row < row_count, other=0.0)
        first = tl.full((BLOCK_ROWS,), _FLOOR, dtype=tl.float32)
        second = tl.full((BLOCK_ROWS,), _FLOOR, dtype=tl.float32)
        best = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
        rank = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
        logit_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        total = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
        square = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
        weighted = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
        for tile in range(group * tile_count // groups, (group + 1) * tile_count // groups):
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
                1,
                weight_row_stride,
                weight_column_stride,
                BLOCK_ROWS,
                BLOCK_VOCAB,
                BLOCK_HIDDEN,
                DESCRIPTOR,
                not DESCRIPTOR,
                PRECISION,
            )
            start = tile * BLOCK_VOCAB
            column = start + tl.arange(0, BLOCK_VOCAB)
            u = logit_argument(acc, bias, column, vocab_size, product_gain, bias_gain, HAS_BIAS)
            z, _slope = capped(u, cap, SOFTCAP, PRECISE, False)
            logit_sum += row_sum(z, WIDTH, BLOCK_ROWS, BLOCK_VOCAB)  # padded columns hold exact zeros so far
            if MASK_VOCAB:  # after the cap: tanh would turn this into -c
                z = tl.where(column[None, :] < vocab_size, z, _EXCLUDED)
            tile_first, tile_second, tile_best = two_largest(z, start, WIDTH, BLOCK_ROWS, BLOCK_VOCAB)
            if HAS_TARGET:
                rank += tile_rank(z, own, label, start, WIDTH, BLOCK_ROWS, BLOCK_VOCAB)

            new_second = tl.maximum(tl.maximum(second, tile_second), tl.minimum(first, tile_first))
            # Only the largest of all exceeds it. Where that lies in this tile, it is counted as another second and
            # taken off again, and the largest so far joins the sums.
            d = tl.minimum(z, new_second[:, None]) - new_second[:, None]
            tile_total = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
            tile_square = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
            tile_weighted = tl.zeros((BLOCK_ROWS, K), dtype=tl.float32)
            for i in tl.range(0, K, num_stages=1):  # a loop: unrolled, eight temperatures outgrow the instruction cache
                e, e2, ex = exponential_sums(d, tl.load(inverse_temperature + i), WIDTH, BLOCK_ROWS, BLOCK_VOCAB)
                tile_total = tl.where(k == i, e[:, None], tile_total)
                tile_square = tl.where(k == i, e2[:, None], tile_square)
                tile_weighted = tl.where(k == i, ex[:, None], tile_weighted)
            wins = tile_first > first
            excess = tl.where(wins, 1.0, 0.0)[:, None]
            joins = (tl.where(wins, first, _EXCLUDED) - new_second)[:, None] * inverse
            rise = (second - new_second)[:, None] * inverse
            e_joins = tl.exp2(joins)
            e_rise = tl.exp2(rise)
            weighted = (weighted + total * rise) * e_rise + tile_weighted + e_joins * joins
            square = square * e_rise * e_rise + (tile_square - excess) + e_joins * e_joins
            total = total * e_rise + (tile_total - excess) + e_joins
            best = tl.where(wins, tile_best, best)
            first = tl.maximum(first, tile_first)
            second = new_second

        slot = (unit * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        tl.store(partial + slot, first)
        tl.store(partial + stride + slot, second)
        tl.store(partial + 2 * stride + slot, logit_sum)
        table = partial + 3 * stride + slot[:, None] + k * stride
        tl.store(table, total)
        tl.store(table + K * stride, square)
        tl.store(table + 2 * K * stride, weighted)
        tl.store(classes + slot, best)
        tl.store(classes + stride + slot, rank)
