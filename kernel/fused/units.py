"""Units of work of a sweep over the vocabulary: a block of tokens and a contiguous group of vocabulary tiles each.

Token blocks vary fastest among the units that run at the same time: they share a few vocabulary tiles, ``hidden`` stays
in the L2 cache and ``weight`` streams from memory once. The number of groups follows from the number of kept tokens,
known on the device alone, so that few tokens still fill every multiprocessor.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["MAX_UNITS", "group_count"]

# 16 for each of the 132 multiprocessors of an H100: the imbalance is one tile in 500, partials are 3 MiB
MAX_UNITS = 2112


@triton.jit
def group_count(row_blocks, tile_count, units):
    """Groups of vocabulary tiles a block of tokens is split into, so that there are at most ``units`` in all.

    Not a compile-time constant: it grows with the tokens where they are many.
    """
    return tl.minimum(tl.maximum(units // tl.maximum(row_blocks, 1), 1), tile_count)
