"""Resolve what `make install` needs on each Python that the project promises, without installing anything.

uv asks the package index, of wheels alone, whether pyproject.toml and constraints.txt fit together there, and the pins
are compared with what it found. pip cannot do this: it reads markers as of the Python that it runs on. Where the index
cannot be reached, or not in time, or holds a package back, this says so and passes, as nothing was found out; any other
failure, a wrong option or a file that cannot be read among them, is one of this check.
"""

from __future__ import annotations

import re
import signal
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
OURS = re.compile(
    r"unexpected argument|invalid value '|unrecognized subcommand|no such option|panicked at", re.IGNORECASE
)
THE_INDEX = re.compile(  # in the words of pip and uv: the network, the index and what they answer
    r"request|fetch|download|connect|network|unreachable|dns|resolve host|name resolution|time[d -]*out|timeout|proxy|"
    r"tls|ssl|certificate|https?:|status code|\b[45]\d\d\b|too many|retr(y|ies)|temporar|offline|stream|body|decod|"
    r"no matching distribution|could not find a version|was not found in the|failed to build|no answer within|killed",
    re.IGNORECASE,
)


def main() -> int:
    """Print one line for each Python; return 1 where one has no solution, or other packages than the pins."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1")
        status, said = _run(*pip, "--no-deps", "--only-binary", ":all:", "--target", folder, UV, seconds=25)
        if status:
            print(f"no uv: {failure(said)}")
            return int(not failure(said).startswith(UNKNOWN))
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
    return failure(said) if status else _compared(python, said)


def failure(said: str) -> str:
    """What a failed call of pip or uv tells: that the index gave no answer, or else its words."""
    no_solution = "No solution found" in said and "was not found in the" not in said  # else the index holds one back
    if no_solution or OURS.search(said) or not THE_INDEX.search(said):
        return said.strip() or "failed without a word"
    return f"{UNKNOWN}{_last(said)}"


def _run(*words: str, seconds: float) -> tuple[int, str]:
    """Exit status, and the output or what went wrong."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {seconds:g} seconds"
    if done.returncode == -signal.SIGKILL:  # no memory left
        return done.returncode, "killed"
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
