"""Where every committed table comes from, and what reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..command import committed_folder
from ..lab.tables import read_sidecar

__all__ = ["Source", "sources"]

# Committed files that are no tables -> the command that makes them.
_OTHERS = {
    "full_rows.xz": "python -m analysis.study pack paper_figures/data/full_rows.xz --digits 6 --preset full",
    "response.png": "python -m paper_figures --only response --preset full",
}
_READERS = (
    "README.md", "docs/*.md", "docs/*_tables.py", "paper_figures/*.py", "notebooks/*.py", "analysis/claims/*.py",
    "analysis/audit/*.py", "kernel/benchmark/targets.py",
)  # fmt: skip


class Source(NamedTuple):
    """One committed file.

    Attributes:
        file: Its path under ``paper_figures/data``.
        command: What makes it.
        commit: The commits whose code made it; empty where that was not recorded, and for files that are no tables.
        readers: Modules and pages that name it, as paths from the root of the repository.
    """

    file: str
    command: str
    commit: tuple[str, ...]
    readers: tuple[str, ...]


def sources() -> Iterator[Source]:
    """Every committed file but the sidecars, which say what made the tables.

    Raises:
        FileNotFoundError: If this is an installation without the repository.
        ValueError: If a table has no sidecar.
    """
    data = committed_folder()
    root = data.parents[1]
    if data.parent.name != "paper_figures":
        raise FileNotFoundError(f"what reads the tables is in the repository: run this in a clone, got {data}.")
    texts = {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for pattern in _READERS
        for path in sorted(root.glob(pattern))
    }
    for path in sorted(data.rglob("*")):
        if path.is_dir() or path.suffix == ".json":
            continue
        # a table in quotes, or any file by its name
        table = "" if path.name in _OTHERS else rf"|[\"`/]{re.escape(path.name.split('.')[0])}[\"`]"
        named = re.compile(rf"[\"`/]{re.escape(path.name)}\b{table}")
        found = tuple(reader for reader, text in texts.items() if named.search(text))
        command, commit = (_OTHERS[path.name], ()) if path.name in _OTHERS else _made(path)
        yield Source(str(path.relative_to(data)), command, commit, found)


def _made(path: Path) -> tuple[str, tuple[str, ...]]:
    """Command and commits of a table; raw samples have the sidecar of the table that they belong to."""
    made = read_sidecar(path) or read_sidecar(path.with_name(path.name.replace("_samples", "")))
    if not made:
        raise ValueError(f"{path} must have a sidecar beside it that says what made it.")
    commit = made["commit"] or []
    return made["command"], (commit,) if isinstance(commit, str) else tuple(commit)
