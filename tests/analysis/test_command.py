"""What all commands share: one line for what a user can mend, and folders that no installation mistakes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
from analysis import command
from analysis.command import above_zero, committed_folder, finish, output_folder, shown, whole

ROOT = Path(analysis.__file__).resolve().parent.parent


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("a must be\n  1."), 2, "error: a must be 1.\n"),
        (OSError(28, "No space left on device", "t.csv"), 2, "error: [Errno 28] No space left on device: 't.csv'\n"),
        (ImportError("install it."), 2, "error: install it.\n"),
        (MemoryError(), 2, "error: MemoryError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("3 of 4 rows are kept"), 130, "interrupted: 3 of 4 rows are kept\n"),
    ],
)
def test_an_expected_error_is_one_line_and_a_status(error, status, line, capsys):
    assert finish(raising(error)) == status
    assert capsys.readouterr() == ("", line)


def test_the_status_of_a_command_is_kept_and_what_nobody_expects_is_raised():
    assert finish(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        finish(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("redirection", "status", "error"),
    [("> /dev/full", 2, "error: [Errno 28] No space left on device\n"), ("| head -c 1; exit ${PIPESTATUS[0]}", 1, "")],
    ids=["full", "left"],
)
def test_a_full_or_closed_output_is_no_traceback(redirection, status, error):
    code = "import sys; from analysis.command import finish; sys.exit(finish(lambda: print('x' * 10**6) or 0))"
    run = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" {redirection}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (status, error)


def test_numbers_of_options():
    assert whole(0)("0") == 0
    assert above_zero("1e-3") == 1e-3
    for text in ("0", "1.5", "x", "-1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^must be a whole number of at least 1, got {text!r}$"):
            whole(1)(text)
    for text in ("0", "nan", "inf", "x", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^must be a number above 0, got {text!r}$"):
            above_zero(text)


def test_folders_are_those_of_the_repository_wherever_it_is_run_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert committed_folder() == ROOT / "paper_figures" / "data"
    assert output_folder() == ROOT / "paper_figures" / "out"
    assert shown(tmp_path / "a" / "b") == "a/b"
    assert shown(output_folder()) == str(ROOT / "paper_figures" / "out")


def test_an_installation_without_the_repository_says_so_and_makes_no_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_ROOT", tmp_path)
    assert output_folder() == Path("out")
    with pytest.raises(FileNotFoundError, match=r"in the repository and not in this installation: run .* in a clone"):
        committed_folder()
    (tmp_path / "analysis" / "data").mkdir(parents=True)
    assert committed_folder() == tmp_path / "analysis" / "data"  # what a wheel holds
