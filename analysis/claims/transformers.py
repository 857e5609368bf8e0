"""Claims and the law on transformers trained from scratch: ``python -m analysis.claims.transformers``.

On a language of known truth (S11) K1, K2, K5, K6 and K8 are asked by the rules of the other tunings, K3 and K4 by those
of :mod:`.sizes`; on real text (S12) K3 and K4 by those of :mod:`.texts`; the law by :mod:`.foretold`. What was not run
decides nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..command import csv_file, finish, output_folder, parser_of, shown
from ..lab.files import check_writable
from ..lab.provenance import made_here
from ..lab.registry import PRESETS, Preset, experiment
from ..lab.running import committed_folder, run_command
from ..lab.tables import read_table, write_table
from ..study.from_scratch.grid import MAIN
from . import report
from .arms import add_arms, elsewhere
from .capping import restored
from .findings import Findings, Verdict
from .foretold import foretells
from .judging import EARLY, Judged, counted, line_of, verdict_of
from .registered import registered
from .runs import Runs, main_grid, tuned_transformers
from .sizes import Grid, capped, little_effect
from .sources import Tables
from .texts import capped_on_text, foretells_on_text, little_effect_on_text
from .tuning import degrades, diversity, keeps
from .verdicts import write_judged

__all__ = ["judge_transformers", "main"]

_EXAMPLES = """
examples:
  python -m analysis.claims.transformers                  of the committed table of the full grid
  python -m analysis.claims.transformers --name S12       on real text
  python -m analysis.claims.transformers --preset quick   of the quick one
  python -m analysis.claims.transformers --out paper_figures/out/full     of a run, finished or not
"""
Rule = Callable[[pd.DataFrame, Findings, Grid], str]


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


def _little_effect(table: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """K4, with findings on the further arms and the broad language beside it."""
    decided = little_effect(table, found, grid)
    add_arms(table, found)
    elsewhere(main_grid(table.loc[table["distribution"] == "broad"]), "true_ece", found)
    return decided


class _Study(NamedTuple):
    """What is asked of one experiment: by rules of whole tables, or of tunings; the sentences are in their order."""

    said: Mapping[str, Callable[[Findings], report.Sentences]]
    of_sizes: Mapping[str, Rule]
    of_tunings: Mapping[str, Callable[[Runs, Findings], str]]


_STUDIES = {
    "S11": _Study(
        report.TRANSFORMERS, {"K3": capped, "K4": _little_effect, "law": foretells}, _OF_TUNINGS
    ),
    "S12": _Study(
        report.TEXTS, {"K3": capped_on_text, "K4": little_effect_on_text, "law": foretells_on_text}, {}
    ),
}  # fmt: skip


def judge_transformers(tables: Tables, preset: Preset, name: str = "S11") -> Judged:
    """Judge every claim that S11 or S12 speaks to, and the law: a line each, and one for each number behind it.

    Returns:
        Columns as of :func:`.judging.judge`. A claim whose arms were not run is ``not decided``.

    Raises:
        MissingTableError: If there is no table of the experiment.
    """
    table, study, lines, several = tables(name), _STUDIES[name], [], []
    words = {prediction.claim: prediction.verdict for prediction in experiment(name).predictions}
    grid = _grid(name, preset)
    tuned = table.loc[table["epoch"] > 0]
    lacking = set(MAIN) - set((main_grid(tuned) if "symbols" in table else tuned)["method"])
    for claim, said in study.said.items():
        if lacking:
            reason = f"no row of the first grid has {' or '.join(sorted(lacking))}"
            verdict = Verdict(claim=claim, verdict="not decided", condition=reason, tables=(name,))
        else:
            found, early = Findings(claim), None
            if claim in study.of_sizes:
                decided = study.of_sizes[claim](table, found, grid)
            else:
                runs, begun = (tuned_transformers(part) for part in (table, table.loc[table["epoch"] <= EARLY]))
                rule = study.of_tunings[claim]
                decided = rule(runs, found)
                if claim != "K1" or begun.first < begun.last:  # K1 asks for growth between two epochs
                    early = partial(rule, begun)
            verdict = verdict_of(found, decided, said(found), (name,), early)
            several.append(found)
        lines.append(_line(verdict, tables, words[claim], preset))
    return Judged(pd.DataFrame(lines), Findings.table(several))


def _grid(name: str, preset: Preset) -> Grid:
    """Vocabularies and hidden sizes that a preset asks for, of the first grid."""
    study = experiment(name)
    cells = [config for config in study.configs(preset) if not study.leftover(config)]
    return Grid(sorted({cell.vocab_size for cell in cells}), sorted({cell.hidden_size for cell in cells}))


def _line(verdict: Verdict, tables: Tables, predicted: str, preset: Preset) -> dict[str, Any]:
    return line_of(verdict, predicted) | {
        "rows_left_out": counted(tables.left_out, verdict.tables),
        "cells_not_run": counted(tables.not_run, verdict.tables),
        "preset": preset if preset == "full" else f"{preset} (preliminary)",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, print and write; returns the exit status."""
    parser = parser_of(
        "analysis.claims.transformers", "Claims and the law against the table of S11, or S12.", _EXAMPLES
    )
    parser.add_argument("--name", choices=_STUDIES, default="S11", help="which experiment (default: S11)")
    parser.add_argument("--preset", choices=PRESETS, default="full", help="whose table (default: full)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where its table is (default: the committed ones)")
    default = output_folder() / "NAME_verdicts.csv"
    parser.add_argument("--file", type=csv_file, help=f"CSV to write (default: {shown(default)})")
    options = parser.parse_args(arguments)
    return finish(lambda: _judge(options))


def _judge(options: argparse.Namespace) -> int:
    start, folder, name = time.perf_counter(), options.out or committed_folder(options.preset), options.name
    file = options.file or output_folder() / f"{name}_verdicts.csv"
    check_writable(file)
    tables = Tables([folder])
    if not tables.has(name):
        raise FileNotFoundError(
            f"there is no {name}.csv in {shown(folder)}: {run_command(name, options.preset)} makes it."
        )
    judged = judge_transformers(tables, options.preset, name)
    command = f"python -m analysis.claims.transformers --name {name} --preset {options.preset} --file {shown(file)}"
    seconds = time.perf_counter() - start
    findings = write_judged(judged, file, command, {"preset": options.preset}, seconds)
    if options.preset == "full":  # of whose sizes the predictions speak
        _write_parts(name, judged, tables.path(name) or folder, file, command)
    for line in judged.verdicts.to_dict("records"):
        interval = "" if pd.isna(line["mean"]) else f"  {line['mean']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
        print(f"{line['claim']:3} {line['verdict']:12}{line['statement']} (predicted: {line['predicted']})")
        print(f"    {line['effect']}{interval}\n    {line['condition']}\n    but: {line['counter_evidence']}")
    print(f"from {shown(folder)}, preset {options.preset}; wrote {shown(file)} and {shown(findings)}")
    return 0


def _write_parts(name: str, judged: Judged, table: Path, file: Path, command: str) -> None:
    """What was registered, part by part, beside the verdicts: ``NAME_predictions.csv``."""
    start = time.perf_counter()
    parts = registered(name, read_table(table), judged.findings, _grid(name, "full"))
    beside = file.with_name(file.stem.removesuffix("verdicts") + "predictions.csv")
    seconds = round(time.perf_counter() - start, 3)
    made = made_here(
        command, config={"preset": "full"}, seeds=None, wall_seconds=seconds, note="seeds are those of the table"
    )
    write_table(parts, beside, made, digits=6)


if __name__ == "__main__":
    sys.exit(main())
