"""The cases for compute-sanitizer launch every kernel, and what a tool says becomes a row; also pytest's reports."""

from __future__ import annotations

import ast
import csv
import sys
from pathlib import Path

import pytest
import torch

from kernel.benchmark import gpu_tests, sanitize

KERNELS = Path(sanitize.__file__).resolve().parents[1]


def kernels_of(path):
    """Names of the kernels that a module launches: those that end so, as the functions that they call do not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.endswith("kernel"):
            yield from [node.name for d in node.decorator_list if "triton.jit" in ast.unparse(d)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter tells what is launched")
def test_the_cases_launch_every_kernel_and_depend_on_no_memory_that_was_never_written(monkeypatch, request):
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    from kernel.benchmark import sanitize_cases

    launched, launch = set(), interpreter.GridExecutor.__call__
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # new tensors are full of NaN
    was = torch.are_deterministic_algorithms_enabled()
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(was))
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()

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


# A line for sh, which Python reads as a text: the path of an interpreter may hold spaces, which no "#!" takes.
PYTHON = f'#!/bin/sh\n"exec" "{sys.executable}" "$0" "$@"\n'
TOOL = f"""{PYTHON}import subprocess, sys
if "--version" in sys.argv:
    print("NVIDIA (R) Compute Sanitizer\\nVersion 2025.3.1.0 (build 1)")
    sys.exit()
tool, case = sys.argv[sys.argv.index("--tool") + 1], sys.argv[-1]
if tool == "racecheck":
    print("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)")
elif case == "planted":
    print("========= Target application returned an error")
    print("========= ERROR SUMMARY: 102 errors")
    print("========= ERROR SUMMARY: 2 errors were not printed. Use --print-limit option to adjust")
    sys.exit(1)
else:
    print("========= ERROR SUMMARY: 0 errors")
print("the call has ended.")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command with a sanitizer that says what it is told to say, without the calls themselves."""
    call = sanitize._call

    def quick(words, most):
        said = "error: no tile." if words[-1] == "sparse" else "the call has ended.\nterminate called"  # as it may exit
        return call(words, most) if "--tool" in words else (said, 2, 0.1)

    monkeypatch.setattr(sanitize, "_call", quick)

    def run(*arguments, said=TOOL, cases=("kept", "planted")):
        tool = tmp_path / "compute-sanitizer"
        tool.write_text(said)
        tool.chmod(0o755)
        places = ("--sanitizer", tool, "--device", "cpu", "--output", tmp_path / "t.csv", "--cases", *cases)
        return [*places, "--tools", *arguments]

    return run


def table(folder):
    return list(csv.DictReader((folder / "t.csv").read_text().splitlines()))


def test_what_the_tools_count_becomes_a_table(run, tmp_path, capsys):
    assert sanitize.main(list(map(str, run("memcheck")))) == 0
    assert sanitize.main(list(map(str, run("memcheck", "racecheck")))) == 1
    assert [(r["tool"], r["case"], r["errors"], r["warnings"], r["failure"]) for r in table(tmp_path)] == [
        ("memcheck", "kept", "0", "0", ""), ("memcheck", "planted", "102", "0", ""),
        ("racecheck", "kept", "1", "2", ""), ("racecheck", "planted", "1", "2", ""),
    ]  # fmt: skip
    blind = TOOL.replace("102", "0").replace("2 errors were", "0 errors were")
    assert sanitize.main(list(map(str, run("memcheck", said=blind)))) == 1


def test_a_call_that_fails_is_a_row_beside_the_others(run, tmp_path):
    assert sanitize.main(list(map(str, run("memcheck", cases=("sparse", "kept", "planted"))))) == 1
    assert [(r["case"], r["errors"], r["failure"]) for r in table(tmp_path)] == [
        ("kept", "0", ""), ("planted", "102", ""), ("sparse", "", "without a tool: error: no tile.")
    ]  # fmt: skip


def test_a_tool_that_cannot_work_says_why(run, tmp_path):
    said = f"{PYTHON}print('Error: Device not supported.')\nraise SystemExit(1)\n"
    assert sanitize.main(list(map(str, run("memcheck", said=said)))) == 1
    rows = [(r["errors"], r["failure"]) for r in table(tmp_path)]
    assert rows == [("", "ended with status 1: Error: Device not supported.")] * 2


def test_initcheck_runs_only_where_it_is_named(run, tmp_path):
    arguments = [str(word) for word in run() if word != "--tools"]
    assert sanitize.main(arguments) == 1
    assert [r["tool"] for r in table(tmp_path)] == [t for t in ("racecheck", "memcheck", "synccheck") for _ in range(2)]


def test_what_takes_too_long_is_ended(run, tmp_path):
    said = f"{PYTHON}import sys, time\ntime.sleep(0 if '--version' in sys.argv else 60)\n"
    assert sanitize.main(list(map(str, run("memcheck", "--seconds", 1, said=said)))) == 1
    assert [(r["errors"], r["failure"]) for r in table(tmp_path)] == [("", "took more than 1 seconds")] * 2


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
    collected = ["tests/kernel/test_a.py::x[1]", "tests/kernel/test_b.py::z", *["tests/test_d.py::x[a.b::c]"] * 3]
    rows = gpu_tests.rows_of([tmp_path / "1.xml", tmp_path / "2.xml"], collected)
    assert [tuple(row.values()) for row in rows] == [
        ("test_a", 2, 2, 2, 0, "4"), ("test_b", 0, 1, 0, 0, "2"), ("test_c", 0, 1, 0, 0, "2"), ("test_d", 0, 0, 0, 3, "0")
    ]  # fmt: skip


def test_a_process_that_is_late_reports_what_it_had_done(tmp_path, capsys):
    test = tmp_path / "test_late.py"
    test.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\n")
    names, report = [f"{test}::test_a", f"{test}::test_b"], tmp_path / "report.xml"
    gpu_tests._tested(names, report, 4, {})
    (row,) = gpu_tests.rows_of(filter(Path.exists, [report]), names)
    assert row["passed"] + row["not_run"] == 2 > row["passed"]  # none may have passed on a busy machine
    assert "a process took more than 4 seconds" in capsys.readouterr().out


@pytest.mark.parametrize(("visible", "seen"), [(None, "1,0,2"), ("7,4,5", "4,7,5")])
def test_the_gpu_that_is_asked_for_is_the_first_of_the_tests(tmp_path, monkeypatch, visible, seen, capsys):
    test = tmp_path / "tests" / "test_one.py"
    test.parent.mkdir()
    body = "import os, pytest\n@pytest.mark.{}\ndef test_it():\n    assert os.environ['CUDA_VISIBLE_DEVICES'] == {!r}\n"
    test.write_text(body.format("cuda", seen))
    (tmp_path / "tests" / "test_two.py").write_text(body.format("alone\n@pytest.mark.cuda", seen))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    cuda\n    alone\n")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpu_tests, "resolve_device", lambda given: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.chdir(tmp_path)
    status = gpu_tests.main(["--device", "cuda:1", "--processes", "1", "--output", str(tmp_path / "table.csv")])
    assert status == 0, capsys.readouterr().out
