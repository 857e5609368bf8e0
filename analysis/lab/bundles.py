"""All finished rows as one compressed file, so that rows computed on another machine join."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .files import write_atomically
from .records import RowStore, check_stored, encode
from .registry import EXPERIMENTS

__all__ = ["pack", "row_folder", "unpack"]

_FIRST_BYTES = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open}
_LONGEST_LINE = 2**24  # bytes of a row; one of S7, the longest, has a quarter of a million


def row_folder(out: Path, name: str) -> Path:
    """Return the folder of an experiment's rows."""
    return out / "rows" / name


def pack(out: Path, file: Path, *, digits: int | None = None) -> int:
    """Write all finished rows under ``out`` as one compressed file of JSON lines; the same rows give the same bytes.

    Args:
        out: Where the rows are.
        file: Name ending in ``.xz`` for the smaller, slower compression; gzip else.
        digits: Significant digits of measured numbers; None for all. Configs keep theirs.

    Returns:
        How many.

    Raises:
        ValueError: If there is none.
        OSError: If the file cannot be written; an earlier one is then as it was.
    """
    text, count = io.StringIO(), 0
    for name in EXPERIMENTS:
        for stored in RowStore(row_folder(out, name)).finished():
            check_stored(stored)
            if digits is not None:
                stored["row"] = _shortened(stored["row"], digits, frozenset(_numbers(stored["config"])))
            text.write(json.dumps({"experiment": name, **encode(stored)}, sort_keys=True, allow_nan=False) + "\n")
            count += 1
    if not count:
        raise ValueError(f"out must hold finished rows, got none under {out}.")
    content = text.getvalue().encode()
    write_atomically(
        file, lzma.compress(content, preset=9) if file.suffix == ".xz" else gzip.compress(content, mtime=0)
    )
    return count


def _shortened(value: Any, digits: int, exact: frozenset[float]) -> Any:
    """Numbers with fewer digits, but for those that were set."""
    if isinstance(value, dict):
        return {name: _shortened(part, digits, exact) for name, part in value.items()}
    if isinstance(value, list):
        return [_shortened(part, digits, exact) for part in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) and value not in exact else value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, float):
        yield value


def unpack(out: Path, file: Path) -> tuple[int, int]:
    """Add the rows of a packed file to those under ``out``; rows that are there already stay as they are.

    The file is read line by line, twice: nothing is added of one that is not whole.

    Returns:
        How many were added, and how many were there.

    Raises:
        ValueError: If the file is no packed file, is cut or damaged, or has a row of no experiment.
        OSError: If it cannot be read, or a row not be written; those added before stay, and a further call goes on.
    """
    for _ in _rows(file):
        pass
    added = known = 0
    try:
        for name, stored in _rows(file):
            new = RowStore(row_folder(out, name)).insert(stored)
            added, known = added + new, known + (not new)
    except OSError as error:
        reason = f"{error.strerror}; {added} rows were added, all are still in {file}"
        raise OSError(error.errno, reason, error.filename) from error
    return added, known


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Experiment and stored row of each line."""
    number = 0
    try:
        with _opened(file) as lines:
            while line := lines.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise ValueError(f"a row must have fewer than {_LONGEST_LINE} bytes.")
                stored = json.loads(line)
                if not isinstance(stored, dict):
                    raise ValueError(f"a row must be a JSON object, got {type(stored).__name__}.")
                name = stored.pop("experiment", None)
                if name not in EXPERIMENTS:
                    raise ValueError(f"experiment must be one of {tuple(EXPERIMENTS)}, got {name!r}.")
                check_stored(stored)
                yield name, stored
    except (ValueError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        place = f"line {number}: " if number else ""
        raise ValueError(f"{file} is no whole file of packed rows: {place}{error}") from error
    if not number:
        raise ValueError(f"{file} is no whole file of packed rows: it has none")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The file's lines, by what it is and not by its name."""
    with file.open("rb") as packed:
        first = packed.read(6)
        opener = next((opener for magic, opener in _FIRST_BYTES.items() if first.startswith(magic)), None)
        if opener is None:
            raise ValueError("it must be compressed by gzip or xz")
        packed.seek(0)
        with opener(packed, "rb") as lines:
            yield lines
