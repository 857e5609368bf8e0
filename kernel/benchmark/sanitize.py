"""Accesses and races of every kernel under NVIDIA's compute-sanitizer: ``python -m kernel.benchmark.sanitize``.

Each tool runs each of the small calls of :mod:`.sanitize_cases` in a process of its own, several at a time, with
compiled kernels that a first process of each call left in Triton's cache. torch allocates every tensor by itself
(PYTORCH_NO_CUDA_MEMORY_CACHING), so that its end is known. A row holds what the tool counted: of racecheck hazards that
are errors, and warnings apart. "planted" is wrong on purpose, and memcheck has to find it.

compute-sanitizer comes with CUDA's toolkit, and in the wheels nvidia-cuda-sanitizer-api.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import torch

from .command import add_places, finish, output_of, resolve_device, typed, whole
from .tables import Report

__all__ = ["COLUMNS", "TOOLS", "counted", "find", "main"]

COLUMNS = ("tool", "case", "errors", "warnings", "seconds")
TOOLS = ("memcheck", "synccheck", "racecheck", "initcheck")
_PLANTED = "planted"
_CASES = (
    *("forward", "recomputed", "kept", "softcap", "codes", "bytes", "chunks", "sparse", "statistics", "odd sizes"),
    _PLANTED,
)
_SUMMARY = re.compile(
    r"ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) w"
)
_EXAMPLES = """
examples:
  python -m kernel.benchmark.sanitize --output paper_figures/data/sanitizer.csv     the committed table, on a GPU
  python -m kernel.benchmark.sanitize --tools memcheck --cases bytes planted --output /tmp/sanitizer.csv
"""


def find(given: Path | None = None) -> Path:
    """Return compute-sanitizer: ``given``, or that of PATH, of the toolkit or of an installed wheel.

    Raises:
        FileNotFoundError: If there is none.
    """
    name = "compute-sanitizer"
    on_path = shutil.which(name)
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(on_path)] if on_path else []
    places += [Path(toolkit, "bin", name) for toolkit in toolkits if toolkit]
    places += [path for folder in sys.path for path in sorted(Path(folder).glob(f"nvidia/*/bin/{name}"))]
    for place in [given] if given is not None else places:
        if place.is_file():
            return place
    where = f"at {given}" if given is not None else "on PATH, in CUDA_HOME, or in a wheel nvidia-cuda-sanitizer-api"
    raise FileNotFoundError(f"there is no {name} {where}.")


def counted(said: str) -> tuple[int, int] | None:
    """Errors and warnings of a tool's last summary; None where it gave none."""
    found = _SUMMARY.findall(said)
    if not found:
        return None
    errors, hazards, warnings = found[-1]
    return int(errors or hazards), int(warnings or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tools, write the table and return the exit status: 1 if one found what is not planted."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel.benchmark.sanitize",
        description=(__doc__ or "").partition(": ``")[0] + ".",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help=f"default: {' '.join(TOOLS)}")
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=list(_CASES), help="default: all")
    parser.add_argument("--sanitizer", type=Path, help="compute-sanitizer (default: where it usually lies)")
    parser.add_argument("--processes", type=whole(1), help="at a time (default: half of the cores)")
    parser.add_argument("--seconds", type=whole(1), default=60, help="most of one process (default 60)")
    parser.add_argument("--here", choices=_CASES, help="run this call in this process, what the others do")
    add_places(parser, "sanitizer")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given, writes=not given.here)
    if given.here:
        from .sanitize_cases import CASES  # needs Triton

        CASES[given.here](device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 0
    sanitizer, output = find(given.sanitizer), output_of(given, "sanitizer")
    processes = given.processes or max(len(os.sched_getaffinity(0)) // 2, 1)
    version = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, check=False).stdout
    config = {"sanitizer": (re.findall(r"Version (\S+)", version) or [None])[0], "seconds": given.seconds}
    cases = [case for case in given.cases if case != _PLANTED]
    here = (sys.executable, "-m", "kernel.benchmark.sanitize", "--device", device.type, "--here")
    table = Report(output, command=command, config=config, device=device, columns=COLUMNS)
    with table as report, ThreadPoolExecutor(processes) as pool:
        # Where one fails, no other is begun: the iterators of map have no name, so that they end with their loops.
        for case, (said, status, _) in zip(
            cases, pool.map(lambda case: _call([*here, case], given.seconds), cases), strict=True
        ):
            if status != 0:
                raise OSError(f"{case} fails without a tool: {_last(said)}")
        checked = list(product(given.tools, given.cases))
        runs = ([sanitizer, "--tool", tool, "--report-api-errors", "no", *here, case] for tool, case in checked)
        for (tool, case), (said, status, seconds) in zip(
            checked, pool.map(lambda words: _call(words, given.seconds), runs), strict=True
        ):
            found = counted(said)
            if status is not None and (found is None or (status and not found[0])):
                raise OSError(f"{tool} of {case} ended with status {status}: {_last(said)}")
            errors, warnings = ("", "") if status is None or found is None else found  # "": it took too long
            row = {"tool": tool, "case": case, "errors": errors, "warnings": warnings, "seconds": f"{seconds:.1f}"}
            report.add(row)
            print(*row.values(), flush=True)
            if errors and case != _PLANTED:
                print(said[-6000:], flush=True)
    print(f"wrote {output}")
    dirty = [row for row in report.rows if row["errors"] != 0 and row["case"] != _PLANTED]
    blind = [row for row in report.rows if (row["tool"], row["case"], row["errors"]) == ("memcheck", _PLANTED, 0)]
    return int(bool(dirty or blind))


def _call(words: Sequence[str | Path], most: int) -> tuple[str, int | None, float]:
    """Output, exit status (None where it took more seconds than ``most``) and seconds of a process."""
    begun, environment = time.monotonic(), {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(list(map(str, words)), env=environment, start_new_session=True, **pipes) as process:
        try:
            said, status = process.communicate(timeout=most)[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # of the sanitizer and of what it looks at
            said, status = process.communicate()[0], None
    return said, status, time.monotonic() - begun


def _last(said: str) -> str:
    return " / ".join(said.strip().splitlines()[-3:]) or "no word of why"


if __name__ == "__main__":
    sys.exit(main())
