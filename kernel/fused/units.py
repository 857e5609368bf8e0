"""Units of work of a sweep over the vocabulary: a block of tokens and a contiguous group of vocabulary tiles each.

Token blocks vary fastest among the units that run at the same time: they share a few vocabulary tiles, ``hidden`` stays
in the L2 cache and ``weight`` streams from memory once. The number of groups follows from the number of kept tokens,
known on the device alone, so that few tokens still fill every multiprocessor.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["MAX_UNITS", "group_count", "swept_blocks"]

# 16 for each of the 132 multiprocessors of an H100: the imbalance is one tile in 500, partials are 3 MiB
MAX_UNITS = 2112


@triton.jit
def swept_blocks(row_count, n, RUN_IF: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Blocks of tokens that a launch sweeps: none where it is that of the other case.

    Whether tokens are ignored is known on the device alone: of two launches, one for "all kept" of the ``n`` tokens and
    one for "some ignored", one does nothing; one for "always" does its work in both cases.
    """
    row_blocks = tl.cdiv(row_count, BLOCK_ROWS)
    if RUN_IF == "all kept":
        row_blocks = tl.where(row_count == n, row_blocks, 0)
    elif RUN_IF == "some ignored":
        row_blocks = tl.where(row_count == n, 0, row_blocks)
    return row_blocks


@triton.jit
def group_count(row_blocks, tile_count, units):
    """Groups of vocabulary tiles a block of tokens is split into, so that there are at most ``units`` in all.

    Not a compile-time constant: it grows with the tokens where they are many.
    """
    return tl.minimum(tl.maximum(units // tl.maximum(row_blocks, 1), 1), tile_count)
