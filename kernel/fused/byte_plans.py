"""Plans that keep columns in bytes: how many, where, and in strips of which width they become dz."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from .launch import blocks
from .plan import ALIGN, KeptColumns, Plan, Series

if TYPE_CHECKING:
    from .planner import Planner

__all__ = ["decoded_strips", "in_bytes"]

_SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # of the workspace, for the strip in which bytes become dz


def in_bytes(planner: Planner, budget: int, most: float) -> list[Plan]:
    """Plans with columns in bytes, if any, for several widths of the strip in which they become dz.

    Those that cannot be as fast as ``most`` microseconds, or nearly as fast as the fastest, are left out.
    """
    times, found = planner.times, dict[tuple[int, tuple[KeptColumns, ...]], float]()
    if not (planner.keep and times.in_bytes) or planner.n + planner.byte_peaks >= planner.n * planner.itemsize:
        return []  # of one token bytes and their peaks take as much
    tiles = budget // (planner.n * planner.itemsize)
    widths = sorted({times.width(tiles // share, "bytes") for share in _SHARES if tiles // share >= planner.tile})
    for width, whole_strips, under_dz in product(widths, (False, True), (False, True)):
        runs = _kept(planner, budget, width, whole_strips=whole_strips, under_dz=under_dz)
        whole = [run for run in runs if not run.in_bytes]  # whose rounding the first columns would show
        if runs and all(run.start >= planner.first for run in whole) and (width, runs) not in found:
            found[width, runs] = planner.least_microseconds(runs)
    plans: dict[tuple[int, tuple[KeptColumns, ...]], Plan] = {}
    for width, runs in sorted(found, key=found.__getitem__):
        if found[width, runs] > most:
            break
        strip = width
        if planner.consumed:  # what bytes took in the workspace is free when the other strips begin
            peaks = planner.byte_peaks * sum(run.columns for run in runs if run.in_bytes)
            strip = planner.whole_tiles(budget - peaks)
        plan = plans[width, runs] = planner.build(strip, runs, scaled_in_gradient=False, decoded=width)
        most = min(most, planner.near(plan))
    return [plans[key] for key in found if key in plans]


def _kept(planner: Planner, budget: int, width: int, *, whole_strips: bool, under_dz: bool) -> tuple[KeptColumns, ...]:
    """The most columns in bytes, beside a strip of ``width`` in the workspace, or the most in strips of that width.

    Those in the gradient's memory come first, as many strips of that width as it holds: from the last to the first, the
    rows of each are then written where only strips lie that were decoded before. (With i of J strips left the others
    end at i w N <= 2 (V - (J - i) w) D bytes: at i = 0 since J w <= V, at i = J - 1 since that, too, or J w N <= 2 V D
    bounds it, and so between.) Where all columns are kept and memory is left, the first of them are kept as they enter
    the products; not by an operator, which returns the references of one run alone.

    ``under_dz`` keeps the very last columns where dz of the others will be: at the end of that strip, before which
    their own dz has room. Their rows are written first, where the strips in the gradient's memory must not reach.
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
        rows = end - blocks(number * strip, planner.hidden_size * itemsize)
        last = min(rows, 2 * width // 3, end - number * width) // planner.tile * planner.tile
        last = times.width(last, "bytes") if last else 0
        if under_dz and number > 0 < last and spare >= planner.byte_peaks * (number * width + last):
            end -= last
            runs.append(KeptColumns(end, last, 1, False, True, n * width - blocks(n * last, itemsize)))
            spare -= planner.byte_peaks * last
        if number > 0:
            end -= number * width
            runs.append(KeptColumns(end, width, number, True, True))
            spare -= planner.byte_peaks * width * number
    each = n + planner.byte_peaks
    unit = width if whole_strips else planner.tile
    columns = min(spare // (each * unit) * unit, end)
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
    """Strips of columns in bytes, the last ones in the gradient's memory first, and their times.

    When those of the gradient's memory are done, dz of the others may be as wide as what is not yet written of the
    gradient holds before the strip's own rows, from the last strip to the first; then as wide as in the workspace.
    """
    times, found = planner.times, list[Series]()
    for run in kept:
        if run.in_bytes and run.in_gradient:
            if run not in planner.decoded:
                planner.decoded[run] = _of_gradient(planner, run)
            found += planner.decoded[run]
        elif run.in_bytes:
            end, hidden_size = run.start + run.columns, planner.hidden_size
            after = run is kept[-1] or not kept[-1].in_bytes  # what the gradient held is used
            room = min(end * hidden_size // (planner.n + hidden_size), run.columns) if planner.memory and after else 0
            wide = times.width(room, "bytes") if room > width and planner.consumed else 0
            if wide > width:
                number = max(end - max(run.start, blocks(planner.n * wide, hidden_size)), 0) // wide
                if number:
                    end -= number * wide
                    found.append(Series(end, wide, number, True, 0, last_first=True))
            limit = min(run.offset // planner.n, width) if planner.consumed else width
            equal = times.equal(run.start, end, limit, "bytes")
            found += [Series(start, padded, count, True, None) for start, padded, count in equal]
    return found, sum(s.number * times.microseconds(s.padded, "bytes") for s in found)


def _of_gradient(planner: Planner, run: KeptColumns) -> list[Series]:
    """Strips of columns in bytes that lie in the gradient's memory, from the last to the first.

    A strip's dz lies between the codes that are left and the rows that it writes itself, where that is wider than the
    workspace: with more tokens than twice the hidden size each strip leaves more room there than its rows take.
    """
    found, times, n, hidden_size = list[Series](), planner.times, planner.n, planner.hidden_size
    strip = run.width * blocks(n, planner.block) * planner.block
    end = run.start + run.columns
    while end > run.start:
        codes = blocks(blocks(end - run.start, run.width) * strip, planner.itemsize * ALIGN) * ALIGN
        room = min((end * hidden_size - codes) // (n + hidden_size), end - run.start)
        wide = times.width(room, "bytes") if room > run.width else 0
        if wide > run.width:
            padded, offset = wide, codes
        else:  # then whole strips, whose rows do not reach what is left
            padded, offset = (end - run.start) % run.width or run.width, None
        end -= padded
        if found and found[-1].padded == padded and found[-1].offset is offset is None:
            found[-1] = found[-1]._replace(start=end, number=found[-1].number + 1)
        else:
            found.append(Series(end, padded, 1, True, offset, last_first=True))
    return found
