"""Running experiments and keeping their rows: processes, folders, tables. Used by the command alone."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .. import command
from .bundles import row_folder
from .cells import Coverage, coverage
from .records import RowStore
from .registry import Experiment, Preset, experiment, tidy
from .sweep import Engine, Lane, SweepResult, available_cores, local_engine, read_rows, run
from .tables import find_table, made_of_rows, shortened, write_table

__all__ = [
    "Job", "Progress", "committed_folder", "compute_job", "lanes", "order", "progress", "publish", "run_command",
    "simulate", "simulate_all", "table", "table_path", "visible_gpus", "where", "write",
]  # fmt: skip

# A config goes to the GPU if it takes a CPU core more than this many seconds, and this many times as long.
SMALL_FIT_SECONDS, GPU_IS_WORTH = 12.0, 5.0
_DIGITS = 6  # of the numbers in a table
_PACKED_FROM = 2**18  # bytes of a committed table


@dataclass(frozen=True)
class Job:
    """A config and the experiment that it belongs to; some configs belong to several."""

    experiment: str
    config: Any


class _Shelves:
    """The rows of all experiments, each in a folder of its own; see :class:`analysis.lab.sweep.Store`."""

    def __init__(self, out: Path, studies: Sequence[Experiment]) -> None:
        self._stores = {study.name: RowStore(row_folder(out, study.name)) for study in studies}

    def prepare(self) -> None:
        for store in self._stores.values():
            store.prepare()

    def name(self, config: Job) -> str:
        return f"{config.experiment}/{self._stores[config.experiment].name(config.config)}"

    def take(self, config: Job) -> bool:
        return self._stores[config.experiment].take(config.config)

    def release(self, config: Job) -> None:
        self._stores[config.experiment].release(config.config)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def read(self, config: Job) -> dict[str, Any] | None:
        return self._stores[config.experiment].read(config.config)

    def write(self, config: Job, row: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        self._stores[config.experiment].write(config.config, row, made_by)

    def write_failure(self, config: Job, error: str, made_by: Mapping[str, Any]) -> None:
        self._stores[config.experiment].write_failure(config.config, error, made_by)


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
    """The experiment's table."""
    return out / f"{name}.csv"


def where(study: Experiment, config: Any, device: str) -> str:
    """``device``, or the CPU where the config is too small, or of a kind, that gains nothing from a GPU.

    Small fits are bound by launches, not arithmetic.

    Raises:
        ValueError: If ``device`` is neither ``"cpu"`` nor ``"cuda"``: one GPU is chosen by what is visible.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(
            "device must be 'cpu' or 'cuda', which takes every visible GPU (CUDA_VISIBLE_DEVICES chooses), "
            f"got {device!r}."
        )
    if device == "cpu" or not study.gpu:
        return "cpu"
    slow = study.seconds(config, "cpu")
    return device if slow > max(SMALL_FIT_SECONDS, GPU_IS_WORTH * study.seconds(config, device)) else "cpu"


def compute_job(job: Job, *, device: str) -> dict[str, Any]:
    """The row of a job, computed where :func:`where` says."""
    study = experiment(job.experiment)
    return dict(study.compute(job.config, device=where(study, job.config, device)))


def _queue(job: Job, *, device: str) -> str:
    study = experiment(job.experiment)
    return "cpu" if where(study, job.config, device) == "cpu" else study.queue(job.config)


def lanes(device: str, workers: int, gpus: Sequence[str], gpu_workers: int, *, alone: bool = False) -> list[Lane]:
    """Processes that share this machine: some on each GPU, the rest on cores.

    Several processes keep a GPU busy while each of them prepares and measures on a core.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        workers: Processes in all, whatever the GPUs could take: one for each GPU first, then more on them in turn.
        gpus: The GPUs, as CUDA_VISIBLE_DEVICES names them.
        gpu_workers: Most processes on each.
        alone: Whether the first GPU has one process only, for the largest heads.

    Example:
        >>> [lane.workers for lane in lanes("cuda", 16, ["0", "1", "2"], 4, alone=True)]
        [1, 0, 1, 3, 1, 3, 7]
        >>> [lane.workers for lane in lanes("cuda", 4, ["0", "1", "2"], 4)]
        [1, 1, 1, 0, 1, 0, 0]
    """
    if device == "cpu":
        return [Lane(workers, ("cpu",))]
    used = gpus[:workers]  # a GPU without a process has no lane
    room = [0 if alone and index == 0 else gpu_workers - 1 for index in range(len(used))]
    turns = [index for turn in range(gpu_workers - 1) for index, most in enumerate(room) if turn < most]
    others = Counter(turns[: workers - len(used)])
    shared: list[Lane] = []
    for index, gpu in enumerate(used):
        only, first = {"CUDA_VISIBLE_DEVICES": gpu}, ("whole",) if index == 0 else ()
        shared += [Lane(1, (*first, "large", "gpu", "cpu"), only), Lane(others[index], ("gpu", "cpu"), only)]
    return [*shared, Lane(workers - sum(lane.workers for lane in shared), ("cpu",))]


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        ValueError: If there is none.
    """
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not count:
        raise ValueError("device must be 'cpu' where there is no GPU, got 'cuda'.")
    return [name.strip() for name in named.split(",")][:count] if named else [str(index) for index in range(count)]


def simulate(study: Experiment, preset: Preset, out: Path, **options: Any) -> SweepResult:
    """:func:`simulate_all` of one experiment, with its rows."""
    return simulate_all([study], preset, out, **options)._replace(rows=table(study, preset, out))


def order(studies: Sequence[Experiment], preset: Preset, device: str) -> dict[Job, float]:
    """All jobs in the order in which they start, with their estimated seconds.

    The costliest first, and what may be left over last. All seeds of a cell and of its twins start together: a run that
    is cut leaves complete cells, and few rows that no table can use.
    """
    by_name = {study.name: study for study in studies}
    families = defaultdict[tuple[str, Any], list[Job]](list)
    seconds: dict[Job, float] = {}
    for study in studies:
        for config in study.configs(preset):
            job = Job(study.name, config)
            seconds[job] = study.seconds(config, where(study, config, device))
            families[study.name, study.twin(study.cell(config))].append(job)

    def place(family: list[Job]) -> tuple[int, float]:
        leftover = by_name[family[0].experiment].leftover
        return max(leftover(job.config) for job in family), -max(seconds[job] for job in family)

    return {job: seconds[job] for family in sorted(families.values(), key=place) for job in family}


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

    All experiments share the workers, and the costliest cells start first (:func:`order`), so that no fit is alone at
    the end.

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
        queue, gpus = partial(_queue, device=device), [] if device == "cpu" else visible_gpus()
        alone = len(gpus) > 1 and any(queue(job) == "whole" and shelves.read(job) is None for job in jobs)
        processes = lanes(device, workers or available_cores(), gpus, gpu_workers, alone=alone)
        engine = partial(local_engine, lanes=processes, queue=queue)
    result = run(
        partial(compute_job, device=device),
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
    """The finished rows of an experiment as a table in the order of its grid; columns of what was set come first.

    Only rows of complete cells (:mod:`.cells`) are in it.
    """
    return _complete(study, preset, out)[0]


def _complete(study: Experiment, preset: Preset, out: Path) -> tuple[pd.DataFrame, Coverage]:
    configs = study.configs(preset)
    rows = read_rows(row_folder(out, study.name), configs)
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
    configs, store = study.configs(preset), RowStore(row_folder(out, study.name))
    made = made_of_rows(run_command(study.name, preset), store, configs, covered.keys)
    made["grid"] |= {"cells": covered.cells, "cells_not_run": covered.not_run, "not_run": covered.missing}
    rows, constants = shortened(rows, _DIGITS, study.columns)
    write_table(rows, path, made, constants=constants, packed_from=packed_from)
    return True


def run_command(name: str, preset: Preset) -> str:
    """The command that computes an experiment.

    Example:
        >>> run_command("S4", "full")
        'python -m analysis.study run S4 --preset full --device cuda'
    """
    return f"python -m analysis.study run {name} --preset {preset}" + (" --device cuda" if preset == "full" else "")


def committed_folder(preset: Preset) -> Path:
    """Where the tables of a preset are committed.

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
    """Done, failed and left."""
    configs, store = study.configs(preset), RowStore(row_folder(out, study.name))
    done = [store.read(config) is not None for config in configs]
    failed = [not there and store.failure(config) is not None for there, config in zip(done, configs, strict=True)]
    return Progress(len(configs), sum(done), sum(failed))
