"""A grid of configs -> rows, over all cores, resumable at any moment.

Each worker is a fresh process with a single thread (two threads make small fits slower) that computes one config at a
time; only this process writes. What may die: a worker (its config is recorded as failed, another worker starts), this
process (its workers notice and end, finished rows are on disk), the machine (rows are whole or absent). Several sweeps
may share a folder, also of several machines: each computes what no other has taken.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import pandas as pd
from tqdm import tqdm

from .records import RowStore, environment

__all__ = ["Engine", "Lane", "SweepResult", "attempt", "available_cores", "local_engine", "read_rows", "run"]

Config = TypeVar("Config")
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


class SweepResult(NamedTuple):
    """What a sweep did."""

    rows: pd.DataFrame  # finished rows in the order of the configs, with their ``key``
    computed: int  # rows made now; the others were there
    failures: dict[str, str]  # name of a failed config in its store -> error
    elsewhere: int = 0  # configs without a row that another sweep computes at this moment


class Store(Protocol):
    """Where rows are kept: a :class:`~analysis.lab.records.RowStore`, or several that act as one."""

    def prepare(self) -> None:
        """Raise OSError where nothing can be written."""

    def name(self, config: Any) -> str:
        """What messages call a config: where its row or its failure is found."""
        ...

    def take(self, config: Any) -> bool:
        """Whether this process may compute the row of a config: False while another process does."""
        ...

    def release(self, config: Any) -> None:
        """Let others compute the row of a config again."""

    def close(self) -> None:
        """Release everything that was taken."""

    def read(self, config: Any) -> dict[str, Any] | None:
        """What is stored with the row of a config, with its ``key`` and ``row``; None where there is none."""

    def write(self, config: Any, row: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        """Store a row."""

    def write_failure(self, config: Any, error: str, made_by: Mapping[str, Any]) -> None:
        """Store why there is none."""


def available_cores() -> int:
    """Cores that this process may use, fewer than the machine has under a container's or a batch system's affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    function: Callable[[Config], Mapping[str, Any]],
    configs: Sequence[Config],
    store: Store | str | os.PathLike[str],
    *,
    workers: int | None = None,
    description: str = "fits",
    max_seconds: float | None = None,
    engine: Engine | None = None,
) -> SweepResult:
    """Compute the rows of all configs that have none yet, store each as it finishes, and return all.

    A config that raises, or whose worker dies, is recorded with its error and the sweep goes on; the next call tries it
    again. A progress bar shows on a terminal only. What another sweep in the same folder is computing is left to it.

    Args:
        function: Config -> row of JSON values; importable by name (no lambda), as it is sent to fresh processes.
            Scripts that call this need the usual ``if __name__ == "__main__":``.
        configs: Frozen dataclasses; equal ones are computed once.
        store: Keeps the rows; a folder stands for its :class:`~analysis.lab.records.RowStore`.
        workers: Processes; None for one on each core.
        description: Label of the progress bar.
        max_seconds: After this time no further config is started; what is under way is finished. None for no limit.
        engine: What computes; None for processes on this machine. It is given the function, the configs, the number
            of workers, a question whether to start no more and one whether to start this config, and yields
            (config, row, error) as they finish.

    Returns:
        Rows, how many are new, the failures, and how many rows another sweep still computes.

    Raises:
        KeyboardInterrupt: On Ctrl-C, with the number of rows that are kept.
        ValueError: If ``workers`` is below 1.
        OSError: If a row cannot be written; rows already written stay.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be greater than 0, got {max_seconds}.")
    end = math.inf if max_seconds is None else time.monotonic() + max_seconds
    store = RowStore(store) if isinstance(store, (str, os.PathLike)) else store
    store.prepare()
    different = list(dict.fromkeys(configs))
    there = [store.read(config) for config in different]
    damaged = _damaged(found for found in there if found is not None)
    pending = [c for c, found in zip(different, there, strict=True) if found is None or found["key"] in damaged]
    made_by = environment()
    failures: dict[str, str] = {}
    computed, left_alone = 0, list[Config]()

    def take(config: Config) -> bool:
        """Whether nobody else computes the row, or has in the meantime."""
        mine = store.take(config)
        found = store.read(config) if mine else None
        if mine and (found is None or found["key"] in damaged):
            return True
        if mine:
            store.release(config)
        elif not left_alone:
            tqdm.write("another sweep computes rows here: each takes what the other has not begun", file=sys.stderr)
        left_alone.append(config)
        return False

    bar = tqdm(total=len(different), initial=len(different) - len(pending), desc=description, disable=None)
    results = (engine or local_engine)(
        function, pending, workers or available_cores(), lambda: time.monotonic() >= end, take
    )
    try:
        for config, row, error in results:
            if error is None:
                store.write(config, row, made_by)
                computed += 1
            else:
                store.write_failure(config, error, made_by)
                failures[store.name(config)] = error
            store.release(config)
            bar.update()
    except KeyboardInterrupt:
        kept = sum(store.read(config) is not None for config in different)
        raise KeyboardInterrupt(f"{kept} of {len(different)} rows are kept; run again to go on") from None
    finally:
        if isinstance(results, Generator):
            results.close()  # ends the workers, before others may take what they were computing
        bar.close()
        store.close()
    elsewhere = sum(store.read(config) is None for config in left_alone)
    return SweepResult(read_rows(store, different), computed, failures, elsewhere)


def read_rows(store: Store | str | os.PathLike[str], configs: Sequence[Any]) -> pd.DataFrame:
    """The finished rows of the configs, in their order, one line each, the ``key`` first.

    Where configs have ``columns``, a row that was stored before one of these existed has it as its config says.

    Raises:
        ValueError: If a row holds a text where the others hold a number, or a number where they hold a text.
    """
    store = RowStore(store) if isinstance(store, (str, os.PathLike)) else store
    pairs = [(config, stored) for config in configs if (stored := store.read(config)) is not None]
    found = [stored for _, stored in pairs]
    for key, (column, value) in _damaged(found).items():
        raise ValueError(
            f"rows must hold one kind of value in {column}, got {value!r} in {key}.json alone: remove that file and "
            "run again."
        )
    return pd.DataFrame(
        [{"key": stored["key"], **getattr(config, "columns", dict)(), **stored["row"]} for config, stored in pairs]
    )


def _damaged(stored: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Keys of rows with a text where most rows hold a number, or the other way round, and one such column each."""
    kinds = defaultdict[Any, dict[bool, dict[str, Any]]](lambda: {True: {}, False: {}})
    for found in stored:
        experiment = tuple(sorted(found["config"]))  # its fields: another experiment's columns may be of another kind
        for column, value in _leaves("", found["row"]):
            kinds[experiment, column][isinstance(value, str)][found["key"]] = value
    damaged: dict[str, tuple[str, Any]] = {}
    for (_, column), by_kind in kinds.items():
        numbers, texts = by_kind[False], by_kind[True]
        if numbers and texts:
            damaged |= {key: (column, value) for key, value in min(texts, numbers, key=len).items()}
    return damaged


def _leaves(column: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Texts and numbers of a row with the names that lead to them; places in a list share one name."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(f"{column}.{name}".lstrip("."), part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(column, part)
    elif value is not None:
        yield column, value


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

    Workers that die are replaced. The standard pools break as a whole, or wait for ever, when one does.

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
    """Row and error of one config: whatever it raises is its own error, not the sweep's."""
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
