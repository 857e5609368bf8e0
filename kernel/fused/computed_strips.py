"""Strips whose logits are computed: the first have dz where the head's gradient is not yet written, in wider strips."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from .plan import ALIGN, Series

if TYPE_CHECKING:
    from .planner import Planner

__all__ = ["EarlyStrips", "computed_strips"]


class EarlyStrips(NamedTuple):
    """Strips in the gradient's memory, the columns that fitted at each (negative: rising), where and when it begins."""

    limits: list[int]
    series: list[Series]
    starts: list[int]
    times: list[float]


def computed_strips(planner: Planner, boundary: int, unwritten: int, width: int) -> tuple[list[Series], float]:
    """Strips from the first column on, and their times.

    While more fits the gradient's memory than the workspace each has its own width; then come strips alike, the early
    ones still in there.

    Args:
        planner: Of the problem; it keeps the early strips of each boundary.
        boundary: Where they end, in whole tiles.
        unwritten: Elements of the gradient's memory that they may use.
        width: Columns that fit the workspace.
    """
    first, n, hidden_size = _early(planner, boundary, unwritten, width), planner.n, planner.hidden_size
    number = bisect_left(first.limits, -width)
    tail: list[Series] = []
    for begin, padded, count in planner.times.equal(first.starts[number], boundary, width, False):
        last = (unwritten - ALIGN - padded * (n + hidden_size)) // hidden_size if unwritten else -1
        inside = min(count, max(0, (last - begin) // padded + 1))
        if inside:
            tail.append(Series(begin, padded, inside, False, _offset(n, unwritten, padded)))
        if count > inside:
            tail.append(Series(begin + inside * padded, padded, count - inside, False, None))
    time = first.times[number] + sum(s.number * planner.times.microseconds(s.padded, False) for s in tail)
    return [*first.series[:number], *tail], time


def _early(planner: Planner, boundary: int, unwritten: int, width: int) -> EarlyStrips:
    """Strips whose dz fits behind the rows that they write themselves, made while more fits there than ``width``."""
    found = planner.prefixes.get(boundary)
    if found is None:
        found = planner.prefixes[boundary] = EarlyStrips([], [], [0], [0.0])
    start, time, each = found.starts[-1], found.times[-1], planner.n + planner.hidden_size
    while start < boundary:
        limit = (unwritten - ALIGN - start * planner.hidden_size) // each // planner.tile * planner.tile
        if limit <= max(planner.tile, width):  # the workspace holds one tile at least
            break
        padded = min(planner.times.width(limit, False), boundary - start)
        found.limits.append(-limit)
        found.series.append(Series(start, padded, 1, False, _offset(planner.n, unwritten, padded)))
        start += padded
        time += planner.times.microseconds(padded, False)
        found.starts.append(start)
        found.times.append(time)
    return found


def _offset(n: int, unwritten: int, padded: int) -> int:
    """Place of a strip's dz at the end of the gradient's unwritten memory."""
    return (unwritten - n * padded) // ALIGN * ALIGN
