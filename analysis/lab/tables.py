"""Tables on disk: the one writer and the one reader. Beside each CSV lies a sidecar that says where it comes from."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from .files import write_together
from .provenance import check_schema
from .records import decode, encode

__all__ = ["find_table", "read_sidecar", "read_table", "shortened", "sidecar_of", "write_table"]


def shortened(table: pd.DataFrame, digits: int, exact: Collection[str] = ()) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Make a small form of a table: floats keep so many significant digits, and what is the same in every line goes.

    Args:
        table: Its columns ``wall_seconds`` and ``cpu_seconds``, how long each row took, go too.
        digits: Significant digits.
        exact: Columns that keep all their digits.

    Returns:
        The table, and the columns that are the same in every line with their value; :func:`write_table` takes both.
    """
    table = table.drop(columns=["wall_seconds", "cpu_seconds"], errors="ignore")
    same = [name for name in table if table[name].nunique(dropna=False) == 1] if len(table) > 1 else []
    constants = {str(name): encode(_json_value(table[name].iloc[0])) for name in same}
    table = table.drop(columns=same)
    floats = table.select_dtypes("float").drop(columns=list(exact), errors="ignore")
    return table.assign(**{name: floats[name].map(lambda x: float(f"{x:.{digits}g}")) for name in floats}), constants


def _json_value(value: Any) -> Any:
    """A cell as JSON has it: no numpy number, no nan for a missing text."""
    return value.item() if hasattr(value, "item") else value


def write_table(
    table: pd.DataFrame,
    path: Path,
    made: Mapping[str, Any],
    *,
    digits: int | None = None,
    constants: Mapping[str, Any] | None = None,
    packed_from: float = math.inf,
    beside: Mapping[Path, str | bytes] | None = None,
) -> Path:
    """Write a table as CSV and its sidecar ``NAME.json``, both or none.

    Args:
        table: What to write.
        path: The CSV.
        made: The sidecar, as :mod:`~analysis.lab.provenance` makes it, with further JSON values.
        digits: Significant digits of floats; None for all.
        constants: Columns that are the same in every line (:func:`shortened`); the sidecar keeps them.
        packed_from: A CSV of more bytes is gzipped, ``PATH.gz``. A table of the other form is removed.
        beside: Further files that belong to the table, written with it.

    Returns:
        The path of the sidecar.

    Raises:
        ValueError: If the sidecar lacks a key of ``SCHEMA``, or has a null that no ``note`` explains.
        OSError: If a file cannot be written; earlier ones are then as they were.
    """
    check_schema(made)
    if digits is not None:
        table = table.map(lambda x: f"{x:.{digits}g}" if isinstance(x, float) and x == x else x)
    content, written = table.to_csv(index=False, lineterminator="\n").encode(), path
    other = path.with_name(path.name + ".gz")
    if len(content) > packed_from:
        content, written, other = gzip.compress(content, mtime=0), other, written
    shape = {"file": written.name, "rows": len(table), "columns": list(table), "constants": dict(constants or {})}
    sidecar = {**made, "table": shape, "written": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    text = json.dumps(encode(sidecar), indent=1, allow_nan=False) + "\n"
    write_together({written: content, sidecar_of(path): text, **(beside or {})})
    other.unlink(missing_ok=True)
    return sidecar_of(path)


def find_table(folder: Path, name: str) -> Path | None:
    """Find ``NAME.csv``, or ``NAME.csv.gz`` where a large table is kept packed, in a folder; None where neither is."""
    paths = (folder / f"{name}{ending}" for ending in (".csv", ".csv.gz"))
    return next((path for path in paths if path.exists()), None)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of :func:`write_table`, or any other CSV, with the columns that its sidecar holds as constants.

    Args:
        path: The CSV, gzipped if its name ends in ``.gz``; the sidecar ``NAME.json`` is looked for beside it.

    Returns:
        The table. Constant columns come last.

    Raises:
        ValueError: If the file is cut, damaged, empty or no table, or if its sidecar is.
        OSError: If it cannot be read.
    """
    try:
        table = pd.read_csv(path)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no whole table: {error}") from error
    if table.empty:
        raise ValueError(f"{path} is no whole table: it has no rows")
    for name, value in read_sidecar(path).get("table", {}).get("constants", {}).items():
        table[name] = float("nan") if value is None or value == "" else value  # as a CSV would say it
    return table


def sidecar_of(path: Path) -> Path:
    """Return the path of the sidecar of a table."""
    return path.with_name(path.name.split(".csv")[0] + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read what stands in the sidecar of a table; empty where there is none."""
    beside = sidecar_of(path)
    if not beside.exists():
        return {}
    try:
        content = decode(json.loads(beside.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{beside} is no whole sidecar: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{beside} is no sidecar: it must hold a JSON object")
    if not all(isinstance(content.get(part, {}), dict) for part in ("table", "config")):
        raise ValueError(f"{beside} is a sidecar of an earlier version: make its table again")
    return content
