"""Running experiments and keeping their rows: processes, folders, tables. Used by the command alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .. import command
from .bundles import row_folder
from .cells import Coverage, coverage
from .placement import Job, compute_job, lanes, order, queue_of, visible_gpus
from .provenance import made_of_rows
from .records import RowStore, config_key
from .registry import Experiment, Preset, tidy
from .sweep import SweepResult, read_rows, run
from .tables import find_table, shortened, write_table
from .workers import Engine, available_cores, local_engine

__all__ = [
    "Progress", "committed_folder", "progress", "publish", "run_command", "simulate", "simulate_all", "table",
    "table_path", "write",
]  # fmt: skip

_DIGITS = 6  # of the numbers in a table
_PACKED_FROM = 2**18  # bytes of a committed table


class _Shelves(RowStore):
    """The rows of several experiments, each in a folder of its own."""

    def __init__(self, out: Path, studies: Sequence[Experiment]) -> None:
        super().__init__(out / "rows")
        self._folders = {study.name: row_folder(out, study.name) for study in studies}
        self._versions = {study.name: study.measurement_version for study in studies}

    def _version(self, config: Job) -> int:
        return self._versions[config.experiment]

    def _place(self, config: Job) -> tuple[Path, Any]:
        return self._folders[config.experiment], config.config

    def prepare(self) -> None:
        for folder in self._folders.values():
            RowStore(folder).prepare()

    def name(self, config: Job) -> str:
        return f"{config.experiment}/{config_key(config.config)}"


def _store(study: Experiment, out: Path) -> RowStore:
    return RowStore(row_folder(out, study.name), study.measurement_version)


class Progress(NamedTuple):
    """How far an experiment is."""

    configs: int
    done: int
    failed: int

    @property
    def left(self) -> int:
        """Neither done nor failed."""
        return self.configs - self.done - self.failed


def table_path(out: Path, name: str) -> Path:
    """Return the path of an experiment's table."""
    return out / f"{name}.csv"


def simulate(study: Experiment, preset: Preset, out: Path, **options: Any) -> SweepResult:
    """Run :func:`simulate_all` for one experiment, and return its rows too."""
    return simulate_all([study], preset, out, **options)._replace(rows=table(study, preset, out))


def simulate_all(
    studies: Sequence[Experiment],
    preset: Preset,
    out: Path,
    *,
    device: str = "cpu",
    workers: int | None = None,
    gpu_workers: int = 6,
    max_seconds: float | None = None,
    longest_fit: float = math.inf,
    leave_out: Callable[[Any], bool] = lambda config: False,
    engine: Engine | None = None,
) -> SweepResult:
    """Compute the missing rows of experiments and write their tables with sidecars, where there is any row.

    All experiments share the workers, and the costliest cells start first (:func:`~analysis.lab.placement.order`), so
    that no fit is alone at the end.

    Args:
        studies: What.
        preset: Which of their grids.
        out: Where rows and tables go.
        device: Of the larger fits, ``"cpu"`` or ``"cuda"``.
        workers: Processes; None for one on each core.
        gpu_workers: How many of them on each GPU.
        max_seconds: Start nothing after this time.
        longest_fit: Leave out what is estimated to take more seconds than this.
        leave_out: Config -> whether to leave it out.
        engine: See :func:`analysis.lab.sweep.run`; None for processes on this machine.

    Returns:
        How many rows are new, and the failures; the rows of an experiment are :func:`table`.
    """
    jobs = order(studies, preset, device)
    shelves = _Shelves(out, studies)
    if engine is None:
        queue, gpus = partial(queue_of, device=device), [] if device == "cpu" else visible_gpus()
        alone = len(gpus) > 1 and any(queue(job) == "whole" and shelves.read(job) is None for job in jobs)
        processes = lanes(device, workers or available_cores(), gpus, gpu_workers, alone=alone)
        engine = partial(local_engine, lanes=processes, queue=queue)
    result = run(
        partial(compute_job, device=device, out=out.absolute()),
        [job for job, seconds in jobs.items() if seconds <= longest_fit and not leave_out(job.config)],
        shelves,
        workers=workers,
        description=" ".join(study.name for study in studies),
        max_seconds=max_seconds,
        engine=engine,
    )
    for study in studies:
        write(study, preset, out, table_path(out, study.name))
    return result


def table(study: Experiment, preset: Preset, out: Path) -> pd.DataFrame:
    """Make a table of the finished rows of an experiment, in the order of its grid; columns of what was set come first.

    Only rows of complete cells (:mod:`.cells`) are in it.
    """
    return _complete(study, preset, out)[0]


def _complete(study: Experiment, preset: Preset, out: Path) -> tuple[pd.DataFrame, Coverage]:
    configs = study.configs(preset)
    rows = read_rows(_store(study, out), configs)
    if rows.empty:
        return rows, coverage(study, configs, ())
    covered = coverage(study, configs, set(rows["key"]))
    rows = tidy(rows.loc[rows["key"].isin(covered.keys)])
    first = [name for name in ("key", *study.columns) if name in rows]
    return rows.loc[:, [*first, *(name for name in rows if name not in first)]], covered


def write(study: Experiment, preset: Preset, out: Path, path: Path, *, packed_from: float = math.inf) -> bool:
    """Write an experiment's table and its sidecar, with the cells that are not complete; False where none is.

    A table of more than ``packed_from`` bytes is gzipped.
    """
    rows, covered = _complete(study, preset, out)
    if rows.empty:
        return False
    configs, store = study.configs(preset), _store(study, out)
    made = made_of_rows(run_command(study.name, preset), store, configs, covered.keys)
    made["grid"] |= {"cells": covered.cells, "cells_not_run": covered.not_run, "not_run": covered.missing}
    rows, constants = shortened(rows, _DIGITS, study.columns)
    write_table(rows, path, made, constants=constants, packed_from=packed_from)
    return True


def run_command(name: str, preset: Preset) -> str:
    """Return the command that computes an experiment.

    Example:
        >>> run_command("S4", "full")
        'python -m analysis.study run S4 --preset full --device cuda'
    """
    return f"python -m analysis.study run {name} --preset {preset}" + (" --device cuda" if preset == "full" else "")


def committed_folder(preset: Preset) -> Path:
    """Return the folder where the tables of a preset are committed.

    Raises:
        FileNotFoundError: If this is an installation without the repository.
    """
    return command.committed_folder() if preset == "full" else command.committed_folder() / preset


def publish(study: Experiment, preset: Preset, out: Path, folder: Path) -> Path | None:
    """Write an experiment's table of the rows under ``out`` to a folder, gzipped if it is large.

    Returns:
        The table; None where no cell is complete.
    """
    there = write(study, preset, out, table_path(folder, study.name), packed_from=_PACKED_FROM)
    return find_table(folder, study.name) if there else None


def progress(study: Experiment, preset: Preset, out: Path) -> Progress:
    """Count what is done, failed and left."""
    configs, store = study.configs(preset), _store(study, out)
    done = [store.read(config) is not None for config in configs]
    failed = [not there and store.failure(config) is not None for there, config in zip(done, configs, strict=True)]
    return Progress(len(configs), sum(done), sum(failed))
