"""Plans that keep columns in bytes: how many, where, and in strips of which width they become dz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .launch import blocks
from .plan import ALIGN, KeptColumns, Plan, Series

if TYPE_CHECKING:
    from .planner import Planner

__all__ = ["decoded_strips", "in_bytes"]

_SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # of the workspace, for the strip in which bytes become dz
_WIDTHS = (32, 128, 512, 2048, 4096, 8192)  # of that strip in the gradient's memory, at most


def in_bytes(planner: Planner, budget: int) -> list[Plan]:
    """The plan with columns in bytes, if any, for the best width and place of the strip in which they become dz."""
    times, n, itemsize = planner.times, planner.n, planner.itemsize
    if not (planner.keep and times.in_bytes):
        return []
    most = budget // (n * itemsize)
    limits = {most // share: False for share in _SHARES if most // share >= planner.tile}
    kept = [(times.width(limit, "bytes"), False) for limit in limits]
    if planner.consumed and planner.memory:
        kept += [(times.width(limit, "bytes"), True) for limit in _WIDTHS if limit >= planner.tile]
    kept = [(width, inside, runs) for width, inside in set(kept) if (runs := _kept(planner, budget, width, inside))]
    if not kept:
        return []
    widest = times.width(most, False)
    each = times.microseconds(widest, False) / widest  # of a column that is not kept

    def roughly(width: int, runs: tuple[KeptColumns, ...]) -> float:
        decoded = sum(run.columns for run in runs if run.in_bytes) * times.microseconds(width, "bytes") / width
        return each * runs[-1].start + decoded + planner.as_they_are(runs)

    width, inside, runs = min(kept, key=lambda item: (roughly(item[0], item[2]), item[:2]))
    strip = width
    if planner.consumed:  # what bytes took in the workspace is free when the other strips begin
        strip = planner.whole_tiles(budget - planner.byte_peaks * sum(run.columns for run in runs if run.in_bytes))
    return [planner.build(strip, runs, scaled_in_gradient=False, decoded=width, decoded_inside=inside)]


def _kept(planner: Planner, budget: int, width: int, inside: bool) -> tuple[KeptColumns, ...]:
    """The most columns in bytes, beside a strip of ``width`` in the workspace, or ``inside`` the gradient's memory.

    Those in the gradient's memory come first, as many strips of that width as it holds: from the last to the first, the
    rows of each are then written where only strips lie that were decoded before. (With i of J strips left the others
    end at i w N <= 2 (V - (J - i) w) D bytes: at i = 0 since J w <= V, at i = J - 1 since that, too, or J w N <= 2 V D
    bounds it, and so between.) The strip of dz inside lies before the rows that it makes, beyond the bytes. Where all
    columns are kept and memory is left, the first of them are kept as they enter the products.
    """
    n, end, times, itemsize = planner.n, planner.vocab, planner.times, planner.itemsize
    spare, first = budget - n * itemsize * (planner.tile if inside else width), planner.first
    runs: list[KeptColumns] = []
    if planner.consumed and planner.memory:
        strip = width * blocks(n, planner.block) * planner.block
        number = min(
            planner.memory * itemsize // strip,
            (end - first) // width,
            spare // (planner.byte_peaks * width),
        )
        if inside:
            row, dz = planner.hidden_size * itemsize, (n * width + ALIGN) * itemsize
            number = min(number, ((end - width) * row - dz) // strip, (end * row - dz - strip) // (width * row))
            first = max(
                first, blocks(blocks(dz, row), planner.tile) * planner.tile
            )  # the others are decoded there, too
        elif planner.everything:
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
    columns = min(spare // (each * planner.tile) * planner.tile, max(end - first, 0))
    whole = 0  # columns in two bytes or four
    if columns == end and planner.everything and not inside:
        whole = min((spare - each * end) // ((n * itemsize - each) * planner.tile) * planner.tile, end)
        if whole * times.decoded <= times.run:
            whole = 0
    offset = n * width if planner.consumed and not inside else 0
    for count, coded in ((columns - whole, True), (whole, False)):
        if count:
            end -= count
            runs.append(KeptColumns(end, count, 1, False, coded, offset))
            offset += runs[-1].elements(n, itemsize)
    return tuple(runs)


def decoded_strips(
    planner: Planner, kept: tuple[KeptColumns, ...], width: int, inside: bool
) -> tuple[list[Series], float]:
    """Strips of columns in bytes, the last ones in the gradient's memory first, and their times."""
    times, found = planner.times, list[Series]()
    for run in kept:
        if run.in_bytes and run.in_gradient:
            for start in (run.start + i * run.width for i in reversed(range(run.number))):
                place = planner.offset(start * planner.hidden_size, run.width) if inside else None
                found.append(Series(start, run.width, 1, True, place))
        elif run.in_bytes:
            for start, padded, count in times.equal(run.start, run.start + run.columns, width, "bytes"):
                place = planner.offset(run.start * planner.hidden_size, padded) if inside else None
                found.append(Series(start, padded, count, True, place))
    return found, sum(s.number * times.microseconds(s.padded, "bytes") for s in found)
