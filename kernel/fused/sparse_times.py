"""Up to which share of active tiles a sparse call is quicker than a dense one, by a model of both.

Both end with three products, a sparse call over the active tiles alone: by lists, each tile takes a third longer. What
it takes besides, the tiles' sums, the choice and the mean field of the others, follows the tokens x tiles, the head's
size, and does not vanish with them: on a small head that is more than skipping could save. A larger workspace, in which
a dense call keeps columns, leaves less to save.
"""

from __future__ import annotations

__all__ = ["LEAST_SHARE", "most_active"]

# Microseconds on an H200, of 128 x 256 x 64 of a product on one multiprocessor, with bfloat16; of a token and tile of
# the vocabulary, and the part of it that a hidden size adds; of an entry of the head; and of any call.
_STEP, _STEP_FLOAT32 = 0.81, 8.1
_LISTED = 1.32  # beside a dense tile
_EPILOGUE = 4  # of a tile of dz, in steps
_OF_PAIR, _OF_PAIR_ENTRY, _OF_ENTRY, _OF_CALL = 4e-5, 3e-8, 2.5e-6, 500.0
_MOST = 0.5  # however much a call could save
LEAST_SHARE = 0.05  # of the tiles, without which nothing was ever certified: the pilot and those of the targets


def most_active(
    tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    products: int,
    kept: float,
    itemsize: int,
    tile: int,
    processors: int,
) -> float:
    """Return the largest share of active tiles with which a sparse call is as quick as a dense one, at most a half.

    It grows with each size, and falls with what a dense call keeps.

    Args:
        tokens: N.
        vocab_size: V.
        hidden_size: D.
        products: Gradients that are needed, of input and head: 1 or 2.
        kept: Share of the columns that a dense call keeps.
        itemsize: Bytes of a number.
        tile: Columns of a tile.
        processors: Multiprocessors of the device.

    Returns:
        The share; 0 where no sparse call is as quick.
    """
    step = (_STEP if itemsize == 2 else _STEP_FLOAT32) * tokens * vocab_size / (128 * 256 * processors)
    depth = hidden_size / 64
    anew, others = step * (depth + _EPILOGUE), step * depth * products
    pairs = tokens * vocab_size / tile
    besides = _OF_CALL + pairs * (_OF_PAIR + _OF_PAIR_ENTRY * hidden_size) + _OF_ENTRY * vocab_size * hidden_size
    saved = anew * (1 - kept) + others - besides
    return min(max(saved / (_LISTED * (anew + others)), 0.0), _MOST)
