"""Tables that are computed in one go from what stands in the code: no configs, no rows to keep, one command each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from ..command import csv_file, finish, output_folder, parser_of, shown
from .files import check_writable
from .provenance import made_here
from .tables import sidecar_of, write_table

__all__ = ["table_command", "write_computed"]

Rows = Iterable[Mapping[str, object]]


def write_computed(
    path: Path,
    rows: Rows,
    *,
    command: str,
    config: Mapping[str, Any],
    digits: int,
    total: int | None = None,
    seeds: Any = None,
    note: str | None = None,
) -> int:
    """Compute rows of the same columns, write them as a table, and return their number.

    They are made one by one, under a progress bar where somebody looks; ``total`` is their number, if it is known.
    ``command``, ``config``, ``seeds`` and ``note`` go into the sidecar (:func:`~analysis.lab.provenance.made_here`),
    floats keep so many ``digits``.

    Raises:
        OSError: If ``path`` cannot be written, before the first row is computed.
    """
    check_writable(path, sidecar_of(path))
    start = time.perf_counter()
    table = pd.DataFrame(list(tqdm(rows, desc=path.name, total=total, unit="row", disable=None)))
    seconds = round(time.perf_counter() - start, 3)
    made = made_here(command, config=config, seeds=seeds, wall_seconds=seconds, note=note)
    write_table(table, path, made, digits=digits)
    return len(table)


def table_command(
    arguments: Sequence[str] | None, name: str, description: str, rows: Callable[[], Rows], **options: Any
) -> int:
    """Run the command ``python -m analysis.NAME_table [FILE]``, which writes one table; returns its exit status.

    ``rows()`` makes the rows, ``options`` are those of :func:`write_computed`. The table of that command without a FILE
    goes to the output folder; the committed one is ``paper_figures/data/NAME.csv``.
    """
    command, default = f"python -m analysis.{name}_table", output_folder() / f"{name}.csv"
    committed = f"paper_figures/data/{name}.csv"
    examples = f"""
examples:
  {command} {"/tmp/table.csv":{len(committed)}}   the table, with a sidecar of versions
  {command} {committed}   the committed one, in a clone
"""
    parser = parser_of(f"analysis.{name}_table", description, examples)
    parser.add_argument(
        "file", nargs="?", type=csv_file, default=default, help=f"CSV to write (default: {shown(default)})"
    )
    path = parser.parse_args(arguments).file

    def write() -> int:
        print(f"{write_computed(path, rows(), command=command, **options)} rows -> {shown(path)}")
        return 0

    return finish(write)
