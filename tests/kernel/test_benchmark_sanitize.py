"""The cases for compute-sanitizer launch every kernel, and what a tool says becomes a row; also pytest's reports."""

from __future__ import annotations

import ast
import csv
import sys
from pathlib import Path

import pytest
import torch
from helpers import refused

from kernel.benchmark import gpu_tests, sanitize

KERNELS = Path(sanitize.__file__).resolve().parents[1]


def kernels_of(path):
    """Names of the kernels that a module launches: those that end so, as the functions that they call do not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        jitted = isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
        if jitted and node.name.endswith("kernel"):
            yield node.name


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter tells what is launched")
def test_the_cases_launch_every_kernel(monkeypatch):
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    from kernel.benchmark import sanitize_cases

    launched, launch = set(), interpreter.GridExecutor.__call__

    def note(executor, *args, **options):
        launched.add(executor.fn.__name__)
        return launch(executor, *args, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", note)
    monkeypatch.setattr("kernel.fused.gradients.processors", lambda device: 20)  # sums over tokens in pieces
    there = {
        name for room in ("fused", "statistics") for path in (KERNELS / room).glob("*.py") for name in kernels_of(path)
    }
    for name in (
        "sparse",
        "bytes",
        "chunks",
        "statistics",
        "recomputed",
        "softcap",
        "codes",
        "odd sizes",
        "kept",
        "forward",
    ):
        if launched != there:  # the interpreter takes seconds for each
            sanitize_cases.CASES[name](torch.device("cpu"))
    assert len(there) > 30
    assert launched == there
    assert tuple(sanitize_cases.CASES) == sanitize._CASES


TOOL = f"""#!{sys.executable}
import subprocess, sys
if "--version" in sys.argv:
    print("NVIDIA (R) Compute Sanitizer\\nVersion 2025.3.1.0 (build 1)")
    sys.exit()
tool, case = sys.argv[sys.argv.index("--tool") + 1], sys.argv[-1]
if tool == "racecheck":
    print("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)")
else:
    print(f"========= ERROR SUMMARY: {{2 * (case == 'planted')}} errors")
    sys.exit(case == "planted")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command with a sanitizer that says what it is told to say, without the calls themselves."""
    call = sanitize._call
    quick = lambda words, most: call(words, most) if "--tool" in words else ("", 0, 0.1)  # noqa: E731
    monkeypatch.setattr(sanitize, "_call", quick)

    def run(*arguments, said=TOOL):
        tool = tmp_path / "compute-sanitizer"
        tool.write_text(said)
        tool.chmod(0o755)
        places = ("--sanitizer", tool, "--device", "cpu", "--output", tmp_path / "t.csv", "--cases", "kept", "planted")
        return [*places, "--tools", *arguments]

    return run


def test_what_the_tools_count_becomes_a_table(run, tmp_path, capsys):
    assert sanitize.main(list(map(str, run("memcheck")))) == 0
    assert sanitize.main(list(map(str, run("memcheck", "racecheck")))) == 1
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(r["tool"], r["case"], r["errors"], r["warnings"]) for r in rows] == [
        ("memcheck", "kept", "0", "0"), ("memcheck", "planted", "2", "0"),
        ("racecheck", "kept", "1", "2"), ("racecheck", "planted", "1", "2"),
    ]  # fmt: skip
    blind = TOOL.replace("2 * (case == 'planted')", "0").replace("sys.exit(case", "sys.exit(0 and case")
    assert sanitize.main(list(map(str, run("memcheck", said=blind)))) == 1


def test_a_tool_that_cannot_work_is_one_line(run, tmp_path, capsys):
    said = f"#!{sys.executable}\nprint('Error: Device not supported.')\nraise SystemExit(1)\n"
    line = refused(sanitize, run("memcheck", said=said), capsys)
    assert line == "memcheck of kept ended with status 1: Error: Device not supported."
    assert not list(tmp_path.glob("t*"))


def test_where_there_is_no_sanitizer_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no compute-sanitizer at "):
        sanitize.find(tmp_path / "none")


REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.kernel.test_a" name="x[1]" time="1.4"/>
<testcase classname="tests.kernel.test_a" name="x[2]" time="0.7"><failure message="no">no</failure></testcase>
<testcase classname="tests.kernel.test_a" name="y" time="0"><skipped message="needs two GPUs"/></testcase>
<testcase classname="tests.kernel.test_b" name="z" time="2"><error message="in its setup"/></testcase>
</testsuite></testsuites>"""


def test_reports_of_pytest_are_summed_by_file(tmp_path):
    (tmp_path / "1.xml").write_text(REPORT)
    (tmp_path / "2.xml").write_text(REPORT.replace("test_b", "test_c"))
    assert [tuple(row.values()) for row in gpu_tests.rows_of([tmp_path / "1.xml", tmp_path / "2.xml"])] == [
        ("test_a", 2, 2, 2, "4"), ("test_b", 0, 1, 0, "2"), ("test_c", 0, 1, 0, "2")
    ]  # fmt: skip
