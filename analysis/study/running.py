"""Running experiments and keeping their rows: folders, tables, one-file bundles. Used by the command alone."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..records import RowStore, encode, write_table
from ..sweep import Engine, Lane, SweepResult, available_cores, local_engine, read_rows, run
from .registry import EXPERIMENTS, Experiment, Preset, experiment, tidy

__all__ = [
    "Job", "Progress", "compute_job", "lanes", "pack", "progress", "row_folder", "simulate", "simulate_all", "table",
    "table_path", "unpack", "visible_gpus", "where",
]  # fmt: skip

# A config goes to the GPU if it takes a CPU core more than this many seconds, and this many times as long.
SMALL_FIT_SECONDS, GPU_IS_WORTH = 12.0, 5.0
# Entries of the teacher from which one such fit at a time has a GPU: its L-BFGS may hold half the memory, and its
# samples take a minute to draw, which one process does once for all fits on them.
_LARGE = 2**28


_DIGITS = 6  # of the numbers in a table


@dataclass(frozen=True)
class Job:
    """A config and the experiment that it belongs to; some configs belong to several."""

    experiment: str
    config: Any


class _Shelves:
    """The rows of all experiments, each in a folder of its own; see :class:`analysis.sweep.Store`."""

    def __init__(self, out: Path, studies: Sequence[Experiment]) -> None:
        self._stores = {study.name: RowStore(row_folder(out, study.name)) for study in studies}

    def prepare(self) -> None:
        for store in self._stores.values():
            store.prepare()

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


def row_folder(out: Path, name: str) -> Path:
    """Folder of an experiment's rows."""
    return out / "rows" / name


def table_path(out: Path, name: str) -> Path:
    """The experiment's table."""
    return out / f"{name}.csv"


def where(study: Experiment, config: Any, device: str) -> str:
    """``device``, or the CPU where the config is too small, or of a kind, that gains nothing from a GPU.

    Small fits are bound by launches, not arithmetic.
    """
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
    if where(study, job.config, device) == "cpu":
        return "cpu"
    teacher = getattr(job.config, "teacher", None)
    return "large" if teacher is not None and teacher.n_contexts * teacher.vocab_size >= _LARGE else "gpu"


def lanes(device: str, workers: int, gpus: Sequence[str], gpu_workers: int) -> list[Lane]:
    """Processes that share this machine: on each GPU some, of which one computes its large fits, the others on cores.

    Several processes keep a GPU busy while each of them prepares and measures on a core.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        workers: Processes in all.
        gpus: The GPUs, as CUDA_VISIBLE_DEVICES names them.
        gpu_workers: Processes on each.

    Example:
        >>> [lane.workers for lane in lanes("cuda", 16, ["0", "1"], 4)]
        [1, 3, 1, 3, 8]
    """
    if device == "cpu":
        return [Lane(workers, ("cpu",))]
    shared = []
    for gpu in gpus:
        only = {"CUDA_VISIBLE_DEVICES": gpu}
        shared += [Lane(1, ("large", "gpu", "cpu"), only), Lane(gpu_workers - 1, ("gpu", "cpu"), only)]
    return [*shared, Lane(max(0, workers - len(gpus) * gpu_workers), ("cpu",))]


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
    engine: Engine | None = None,
) -> SweepResult:
    """Compute the missing rows of experiments and write their tables with sidecars, where there is any row.

    All experiments share the workers, and the costliest fits start first, so that none of them is alone at the end.

    Args:
        studies: What.
        preset: Which of their grids.
        out: Where rows and tables go.
        device: Of the larger fits, ``"cpu"`` or ``"cuda"``.
        workers: Processes; None for one on each core.
        gpu_workers: How many of them on each GPU.
        max_seconds: Start nothing after this time.
        longest_fit: Leave out what is estimated to take more seconds than this.
        engine: See :func:`analysis.sweep.run`; None for processes on this machine.

    Returns:
        How many rows are new, and the failures; the rows of an experiment are :func:`table`.
    """
    cost = {
        Job(study.name, config): study.seconds(config, where(study, config, device))
        for study in studies
        for config in study.configs(preset)
    }
    if engine is None:
        gpus = [] if device == "cpu" else visible_gpus()
        processes = lanes(device, workers or available_cores(), gpus, gpu_workers)
        engine = partial(local_engine, lanes=processes, queue=partial(_queue, device=device))
    result = run(
        partial(compute_job, device=device),
        [job for job in sorted(cost, key=lambda job: -cost[job]) if cost[job] <= longest_fit],
        _Shelves(out, studies),
        workers=workers,
        description=" ".join(study.name for study in studies),
        max_seconds=max_seconds,
        engine=engine,
    )
    for study in studies:
        rows = table(study, preset, out)
        if not rows.empty:
            store = RowStore(row_folder(out, study.name))
            write_table(rows, table_path(out, study.name), store, study.configs(preset), digits=_DIGITS)
    return result


def table(study: Experiment, preset: Preset, out: Path) -> pd.DataFrame:
    """The finished rows of an experiment in the order of its grid, one line for each measurement."""
    return tidy(read_rows(row_folder(out, study.name), study.configs(preset)))


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
