"""Committed tables of the theory: a CSV file, and beside it a JSON file that says how it was made."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import scipy
from tqdm import tqdm

from .files import check_writable, write_together

__all__ = ["write_table"]


def write_table(
    path: Path, rows: Iterable[Mapping[str, object]], *, digits: int, command: str, total: int | None = None
) -> int:
    """Write rows of the same columns, floats to ``digits`` significant digits, and return their number.

    ``path`` with the suffix .json receives the command and the versions that the numbers come from: both files or none.
    ``total`` is the number of rows to come, for the progress bar of a terminal. A path that cannot be written raises
    OSError before the first row is computed.
    """
    check_writable(path, path.with_suffix(".json"))
    table = [
        {name: f"{value:.{digits}g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in tqdm(rows, desc=path.name, total=total, unit="row", disable=None)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    sidecar = json.dumps({"command": command, **versions}, indent=2) + "\n"
    write_together({path: text.getvalue(), path.with_suffix(".json"): sidecar})
    return len(table)
