"""What the tests that need a GPU said last: ``python -m kernel.benchmark.gpu_tests``.

Collects the tests marked ``cuda`` and runs them in several processes, each with the same share of each file, then
those marked ``alone``, which look at times. A row is a file of tests: how many passed, failed and were skipped, and the
seconds that they took one after the other. The reports are pytest's own (``--junitxml``). A process that takes too long
is interrupted: what it had done counts, and the rest is ``not_run``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .tables import Report

__all__ = ["COLUMNS", "main", "rows_of"]

COLUMNS = ("file", "passed", "failed", "skipped", "not_run", "seconds")
_GRACE = 15  # seconds in which pytest writes its report once it is interrupted
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
_EXAMPLES = """
examples:
  python -m kernel.benchmark.gpu_tests --output paper_figures/data/gpu_tests.csv     the committed table, on a GPU
  python -m kernel.benchmark.gpu_tests --only fused_sparse token_chunks --output /tmp/gpu_tests.csv
"""


def rows_of(reports: Iterable[Path], collected: Iterable[str]) -> list[dict[str, Any]]:
    """The reports of pytest, summed by file of tests; what was collected and is in no report was not run.

    A test that fails in its setup or teardown, or that could not be collected, counts as failed.
    """
    counts: dict[str, Counter[str]] = {}
    seconds: dict[str, float] = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            if not case.get("name"):  # what was under way when pytest was interrupted
                continue
            parts = (case.get("classname") or case.get("name") or "").split(".")
            named = [part for part in parts if part.startswith("test_")]
            file = named[-1] if named else ".".join(parts)
            kinds = {child.tag for child in case}
            kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            counts.setdefault(file, Counter())[kind] += 1
            seconds[file] = seconds.get(file, 0.0) + float(case.get("time", 0))
    wanted = Counter(Path(name.partition("::")[0]).stem for name in collected)
    for file in {*wanted, *counts}:
        found = counts.setdefault(file, Counter())
        found["not_run"] = max(wanted[file] - found.total(), 0)
    return [
        {"file": file, **{kind: counts[file][kind] for kind in COLUMNS[1:5]}, "seconds": f"{seconds.get(file, 0):.0f}"}
        for file in sorted(counts)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, write the table and return the exit status: 1 if one failed or did not run."""
    parser = parser_of("kernel.benchmark.gpu_tests", __doc__, _EXAMPLES)
    parser.add_argument("--only", nargs="+", help="parts of the names of the files of tests, for a trial")
    parser.add_argument("--processes", type=whole(1), default=8, help="that run beside each other (default 8)")
    parser.add_argument("--seconds", type=whole(1), default=500, help="most of one process (default 500)")
    add_places(parser, "gpu_tests")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    device, output = resolve_device(given), output_of(given, "gpu_tests")
    tests = Path("tests")
    files = [path for path in sorted(tests.rglob("test_*.py")) if "mark.cuda" in path.read_text(encoding="utf-8")]
    files = [path for path in files if given.only is None or any(part in path.name for part in given.only)]
    if not files:
        raise ValueError(f"there must be files of GPU tests under {tests.absolute()}, got none: run this in a clone.")
    config, first = {"processes": given.processes}, _seen_first(device)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell, and so in what is started
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        Report(output, command=command, config=config, device=device, columns=COLUMNS) as report,
        tempfile.TemporaryDirectory() as folder,
    ):
        with ThreadPoolExecutor(2) as pool:
            marks = ("cuda and not alone", "cuda and alone")
            together, alone = pool.map(lambda mark: _collected(files, mark), marks)
        shares = [share for i in range(given.processes) if (share := together[i :: given.processes])]
        reports = [Path(folder, f"{i}.xml") for i in range(len(shares) + bool(alone))]
        with ThreadPoolExecutor(len(shares) or 1) as pool:
            threads = max(2 * len(os.sched_getaffinity(0)) // max(len(shares), 1), 1)
            several = first | {"OMP_NUM_THREADS": str(threads)}
            list(pool.map(lambda share, path: _tested(share, path, given.seconds, several), shares, reports))
        if alone:
            _tested(alone, reports[-1], given.seconds, first)
        report.add_all([(row, ()) for row in rows_of(filter(Path.exists, reports), together + alone)])
    for row in report.rows:
        print(*row.values())
    print(f"wrote {output}")
    return int(any(row["failed"] or row["not_run"] for row in report.rows))


def _seen_first(device: torch.device) -> dict[str, str]:
    """Variables with which a process has this GPU as its first, the one of tests, and the others after it."""
    if not device.index:  # the first, or a CPU
        return {}
    count = torch.cuda.device_count()
    names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")[:count]
    return {"CUDA_VISIBLE_DEVICES": ",".join([names.pop(device.index), *names])}


def _collected(files: Sequence[Path], marks: str) -> list[str]:
    done = subprocess.run(
        [*_PYTEST, "--collect-only", "-m", marks, *map(str, files)], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 5):  # 5: none of them
        raise OSError(f"pytest collects with status {done.returncode}: {done.stdout.strip()[-300:]}")
    return [line for line in done.stdout.splitlines() if "::" in line and not line.startswith("=")]


def _tested(names: Sequence[str], report: Path, most: int, variables: Mapping[str, str]) -> None:
    """Run tests by name, with variables of their own; print what failed, was cut short or left no report."""
    words = [*_PYTEST, "-rf", f"--junitxml={report}", *names]
    environment = {**os.environ, **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as process:
        try:
            said, cut = process.communicate(timeout=most)[0], False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # upon which pytest reports what it has done
            try:
                said, cut = process.communicate(timeout=_GRACE)[0], True
            except subprocess.TimeoutExpired:
                process.kill()
                said, cut = process.communicate()[0], True
    if process.returncode:
        print(said[-8000:], flush=True)
    if cut or not report.exists():
        why = f"took more than {most} seconds" if cut else f"ended with status {process.returncode}"
        kept = "its report has what it had done" if report.exists() else "it left no report"
        print(f"a process {why}: {names[0]} and {len(names) - 1} others; {kept}.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
