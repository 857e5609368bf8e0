"""Builds plans of the backward for one problem and estimates their times: strips alike are counted, not listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .byte_plans import decoded_strips, in_bytes
from .computed_strips import EarlyStrips, computed_strips
from .launch import blocks
from .plan import ALIGN, PEAK_ROWS, KeptColumns, Plan, Series
from .strip_times import StripTimes

__all__ = ["MEMORY", "NEAR", "Planner"]

_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)  # of strips kept in the gradient's memory
# Of the plans that a budget holds, those of nearly the least time are ranked by the call's memory, too: a percent of
# the time is worth five of it.
NEAR, MEMORY = 1.01, 1 / 5


class Planner:
    """Builds plans for one problem.

    Args:
        vocab_size: V.
        itemsize: Bytes of an element of the inputs.
        times: Of the problem's strips.
        keep: Whether columns are kept.
        consumed: Whether the backward may write where columns are kept.
        first: The first column that may be kept, but in bytes. If it is not 0, columns are kept only where that saves
            more than it costs when few tokens are kept.
        sums: Whether the weight gradient's memory holds sums over other tokens, so that nothing else may lie there.
    """

    def __init__(
        self,
        vocab_size: int,
        itemsize: int,
        times: StripTimes,
        *,
        keep: bool,
        consumed: bool,
        first: int = 0,
        sums: bool = False,
    ) -> None:
        self.vocab_size, self.itemsize, self.times = vocab_size, itemsize, times
        self.keep, self.consumed, self.first = keep, consumed, blocks(first, times.tile) * times.tile
        self.least = times.run if first else 0.0  # what columns kept in one memory have to save, in microseconds
        self.n, self.hidden_size, self.tile, self.vocab = times.n, times.hidden_size, times.tile, times.vocab
        self.block = times.table.logit_gradient.rows
        self.memory = vocab_size * self.hidden_size if times.weight_gradient and not sums else 0
        # Bytes that every plan takes: of both gradients and of float32 sums of the input's.
        weight = vocab_size if times.weight_gradient else 0
        self.fixed = self.hidden_size * (itemsize * (weight + self.n) + 4 * self.n)
        # Hidden states scaled for kept columns that enter the products as they are, at the gradient's beginning.
        scaled = self.n * self.hidden_size if times.direct and times.weight_gradient else 0
        self.base = blocks(scaled, ALIGN) * ALIGN
        self.peaks = 0 if times.direct else blocks(4 * self.n, self.tile)  # bytes of a column's share of its tile's
        self.byte_peaks = blocks(4 * self.n * PEAK_ROWS, self.tile)  # the same of a column in bytes
        places = (False,) if scaled and sums else (True, False) if scaled else (True,)  # of the scaled hidden states
        self.runs = {inside: list(dict.fromkeys(self.strips(inside))) for inside in places}
        self.stacks = {inside: self.stack(inside) for inside in places}
        # By their boundary, and those in bytes by where they are kept: whatever the workspace, of which the
        # default tries many.
        self.prefixes: dict[int, EarlyStrips] = {}
        self.decoded: dict[KeptColumns, list[Series]] = {}

    def plan(self, budget: int) -> Plan:
        """The plan for ``budget`` bytes outside the gradients; with a strip of one tile if they are fewer."""
        # No dz takes memory beside columns kept as they enter the products, or where columns were kept.
        plans = list(self.everything(budget)) if self.consumed or self.times.direct else []
        if self.consumed:
            plans += self.beside(budget)
        elif not plans:
            plans += self.apart(budget)
        most = min(map(self.near, plans))
        if all(plan.columns < self.vocab for plan in plans):
            plans += in_bytes(self, budget, most)
            most = min(map(self.near, plans))
        return self.best([plan for plan in plans if self.microseconds(plan) <= most])

    def best(self, plans: Sequence[Plan], power: float | None = None) -> Plan:
        """The first of those whose time times a power of the call's memory is the least."""
        power = MEMORY if power is None else power
        return min(plans, key=lambda plan: self.microseconds(plan) * (self.fixed + self.bytes(plan)) ** power)

    def near(self, plan: Plan) -> float:
        """The most time that one of as little memory as may be may take beside it."""
        return NEAR * self.microseconds(plan)

    def microseconds(self, plan: Plan) -> float:
        """Modelled time of forward and backward."""
        return plan.time + self.beyond(plan.kept)

    def beyond(self, kept: tuple[KeptColumns, ...]) -> float:
        """Modelled time of the forward, and of what columns in both memories take longer.

        With what columns in bytes have to save, whose strips are launches more.
        """
        times, memories = self.times, max(len({run.in_gradient for run in kept}), 1)
        time = times.forward + times.run * (memories - 1) + (self.least if any(run.in_bytes for run in kept) else 0)
        return time + sum((times.stored + (times.encoded if run.in_bytes else 0)) * run.columns for run in kept)

    def least_microseconds(self, kept: tuple[KeptColumns, ...]) -> float:
        """What forward and backward take at least with columns kept so."""
        columns, time = sum(run.columns for run in kept), self.beyond(kept) + self.as_they_are(kept)
        for run in kept:
            if run.in_bytes:
                time += self.times.each("bytes") * run.columns
        return time + self.times.each(False) * (self.vocab - columns)

    def bytes(self, plan: Plan) -> int:
        """What a plan takes outside the gradients, with the peaks of columns in bytes."""
        return self.itemsize * plan.memory + self.byte_peaks * sum(run.columns for run in plan.kept if run.in_bytes)

    def beside(self, budget: int) -> Iterator[Plan]:
        """Plans with the most columns in both memories, for each place of the scaled hidden states."""
        for kept, inside in self.kept(budget):
            spare = budget - (0 if inside else self.base * self.itemsize)
            yield self.build(self.whole_tiles(spare), kept, scaled_in_gradient=inside)

    def apart(self, budget: int) -> Iterator[Plan]:
        """Plans for a backward that may not write where columns are kept: dz takes memory beside them."""
        most = self.whole_tiles(budget)
        for width in sorted({max(most // share // self.tile * self.tile, self.tile) for share in (1, 2, 4, 8, 16, 32)}):
            yield self.build(width, ())
            for kept, inside in self.kept(budget - self.n * width * self.itemsize):
                if kept:
                    yield self.build(width, kept, scaled_in_gradient=inside)

    def as_they_are(self, kept: tuple[KeptColumns, ...]) -> float:
        """The time of those that are not in bytes."""
        return sum(self.times.kept(run.width, run.number) for run in kept if not run.in_bytes)

    def everything(self, budget: int) -> Iterator[Plan]:
        """Plans with all columns kept, if ``budget`` holds them.

        In one piece, in the workspace, they take the fewest launches; with some in the gradient's memory less memory.
        """
        if not self.keep or self.first:
            return
        places = [(False, None), *((inside, run) for inside in self.runs for run in self.runs[inside])]
        for inside, run in places:
            end = self.vocab if run is None else run.start
            if not self.least_start(inside) and self.n * self.itemsize * end + self.peaks * self.vocab <= budget:
                kept = KeptColumns(0, end, 1, False)
                yield self.build(0, (kept,) if run is None else (run, kept), scaled_in_gradient=inside)

    def least_start(self, inside: bool) -> int:
        """The first column that may be kept, if the scaled hidden states are in the gradient, which it then spares.

        They are read until the row of the first kept column has been written.
        """
        return max(self.first, blocks(self.base, self.hidden_size * self.tile) * self.tile if inside else 0)

    def whole_tiles(self, size: int) -> int:
        """Columns of dz in ``size`` bytes, at least one tile."""
        return max(size // (self.n * self.itemsize) // self.tile, 1) * self.tile

    def kept(self, budget: int) -> Iterator[tuple[tuple[KeptColumns, ...], bool]]:
        """The most columns for ``budget`` bytes outside the gradient, by whether the scaled hidden states are in it."""
        found = False
        tile_bytes = self.n * self.itemsize * self.tile
        for inside, stack in self.stacks.items() if self.keep and budget >= 0 else ():
            least = self.least_start(inside)
            end = self.vocab if stack is None else stack.start
            spare = max(budget - self.peaks * (self.vocab - end), 0)
            columns = min(spare // (tile_bytes + self.peaks * self.tile) * self.tile, max(end - least, 0))
            if not inside and columns < end:  # else the scaled hidden states take the place of the packed ones
                spare -= self.base * self.itemsize
                if spare < tile_bytes:
                    continue
                columns = min(spare // tile_bytes * self.tile, max(end - least, 0))
            if (self.times.saved - self.times.stored) * columns < self.least:
                columns = 0
            runs = () if stack is None else (stack,)
            runs += (KeptColumns(end - columns, columns, 1, False),) if columns else ()
            if end >= least:
                found = True
                yield runs, inside or not runs
        if not found:
            yield (), True

    def stack(self, inside: bool) -> KeptColumns | None:
        """Of :meth:`strips` those that save the most time; None if none do."""
        best, least = None, -self.least
        each = self.times.each(False)  # of a column that is not kept
        for run in self.runs[inside]:
            time = self.times.kept(run.width, run.number) - each * run.columns
            if time < least:
                best, least = run, time
        return best

    def strips(self, inside: bool) -> Iterator[KeptColumns]:
        """The most columns that the gradient's memory holds, behind the scaled hidden states if they are ``inside``.

        The rows of a strip may not reach what is used after it. With J strips of w columns that is so if it is for
        the last strip and for the first one: base + J w N <= (V - w) D and base + w N <= (V - J w) D.
        """
        if not (self.keep and self.consumed and self.memory):
            return
        base = self.base if inside else 0
        for number in _NUMBERS:
            rows = self.n if number == 1 else blocks(self.n, self.block) * self.block
            room = self.vocab * self.hidden_size - base
            most = room // max(number * rows + self.hidden_size, rows + number * self.hidden_size)
            most = min(most, (self.vocab - self.first) // number)
            for width in (most // self.tile * self.tile, self.times.width(most, True)) if most >= self.tile else ():
                yield KeptColumns(self.vocab - width * number, width, number, True, offset=base)

    def build(
        self,
        width: int,
        kept: tuple[KeptColumns, ...],
        *,
        scaled_in_gradient: bool = True,
        decoded: int = 0,
    ) -> Plan:
        """The plan with strips of up to ``width`` columns in the workspace; for bytes of ``decoded``."""
        outside = [run for run in kept if not run.in_gradient]
        held = max((run.offset + run.elements(self.n, self.itemsize) for run in outside), default=0)
        boundary = kept[-1].start if kept else self.vocab
        unwritten = min(boundary * self.hidden_size, self.memory)  # when kept columns' rows have been written
        kept_strips, time = decoded_strips(self, kept, decoded)
        if self.times.direct or self.consumed:
            time += self.as_they_are(kept)
        elif not decoded:
            room = unwritten // self.n // self.tile * self.tile
            for start, padded, count in self.times.equal(boundary, self.vocab, max(room, width), True):
                kept_strips.append(Series(start, padded, count, True, 0 if padded <= room else None))
                time += count * self.times.microseconds(padded, True)
        strips, spent = computed_strips(self, boundary, unwritten, width)
        time += spent
        series = [*kept_strips, *strips]
        workspace = max((self.n * s.padded for s in series if s.offset is None), default=0)
        memory = max(workspace, held) if self.consumed else workspace + held
        held = memory if held and self.consumed else held
        if not (scaled_in_gradient or all(run.in_bytes for run in kept) or all(s.kept for s in series)):
            memory += self.base
        return Plan(time, memory, workspace, held, kept, scaled_in_gradient, series)
