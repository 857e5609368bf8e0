"""Where and when each config is computed: on a core or a GPU, by which processes, and in which order."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .registry import Experiment, Preset, experiment
from .workers import Lane

__all__ = ["Job", "compute_job", "lanes", "order", "queue_of", "visible_gpus", "where"]

# A config goes to the GPU if it takes a CPU core more than this many seconds, and this many times as long.
SMALL_FIT_SECONDS, GPU_IS_WORTH = 12.0, 5.0


@dataclass(frozen=True)
class Job:
    """A config and the experiment that it belongs to; some configs belong to several."""

    experiment: str
    config: Any


def where(study: Experiment, config: Any, device: str) -> str:
    """Choose ``device``, or the CPU where the config is too small, or of a kind, that gains nothing from a GPU.

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


def compute_job(job: Job, *, device: str, out: Path | None = None) -> dict[str, Any]:
    """Compute the row of a job where :func:`where` says; what its rows share is kept under ``out``, if anywhere."""
    study = experiment(job.experiment)
    shared = {"shared": None if out is None else out / "shared" / study.name} if study.shares else {}
    return dict(study.compute(job.config, device=where(study, job.config, device), **shared))


def queue_of(job: Job, *, device: str) -> str:
    """Name the processes that may compute a job: ``"cpu"``, or what its experiment says of a GPU."""
    study = experiment(job.experiment)
    return "cpu" if where(study, job.config, device) == "cpu" else study.queue(job.config)


def lanes(device: str, workers: int, gpus: Sequence[str], gpu_workers: int, *, alone: bool = False) -> list[Lane]:
    """Divide processes over this machine: some on each GPU, the rest on cores.

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
    """List the GPUs of this process, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        ValueError: If there is none.
    """
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not count:
        raise ValueError("device must be 'cpu' where there is no GPU, got 'cuda'.")
    return [name.strip() for name in named.split(",")][:count] if named else [str(index) for index in range(count)]


def order(studies: Sequence[Experiment], preset: Preset, device: str) -> dict[Job, float]:
    """Put all jobs in the order in which they start, with their estimated seconds.

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
