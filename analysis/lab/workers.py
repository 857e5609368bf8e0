"""Worker processes of this machine: fresh ones with a single thread each, one config at a time, replaced when they die.

The standard pools break as a whole, or wait for ever, when a worker dies.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["Engine", "Lane", "attempt", "available_cores", "local_engine"]

Row = Mapping[str, Any]
Engine = Callable[
    [Callable[[Any], Row], Sequence[Any], int, Callable[[], bool], Callable[[Any], bool]],
    Iterator[tuple[Any, dict[str, Any], "str | None"]],
]
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Lane(NamedTuple):
    """Worker processes that are alike.

    Attributes:
        workers: How many.
        queues: Which configs they compute, by the name of their queue: the first one first, the next when it is empty.
        environment: Variables of the processes, such as the GPU that they see.
    """

    workers: int
    queues: tuple[str, ...] = ("",)
    environment: Mapping[str, str] = MappingProxyType({})


def available_cores() -> int:
    """Count the cores that this process may use: fewer than the machine has if a container or batch system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process and the config it is busy with."""

    def __init__(self, function: Callable[[Any], Mapping[str, Any]], lane: Lane) -> None:
        context = multiprocessing.get_context("spawn")
        self.lane = lane
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        # libraries read them when they load, which is before _work
        with _environment_variables({**_THREADS, **lane.environment}), _interrupts_held_back():
            self.process.start()
        theirs.close()
        self.config: Any = None

    def start(self, config: Any) -> None:
        self.config = config
        with contextlib.suppress(OSError):  # already dead: result() will say so
            self.connection.send(config)

    def result(self) -> tuple[dict[str, Any], str | None]:
        """Row and error of the config; an error too where the process died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return {}, f"the worker process died with exit code {self.process.exitcode}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def local_engine(
    function: Callable[[Any], Mapping[str, Any]],
    configs: Sequence[Any],
    size: int,
    enough: Callable[[], bool],
    take: Callable[[Any], bool] = lambda config: True,
    *,
    lanes: Sequence[Lane] = (),
    queue: Callable[[Any], str] = lambda config: "",
) -> Iterator[tuple[Any, dict[str, Any], str | None]]:
    """Yield (config, row, error) in the order of finishing, from worker processes of this machine.

    Args:
        function: Config -> row.
        configs: What to compute, first things first.
        size: Workers, where there are no lanes.
        enough: Asked before each start.
        take: Asked of each config before it starts; False leaves it out.
        lanes: Workers of several kinds; none for ``size`` equal ones.
        queue: Config -> name of its queue, which a lane must serve.
    """
    waiting, workers = defaultdict[str, deque[Any]](deque), list[_Worker]()
    for config in configs:
        waiting[queue(config)].append(config)
    free = [lane for lane in lanes or (Lane(size),) for _ in range(lane.workers)]
    if unserved := set(waiting) - {name for lane in free for name in lane.queues}:
        raise ValueError(f"lanes must serve every queue, got none for {sorted(unserved)}.")

    def following(lane: Lane) -> Any:
        if enough():
            waiting.clear()
        for name in lane.queues:
            while waiting[name]:
                if take(config := waiting[name].popleft()):
                    return config
        return None

    try:
        while True:
            for lane in list(free):
                config = following(lane)
                if config is not None:
                    workers.append(_Worker(function, lane))
                    workers[-1].start(config)
                    free.remove(lane)
            if not workers:
                return
            ready = wait([worker.connection for worker in workers])
            for worker in [w for w in workers if w.connection in ready]:
                config = worker.config
                row, error = worker.result()
                further = following(worker.lane) if worker.process.is_alive() else None
                if further is not None:
                    worker.start(further)
                else:
                    workers.remove(worker)
                    worker.stop()
                    free.append(worker.lane)
                yield config, row, error
    finally:
        for worker in workers:
            worker.stop()


def _work(connection: Connection, function: Callable[[Any], Mapping[str, Any]]) -> None:
    """Main of a worker: receive configs, send back (row, error)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            config = connection.recv()
        except EOFError:
            return
        connection.send(attempt(function, config))


def attempt(function: Callable[[Any], Mapping[str, Any]], config: Any) -> tuple[dict[str, Any], str | None]:
    """Compute the row of one config, or catch its error: whatever it raises is its own error, not the sweep's."""
    try:
        row = dict(function(config))
        json.dumps(row)  # what cannot be stored is an error too
    except Exception:
        return {}, traceback.format_exc()
    return row, None


@contextlib.contextmanager
def _environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a terminal sends it to all, and only this one is to say something."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # whose start would let interrupts in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process at once when the one that started it is gone, even by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
