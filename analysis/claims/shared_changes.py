"""Falls of tuned language models beside those that shared changes of their features predict.

The command is ``python -m analysis.claims.shared_changes``. The rule stands with the prediction, which was written
before the first run: ``SHARED_CHANGES`` of :mod:`analysis.study.real_tuning.predictions`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..command import csv_file, finish, output_folder, parser_of, shown
from ..lab.files import check_writable
from ..lab.provenance import made_here
from ..lab.tables import read_table, write_table
from ..response import clipped_fall, rational_fall
from ..study.real_tuning.predictions import SHARED_CHANGES
from ..study.real_tuning.shared_maps import TOLERANCE
from .response import unfitted_share

__all__ = ["accuracy", "cells", "main", "verdict"]

_EXAMPLES = """
examples:
  python -m analysis.claims.shared_changes real_tuning_gemma_1.csv real_tuning_smollm2_1.csv
  python -m analysis.claims.shared_changes instruction_full.csv --file falls.csv

TABLE is of python -m analysis.real_tuning or of python -m analysis.instruction. A table without the columns of a
candidate says nothing of it.
"""
CANDIDATES = ("scale", "gain", "low_rank", "affine")
RIVALS = ("clipped", "rational")  # of two numbers of the plain model
_HELD_OUT, _VIEWS = ("scored", "test"), ("response", "letter", "tokens", "text")
_LEAST, _WITHIN = 0.01, 0.2  # of a measured fall; of the error of a candidate that predicts
_NONE = 2**31  # vocabulary of a table that has no size of it: 1 / V is 0
_SETTINGS = (
    "model", "temperature", "softcap", "vocabulary", "within", "lora", "weight_decay", "step_size", "epochs", "pairs",
    "examples",
)  # fmt: skip


def cells(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Measured and predicted falls on held-out tokens after the last epoch, means over seeds.

    Args:
        tables: By name: tables of real tunings, with or without the columns of the candidates.

    Returns:
        One line for each table, setting, b and view, with ``seeds``, ``measured``, and a column for each candidate and
        rival: nan where it is not there, or was not solved for some seed. Only falls of at least .01, and, of a table
        that was asked for predictions, only the runs that were.
    """
    return pd.concat([_cells(name, table) for name, table in tables.items()], ignore_index=True)


def _cells(name: str, table: pd.DataFrame) -> pd.DataFrame:
    kept = table["split"].isin(_HELD_OUT) & table["view"].isin(_VIEWS) & (table["reading"] == "as_trained")
    kept &= table["epoch"] == table["epochs"]
    if "confidence_penalty" in table:
        kept &= table["confidence_penalty"].fillna(0) == 0
    ends = table.loc[kept]
    setting = [column for column in _SETTINGS if column in table]
    keys = [*setting, "view", "data_seed"]
    plain, smoothed = ends.loc[ends["label_smoothing"] == 0], ends.loc[ends["label_smoothing"] > 0]
    found = smoothed[[*keys, "label_smoothing", "confidence"]].merge(plain, on=keys, suffixes=("", "_plain"))
    asked = _asked(found)
    found = found.loc[asked | ~asked.any()].reset_index(drop=True)
    b, p = found["label_smoothing"], found["confidence_plain"]
    index = found["activity"] * 0.1 / b  # A falls as 1 / b
    size = found.get("rows", _NONE)
    falls = {
        "measured": p - found["confidence"],
        **{kind: _predicted(found, kind) for kind in CANDIDATES},
        "clipped": clipped_fall(p, index, size, b),
        "rational": rational_fall(p, index, size, b),
    }
    made = found[[*setting, "view", "label_smoothing"]].assign(table=name, **falls)
    cell = ["table", *setting, "view", "label_smoothing"]
    means = made.groupby(cell, dropna=False, sort=False).agg(
        seeds=("measured", "size"), **{each: (each, lambda x: x.mean(skipna=False)) for each in falls}
    )
    return means.loc[means["measured"] >= _LEAST].reset_index()


def _asked(found: pd.DataFrame) -> pd.Series:
    """Whether any candidate was computed for a line, solved or not: runs that were not asked say nothing of them."""
    there = [f"{kind}_fall_{b:g}" for kind in CANDIDATES for b in found["label_smoothing"].unique()]
    known: pd.DataFrame = found.reindex(columns=there).notna()
    return pd.Series(known.to_numpy().any(axis=1), index=found.index)


def _predicted(found: pd.DataFrame, kind: str) -> np.ndarray:
    """The fall that a candidate predicts at each line's b; nan where the table lacks it, or it was not solved."""
    falls = np.full(len(found), np.nan)
    for b in found["label_smoothing"].unique():
        column, gap = f"{kind}_fall_{b:g}", f"{kind}_gap_{b:g}"
        if column not in found:
            continue
        at = (found["label_smoothing"] == b).to_numpy()
        if gap in found:
            at = at & (found[gap] <= TOLERANCE).to_numpy()
        falls[at] = found.loc[at, column]
    return falls


def accuracy(found: pd.DataFrame) -> pd.DataFrame:
    """How well each candidate and rival predicts, without any fit: over all cells, of each view and of each table.

    Args:
        found: From :func:`cells`.

    Returns:
        ``group``, ``predictor``, ``cells`` of the group, ``predicted``, how many of them it has a number for,
        ``error``, sqrt(sum (measured - predicted)^2 / sum measured^2), ``ratio``, the sum of measured over that of
        predicted falls, ``r2`` (unfitted), ``largest_error``; the last four over the cells that are predicted.
    """
    groups = {"all cells": found}
    groups |= {f"view {view}": part for view, part in found.groupby("view", sort=False)}
    groups |= {f"table {name}": part for name, part in found.groupby("table", sort=False)}
    return pd.DataFrame([
        _line(group, predictor, part) for group, part in groups.items() for predictor in (*CANDIDATES, *RIVALS)
    ])  # fmt: skip


def _line(group: str, predictor: str, part: pd.DataFrame) -> dict[str, object]:
    there = part.loc[part[predictor].notna()]
    x, y = (there[name].to_numpy(np.float64) for name in (predictor, "measured"))
    known = len(there) > 0
    return {
        "group": group, "predictor": predictor, "cells": len(part), "predicted": len(there),
        "error": float(np.sqrt(((y - x) ** 2).sum() / (y**2).sum())) if known else np.nan,
        "ratio": float(y.sum() / x.sum()) if known and x.sum() else np.nan,
        "r2": unfitted_share(x, y) if len(there) > 1 else np.nan,
        "largest_error": float(np.abs(y - x).max()) if known else np.nan,
    }  # fmt: skip


def verdict(lines: pd.DataFrame, group: str = "all cells") -> tuple[str, str]:
    """Which shared change predicts the falls of a group: its name, ``"none"`` or ``"not decided"``, and a sentence."""
    of_group = lines.loc[lines["group"] == group].set_index("predictor")
    known = of_group.loc[list(CANDIDATES)]
    whole = known.loc[(known["predicted"] == known["cells"]) & (known["cells"] > 0)].sort_values("error")
    if whole.empty:
        return "not decided", f"{group}: no candidate has a number for every cell"
    best = whole.iloc[0]
    text = f"{best.name}: error {best['error']:.2f} of {best['cells']} cells, measured {best['ratio']:.2f} of predicted"
    text += "" if np.isnan(best["r2"]) else f", unfitted R2 {best['r2']:.2f}"
    rivals = of_group.loc[list(RIVALS)].dropna(subset="error").sort_values("error")
    if len(rivals) and rivals.iloc[0]["error"] < best["error"]:
        text += f"; the rule of thumb {rivals.index[0]} is closer, {rivals.iloc[0]['error']:.2f}"
    if best["error"] <= _WITHIN:
        return str(best.name), f"{group}: {text}; it predicts them"
    return "none", f"{group}: none does; the best is {text}, above {_WITHIN:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and write; returns the exit status."""
    parser = parser_of(
        "analysis.claims.shared_changes",
        "Which shared change of the features predicts the falls of tuned language models.",
        _EXAMPLES,
    )
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="CSV of real tunings")
    default = output_folder() / "shared_changes.csv"
    parser.add_argument("--file", type=csv_file, default=default, help=f"CSV to write (default: {shown(default)})")
    options = parser.parse_args(arguments)
    return finish(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    check_writable(options.file)
    try:
        found = cells({path.name.partition(".")[0]: read_table(path) for path in options.tables})
    except KeyError as column:
        raise ValueError(f"TABLE must be of real tunings, got one without the column {column}.") from None
    if found.empty:
        raise ValueError("TABLE must have tunings with and without smoothing of the same seed, got none with a fall.")
    lines = accuracy(found)
    for line in lines.to_dict("records"):
        if line["predicted"]:
            numbers = (f"{name} {line[name]:.3f}" for name in ("error", "ratio", "r2", "largest_error"))
            print(f"{line['group']:40}{line['predictor']:10}{line['predicted']:4} of {line['cells']}", *numbers)
    said = [verdict(lines, group)[1] for group in lines["group"].unique()]
    print(*said, sep="\n")
    print(f"expected before the runs: {SHARED_CHANGES.verdict}. {SHARED_CHANGES.statement}")
    made = made_here(
        "python -m analysis.claims.shared_changes",
        config={"tables": [path.name for path in options.tables], "cells": len(found)},
        note="; ".join(said),
        seeds=[],
        wall_seconds=round(time.perf_counter() - start, 3),
    )
    write_table(lines, options.file, made, digits=6)
    print(f"wrote {shown(options.file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
