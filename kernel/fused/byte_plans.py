"""Plans that keep columns in bytes: how many, where, and in strips of which width they become dz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .launch import blocks
from .plan import KeptColumns, Plan, Series

if TYPE_CHECKING:
    from .planner import Planner

__all__ = ["decoded_strips", "in_bytes"]

_SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # of the workspace, for the strip in which bytes become dz


def in_bytes(planner: Planner, budget: int) -> list[Plan]:
    """Plans with columns in bytes, if any, for several widths of the strip in which they become dz."""
    times, found = planner.times, list[Plan]()
    if not (planner.keep and times.in_bytes):
        return found
    most = budget // (planner.n * planner.itemsize)
    for width in sorted({times.width(most // share, "bytes") for share in _SHARES if most // share >= planner.tile}):
        runs = _kept(planner, budget, width)
        whole = [run for run in runs if not run.in_bytes]  # whose rounding the first columns would show
        if runs and all(run.start >= planner.first for run in whole):
            strip = width
            if planner.consumed:  # what bytes took in the workspace is free when the other strips begin
                peaks = planner.byte_peaks * sum(run.columns for run in runs if run.in_bytes)
                strip = planner.whole_tiles(budget - peaks)
            found.append(planner.build(strip, runs, scaled_in_gradient=False, decoded=width))
    return found


def _kept(planner: Planner, budget: int, width: int) -> tuple[KeptColumns, ...]:
    """The most columns in bytes, beside a strip of ``width`` in the workspace.

    Those in the gradient's memory come first, as many strips of that width as it holds: from the last to the first, the
    rows of each are then written where only strips lie that were decoded before. (With i of J strips left the others
    end at i w N <= 2 (V - (J - i) w) D bytes: at i = 0 since J w <= V, at i = J - 1 since that, too, or J w N <= 2 V D
    bounds it, and so between.) Where all columns are kept and memory is left, the first of them are kept as they enter
    the products; not by an operator, which returns the references of one run alone.
    """
    n, end, times, itemsize = planner.n, planner.vocab, planner.times, planner.itemsize
    spare = budget - n * itemsize * width
    everything = planner.consumed and times.direct
    runs: list[KeptColumns] = []
    if planner.consumed and planner.memory:
        strip = width * blocks(n, planner.block) * planner.block
        number = min(planner.memory * itemsize // strip, end // width, spare // (planner.byte_peaks * width))
        if everything:
            for fewer in range(max(blocks(end - planner.whole_tiles(spare), width), 0), number):
                whole = end - fewer * width
                if n * itemsize * whole + planner.byte_peaks * fewer * width <= spare:
                    runs = [KeptColumns(whole, width, fewer, True, True)] if fewer else []
                    return (*runs, KeptColumns(0, whole, 1, False, False, n * width))
        if number > 0:
            end -= number * width
            runs.append(KeptColumns(end, width, number, True, True))
            spare -= planner.byte_peaks * width * number
    each = n + planner.byte_peaks
    columns = min(spare // (each * planner.tile) * planner.tile, end)
    whole = 0  # columns in two bytes or four
    if columns == end and everything:
        whole = min((spare - each * end) // ((n * itemsize - each) * planner.tile) * planner.tile, end)
        if whole * times.decoded <= times.run:
            whole = 0
    offset = n * width if planner.consumed else 0
    for count, coded in ((columns - whole, True), (whole, False)):
        if count:
            end -= count
            runs.append(KeptColumns(end, count, 1, False, coded, offset))
            offset += runs[-1].elements(n, itemsize)
    return tuple(runs)


def decoded_strips(planner: Planner, kept: tuple[KeptColumns, ...], width: int) -> tuple[list[Series], float]:
    """Strips of columns in bytes, the last ones in the gradient's memory first, and their times."""
    times, found = planner.times, list[Series]()
    for run in kept:
        if run.in_bytes and run.in_gradient:
            found += [Series(run.start + i * run.width, run.width, 1, True, None) for i in reversed(range(run.number))]
        elif run.in_bytes:
            equal = times.equal(run.start, run.start + run.columns, width, "bytes")
            found += [Series(start, padded, count, True, None) for start, padded, count in equal]
    return found, sum(s.number * times.microseconds(s.padded, "bytes") for s in found)
