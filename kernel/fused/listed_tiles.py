"""Kernel over a list of tiles, each a block of tokens and a tile of the vocabulary: their dz, less the mean field.

dz of a round's tiles lies one tile below the other, as the list has them: by tile of the vocabulary, then by block, in
the workspace or behind the round's rows of the weight's gradient (:mod:`.listed_rounds`). What becomes of it is in
:mod:`.listed_products`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .listed_rounds import ROUND_FIELDS
from .logits import logit_argument
from .tile_gradient import gradient_of_logits
from .tile_sums import load_mass
from .tiles import column_part, product, store_tile

__all__ = ["listed_gradient_kernel"]

_FIELDS = tl.constexpr(ROUND_FIELDS)


@triton.jit(do_not_specialize=["n", "vocab_size", "index", "dz_rows", "tiles"])
def listed_gradient_kernel(
    hidden,  # (N, D), in the order of the blocks
    weight,  # (V, D)
    bias,  # (V,)
    count,  # (1,)
    lse,  # (N,) bits
    row_scale,  # (N,)
    mix,  # (3, N), if MIXED
    label,  # (N,)
    tile_of,  # entries' tiles of the vocabulary
    block_of,  # and blocks of tokens
    mass,  # (N, 2, stride) in packed order
    order,  # (N,) packed row of each
    factor,  # (N,) of a token's softmax
    tile_uniform,  # b C / V
    rounds,  # (1 + 5 tiles,) see listed_rounds
    dz,  # (dz_rows, BLOCK_VOCAB), written
    dz_rows,
    index,  # of the round
    tiles,
    stride,
    n,
    vocab_size,
    hidden_size,
    hidden_row_stride,
    weight_row_stride,
    weight_column_stride,
    product_gain,
    bias_gain,
    cap,
    label_smoothing,
    uniform,  # b / V
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MIXED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Write dz of the round's tiles, which lie within the vocabulary, less their mean field (:mod:`.mean_field`)."""
    row_count = tl.load(count)
    first = tl.load(rounds + 1 + _FIELDS * index)
    number = tl.load(rounds + 2 + _FIELDS * index)
    start = tl.load(rounds + 5 + _FIELDS * index)
    block_of += first
    tile_of += first
    next_block = tl.load(block_of + tl.program_id(0), mask=tl.program_id(0) < number, other=0)
    next_tile = tl.load(tile_of + tl.program_id(0), mask=tl.program_id(0) < number, other=0)
    for entry in tl.range(tl.program_id(0), number, tl.num_programs(0), flatten=FLATTEN):  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
        row_start = next_block * BLOCK_ROWS
        tile = next_tile
        following = entry + tl.num_programs(0)
        next_block = tl.load(block_of + following, mask=following < number, other=0)
        next_tile = tl.load(tile_of + following, mask=following < number, other=0)
        column_start = tile * BLOCK_VOCAB
        row = row_start + tl.arange(0, BLOCK_ROWS)
        # Read before the product, whose steps hide how long the masses take: their place is read first.
        inside = row < row_count
        row_lse = tl.load(lse + row, mask=inside, other=float("inf"))
        scale = tl.load(row_scale + row, mask=inside, other=0.0)
        row_label = tl.load(label + row, mask=inside, other=-1)
        source = tl.load(order + row, mask=inside, other=0).to(tl.int64)
        mean = load_mass(mass, inside, source, tile, stride)
        mean = (mean * tl.load(factor + row, mask=inside, other=0.0) - scale * tile_uniform) / BLOCK_VOCAB
        acc = product(
            hidden,
            weight,
            row_start,
            row,
            column_start,
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
            False,
            PRECISION,
        )
        for part in tl.static_range(PARTS):
            offset = part * (BLOCK_VOCAB // PARTS)
            column = column_start + offset + tl.arange(0, BLOCK_VOCAB // PARTS)
            part_acc = column_part(acc, part, PARTS, BLOCK_ROWS, BLOCK_VOCAB)
            z = logit_argument(part_acc, bias, column, vocab_size, product_gain, bias_gain, HAS_BIAS)
            gradient = gradient_of_logits(
                z,
                z,
                row_lse,
                column_start + offset,
                column,
                vocab_size,
                scale,
                row_label,
                mix,
                row,
                inside,
                n,
                label_smoothing,
                uniform,
                MIXED,
                False,
                False,
            )
            store_tile(
                dz,
                (gradient - mean[:, None]).to(dz.dtype if DESCRIPTOR else dz.dtype.element_ty),
                start + entry * BLOCK_ROWS,
                offset,
                dz_rows,
                BLOCK_VOCAB,
                BLOCK_VOCAB,
                BLOCK_ROWS,
                BLOCK_VOCAB // PARTS,
                DESCRIPTOR,
            )
