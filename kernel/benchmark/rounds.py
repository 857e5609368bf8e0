"""Rounds in orders that favour no run by what it follows, with the device's clock beside each time.

A GPU at its power limit lowers its clock as its work asks for power, within tens of milliseconds: what follows a run
of little power finds a higher clock, and work ahead of it that is the same for all takes time to bring it down. In
orders drawn at random one run may follow such a run in most of the rounds, and its median is of another clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from . import measure

__all__ = ["Timed", "in_rounds", "orders"]


class Timed(NamedTuple):
    """Milliseconds of a run, and of the product right ahead of it: the same work at the clock that the run found."""

    ms: float
    product_ms: float


def orders(number: int, rounds: int, seed: int = 0) -> Iterator[list[int]]:
    """Yield ``rounds`` orders of ``number`` runs: a Latin square's rows, in which each follows each other run once.

    It has as many rows as runs, or one more where the number is odd: then runs are the neighbours of one that is left
    out, and one may follow another twice. More rounds begin anew.
    """
    size = number + number % 2
    # Differences between neighbours are all different modulo an even size: 0, 1, -1, 2, -2 ... (Williams 1949).
    first = [(place + 1) // 2 * (1 if place % 2 else -1) for place in range(size)]
    generator = random.Random(seed)
    shifts: list[int] = []
    for _ in range(rounds):
        shifts = shifts or generator.sample(range(size), size)
        shift = shifts.pop()
        yield [run for run in ((place + shift) % size for place in first) if run < number]


def in_rounds(
    runs: Sequence[Callable[[], object]],
    product: Callable[[], object],
    rounds: int,
    device: torch.device,
    ahead_ms: float,
    after: Callable[[int], object] = lambda index: None,
) -> list[list[Timed]]:
    """Time all runs in rounds that they share, each behind the same products; a first round warms up.

    Args:
        runs: What is timed.
        product: Some milliseconds of work, of which all else is timed behind several.
        rounds: That are timed.
        device: Of all of it.
        ahead_ms: How long the products ahead of each run take.
        after: Called with a run's index after each time of it.

    Returns:
        Times of each run in each round.
    """
    times: list[list[Timed]] = [[] for _ in runs]
    ahead = measure.ahead(product, device, ahead_ms)
    for index, order in enumerate(orders(len(runs), rounds + 1)):
        for i in order:
            last = _Last(product, device)

            def before(last: _Last = last) -> None:
                ahead()
                last.run()

            ms = measure.turn(runs[i], device, before=before).ms
            if index:
                times[i].append(Timed(ms, last.ms()))
                after(i)
    return times


class _Last:
    """A run between two moments of the device's clock, which are read once all is done."""

    def __init__(self, run: Callable[[], object], device: torch.device) -> None:
        self._run, self._events, self._ms = run, [], 0.0
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def run(self) -> None:
        if self._events:
            self._events[0].record()
        start = time.perf_counter()
        self._run()
        self._ms = (time.perf_counter() - start) * 1e3
        if self._events:
            self._events[1].record()

    def ms(self) -> float:
        return self._events[0].elapsed_time(self._events[1]) if self._events else self._ms
