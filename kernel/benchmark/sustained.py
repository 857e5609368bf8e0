"""A call repeated for seconds, at the clock that the power limit leaves it, beside one after a pause."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch

from . import measure
from .nvml import POWER_CAP, SLOWED, Sample

__all__ = ["Durations", "Figures", "Reader", "Sustained", "doubts", "figures", "sustain"]

_FEWEST = 3  # calls of a loop, however long one takes
_HOST_MS = 40.0  # for which the device waits, idle but awake, while the host enqueues a call alone
_CYCLES_PER_MS = 2e6  # of a clock of 2 GHz
_EVERY_S = 0.01  # between two looks at the device
_SAMPLES = 10  # fewer say little
_APART = 0.1  # by how much the sensor and the counter may differ


class Durations(NamedTuple):
    """How long a case runs: seconds that count, of itself before, and of a pause before each of some calls alone."""

    seconds: float
    warm: float
    pause: float
    alone: int


class Reader(Protocol):
    """What looks at the device: :class:`kernel.benchmark.nvml.Meter`."""

    def read(self) -> Sample:
        """Look once."""
        ...


class Sustained(NamedTuple):
    """One loop: its length and calls, what was seen meanwhile, and the times of calls alone, in ms."""

    ms: float
    calls: int
    samples: tuple[Sample, ...]
    alone: tuple[float, ...]


class Figures(NamedTuple):
    """What loops of one case come to; times, power and energy are of one call, or means over the loops.

    Attributes:
        seconds: Of all loops.
        calls: In them.
        ms: A call's share of the loops' time.
        ms_alone: Median of the calls after a pause.
        watts: Mean of the sensor.
        counter_watts: Between the first and the last step of the energy counter; None with fewer than two of them.
            The loop of a second has few steps, so that it is a check alone.
        joules: Of a call, by the sensor.
        mhz: Mean clock of the multiprocessors.
        at_limit: Share of the samples in which the power limit holds the clock down.
        slowed: Share in which heat or the hardware does.
        samples: Their number.
    """

    seconds: float
    calls: int
    ms: float
    ms_alone: float
    watts: float
    counter_watts: float | None
    joules: float
    mhz: float
    at_limit: float
    slowed: float
    samples: int


def sustain(run: Callable[[], object], device: torch.device, reader: Reader, durations: Durations) -> Sustained:
    """Run a few calls alone, then warm the device up, then run the loop that counts.

    The loop is timed by two events around all calls, which the host enqueues as fast as it can: where the device waits
    for it, as in training nothing else would have filled the queue, that time counts.
    """
    alone = tuple(_alone(run, device, durations.pause) for _ in range(durations.alone))
    warm = max(math.ceil(1e3 * durations.warm / statistics.median(alone)), 1)
    each_ms = measure.turn(lambda: _repeat(run, warm), device).ms / warm
    calls = max(math.ceil(1e3 * durations.seconds / each_ms), _FEWEST)
    with _sampled(reader, _EVERY_S) as samples:
        ms = measure.turn(lambda: _repeat(run, calls), device).ms
    return Sustained(ms, calls, tuple(samples), alone)


def _alone(run: Callable[[], object], device: torch.device, pause: float) -> float:
    """The time of one call on a device that had nothing to do; the host's is hidden behind a kernel that only waits."""
    if device.type != "cuda":
        return measure.turn(run, device).ms
    torch.cuda.synchronize()
    time.sleep(pause)
    return measure.turn(run, device, before=lambda: torch.cuda._sleep(int(_HOST_MS * _CYCLES_PER_MS))).ms


def _repeat(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


@contextmanager
def _sampled(reader: Reader, every: float) -> Iterator[list[Sample]]:
    """Look at the device every so many seconds, in a thread whose errors are those of the block."""
    samples: list[Sample] = []
    errors: list[Exception] = []
    done = threading.Event()

    def look() -> None:
        try:
            samples.append(reader.read())  # however short the block is
            while not done.wait(every):
                samples.append(reader.read())
        except Exception as error:  # a thread's would only be printed
            errors.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


def figures(loops: Sequence[Sustained]) -> Figures:
    """Put the loops of one case together.

    Raises:
        ValueError: If there is no sample in them.
    """
    samples = [sample for loop in loops for sample in loop.samples]
    if not samples:
        raise ValueError("nobody looked at the device during the loop: give more seconds.")
    calls, ms = sum(loop.calls for loop in loops), sum(loop.ms for loop in loops)
    watts = statistics.fmean(sample.watts for sample in samples)
    counter = _counter_watts(loops)
    return Figures(
        seconds=ms / 1e3,
        calls=calls,
        ms=ms / calls,
        ms_alone=statistics.median(ms for loop in loops for ms in loop.alone),
        watts=watts,
        counter_watts=counter,
        joules=watts * ms / calls / 1e3,
        mhz=statistics.fmean(sample.mhz for sample in samples),
        at_limit=statistics.fmean(bool(sample.reasons & POWER_CAP) for sample in samples),
        slowed=statistics.fmean(bool(sample.reasons & SLOWED) for sample in samples),
        samples=len(samples),
    )


def _counter_watts(loops: Sequence[Sustained]) -> float | None:
    """The mean power by the energy counter, which goes on in steps as long as several calls.

    So it counts from one step to another: from reads before and after the loop it would be wrong by a step of either.
    """
    joules = seconds = 0.0
    for loop in loops:
        known = [(sample.seconds, sample.joules) for sample in loop.samples if sample.joules is not None]
        steps = [after for before, after in itertools.pairwise(known) if after[1] > before[1]]
        if len(steps) > 1:
            seconds += steps[-1][0] - steps[0][0]
            joules += steps[-1][1] - steps[0][1]
    return joules / seconds if seconds else None


def doubts(found: Figures) -> Iterator[str]:
    """What a reader must know before the figures of a case are trusted."""
    if found.samples < _SAMPLES:
        yield f"only {found.samples} samples of its power"
    counter = found.counter_watts
    if counter is not None and abs(found.watts / counter - 1) > _APART:
        yield f"{found.watts:.0f} W by the sensor, {counter:.0f} by the energy counter"
    if found.slowed:
        yield f"heat or the hardware slowed the device in {found.slowed:.0%} of the samples"
