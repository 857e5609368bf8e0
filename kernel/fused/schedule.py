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

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from .launch import LaunchTable
from .strip_times import MAX_WIDTH, StripTimes

__all__ = ["Schedule", "Strip", "every_kind", "schedule"]

_WORTHWHILE = 4  # tiles of logits: to keep fewer saves no time, and their rounding errors may all point one way
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


@lru_cache(maxsize=1024)  # sequences of any length: one plan for each number of tokens
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
    times = StripTimes(n, vocab_size, hidden_size, table, processors, direct=direct, weight_gradient=weight_gradient)
    planner = _Planner(vocab_size, memory, times)
    worthwhile = keep and n * vocab_size >= _WORTHWHILE * tile * table.logit_gradient.rows
    plans: list[_Plan] = []
    for width in sorted({max(most // share // tile * tile, tile) for share in (1, 2, 4, 8, 16, 32, 64)}):
        plans.append(planner.plan(width, 0))
        if not worthwhile:
            continue
        spare = workspace_bytes if direct else workspace_bytes - column * width
        kept = min(planner.vocab, spare // (column + 4 * n // tile) // tile * tile)
        if kept < planner.vocab and direct:  # dz of the other strips comes on top
            kept = max(0, min(kept, (workspace_bytes - column * width) // column // tile * tile))
        plans += [planner.plan(width, kept)] if kept > 0 else []
        # Room beside the kept columns: the scaled hidden states, or strips of dz of different widths.
        for room in ((hidden_size,) if direct else range(tile, MAX_WIDTH, 4 * tile)) if keep_in_gradient else ():
            whole = vocab_size // tile * tile  # boundary D >= n (kept + room)
            kept = (whole * hidden_size - n * room - 2 * _ALIGN) // (n + hidden_size) // tile * tile
            plans += [planner.plan(width, kept, in_gradient=True)] if kept > 0 else []
    fastest = min(plan.time for plan in plans)
    # Among the plans that are as fast to half a percent, the one that needs the least memory.
    near = [plan for plan in plans if plan.time <= 1.005 * fastest]
    return planner.schedule(min(near, key=lambda plan: (plan.memory, plan.time)))


def every_kind(
    n: int, vocab_size: int, hidden_size: int, *, keep: bool, direct: bool, processors: int, table: LaunchTable
) -> list[Schedule]:
    """Schedules that together launch every kernel that any schedule launches, whatever its tokens and its budget.

    Nothing kept, some columns, and all of them; in at least two strips, of which the last may be clipped.
    """
    times = StripTimes(n, vocab_size, hidden_size, table, processors, direct=direct, weight_gradient=False)
    planner, tile = _Planner(vocab_size, 0, times), times.tile
    width = max(planner.vocab // 2 // tile, 1) * tile
    kept = sorted({0, tile, planner.vocab}) if keep else [0]
    return [planner.schedule(planner.plan(width, columns)) for columns in kept]


class _Series(NamedTuple):
    """``number`` strips of one padded width that follow each other, their dz at one place."""

    start: int
    padded: int
    number: int
    kept: bool
    offset: int | None


class _InGradient(NamedTuple):
    """Strips in the gradient's memory, the columns that fitted at each (negative: rising), times up to each."""

    limits: list[int]
    series: list[_Series]
    times: list[float]


class _Plan(NamedTuple):
    """A candidate: what ranks it, and what :class:`Schedule` is built from if it is chosen."""

    time: float  # microseconds
    memory: int
    workspace: int
    kept: int
    in_gradient: bool
    scaled_offset: int | None
    series: list[_Series]


class _Planner:
    """Builds plans and estimates their times, for one problem: strips alike are counted, not listed.

    Args:
        vocab_size: V.
        memory: Elements of the weight's gradient, 0 if it needs none.
        times: Of the problem's strips.
    """

    def __init__(self, vocab_size: int, memory: int, times: StripTimes) -> None:
        self.vocab_size, self.memory, self.times = vocab_size, memory, times
        self.n, self.hidden_size, self.tile, self.vocab = times.n, times.hidden_size, times.tile, times.vocab
        self.prefixes: dict[int, _InGradient] = {}  # by their boundary: they do not depend on the workspace

    def plan(self, width: int, kept: int, *, in_gradient: bool = False) -> _Plan:
        """The plan with strips of up to ``width`` columns in the workspace."""
        boundary = self.vocab - kept
        used = -(-self.n * kept // _ALIGN) * _ALIGN if in_gradient else 0  # by kept columns, at the beginning
        unwritten = min(boundary * self.hidden_size, self.memory)  # while the kept columns' rows are written
        tail: list[_Series] = []
        time = self.times.microseconds(kept, True) if kept and self.times.direct else 0.0
        if kept and not self.times.direct:
            room = max(0, unwritten - used) // self.n // self.tile * self.tile
            for start, padded, count in self.times.equal(boundary, self.vocab, max(room, width), True):
                tail.append(_Series(start, padded, count, True, used if padded <= room else None))
        first = self.in_gradient(boundary, unwritten)
        # While more fits the gradient's memory than the workspace; then strips alike, the early ones still in there.
        number = bisect_left(first.limits, -width)
        start = first.series[number - 1].start + first.series[number - 1].padded if number else 0
        for begin, padded, count in self.times.equal(start, boundary, width, False):
            last = (unwritten - _ALIGN - padded * (self.n + self.hidden_size)) // self.hidden_size if unwritten else -1
            inside = min(count, max(0, (last - begin) // padded + 1))
            if inside:
                tail.append(_Series(begin, padded, inside, False, self.offset(unwritten, padded)))
            if count > inside:
                tail.append(_Series(begin + inside * padded, padded, count - inside, False, None))
        time += first.times[number] + sum(s.number * self.times.microseconds(s.padded, s.kept) for s in tail)
        workspace = max((self.n * s.padded for s in tail if s.offset is None), default=0)
        fits = used + self.n * self.hidden_size <= unwritten
        scaled_offset = used if kept and self.times.direct and fits else None
        memory = workspace + (0 if in_gradient else self.n * kept)
        kept_strips = [s for s in tail if s.kept]
        series = [*kept_strips, *first.series[:number], *tail[len(kept_strips) :]]
        return _Plan(time, memory, workspace, kept, in_gradient, scaled_offset, series)

    def in_gradient(self, boundary: int, unwritten: int) -> _InGradient:
        """Strips from the first row on whose dz fits behind the rows that they write themselves, each of its own width.

        Args:
            boundary: Where they end, in whole tiles.
            unwritten: Elements of the gradient's memory that they may use.
        """
        if boundary not in self.prefixes:
            found = _InGradient([], [], [0.0])
            start, each = 0, self.n + self.hidden_size
            while start < boundary:
                limit = (unwritten - _ALIGN - start * self.hidden_size) // each // self.tile * self.tile
                if limit <= self.tile:  # the workspace holds one tile at least
                    break
                padded = min(self.times.width(limit, False), boundary - start)
                found.limits.append(-limit)
                found.series.append(_Series(start, padded, 1, False, self.offset(unwritten, padded)))
                found.times.append(found.times[-1] + self.times.microseconds(padded, False))
                start += padded
            self.prefixes[boundary] = found
        return self.prefixes[boundary]

    def offset(self, unwritten: int, padded: int) -> int:
        """Place of a strip's dz at the end of the gradient's unwritten memory."""
        return (unwritten - self.n * padded) // _ALIGN * _ALIGN

    def schedule(self, plan: _Plan) -> Schedule:
        """A plan with its strips listed, those at the vocabulary's end clipped, each told the run it belongs to."""
        strips: list[tuple[int, _Series]] = [
            (start, s) for s in plan.series for start in range(s.start, s.start + s.number * s.padded, s.padded)
        ]

        def run(item: tuple[int, _Series]) -> tuple[int, int | None, int]:
            """Same for strips that one launch can do: a kept or a clipped strip is alone."""
            start, s = item
            alone = s.kept or start + s.padded > self.vocab_size
            return s.padded, s.offset, start if alone else -1

        listed: list[Strip] = []
        for _, members in groupby(strips, run):
            group = list(members)
            first, columns = group[0][0], sum(s.padded for _, s in group)
            for start, s in group:
                clipped = min(s.padded, self.vocab_size - start)
                listed.append(Strip(start, clipped, s.padded, s.kept, s.offset, first, columns))
        boundary = self.vocab - plan.kept
        return Schedule(
            tuple(listed), plan.kept, boundary, plan.in_gradient, plan.scaled_offset, plan.workspace, plan.memory
        )
