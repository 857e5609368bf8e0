"""From a tile of a product to its logits, in bits and through the softcap, and the largest of them."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import column_part

__all__ = ["FLOOR", "capped", "largest", "logit_argument", "row_largest"]

FLOOR = -1e38  # below every logit in bits, and finite: a tile of logits of -inf has no mass and no peak


@triton.jit
def logit_argument(
    acc,  # (BLOCK_ROWS, BLOCK_VOCAB)
    bias,  # (V,)
    column,  # (BLOCK_VOCAB,)
    vocab_size,
    product_gain,
    bias_gain,
    HAS_BIAS: tl.constexpr,
):
    """The raw logit in the unit that :func:`capped` takes: without softcap the logit in bits, z log2(e) / T.

    With it 2 x log2(e) for x = raw logit / c, the argument of the tanh. The gains carry the unit.
    """
    u = acc * product_gain
    if HAS_BIAS:
        u += (tl.load(bias + column, mask=column < vocab_size, other=0.0).to(tl.float32) * bias_gain)[None, :]
    return u


@triton.jit
def capped(u, cap, SOFTCAP: tl.constexpr, PRECISE: tl.constexpr, FOLDED: tl.constexpr):
    """Logits in bits and the slope of the softcap, sech(x)^2; ``cap`` is c log2(e) / T.

    tanh(x) = 1 - s and sech(x)^2 = e s s, for e = exp2(u) and s = 2 / (1 + e): saturated at both ends (the hardware's
    approximate tanh is wrong by 0.015 at a cap of 30), the tanh exact to 1e-7 in absolute terms and the slope in
    relative ones, where 1 - tanh^2 would cancel. PRECISE adds the Taylor series below 1/4, where float32 inputs would
    see the tanh's lost relative accuracy. FOLDED takes e of |u|: then the slope is s (2 - s) without cancellation, of s
    alone, which leaves fewer numbers to be held at a time.
    """
    z = u
    slope = u
    if SOFTCAP:
        e = tl.exp2(tl.abs(u) if FOLDED else u)
        half = 0.5 + 0.5 * e
        if PRECISE:
            s = 1.0 / half
        else:  # a division that takes care of numbers up to 2^128 costs three more instructions
            s = tl.inline_asm_elementwise(
                "rcp.approx.ftz.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
            )
        t = 1.0 - s  # pyright: ignore[reportOperatorIssue]
        if FOLDED:
            slope = s * (2.0 - s)  # pyright: ignore[reportOperatorIssue]
            t = tl.where(u < 0, -t, t)
        else:
            slope = (tl.minimum(e, 1e38) * s) * s
        if PRECISE:
            x = u * 0.34657359027997264  # ln(2) / 2
            q = x * x
            series = 1.0 + q * (-1 / 3 + q * (2 / 15 + q * (-17 / 315 + q * (62 / 2835 - q * (1382 / 155925)))))
            t = tl.where(tl.abs(x) < 0.25, x * series, t)
        z = t * cap
    return z, slope


@triton.jit
def _larger(first, best, first2, best2):
    wins = (first2 > first) | ((first2 == first) & (best2 < best))
    return tl.where(wins, first2, first), tl.where(wins, best2, best)


@triton.jit
def largest(z, start, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Largest logit of each row and its class, the first on ties; ``start`` is the class of the first column.

    Folded in blocks of WIDTH columns: a second array of the tile's size does not fit the registers.
    """
    first = column_part(z, 0, COLUMNS // WIDTH, ROWS, COLUMNS)
    best = tl.zeros((ROWS, WIDTH), dtype=tl.int32)
    for part in tl.static_range(1, COLUMNS // WIDTH):
        x = column_part(z, part, COLUMNS // WIDTH, ROWS, COLUMNS)
        best = tl.where(x > first, part * WIDTH, best)
        first = tl.maximum(first, x)
    return row_largest(first, best + start + tl.arange(0, WIDTH)[None, :])


@triton.jit
def row_largest(values, classes):
    """Largest of each row and its class, the smallest on ties."""
    return tl.reduce((values, classes), 1, _larger)
