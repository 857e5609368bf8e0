"""Running experiments and keeping their rows: folders, tables, one-file bundles. Used by the command alone."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..records import RowStore, encode, write_table
from ..sweep import Engine, SweepResult, read_rows, run
from .registry import EXPERIMENTS, Experiment, Preset, experiment, tidy

__all__ = ["Progress", "compute_on", "pack", "progress", "row_folder", "simulate", "table_path", "unpack", "where"]

# Estimated seconds on a CPU core up to which a config stays there: a GPU's launches take about as long.
SMALL_FIT_SECONDS = 8.0


class Progress(NamedTuple):
    """How far an experiment is."""

    configs: int
    done: int
    failed: int

    @property
    def left(self) -> int:
        """Neither done nor failed."""
        return self.configs - self.done - self.failed


def row_folder(out: Path, name: str) -> Path:
    """Folder of an experiment's rows."""
    return out / "rows" / name


def table_path(out: Path, name: str) -> Path:
    """The experiment's table."""
    return out / f"{name}.csv"


def where(study: Experiment, config: Any, device: str) -> str:
    """``device``, or the CPU where the config is too small, or of a kind, that gains nothing from a GPU.

    Small fits are bound by launches, not arithmetic. Each worker process has a stream and a context of its own, so that
    several of them keep one GPU busy at once, beside others that use CPU cores; within a process fits run one by one.
    """
    if device == "cpu" or not study.gpu or study.seconds(config, "cpu") <= SMALL_FIT_SECONDS:
        return "cpu"
    return device


def compute_on(config: Any, *, name: str, device: str) -> dict[str, Any]:
    """The row of a config of the experiment ``name``, computed where :func:`where` says."""
    study = experiment(name)
    return dict(study.compute(config, device=where(study, config, device)))


def simulate(
    study: Experiment,
    preset: Preset,
    out: Path,
    *,
    device: str = "cpu",
    workers: int | None = None,
    max_seconds: float | None = None,
    longest_fit: float = math.inf,
    engine: Engine | None = None,
) -> SweepResult:
    """Compute the missing rows of an experiment and write its table with a sidecar, if there is any row.

    The costliest fits start first, so that none of them is alone at the end.

    Args:
        study: What.
        preset: Which of its grids.
        out: Where rows and table go.
        device: Of the larger fits.
        workers: Processes; None for one on each core.
        max_seconds: Start nothing after this time.
        longest_fit: Leave out what is estimated to take more seconds than this.
        engine: See :func:`analysis.sweep.run`.

    Returns:
        The rows, tidy, how many are new, and the failures.
    """
    configs, folder = study.configs(preset), row_folder(out, study.name)
    function = partial(compute_on, name=study.name, device=device)
    cost = {config: study.seconds(config, where(study, config, device)) for config in configs}
    result = run(
        function,
        [config for config in sorted(configs, key=lambda c: -cost[c]) if cost[config] <= longest_fit],
        folder,
        workers=workers,
        description=study.name,
        max_seconds=max_seconds,
        engine=engine,
    )
    table = tidy(read_rows(folder, configs))  # in the order of the grid
    if not table.empty:
        write_table(table, table_path(out, study.name), RowStore(folder), configs)
    return result._replace(rows=table)


def progress(study: Experiment, preset: Preset, out: Path) -> Progress:
    """Done, failed and left."""
    configs, store = study.configs(preset), RowStore(row_folder(out, study.name))
    done = [store.read(config) is not None for config in configs]
    failed = [not there and store.failure(config) is not None for there, config in zip(done, configs, strict=True)]
    return Progress(len(configs), sum(done), sum(failed))


def pack(out: Path, file: Path) -> int:
    """Write all finished rows under ``out`` as one gzipped file of JSON lines; the same rows give the same bytes.

    Returns:
        How many.

    Raises:
        ValueError: If there is none.
    """
    text, count = io.StringIO(), 0
    for name in EXPERIMENTS:
        for stored in RowStore(row_folder(out, name)).finished():
            text.write(json.dumps({"experiment": name, **encode(stored)}, sort_keys=True, allow_nan=False) + "\n")
            count += 1
    if not count:
        raise ValueError(f"out must hold finished rows, got none under {out}.")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    return count


def unpack(out: Path, file: Path) -> tuple[int, int]:
    """Add the rows of a packed file to those under ``out``; rows that are there already stay as they are.

    Returns:
        How many were added, and how many were there.

    Raises:
        ValueError: If the file is no packed file; rows before the bad line are added.
    """
    added = known = 0
    for number, line in enumerate(_lines(file), start=1):
        try:
            stored = json.loads(line)
            name = stored.pop("experiment")
            if name not in EXPERIMENTS:
                raise ValueError(f"experiment must be one of {tuple(EXPERIMENTS)}, got {name!r}.")
            new = RowStore(row_folder(out, name)).insert(stored)
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is no file of packed rows: line {number}: {error}") from error
        added, known = added + new, known + (not new)
    return added, known


def _lines(file: Path) -> Iterable[str]:
    try:
        return gzip.decompress(file.read_bytes()).decode().splitlines()
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no file of packed rows: {error}") from error
