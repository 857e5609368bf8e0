"""How the backward cuts the vocabulary: widths of the strips, places of their dz, columns that the forward keeps.

Two memories serve: the workspace, bounded by the caller, and the weight's gradient itself, V x D, whose rows are
written strip by strip. The last columns of the forward's softmax (N x kept) go to the workspace if it holds more of
them, else to the beginning of the gradient's memory: their rows, at its end, are written first. The other strips
follow from the first row on, and a strip of dz (N x columns) goes to the end of what is not yet written while it
fits there, else to the workspace. Each kept column saves the backward one product: the operations fall from 8 N V D to
6 N V D as the share kept goes to one; the gradient's own memory holds a share of up to D / (N + D), at no cost in peak
memory. The last columns are the rare words of most vocabularies: what keeping costs in accuracy costs least there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    # Strips that follow each other at one place: of few kept tokens one launch does several (tiles.merged_strip).
    run_start: int = 0
    run_columns: int = 0


@dataclass(frozen=True)
class Schedule:
    """The strips in order and the memory they need, in elements of the inputs' dtype."""

    strips: tuple[Strip, ...]  # without the kept columns if those enter the products as they are
    kept: int  # columns kept by the forward, whole tiles, up to the end of the (padded) vocabulary
    boundary: int  # the first of them
    in_gradient: bool  # they begin the weight gradient's memory; else they have memory of their own
    scaled_offset: int | None  # first element of the scaled hidden states in the gradient's memory; None: elsewhere
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
    direct: bool,
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
        direct: Whether kept columns enter the products as they are, without a strip of dz.
        keep_in_gradient: Whether they may be kept in the weight gradient's memory, if there is one.
        weight_gradient: Whether the weight needs a gradient.
        processors: Multiprocessors of the device.
        table: Launch parameters.
    """
    tile = table.logit_gradient.columns
    column = n * itemsize  # bytes of a column of dz, and of a kept one apart from its share of a tile's peak
    memory = vocab_size * hidden_size if weight_gradient else 0
    most = max(workspace_bytes // column // tile * tile, tile)
    model = _Model(n, vocab_size, hidden_size, memory, tile, direct, processors, table)
    plans = []
    for width in sorted({max(most // share // tile * tile, tile) for share in (1, 2, 4, 8, 16, 32, 64)}):
        plans.append(model.plan(width, 0))
        if not keep:
            continue
        spare = workspace_bytes if direct else workspace_bytes - column * width
        kept = min(model.vocab, spare // (column + 4 * n // tile) // tile * tile)
        if kept < model.vocab and direct:  # dz of the other strips comes on top
            kept = max(0, min(kept, (workspace_bytes - column * width) // column // tile * tile))
        plans += [model.plan(width, kept)] if kept > 0 else []
        # Room beside the kept columns: the scaled hidden states, or strips of dz of different widths.
        for room in ((hidden_size,) if direct else range(tile, _MAX_WIDTH, 4 * tile)) if keep_in_gradient else ():
            whole = vocab_size // tile * tile  # boundary D >= n (kept + room)
            kept = (whole * hidden_size - n * room - 2 * _ALIGN) // (n + hidden_size) // tile * tile
            plans += [model.plan(width, kept, in_gradient=True)] if kept > 0 else []
    fastest = min(plan[0] for plan in plans)
    # Among the plans that are as fast to half a percent, the one that needs the least memory.
    near = [plan for plan in plans if plan[0] <= 1.005 * fastest]
    return min(near, key=lambda plan: (plan[1].memory, plan[0]))[1]


def _runs(strips: list[Strip]) -> tuple[Strip, ...]:
    """The strips, told the run of equal ones that each belongs to; a strip that the vocabulary clips is alone."""

    def alike(a: Strip, b: Strip) -> bool:
        whole = a.columns == a.padded == b.padded == b.columns
        return whole and not a.kept and not b.kept and a.offset == b.offset

    runs: list[list[Strip]] = []
    for strip in strips:
        if runs and alike(runs[-1][-1], strip):
            runs[-1].append(strip)
        else:
            runs.append([strip])
    return tuple(
        replace(strip, run_start=run[0].start, run_columns=sum(s.padded for s in run)) for run in runs for strip in run
    )


class _Model:
    """Builds plans and estimates their times, for one problem."""

    def __init__(
        self,
        n: int,
        vocab_size: int,
        hidden_size: int,
        memory: int,
        tile: int,
        direct: bool,
        processors: int,
        table: LaunchTable,
    ) -> None:
        self.n, self.vocab_size, self.hidden_size, self.memory, self.tile = n, vocab_size, hidden_size, memory, tile
        self.direct = direct
        self.vocab = -(-vocab_size // tile) * tile
        self.processors, self.table = processors, table
        self.times: dict[tuple[int, bool], float] = {}

    def plan(self, width: int, kept: int, *, in_gradient: bool = False) -> tuple[float, Schedule]:
        """Time in microseconds, and the plan, with strips of up to ``width`` columns in the workspace."""
        boundary = self.vocab - kept
        used = -(-self.n * kept // _ALIGN) * _ALIGN if in_gradient else 0  # by kept columns, at the beginning
        unwritten = min(boundary * self.hidden_size, self.memory)  # while the kept columns' rows are written
        strips: list[Strip] = []
        time = 0.0
        if kept and self.direct:
            time += self.microseconds(kept, True)
        elif kept:
            room = max(0, unwritten - used) // self.n // self.tile * self.tile
            for start, padded in self.cut(boundary, self.vocab, lambda _: max(room, width), True):
                strips.append(self.strip(start, padded, True, used if padded <= room else None))
                time += self.microseconds(padded, True)

        def free(start: int) -> int:
            """Columns of dz that fit behind the rows that their own strip writes."""
            below = (unwritten - _ALIGN - start * self.hidden_size) // (self.n + self.hidden_size)
            return max(0, below // self.tile * self.tile)

        for start, padded in self.cut(0, boundary, lambda start: max(free(start), width), False):
            offset = (unwritten - self.n * padded) // _ALIGN * _ALIGN if padded <= free(start) else None
            strips.append(self.strip(start, padded, False, offset))
            time += self.microseconds(padded, False)
        workspace = max((self.n * s.padded for s in strips if s.offset is None), default=0)
        fits = used + self.n * self.hidden_size <= unwritten
        scaled_offset = used if kept and self.direct and fits else None
        memory = workspace + (0 if in_gradient else self.n * kept)
        plan = Schedule(_runs(strips), kept, boundary, in_gradient, scaled_offset, workspace, memory)
        return time, plan

    def cut(self, start: int, end: int, limit: Callable[[int], int], kept: bool) -> Iterator[tuple[int, int]]:
        """Strips (start, padded columns), each of the fastest width that its limit allows."""
        end = min(end, self.vocab)
        while start < min(end, self.vocab_size):
            padded = min(self.width(limit(start), kept), end - start)
            yield start, padded
            start += padded

    def strip(self, start: int, padded: int, kept: bool, offset: int | None) -> Strip:
        """A strip, clipped to the vocabulary."""
        return Strip(start, min(padded, self.vocab_size - start), padded, kept, offset, start, padded)

    def width(self, limit: int, kept: bool) -> int:
        """Fastest width of at most ``limit``."""
        widths = range(self.tile, max(self.tile, min(limit, self.vocab, _MAX_WIDTH)) + 1, self.tile)
        return min(widths, key=lambda w: (self.microseconds(w, kept) / w, -w))

    def microseconds(self, width: int, kept: bool) -> float:
        """Modelled time of one strip: whole rounds of tiles in each of the three kernels, and what comes on top."""
        if (width, kept) not in self.times:
            dz, weight, input = self.table.logit_gradient, self.table.weight_gradient, self.table.input_gradient
            time = _STRIP
            if kept and not self.direct:
                time += 2 * self.n * width * 2 / _BYTES
            elif not kept:
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
