"""What the tests that need a GPU said last: ``python -m kernel.benchmark.gpu_tests``.

Collects the tests marked ``cuda`` and runs them in several processes, each with the same share of each file, then
those marked ``alone``, which look at times. A row is a file of tests: how many passed, failed and were skipped, and the
seconds that they took one after the other. The reports are pytest's own (``--junitxml``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .command import add_places, finish, output_of, resolve_device, typed, whole
from .tables import Report

__all__ = ["COLUMNS", "main", "rows_of"]

COLUMNS = ("file", "passed", "failed", "skipped", "seconds")
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
_EXAMPLES = """
examples:
  python -m kernel.benchmark.gpu_tests --output paper_figures/data/gpu_tests.csv     the committed table, on a GPU
  python -m kernel.benchmark.gpu_tests --only fused_sparse token_chunks --output /tmp/gpu_tests.csv
"""


def rows_of(reports: Iterable[Path]) -> list[dict[str, Any]]:
    """The reports of pytest, summed by file of tests.

    A test that fails in its setup or teardown, or that could not be collected, counts as failed.
    """
    counts: dict[str, Counter[str]] = {}
    seconds: dict[str, float] = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            parts = (case.get("classname") or case.get("name") or "").split(".")
            named = [part for part in parts if part.startswith("test_")]
            file = named[0] if named else ".".join(parts)
            kinds = {child.tag for child in case}
            kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            counts.setdefault(file, Counter())[kind] += 1
            seconds[file] = seconds.get(file, 0.0) + float(case.get("time", 0))
    return [
        {"file": file, **{kind: counts[file][kind] for kind in COLUMNS[1:4]}, "seconds": f"{seconds[file]:.0f}"}
        for file in sorted(counts)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, write the table and return the exit status: 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel.benchmark.gpu_tests",
        description=(__doc__ or "").partition(": ``")[0] + ".",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    config = {"processes": given.processes}
    with (
        Report(output, command=command, config=config, device=device, columns=COLUMNS) as report,
        tempfile.TemporaryDirectory() as folder,
    ):
        together, alone = (_collected(files, marks) for marks in ("cuda and not alone", "cuda and alone"))
        shares = [share for i in range(given.processes) if (share := together[i :: given.processes])]
        reports = [Path(folder, f"{i}.xml") for i in range(len(shares) + bool(alone))]
        with ThreadPoolExecutor(len(shares) or 1) as pool:
            list(pool.map(lambda share, path: _tested(share, path, given.seconds), shares, reports))
        if alone:
            _tested(alone, reports[-1], given.seconds)
        report.add_all([(row, ()) for row in rows_of(reports)])
        found = sum(row[kind] for row in report.rows for kind in COLUMNS[1:4])
        if found != len(together) + len(alone):
            raise OSError(f"{len(together) + len(alone)} tests were collected and {found} reported.")
    for row in report.rows:
        print(*row.values())
    print(f"wrote {output}")
    return int(any(row["failed"] for row in report.rows))


def _collected(files: Sequence[Path], marks: str) -> list[str]:
    done = subprocess.run(
        [*_PYTEST, "--collect-only", "-m", marks, *map(str, files)], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 5):  # 5: none of them
        raise OSError(f"pytest collects with status {done.returncode}: {done.stdout.strip()[-300:]}")
    return [line for line in done.stdout.splitlines() if "::" in line and not line.startswith("=")]


def _tested(names: Sequence[str], report: Path, most: int) -> None:
    """Run tests by name; print what failed. A process that is cut leaves no report, which is an error."""
    words = [*_PYTEST, "-rf", f"--junitxml={report}", *names]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=most, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"a process took more than {most} seconds: {names[0]} and {len(names) - 1} others.") from error
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    if not report.exists():
        raise OSError(f"pytest ended with status {done.returncode} and no report: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    sys.exit(main())
