"""Rows of the files that people keep predictions in, each with the line that a message can name."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TextIO

__all__ = ["BadRow", "check_files", "rows"]

_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".jsonlines", ".json", ".parquet")
_Rows = Iterator[tuple[int, "dict[str, Any] | str"]]


class BadRow(NamedTuple):
    """A row that could not be used."""

    file: str
    line: int  # from 1; of a Parquet file or a JSON list the number of the row
    problem: str


def check_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files, each of a known ending, there and named once; nothing is read."""
    found = dict[Path, Path]()
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        ending, packed = _form(path)
        if ending not in _ENDINGS or (packed and ending == ".parquet"):
            raise ValueError(f"files must end in {', '.join(_ENDINGS)} (but for Parquet also with .gz), got {path}.")
        if path.resolve() in found:
            raise ValueError(f"files must name each file once, got {path} twice.")
        if ending == ".parquet" and find_spec("pyarrow") is None:
            raise ImportError(f"{path} needs pyarrow to be read: pip install pyarrow.")
        path.open("rb").close()
        found[path.resolve()] = path
    if not found:
        raise ValueError("files must name at least one file.")
    return list(found.values())


def rows(path: Path) -> _Rows:
    """Rows of a file, each as its columns or, where it has none, as what is wrong with it."""
    ending, packed = _form(path)
    try:
        if ending == ".parquet":
            import pyarrow.parquet as pq

            batches = pq.ParquetFile(path).iter_batches()
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
            return
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from _table(file, "\t" if ending == ".tsv" else ",") if ending[1] in "ct" else _json(file)
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:  # UTF-8's, too, is a ValueError
        raise ValueError(f"{path} must be a whole file of the form that its name says: {error}.") from error


def _form(path: Path) -> tuple[str, bool]:
    packed = path.suffix.lower() == ".gz"
    return (path.with_suffix("") if packed else path).suffix.lower(), packed


def _table(file: TextIO, delimiter: str) -> _Rows:
    lines = csv.reader(file, delimiter=delimiter, strict=True)  # strict: a quote that never ends is an error
    names = next(lines, [])
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"the header must be different names, got {names}")
    start = lines.line_num + 1
    for cells in lines:
        if cells:
            fits = len(cells) == len(names)
            yield start, dict(zip(names, cells, strict=True)) if fits else f"has {len(cells)} of {len(names)} columns"
        start = lines.line_num + 1


def _json(file: TextIO) -> _Rows:
    first = file.readline()
    if first.lstrip().startswith("["):
        items: list[Any] = json.loads(first + file.read())
        yield from ((n, item if isinstance(item, dict) else "is no JSON object") for n, item in enumerate(items, 1))
        return
    number, line = 1, first
    while line:
        if line.strip():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"is no JSON: {error}"
            else:
                yield number, item if isinstance(item, dict) else "is no JSON object"
        number, line = number + 1, file.readline()
