"""How the backward cuts the vocabulary: widths of the strips, places of their dz, columns that the forward keeps.

Two memories serve: the workspace, bounded by the caller, and the weight's gradient itself, V x D, whose rows are
written strip by strip from the first on and whose unwritten end is free until then. A strip of dz (N x columns) goes to
that end while it fits there, else to the workspace. Columns of the forward's softmax (N x kept) go to the workspace if
its budget holds more of them, else to the very end of the gradient. Each kept column saves the backward one product:
the operations fall from 8 N V D to 6 N V D as the share kept goes to one; the gradient's own memory holds a share of up
to D / (N + D), at no cost in peak memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .launch import Launch, LaunchTable

__all__ = ["Schedule", "Strip", "schedule"]

# Microseconds of one 128 x 256 x 64 step of a multiprocessor in each kernel, and of a strip apart from its tiles
# (launches, the accumulator's traffic), and bytes moved in one: fitted to an H100; only their ratios matter.
_STEP_DZ, _STEP_WEIGHT, _STEP_INPUT, _STRIP, _BYTES = 0.70, 0.67, 0.70, 25.0, 2.5e6
_EPILOGUE = 4  # of a tile of dz, in steps
_MAX_WIDTH = 16384
_ALIGN = 64  # elements: 128 bytes or more, what the copy engine and the caches like


@dataclass(frozen=True)
class Strip:
    """Columns ``start ... start + columns - 1``; ``padded`` to whole tiles in memory."""

    start: int
    columns: int
    padded: int
    kept: bool
    offset: int | None  # first element of dz in the weight gradient's memory; None: in the workspace


@dataclass(frozen=True)
class Schedule:
    """The strips in order and the memory they need, in elements of the inputs' dtype."""

    strips: tuple[Strip, ...]
    kept: int  # columns 0 ... kept - 1 are kept by the forward, a whole number of tiles
    kept_offset: (
        int | None
    )  # first element of the kept columns in the weight gradient's memory; None: memory of their own
    workspace: int  # for dz
    memory: int  # workspace and kept columns outside the gradient


@cache
def schedule(
    n: int,
    vocab_size: int,
    hidden_size: int,
    itemsize: int,
    workspace_bytes: int,
    *,
    keep: bool,
    keep_in_gradient: bool,
    weight_gradient: bool,
    processors: int,
    table: LaunchTable,
) -> Schedule:
    """Choose strips and kept columns for a budget; one strip of one tile is used even where the budget is smaller.

    Args:
        n: Tokens N.
        vocab_size: V.
        hidden_size: D.
        itemsize: Bytes of an element of the inputs.
        workspace_bytes: Budget of dz and kept columns outside the gradients.
        keep: Whether columns may be kept at all.
        keep_in_gradient: Whether they may be kept in the weight gradient's memory, if there is one.
        weight_gradient: Whether the weight needs a gradient.
        processors: Multiprocessors of the device.
        table: Launch parameters.
    """
    tile = table.logit_gradient.columns
    column = n * itemsize  # bytes of a column of dz, and of a kept one apart from its share of a tile's peak
    memory = vocab_size * hidden_size if weight_gradient else 0
    most = max(workspace_bytes // column // tile * tile, tile)
    model = _Model(n, vocab_size, hidden_size, memory, tile, processors, table)
    plans = []
    for width in sorted({max(most // share // tile * tile, tile) for share in (1, 2, 4, 8, 16, 32, 64)}):
        plans.append(model.plan(width, 0, None))
        if not keep:
            continue
        spare = workspace_bytes - column * width
        kept = min(model.vocab, spare // (column + 4 * n // tile) // tile * tile)
        plans += [model.plan(width, kept, None)] if kept > 0 else []
        for strip in (0, *range(tile, _MAX_WIDTH, 4 * tile)) if keep_in_gradient else ():  # room left for dz beside
            kept = (memory - n * strip - _ALIGN) // (n + hidden_size) // tile * tile
            kept = min(kept, vocab_size // tile * tile)
            plans += [model.plan(width, kept, (memory - n * kept) // _ALIGN * _ALIGN)] if kept > 0 else []
    fastest = min(plan[0] for plan in plans)
    # Among the plans that are as fast to half a percent, the one that needs the least memory.
    return min((p.memory, time, p) for time, p in plans if time <= 1.005 * fastest)[-1]


class _Model:
    """Builds plans and estimates their times, for one problem."""

    def __init__(
        self, n: int, vocab_size: int, hidden_size: int, memory: int, tile: int, processors: int, table: LaunchTable
    ) -> None:
        self.n, self.vocab_size, self.hidden_size, self.memory, self.tile = n, vocab_size, hidden_size, memory, tile
        self.vocab = -(-vocab_size // tile) * tile
        self.processors, self.table = processors, table
        self.times: dict[tuple[int, bool], float] = {}

    def plan(self, width: int, kept: int, kept_offset: int | None) -> tuple[float, Schedule]:
        """Time in microseconds, and the plan, with strips of up to ``width`` columns in the workspace."""
        strips: list[Strip] = []
        start, time = 0, 0.0
        while start < self.vocab_size:
            is_kept = start < kept
            end = kept_offset if is_kept and kept_offset is not None else self.memory
            room = (end - _ALIGN - start * self.hidden_size) // (self.n + self.hidden_size) // self.tile * self.tile
            padded = min(self.width(max(room, width), is_kept), (kept if is_kept else self.vocab) - start)
            offset = (end - self.n * padded) // _ALIGN * _ALIGN if padded <= room else None
            strips.append(Strip(start, min(padded, self.vocab_size - start), padded, is_kept, offset))
            time += self.microseconds(padded, is_kept)
            start += padded
        workspace = max((self.n * s.padded for s in strips if s.offset is None), default=0)
        extra = self.n * kept if kept_offset is None else 0
        return time, Schedule(tuple(strips), kept, kept_offset, workspace, workspace + extra)

    def width(self, limit: int, kept: bool) -> int:
        """Fastest width of at most ``limit``."""
        widths = range(self.tile, max(self.tile, min(limit, self.vocab, _MAX_WIDTH)) + 1, self.tile)
        return min(widths, key=lambda w: (self.microseconds(w, kept) / w, -w))

    def microseconds(self, width: int, kept: bool) -> float:
        """Modelled time of one strip: whole rounds of tiles in each of the three kernels, and what comes on top."""
        if (width, kept) not in self.times:
            dz, weight, input = self.table.logit_gradient, self.table.weight_gradient, self.table.input_gradient
            time = _STRIP
            if kept:
                time += 2 * self.n * width * 2 / _BYTES
            else:
                depth = self.hidden_size + _EPILOGUE * dz.depth
                time += _STEP_DZ * self.steps(self.n, width, depth, dz)
            if self.memory:
                time += _STEP_WEIGHT * self.steps(width, self.hidden_size, self.n, weight)
            # The last round of the input's gradient is cut along the sum: count it by halves.
            time += _STEP_INPUT * self.steps(2 * self.n, self.hidden_size, width, input) / 2
            self.times[width, kept] = time
        return self.times[width, kept]

    def steps(self, rows: int, columns: int, depth: int, launch: Launch) -> float:
        """Steps of 128 x 256 x 64 that each multiprocessor makes."""
        tiles = -(-rows // launch.rows) * -(-columns // launch.columns)
        step = launch.rows * launch.columns * launch.depth / (128 * 256 * 64)
        return step * -(-tiles // self.processors) * -(-depth // launch.depth)
