"""Committed tables of the theory: a CSV file, and beside it a JSON file that says how it was made."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import scipy
from tqdm import tqdm

__all__ = ["write_table"]


def write_table(
    path: Path, rows: Iterable[Mapping[str, object]], *, digits: int, command: str, total: int | None = None
) -> int:
    """Write rows of the same columns, floats to ``digits`` significant digits, and return their number.

    ``path`` with the suffix .json receives the command and the versions that the numbers come from. ``total`` is the
    number of rows to come, for the progress bar of a terminal.
    """
    table = [
        {name: f"{value:.{digits}g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in tqdm(rows, desc=path.name, total=total, unit="row", disable=None)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    path.with_suffix(".json").write_text(json.dumps({"command": command, **versions}, indent=2) + "\n")
    return len(table)
