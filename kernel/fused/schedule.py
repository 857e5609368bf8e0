"""How the backward cuts the vocabulary: width of a strip, and how many columns the forward keeps for it.

The budget holds one strip of dz, N x width. What it has beyond that keeps columns of the forward's softmax, N x
columns, each of which saves the backward a matrix product: 8 N V D operations in all fall to 6 N V D as the share kept
goes to one. Before a gradient of the weight is written, its own V x D memory keeps columns as well, at no cost in peak
memory: a share of up to D / (N + D).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from .launch import Launch, LaunchTable

__all__ = ["Schedule", "schedule"]

# In steps of one multiprocessor (a 128 x 256 x 64 product, 0.8 us on an H100): what a strip costs apart from its tiles.
_STEPS_PER_STRIP = 30
_BYTES_PER_STEP = 2.4e6  # the accumulator's traffic of all multiprocessors in the time of one step
_MAX_STRIP = 16384


@dataclass(frozen=True)
class Schedule:
    """Columns of the vocabulary in the order of the backward; ``kept`` is a multiple of the forward's tile."""

    width: int
    kept: int  # columns 0 ... kept - 1 are read, the others recomputed
    in_gradient: bool  # kept in the memory of the weight gradient

    def strips(self, vocab_size: int) -> list[tuple[int, int, bool]]:
        """(start, columns, kept) for each strip; together they cover the vocabulary once."""
        kept = min(self.kept, vocab_size)
        starts = [*range(0, kept, self.width), *range(kept, vocab_size, self.width), vocab_size]
        return [(a, b - a, a < kept) for a, b in pairwise(starts)]


def kept_offset(n: int, vocab_size: int, hidden_size: int, kept: int) -> int:
    """First element of the kept columns at the end of the weight gradient's memory, 128-byte aligned."""
    return (vocab_size * hidden_size - n * kept) // 64 * 64


@cache
def schedule(
    n: int,
    vocab_size: int,
    hidden_size: int,
    itemsize: int,
    workspace_bytes: int,
    *,
    keep: bool,
    scratch: bool,
    processors: int,
    table: LaunchTable,
) -> Schedule:
    """Choose strip width and kept columns for a budget; at least one strip of one tile is used, whatever the budget.

    Args:
        n: Tokens N.
        vocab_size: V.
        hidden_size: D.
        itemsize: Bytes of an element of the inputs.
        workspace_bytes: Budget of dz and kept columns together.
        keep: Whether kept columns may be used at all.
        scratch: Whether the weight gradient's memory may keep columns.
        processors: Multiprocessors of the device.
        table: Launch parameters.
    """
    tile = table.logit_gradient.columns
    padded = -(-vocab_size // tile) * tile
    largest = max(tile, min(padded, _MAX_STRIP, workspace_bytes // (n * itemsize) // tile * tile))
    width = min(
        range(tile, largest + tile, tile),
        key=lambda w: (_cost(n, hidden_size, w, processors, table) / w, -w),
    )
    if not keep:
        return Schedule(width, 0, False)
    spare = workspace_bytes - n * itemsize * width
    kept = max(0, min(padded, spare // (n * itemsize + 4 * n // tile) // tile * tile))
    in_gradient = 0
    if scratch:
        in_gradient = vocab_size * hidden_size // (n + hidden_size) // tile * tile
        while in_gradient and in_gradient * hidden_size > kept_offset(n, vocab_size, hidden_size, in_gradient):
            in_gradient -= tile
        in_gradient = min(in_gradient, vocab_size // tile * tile)
    return Schedule(width, in_gradient, True) if in_gradient > kept else Schedule(width, kept, False)


def _cost(n: int, hidden_size: int, width: int, processors: int, table: LaunchTable) -> float:
    """Time of one strip in steps: whole waves of tiles in each of the three kernels, and what comes on top."""

    def steps(rows: int, columns: int, depth: int, launch: Launch) -> float:
        tiles = -(-rows // launch.rows) * -(-columns // launch.columns)
        size = launch.rows * launch.columns * launch.depth / (128 * 256 * 64)
        return -(-tiles // processors) * -(-depth // launch.depth) * size

    return (
        steps(n, width, hidden_size, table.logit_gradient)
        + steps(width, hidden_size, n, table.weight_gradient)
        + steps(n, hidden_size, width, table.input_gradient)
        + 8 * n * hidden_size / _BYTES_PER_STEP
        + _STEPS_PER_STRIP
    )
