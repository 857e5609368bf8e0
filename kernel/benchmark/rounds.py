"""Rounds in orders that favour no run by what it follows, with the device's clock beside each time.

A GPU at its power limit lowers its clock as its work asks for power, within tens of milliseconds: what follows a run
of little power finds a higher clock, and work ahead of it that is the same for all takes time to bring it down. In
orders drawn at random one run may follow such a run in most of the rounds, and its median is of another clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch

from . import measure
from .measure import Turn

__all__ = ["NEAR", "in_rounds", "orders"]

NEAR = 0.03  # how far the clock of a call may be from that of the others


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
) -> list[list[Turn]]:
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
    times: list[list[Turn]] = [[] for _ in runs]
    ahead = measure.ahead(product, device, ahead_ms)
    for index, order in enumerate(orders(len(runs), rounds + 1)):
        for i in order:
            turn = measure.turn(runs[i], device, before=ahead)
            if index:
                times[i].append(turn)
                after(i)
    return times
