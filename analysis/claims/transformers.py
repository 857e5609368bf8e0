"""Claims K1 to K6 and K8 on transformers trained from scratch (S11): ``python -m analysis.claims.transformers``.

K1, K2, K5, K6 and K8 are asked by the rules of the other tunings, K3 and K4 by those of :mod:`.sizes`. What was not run
decides nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..command import csv_file, finish, output_folder, parser_of, shown
from ..lab.files import check_writable
from ..lab.registry import PRESETS, Preset, experiment
from ..lab.running import committed_folder, run_command
from ..study.from_scratch.grid import MAIN, leftover
from . import report
from .capping import restored
from .findings import Findings, Verdict
from .judging import EARLY, Judged, counted, line_of, verdict_of
from .runs import Runs, main_grid, tuned_transformers
from .sizes import Grid, capped, little_effect
from .sources import Tables
from .tuning import degrades, diversity, keeps
from .verdicts import write_judged

__all__ = ["judge_transformers", "main"]

_EXAMPLES = """
examples:
  python -m analysis.claims.transformers                  of the committed table of the full grid
  python -m analysis.claims.transformers --preset quick   of the quick one
  python -m analysis.claims.transformers --out paper_figures/out/full     of a run, finished or not
"""
_TABLE = "S11"
_OF_SIZES = {"K3": capped, "K4": little_effect}


def _more_diverse(runs: Runs, found: Findings) -> str:
    """K8 by the rule of the other tunings; of too few without smoothing it is not known whether rank helps."""
    decided = diversity(runs, found)
    known = any(r.known for r in found.at("correlation"))
    return decided if known or decided != "depends on" else "not decided"


_OF_TUNINGS: dict[str, Callable[[Runs, Findings], str]] = {
    "K1": degrades,
    "K2": keeps,
    "K5": restored("temperature", (0.5, 0.25)),
    "K6": restored("softcap", (30.0, 5.0)),
    "K8": _more_diverse,
}


def judge_transformers(tables: Tables, preset: Preset) -> Judged:
    """Judge every claim that S11 speaks to: a line each, and one for each number behind it.

    Returns:
        Columns as of :func:`.judging.judge`. A claim whose arms were not run is ``not decided``.

    Raises:
        MissingTableError: If there is no table of S11.
    """
    table = tables(_TABLE)
    runs, begun = tuned_transformers(table), tuned_transformers(table.loc[table["epoch"] <= EARLY])
    words = {prediction.claim: prediction.verdict for prediction in experiment(_TABLE).predictions}
    lines, several, grid = [], [], _grid(preset)
    lacking = set(MAIN) - set(main_grid(table.loc[table["epoch"] > 0])["method"])
    for name, said in report.TRANSFORMERS.items():
        found, early = Findings(name), None
        if lacking:
            reason = f"no row of the first grid has {' or '.join(sorted(lacking))}"
            lines.append(
                _line(
                    Verdict(claim=name, verdict="not decided", condition=reason, tables=(_TABLE,)),
                    tables,
                    words[name],
                    preset,
                )
            )
            continue
        if name in _OF_SIZES:
            decided = _OF_SIZES[name](table, found, grid)
        else:
            rule = _OF_TUNINGS[name]
            decided = rule(runs, found)
            if name != "K1" or begun.first < begun.last:  # K1 asks for growth between two epochs
                early = partial(rule, begun)
        lines.append(_line(verdict_of(found, decided, said(found), (_TABLE,), early), tables, words[name], preset))
        several.append(found)
    return Judged(pd.DataFrame(lines), Findings.table(several))


def _grid(preset: Preset) -> Grid:
    """Vocabularies and hidden sizes that a preset asks for, of the first grid."""
    cells = [config for config in experiment(_TABLE).configs(preset) if not leftover(config)]
    return Grid(sorted({cell.vocab_size for cell in cells}), sorted({cell.hidden_size for cell in cells}))


def _line(verdict: Verdict, tables: Tables, predicted: str, preset: Preset) -> dict[str, Any]:
    return line_of(verdict, predicted) | {
        "rows_left_out": counted(tables.left_out, (_TABLE,)),
        "cells_not_run": counted(tables.not_run, (_TABLE,)),
        "preset": preset if preset == "full" else f"{preset} (preliminary)",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, print and write; returns the exit status."""
    parser = parser_of("analysis.claims.transformers", "Claims K1 to K6 and K8 against the table of S11.", _EXAMPLES)
    parser.add_argument("--preset", choices=PRESETS, default="full", help="whose table (default: full)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where S11 is (default: the committed tables)")
    default = output_folder() / f"{_TABLE}_verdicts.csv"
    parser.add_argument("--file", type=csv_file, default=default, help=f"CSV to write (default: {shown(default)})")
    options = parser.parse_args(arguments)
    return finish(lambda: _judge(options))


def _judge(options: argparse.Namespace) -> int:
    start, folder = time.perf_counter(), options.out or committed_folder(options.preset)
    check_writable(options.file)
    tables = Tables([folder])
    if not tables.has(_TABLE):
        raise FileNotFoundError(
            f"there is no {_TABLE}.csv in {shown(folder)}: {run_command(_TABLE, options.preset)} makes it."
        )
    judged = judge_transformers(tables, options.preset)
    command = f"python -m analysis.claims.transformers --preset {options.preset} --file {shown(options.file)}"
    seconds = time.perf_counter() - start
    findings = write_judged(judged, options.file, command, {"preset": options.preset}, seconds)
    for line in judged.verdicts.to_dict("records"):
        interval = "" if pd.isna(line["mean"]) else f"  {line['mean']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
        print(f"{line['claim']}  {line['verdict']:12}{line['statement']} (predicted: {line['predicted']})")
        print(f"    {line['effect']}{interval}\n    {line['condition']}\n    but: {line['counter_evidence']}")
    print(f"from {shown(folder)}, preset {options.preset}; wrote {shown(options.file)} and {shown(findings)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
