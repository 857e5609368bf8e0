"""What the commands that tune real models share: a grid of runs computed, counted and planned."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...command import shown
from ...lab.placement import visible_gpus
from ...lab.records import RowStore
from ...lab.sweep import run
from ...lab.workers import Engine, Lane, available_cores, local_engine

__all__ = ["print_plan", "print_status", "processes", "run_grid", "shard"]

# Runs that one GPU serves at once: each needs a core of the CPU, little of the GPU's time, and of its memory 8 GiB with
# SmolLM2. A command whose models need more sets ``at_once``.
_OVERLAP = 8


def shard(text: str) -> tuple[int, int]:
    """Read an argument I/N, part I of N parts of a grid; another text is a wrong call."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, got {text!r}")
    return int(found[1]), int(found[2])


def processes(options: argparse.Namespace) -> int:
    """As many as were asked for (on CUDA for each GPU); else one, or on CUDA as many as one GPU serves."""
    return options.workers or (
        min(getattr(options, "at_once", _OVERLAP), available_cores()) if options.device.startswith("cuda") else 1
    )


def run_grid(function: Callable[[Any], Any], grid: Sequence[Any], options: argparse.Namespace, store: RowStore) -> int:
    """Compute the missing rows of a grid, or of the shard of it, and say how many; 0 where none is missing then.

    On CUDA every visible GPU has as many processes as :func:`processes` says.
    """
    part, parts = options.shard or (1, 1)
    mine = grid[part - 1 :: parts]
    limit = None if options.max_minutes is None else 60 * options.max_minutes
    result = run(
        function, mine, store, workers=processes(options), description="tunings", max_seconds=limit,
        engine=_engine(options),
    )  # fmt: skip
    print(f"{result.computed} computed now, {len(result.rows)} of {len(mine)} there, {len(result.failures)} failed")
    if result.elsewhere:
        print(f"{result.elsewhere} rows are left to another run in {shown(options.out)}")
    for key, error in result.failures.items():
        print(f"failed {key}: {error.strip().splitlines()[-1]}", file=sys.stderr)
    return int(len(result.rows) < len(mine))


def _engine(options: argparse.Namespace) -> Engine | None:
    """Processes on every visible GPU, the first runs on one each; None for what one GPU or the CPU needs."""
    gpus = visible_gpus() if options.device == "cuda" else []
    if len(gpus) < 2:
        return None
    each = [Lane(1, environment={"CUDA_VISIBLE_DEVICES": gpu}) for _ in range(processes(options)) for gpu in gpus]
    return partial(local_engine, lanes=each)


def print_plan(each: Sequence[float], device: str, workers: int) -> int:
    """Say what runs of so many seconds cost together."""
    at_once = min(workers, _OVERLAP) if device.startswith("cuda") else workers
    print(f"{len(each)} runs, {sum(each):.0f} s of {device} one by one, the longest {max(each):.0f} s")
    print(f"about {max(sum(each) / at_once, max(each)) / 60:.1f} minutes with {workers} processes, to a factor of 2")
    return 0


def print_status(grid: Sequence[Any], store: RowStore) -> int:
    """Say how many rows are there; 0 where none is missing."""
    done = sum(store.read(config) is not None for config in grid)
    failed = sum(store.failure(config) is not None for config in grid)
    print(f"{done} done, {failed} failed, {len(grid) - done - failed} left")
    return int(done < len(grid))
