"""Accesses and races of every kernel under NVIDIA's compute-sanitizer: ``python -m kernel.benchmark.sanitize``.

Each tool runs each of the small calls of :mod:`.sanitize_cases` in a process of its own, several at a time, with
compiled kernels that a first process of each call left in Triton's cache. torch allocates every tensor by itself
(PYTORCH_NO_CUDA_MEMORY_CACHING), so that its end is known. A row holds what the tool counted: of racecheck hazards that
are errors, and warnings apart; where it gave none, what came instead. "planted" is wrong on purpose, and memcheck has
to find it.

initcheck, which looks for reads of memory that was never written, runs only where it is named. What it reports here is
by design: entries of ignored tokens and padding are never written, and are moved with the others; what compiles a call
ahead moves buffers that no kernel has filled, and throws them away; and it seems not to see what the copy engine of
Hopper stores, as it reports whole matrices, and none where rows are not aligned and ordinary instructions store them.
That loss and gradients do not depend on such memory is tested with new tensors full of NaN.

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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch

from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .tables import Report

__all__ = ["COLUMNS", "TOOLS", "counted", "find", "main"]

COLUMNS = ("tool", "case", "errors", "warnings", "seconds", "failure")
TOOLS = ("racecheck", "memcheck", "synccheck", "initcheck")  # the slowest first, so that none is left at the end
_DEFAULT = TOOLS[:3]
_PLANTED = "planted"
_CASES = (
    *("forward", "recomputed", "kept", "softcap", "codes", "bytes", "chunks", "sparse", "statistics", "odd sizes"),
    _PLANTED,
)
# Behind its errors memcheck may say "ERROR SUMMARY: 20 errors were not printed", of those that it has counted.
_SUMMARY = re.compile(
    r"ERROR SUMMARY: (\d+) errors?(?! were not)\b|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) w"
)
_ENDED = "the call has ended."
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
    """Run the tools, write the table and return the exit status: 1 if one found what is not planted, or gave up."""
    parser = parser_of("kernel.benchmark.sanitize", __doc__, _EXAMPLES)
    parser.add_argument(
        "--tools", nargs="+", choices=TOOLS, default=list(_DEFAULT), help=f"default: {' '.join(_DEFAULT)}"
    )
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
        print(_ENDED, flush=True)
        return 0
    sanitizer, output = find(given.sanitizer), output_of(given, "sanitizer")
    processes = given.processes or max(len(os.sched_getaffinity(0)) // 2, 1)
    version = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, check=False).stdout
    config = {"sanitizer": (re.findall(r"Version (\S+)", version) or [None])[0], "seconds": given.seconds}
    here = (sys.executable, "-m", "kernel.benchmark.sanitize", "--device", str(device), "--here")
    table = Report(output, command=command, config=config, device=device, columns=COLUMNS)
    with table as report, ThreadPoolExecutor(processes) as pool:
        # What is wrong on purpose may end its process: there the tools alone can say something. Here as below the
        # iterators of map have no name: Ctrl-C ends them, and so what has not begun.
        cases = [case for case in given.cases if case != _PLANTED]
        alone = dict(zip(cases, pool.map(lambda case: _call([*here, case], given.seconds), cases), strict=True))
        broken = {case: f"without a tool: {_last(said)}" for case, (said, *_) in alone.items() if _ENDED not in said}
        for case, failure in broken.items():
            print(f"{case} fails {failure}", flush=True)
        checked = [(tool, case) for tool, case in product(given.tools, given.cases) if case not in broken]
        runs = ([sanitizer, "--tool", tool, "--report-api-errors", "no", *here, case] for tool, case in checked)
        for (tool, case), (said, status, seconds) in zip(
            checked, pool.map(lambda words: _call(words, given.seconds), runs), strict=True
        ):
            errors, warnings = found if (found := counted(said)) else ("", "")
            failure = ""
            if status is None:
                failure = f"took more than {given.seconds} seconds"
            elif not found or (_ENDED not in said and not errors):  # an error that is found may be why it did not end
                failure = f"ended with status {status}: {_last(said)}"
            row = {"tool": tool, "case": case, "errors": errors, "warnings": warnings, "seconds": f"{seconds:.1f}"}
            report.add({**row, "failure": failure})
            print(*row.values(), failure, flush=True)
            if case != _PLANTED and (errors or failure):
                print(said[-6000:], flush=True)
        report.add_all([({"tool": t, "case": c, "failure": broken[c]}, ()) for t, c in product(given.tools, broken)])
    print(f"wrote {output}")
    return int(any(_is_bad(row) for row in report.rows))


def _is_bad(row: Mapping[str, Any]) -> bool:
    """Whether a tool found what was not planted or not what was, or did not finish."""
    if row["case"] == _PLANTED:
        return row["tool"] == "memcheck" and not row["errors"]
    return bool(row.get("errors") or row["failure"])


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
    """The end of an output, in one line: PyTorch's threads may abort a process that has said why it ends."""
    return " / ".join(said.strip().splitlines()[-3:])[-300:] or "no word of why"


if __name__ == "__main__":
    sys.exit(main())
