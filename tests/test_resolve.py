"""What the check of the pins takes for an answer of the package index, and what for a failure of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("packaging")
PATH = Path(__file__).resolve().parent.parent / ".ci" / "resolve.py"


@pytest.fixture(scope="module")
def resolve():
    spec = importlib.util.spec_from_file_location("resolve", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "said",
    [
        "no answer within 60 seconds",
        "killed",
        "error: Request failed after 3 retries\n  Caused by: Failed to fetch: `https://index/simple/numpy/`",
        "error: Failed to fetch: `https://index/simple/torch/`\n  Caused by: HTTP status server error (503)",
        "  Caused by: client error (Connect)\n  Caused by: dns error: failed to lookup address information",
        "  x Failed to download `torch==2.13.0`\n  operation timed out",
        "  x No solution found when resolving dependencies:\n  Because relplot was not found in the package registry",
        "ERROR: Could not find a version that satisfies the requirement uv==0 (from versions: none)\n"
        "ERROR: No matching distribution found for uv==0",
    ],
)
def test_without_an_answer_of_the_index_it_passes(resolve, said):
    assert resolve.failure(said) == resolve.UNKNOWN + said.splitlines()[-1]


@pytest.mark.parametrize(
    "said",
    [
        "error: unexpected argument '--no-headers' found\n\nUsage: uv pip compile [OPTIONS] <SRC_FILE|--group <GROUP>>",
        "error: invalid value '3,10' for '--python-version <PYTHON_VERSION>'",
        "error: File not found: `pyproject.toml`",
        "error: Failed to parse: `pyproject.toml`\n  Caused by: TOML parse error at line 1, column 1",
        "thread 'main' panicked at crates/uv/src/lib.rs:1:1:\nFailed to fetch",
        "  x No solution found when resolving dependencies:\n  Because torch==9 needs numpy>=9, requirements are "
        "unsatisfiable; see https://index/",
        "",
    ],
)
def test_any_other_failure_is_its_own(resolve, said):
    assert resolve.failure(said) == said.strip() or not said
    assert not resolve.failure(said).startswith((resolve.UNKNOWN, "as pinned"))
