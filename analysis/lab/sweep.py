"""A grid of configs -> rows, over all cores, resumable at any moment.

Each worker is a fresh process with a single thread (two threads make small fits slower) that computes one config at a
time; only this process writes. What may die: a worker (its config is recorded as failed, another worker starts), this
process (its workers notice and end, finished rows are on disk), the machine (rows are whole or absent). Several sweeps
may share a folder, also of several machines: each computes what no other has taken.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from tqdm import tqdm

from .provenance import environment
from .records import RowStore
from .workers import Engine, available_cores, local_engine

__all__ = ["SweepResult", "read_rows", "run"]

Config = TypeVar("Config")


class SweepResult(NamedTuple):
    """What a sweep did."""

    rows: pd.DataFrame  # finished rows in the order of the configs, with their ``key``
    computed: int  # rows made now; the others were there
    failures: dict[str, str]  # name of a failed config in its store -> error
    elsewhere: int = 0  # configs without a row that another sweep computes at this moment


def run(
    function: Callable[[Config], Mapping[str, Any]],
    configs: Sequence[Config],
    store: RowStore | str | os.PathLike[str],
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


def read_rows(store: RowStore | str | os.PathLike[str], configs: Sequence[Any]) -> pd.DataFrame:
    """Read the finished rows of the configs, in their order, one line each, the ``key`` first.

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
