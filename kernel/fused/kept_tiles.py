"""What the forward keeps of a tile for the backward.

By KEEP (:mod:`.arguments` says when which):

- "softmax", exp(z - r) in the dtype of the inputs, r being one number per token, the target's logit, so that a column
  of the store is proportional to probabilities and enters the backward's products as it is. (Should a logit exceed its
  target's by more than 2^100, :mod:`.keep` notices and repairs it.) The target's own logit is that number in the sums,
  too: tensor cores round sums towards zero, and where smoothing leaves a model (p = 1 - b) a log-partition and a
  target's logit that differ by 2e-5 would be a tenth of the gradient.
- "code", the logit in 16 bits (:mod:`.codes`), without softcap relative to the tile's peak, which is stored too.
- "byte", the softmax in one byte (:mod:`.byte_columns`), relative to peaks of 64 columns, which are stored too. The
  target's column has no code and no part in a peak: its mass is that of the target's float32 logit.
- "raw", the raw logit in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .byte_columns import to_byte
from .byte_peaks import coded_peaks, store_peaks
from .logits import FLOOR
from .tiles import store_tile

__all__ = ["keep_bytes", "store_in_strip"]

_LOWEST_PEAK = tl.constexpr(FLOOR / 8)  # of columns in bytes, whose differences are multiplied


@triton.jit
def store_in_strip(
    kept,  # strips of (N, kept_stride), one below the other, each of as many rows as the blocks of tokens have
    values,  # (BLOCK_ROWS, BLOCK_VOCAB // PARTS)
    strip,  # that the tile is in
    tile,  # of the kept ones
    row_start,
    row_blocks,
    kept_rows,  # of all strips
    kept_stride,
    part: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Store one of ``PARTS`` equal column blocks of a tile where its strip lies."""
    store_tile(
        kept,
        values,
        row_start + strip * row_blocks * BLOCK_ROWS,
        tile * BLOCK_VOCAB - strip * kept_stride + part * (BLOCK_VOCAB // PARTS),
        kept_rows,
        kept_stride,
        kept_stride,
        BLOCK_ROWS,
        BLOCK_VOCAB // PARTS,
        DESCRIPTOR,
    )


@triton.jit
def keep_bytes(
    kept,
    reference,  # (1 + ..., N) packed, bits: the peaks are written
    z,  # (BLOCK_ROWS, BLOCK_VOCAB) bits
    tile,  # of the kept ones
    column,  # (BLOCK_VOCAB,) classes
    label,  # (BLOCK_ROWS,) the targets
    here,  # (BLOCK_ROWS,) whether the target is in the tile
    row,  # (BLOCK_ROWS,) packed
    row_start,
    row_count,
    row_blocks,
    n,
    vocab_size,
    kept_rows,
    kept_stride,
    MASK_VOCAB: tl.constexpr,
    PEAKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Store a tile in bytes, with its peaks, but for the targets.

    Returns:
        The tile's peak ``(BLOCK_ROWS,)`` and those of its groups of columns ``(BLOCK_ROWS, PEAKS)``, rounded up; and of
        each entry ``(BLOCK_ROWS, PEAKS, columns of a group)`` a quarter of the bits below its group's peak and the
        exponential of all of them; of the targets 0.
    """
    lowest = z
    if MASK_VOCAB:  # padding widens no group; its codes, whatever they are, become 0
        lowest = tl.where((column < vocab_size)[None, :], z, float("inf"))
    lowest = tl.min(tl.reshape(lowest, (BLOCK_ROWS, PEAKS, BLOCK_VOCAB // PEAKS)), 2)
    if tl.max(here.to(tl.int32), 0) > 0:  # seldom; to compare each column took a twentieth of the sweep
        z = tl.where(column[None, :] == label[:, None], float("-inf"), z)
    z = tl.reshape(z, (BLOCK_ROWS, PEAKS, BLOCK_VOCAB // PEAKS))
    tile_peak, peaks, numbers, gains, shifts = coded_peaks(tl.maximum(tl.max(z, 2), _LOWEST_PEAK), lowest)
    below = z * 0.25 - (peaks * 0.25)[:, :, None]
    root = tl.exp2(below)
    strip = tile * BLOCK_VOCAB // kept_stride
    store_in_strip(
        kept,
        tl.reshape(to_byte(root, gains[:, :, None], shifts[:, :, None]), (BLOCK_ROWS, BLOCK_VOCAB)),
        strip,
        tile,
        row_start,
        row_blocks,
        kept_rows,
        kept_stride,
        0,
        1,
        BLOCK_ROWS,
        BLOCK_VOCAB,
        DESCRIPTOR,
    )
    store_peaks(reference, tile, n, row, row < row_count, tile_peak, numbers, PEAKS)
    e = root * root
    return tile_peak, peaks, below, e * e
