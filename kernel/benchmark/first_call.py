"""Time and memory of the first call in a fresh process without compiled kernels, beside those of the second.

    python -m kernel.benchmark.first_call --cores 16 2 --output table.csv      # three processes of each, on a GPU

Seconds of loss and gradients on inputs that are ready, CUDA initialised and the packages imported: what remains is the
compilation, side by side on the cores that the process may use, and the call itself. Every process starts with an empty
cache folder. Memory is the peak beyond the inputs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .measure import peak_bytes, step
from .problems import SHAPES, make_data
from .rivals import Case, rivals
from .tables import Report

__all__ = ["COLUMNS", "main", "measure_here"]

COLUMNS = ("shape", "cores", "process", "first_seconds", "second_seconds", "first_peak_mib", "second_peak_mib")
_EXAMPLES = """
examples:
  python -m kernel.benchmark.first_call --cores 16 2 --output paper_figures/data/first_call.csv     the committed table
  python -m kernel.benchmark.first_call --shape GPT-2 --processes 1 --output /tmp/first_call.csv
"""


def measure_here(shape: str, scale: int, device: torch.device) -> dict[str, Any]:
    """Call the loss twice in this process; return seconds and peak MiB of each call, by column of the table."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    full = next(s for s in SHAPES if s.name == shape)
    small = replace(full, n=max(full.n // scale, 1), vocab_size=max(full.vocab_size // scale, 2))
    data, case = make_data(small, dtype, device), Case()
    loss = next(r for r in rivals(0) if r.name == "triton, default").make(case)
    found: dict[str, Any] = {}
    importlib.import_module("kernel.fused.token_losses")
    for name in ("first", "second"):

        def call(name: str = name) -> None:
            start = time.perf_counter()
            step(loss, data, case)
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[f"{name}_seconds"] = f"{time.perf_counter() - start:.3f}"

        peak = peak_bytes(call, device)
        found[f"{name}_peak_mib"] = "" if peak is None else f"{peak / 2**20:.1f}"
        data.hidden.grad = data.weight.grad = None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.first_call", __doc__, _EXAMPLES)
    parser.add_argument(
        "--shape", choices=[s.name for s in SHAPES], default=SHAPES[0].name, help=f"head (default {SHAPES[0].name})"
    )
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N and V by this, for a trial (default 1)")
    parser.add_argument("--cores", type=whole(1), nargs="+", help="cores that a process may use (default: all)")
    parser.add_argument("--processes", type=whole(1), default=3, help="fresh processes of each (default 3)")
    parser.add_argument("--here", action="store_true", help="measure in this process and print, what the others do")
    add_places(parser, "first_call")
    given = parser.parse_args(arguments)
    return finish(lambda: _measure(given, typed(parser, given)))


def _measure(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given, writes=not given.here)
    if given.here:
        print(json.dumps(measure_here(given.shape, given.scale, device)))
        return 0
    here = [sys.executable, "-m", "kernel.benchmark.first_call", "--here", "--device", str(device)]
    here += ["--shape", given.shape, "--scale", str(given.scale)]
    numbers = given.cores or [len(_usable())]
    if max(numbers) > len(_usable()):
        raise ValueError(f"cores must be at most the {len(_usable())} that this process may use, got {max(numbers)}.")
    config = {"shape": given.shape, "scale": given.scale, "cores": numbers, "processes": given.processes}
    output = output_of(given, "first_call")
    with Report(output, command=command, config=config, device=device, columns=COLUMNS) as report:
        for cores, process in product(numbers, range(given.processes)):
            with tempfile.TemporaryDirectory() as cache, _on(cores):
                environment = {**os.environ, "TRITON_CACHE_DIR": cache}
                done = subprocess.run(here, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise OSError(f"a fresh process ended with status {done.returncode}: {' '.join(here[1:])}")
            report.add(
                {"shape": given.shape, "cores": cores, "process": process, **json.loads(done.stdout.splitlines()[-1])}
            )
            print(*(f"{k} {v}" for k, v in report.rows[-1].items()), flush=True)
    print(f"wrote {output}")
    return 0


def _usable() -> list[int]:
    """Cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def _on(cores: int) -> Iterator[None]:
    """Let the processes that are started use so many of the cores."""
    usable = _usable()
    os.sched_setaffinity(0, usable[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


if __name__ == "__main__":
    sys.exit(main())
