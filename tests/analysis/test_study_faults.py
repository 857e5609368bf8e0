"""Faults of the study's command: each is one line that says what to do, and harms no table."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import study_jobs
import sweep_jobs
from sweep_jobs import Square, one_after_another, square

import paper_figures
from analysis import command
from analysis.claims import verdicts
from analysis.lab.records import RowStore, config_key
from analysis.lab.sweep import run
from analysis.lab.tables import read_sidecar, read_table
from analysis.study.__main__ import main

DATA = Path(paper_figures.__file__).parent / "data"
ROOT, TESTS = DATA.parent.parent, Path(study_jobs.__file__).parent
PATHS = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}


@pytest.fixture
def quick(tmp_path):
    """The committed quick tables in a folder of their own."""
    return Path(shutil.copytree(DATA / "quick", tmp_path / "mine"))


@pytest.fixture
def no_file_is_written(monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths: pytest.fail(f"{paths[1]} is written"))


def one_error(arguments, capsys) -> str:
    """The only line of a call that is refused."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


class TestVerdicts:
    def test_the_default_shows_what_the_readme_shows_and_writes_nothing(self, no_file_is_written, capsys):
        assert main(["verdicts"]) == 0
        out = capsys.readouterr().out
        assert "wrote" not in out
        committed = pd.read_csv(DATA / "verdicts.csv").set_index("claim")
        for claim, line in committed.iterrows():
            assert f"{claim}  {line['verdict']:12}{line['statement']}\n    {line['effect']}" in out
            assert f"  {line['mean']:.4f} [{line['low']:.4f}, {line['high']:.4f}]\n" in out

    def test_of_a_folder_of_its_own_nothing_is_filled_in_and_nothing_written(
        self, quick, tmp_path, no_file_is_written, capsys
    ):
        for path in quick.iterdir():
            if not path.name.startswith("S3"):
                path.unlink()
        assert main(["verdicts", "--preset", "quick", "--out", str(quick)]) == 1
        out, err = capsys.readouterr()
        assert (
            f"K1  not decided instruction tuning degrades calibration\n    \n    there is no S7.csv in {quick}\n" in out
        )
        assert err.startswith("not decided for want of a table: K1, K2")

    def test_a_table_of_another_preset_is_no_full_one(self, quick, capsys):
        error = one_error(["verdicts", "--out", str(quick)], capsys)
        assert error == f"{quick / 'S1.csv'} is of the preset quick: give --preset quick, got 'full'."

    def test_a_folder_without_tables_is_an_error_with_the_way_out(self, tmp_path, capsys):
        error = one_error(["verdicts", "--out", str(tmp_path / "none")], capsys)
        assert error == (
            f"there are no tables S1 to S7 in {tmp_path / 'none'}; make them with: "
            f"python -m analysis.study run all --preset full --out {tmp_path / 'none'}"
        )

    def test_an_installation_without_the_repository_says_what_to_do(self, quick, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(command, "_ROOT", tmp_path)
        assert one_error(["verdicts"], capsys) == (
            "the committed tables are in the repository and not in this installation: run the command in a clone, or "
            "compute tables (python -m analysis.study run all) and name their folder with --out."
        )
        assert main(["verdicts", "--preset", "quick", "--out", str(quick)]) == 0
        assert "there is no kernel.csv in this installation; S8 needs a GPU" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("S3.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-20], "is no whole table: "),
            ("S3.csv.gz", b"\x1f\x8b nonsense", "is no whole table: "),
            ("S5.csv", b"", "is no whole table: No columns to parse from file"),
            ("S5.csv", b"key,x\n", "is no whole table: it has no rows"),
            ("S5.csv", b"\xff\xfe\x00", "is no whole table: "),
            ("S5.json", b"{", "is no whole sidecar: "),
            ("S5.json", b"[]", "is no sidecar: it must hold a JSON object"),
            ("S5.json", b'{"table": "S5.csv"}', "is a sidecar of an earlier version: make its table again"),
            ("S7.csv", b"x\n1\n", "the tables that K1 reads have no column "),
        ],
        ids=["cut", "no gzip", "empty", "no rows", "binary", "cut sidecar", "no sidecar", "earlier sidecar", "another"],
    )
    def test_a_damaged_table_is_named(self, name, content, reason, quick, capsys):
        (quick / name.removesuffix(".gz")).unlink()
        (quick / name).write_bytes(content)
        error = one_error(["verdicts", "--preset", "quick", "--out", str(quick)], capsys)
        assert reason in error
        assert str(quick / name) in error or name == "S7.csv"

    def test_files_that_cannot_be_written_are_found_before_anything_is_judged(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(verdicts, "judge", lambda *_: pytest.fail("something is judged"))
        (tmp_path / "a").write_text("in the way")
        assert str(tmp_path / "a" / "v.csv") in one_error(["verdicts", "--file", str(tmp_path / "a" / "v.csv")], capsys)
        for name in ("verdicts.csv", "verdicts.json", "findings.csv"):
            folder = tmp_path / name.replace(".", "_")
            (folder / name).mkdir(parents=True)
            error = one_error(["verdicts", "--file", str(folder / "verdicts.csv")], capsys)
            assert error == f"[Errno 21] Is a directory: '{folder / name}'"
        with pytest.raises(SystemExit, match="2"):
            main(["verdicts", "--file", str(tmp_path / "v.json")])
        assert "argument --file: must end in .csv, got" in capsys.readouterr().err


def test_tables_of_no_rows_are_an_error_and_make_no_folder(tmp_path, capsys):
    error = one_error(["tables", "--out", str(tmp_path / "none")], capsys)
    assert error == f"there is no complete cell of preset quick under {tmp_path / 'none'}/rows."
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("option", ["--max-minutes", "--longest-fit"])
@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon"])
def test_times_are_above_0(option, text, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "S1", f"{option}={text}"])
    assert f"argument {option}: must be a number above 0, got {text!r}" in capsys.readouterr().err


class TestTwoSweepsInOneFolder:
    def hold(self, folder, key):
        """Another process that computes a row, as far as this one can see."""
        code = (
            "import sys, pathlib; from analysis.lab.row_locks import RowLocks; "
            "print(RowLocks(pathlib.Path(sys.argv[1])).take(sys.argv[2]), flush=True); sys.stdin.read()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder), key],
            env=PATHS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def test_what_another_process_computes_is_left_to_it_until_it_ends(self, tmp_path, capfd):
        configs = [Square(n) for n in range(4)]
        with self.hold(tmp_path, config_key(configs[2])) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
            first = run(square, configs, tmp_path, engine=one_after_another)
            assert first.rows["number"].tolist() == [0, 1, 3]
            assert (first.computed, first.elsewhere, first.failures) == (3, 1, {})
            assert capfd.readouterr().err == (
                "another sweep computes rows here: each takes what the other has not begun\n"
            )
            other.kill()  # its lock is gone with it
        again = run(square, configs, tmp_path, engine=one_after_another)
        assert (again.computed, again.elsewhere) == (1, 0)
        assert capfd.readouterr().err == ""

    def test_two_at_once_compute_each_row_once(self, tmp_path):
        order = [sys.executable, sweep_jobs.__file__, str(tmp_path), "0.1", "serial"]
        pair = [subprocess.Popen(order, env=PATHS, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        errors = [process.communicate(timeout=120)[1] for process in pair]
        assert [process.returncode for process in pair] == [0, 0]
        assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(24))
        assert set("".join(errors).splitlines()) <= {
            "another sweep computes rows here: each takes what the other has not begun"
        }

    def test_a_row_that_came_in_the_meantime_is_not_made_again(self, tmp_path):
        configs = [Square(n) for n in range(3)]

        def engine(function, pending, size, enough, take):
            RowStore(tmp_path).write(configs[1], {"number": 1, "square": 1}, {})
            return one_after_another(function, pending, size, enough, take)

        result = run(square, configs, tmp_path, engine=engine)
        assert result.rows["number"].tolist() == [0, 1, 2]
        assert (result.computed, result.elsewhere) == (2, 0)

    def test_a_file_system_without_locks_is_said_once_and_works(self, tmp_path, monkeypatch, capfd):
        def none(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "lockf", none)
        assert run(square, [Square(1), Square(2)], tmp_path, engine=one_after_another).computed == 2
        assert capfd.readouterr().err == f"no locks in {tmp_path} (No locks available): run one sweep at a time there\n"


class TestInterrupted:
    def test_the_rows_are_kept_and_counted(self, tmp_path):
        def engine(function, configs, *_):
            yield configs[0], function(configs[0]), None
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match=r"^1 of 3 rows are kept; run again to go on$"):
            run(square, [Square(n) for n in range(3)], tmp_path, engine=engine)

    def test_the_command_says_so_in_one_line_and_leaves_no_worker(self, tmp_path):
        order = [sys.executable, study_jobs.__file__, str(tmp_path)]
        driver = subprocess.Popen(
            order,
            env=PATHS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
        )
        folder, deadline = tmp_path / "rows" / "S1", time.monotonic() + 120
        while len(list(folder.glob("*.json"))) < 3:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        workers = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does it: to the workers too
        out, err = driver.communicate(timeout=60)
        kept = len(list(folder.glob("*.json")))
        assert (driver.returncode, out) == (130, "")
        assert err == f"interrupted: {kept} of {len(study_jobs.GRID)} rows are kept; run again to go on\n"
        with contextlib.suppress(psutil.NoSuchProcess):
            assert not psutil.wait_procs(workers, timeout=20)[1]


def test_a_damaged_table_is_refused_wherever_it_is_read(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"x\n" + b"1\n" * 10**5)[:100])
    with pytest.raises(ValueError, match=rf"^{path} is no whole table: "):
        read_table(path)
    assert read_sidecar(path) == {}
