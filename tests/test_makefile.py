"""The Makefile's set-up with a stand-in for Python: what it refuses, and that a second run installs nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed")

# Runs `-c CODE` in the real interpreter after PATCH; `-m venv` copies itself; `-m pip` writes its arguments down.
STAND_IN = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip") echo "$@" >> pip.log ;;
    *) exec "{real}" -c "import sys; {patch}; code = sys.argv.pop(1); exec(code)" "$2" ;;
esac
"""


class Tree:
    """A copy of the Makefile in a folder whose name holds a space."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, root / name)

    def python(self, name: str, patch: str = "pass") -> str:
        path = self.root.parent / name
        path.write_text(STAND_IN.format(real=sys.executable, patch=patch))
        path.chmod(0o755)
        return str(path)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", *arguments], cwd=self.root, capture_output=True, text=True, check=False)

    def installs(self) -> list[str]:
        log = self.root / "pip.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "a clone")


def test_installs_once_with_the_pins(tree):
    python = tree.python("python of mine")
    for _ in range(2):
        run = tree.make("install", f"PYTHON={python}")
        assert run.returncode == 0, run.stderr
    run = tree.make("install")  # and the environment's own interpreter from then on
    assert run.returncode == 0, run.stderr
    pins, rest = tree.installs()
    assert pins.endswith("--no-deps -r constraints.txt")  # as they are: nothing to resolve
    assert rest.endswith("-c constraints.txt -e .[dev]")  # what torch's build brings, and the package


def test_other_pins_are_used_and_noticed(tree):
    python = tree.python("python")
    (tree.root / "other pins.txt").write_text("numpy==2.2\n")
    assert tree.make("install", f"PYTHON={python}", "CONSTRAINTS=other pins.txt").returncode == 0
    assert tree.make("install", f"PYTHON={python}", "CONSTRAINTS=").returncode == 0
    first, second = tree.installs()
    assert first.endswith("-c other pins.txt -e .[dev]")
    assert "-c" not in second.split()
    assert "--no-deps" not in (first + second).split()  # they may leave something out


def test_new_dependencies_are_installed(tree):
    python = tree.python("python")
    tree.make("install", f"PYTHON={python}")
    with (tree.root / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    before = len(tree.installs())
    assert tree.make("install").returncode == 0
    assert len(tree.installs()) == 2 * before


def test_another_interpreter_makes_the_environment_anew(tree):
    tree.make("install", f"PYTHON={tree.python('python')}")
    before = len(tree.installs())
    other = tree.python("other", "sys.version = '3.12.0 (other)'")
    assert tree.make("install", f"PYTHON={other}").returncode == 0
    assert len(tree.installs()) == 2 * before


@pytest.mark.parametrize(
    ("patch", "text"),
    [
        ("sys.version_info = (3, 9, 0)", "Python 3.10 to 3.13 is needed, PYTHON={python} is 3.9"),
        ("sys.version_info = (3, 14, 0)", "Python 3.10 to 3.13 is needed, PYTHON={python} is 3.14"),
        ("sys.modules['ensurepip'] = None", "PYTHON={python} has no venv module; on Debian and Ubuntu: apt install"),
    ],
)
def test_unfit_interpreters_are_refused(tree, patch, text):
    python = tree.python("python", patch)
    run = tree.make("install", f"PYTHON={python}")
    assert run.returncode != 0
    assert text.format(python=python) in run.stderr
    assert not tree.installs()


def test_a_missing_interpreter_and_missing_pins_are_named(tree):
    run = tree.make("install", "PYTHON=/no/such/python")
    assert run.returncode != 0
    assert "error: PYTHON=/no/such/python does not run" in run.stderr
    run = tree.make("install", f"PYTHON={tree.python('python')}", "CONSTRAINTS=nowhere.txt")
    assert run.returncode != 0
    assert "error: CONSTRAINTS=nowhere.txt cannot be read" in run.stderr
