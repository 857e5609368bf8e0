"""Resolve what `make install` needs on each Python that the project promises, without installing anything.

uv asks the package index, of wheels alone, whether pyproject.toml and constraints.txt fit together there, and the pins
are compared with what it found. pip cannot do this: it reads markers as of the Python that it runs on. Where the index
cannot be reached, or not in time, this says so and passes, as nothing was found out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
UV = "uv==0.13.9"
SOURCE_ONLY = "uncertainty-calibration"  # has no wheel; pure Python
BROUGHT_BY_TORCH = re.compile(r"(nvidia|cuda|torch-c)-")  # not pinned, as builds of torch differ in these
UNKNOWN = "not resolved: "


def main() -> int:
    """Print one line for each Python; return 1 where one has no solution, or other packages than the pins."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1")
        status, said = _run(*pip, "--no-deps", "--only-binary", ":all:", "--target", folder, UV, seconds=25)
        if status:
            print(f"{UNKNOWN}no uv: {_last(said)}")
            return 0
        with ThreadPoolExecutor(len(PYTHONS)) as several:  # it is the index that takes the time
            results = list(several.map(lambda python: _resolve(python, folder), PYTHONS))
    for python, result in zip(PYTHONS, results, strict=True):
        print(f"Python {python}: {result}")
    return int(any(not result.startswith((UNKNOWN, "as pinned")) for result in results))


def _resolve(python: str, folder: str) -> str:
    words = (f"{folder}/bin/uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--color", "never")
    words += ("--cache-dir", f"{folder}/cache", "--python-version", python, "--extra", "dev")
    words += ("--only-binary", ":all:", "--no-binary", SOURCE_ONLY, "--constraints", "constraints.txt")
    status, said = _run(*words, "pyproject.toml", seconds=60)
    if "No solution found" in said and "was not found in the" not in said:  # a package that the index holds back
        return said
    return f"{UNKNOWN}{_last(said)}" if status else _compared(python, said)


def _run(*words: str, seconds: float) -> tuple[int, str]:
    """Exit status, and the output or what went wrong."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {seconds:g} seconds"
    return done.returncode, done.stderr if done.returncode else done.stdout


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no word of why"])[-1]


def _compared(python: str, resolved: str) -> str:
    """Whether the pins for this Python are the packages that uv found, and no others."""
    listed = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in "#"]
    here = {"python_version": python}
    pins = {canonicalize_name(r.name) for r in listed if r.marker is None or r.marker.evaluate(here)}
    found = {canonicalize_name(Requirement(line).name) for line in resolved.splitlines() if line.strip()}
    lacking = sorted(name for name in found - pins if not BROUGHT_BY_TORCH.match(name))
    if lacking or pins - found:
        return f"constraints.txt lacks {lacking or 'none'}, and has for nothing {sorted(pins - found) or 'none'}"
    return f"as pinned, {len(pins)} packages"


if __name__ == "__main__":
    sys.exit(main())
