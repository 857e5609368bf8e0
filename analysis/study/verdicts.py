"""Claims K1 to K9 against the tables: one line each, beside what had been predicted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..command import shown
from ..files import write_atomically
from ..records import configs_hash, find_table, read_sidecar
from .claims_capping import capping, temperature
from .claims_cost import free_of_cost
from .claims_heads import capacity, small_hidden_size
from .claims_tuning import degrades, diversity, keeps, regularises
from .judging import MissingTableError, Tables, Verdict
from .registry import EXPERIMENTS, PRESETS, Preset, experiment
from .running import committed_folder

__all__ = ["CLAIMS", "judge", "write_verdicts"]

CLAIMS: dict[str, Callable[[Tables], Verdict]] = {
    "K1": degrades,
    "K2": keeps,
    "K3": capacity,
    "K4": small_hidden_size,
    "K5": temperature,
    "K6": capping,
    "K7": free_of_cost,
    "K8": diversity,
    "K9": regularises,
}


def judge(tables: Tables, preset: Preset) -> pd.DataFrame:
    """One line for each claim.

    Args:
        tables: Where they are.
        preset: Goes into the column of that name; verdicts of ``quick`` are marked preliminary.

    Returns:
        ``claim``, ``statement`` (the claim), ``verdict``, ``predicted`` (each experiment's word), ``effect``, ``mean``,
        ``low``, ``high`` (95 % bootstrap over seeds), ``seeds``, ``cells``, ``condition``, ``counter_evidence``,
        ``tables``, ``rows_left_out`` (not converged, of all), ``cells_not_run`` (not complete, of all in the grid; only
        of tables whose sidecar tells), ``preset``. A claim whose table is missing is ``not decided``, with the reason
        as its condition, and one whose effect no complete cell shows.
    """
    lines = []
    for claim, decide in CLAIMS.items():
        try:
            verdict = decide(tables)
        except KeyError as column:
            raise ValueError(f"the tables that {claim} reads have no column {column}.") from column
        except MissingTableError as missing:
            reason = f"{missing}; S8 needs a GPU" if claim == "K7" else str(missing)
            verdict = Verdict(
                claim=claim,
                verdict="not decided",
                effect="",
                size=None,
                condition=reason,
                counter_evidence="",
                tables=(),
            )
        if verdict.size is not None and not verdict.size.cells:
            verdict = replace(verdict, verdict="not decided", size=None)  # no complete cell says anything
        lines.append(_line(verdict, decide.__doc__ or "", tables, preset))
    return pd.DataFrame(lines)


def _line(verdict: Verdict, statement: str, tables: Tables, preset: Preset) -> dict[str, object]:
    size = verdict.size

    def counted(counts: Mapping[str, tuple[int, int]]) -> str:
        chosen = [counts[name] for name in verdict.tables if name in counts]
        return f"{sum(out for out, _ in chosen)} of {sum(total for _, total in chosen)}"

    predicted = [
        f"{name}: {prediction.verdict}"
        for name in EXPERIMENTS
        for prediction in experiment(name).predictions
        if prediction.claim == verdict.claim
    ]
    return {
        "claim": verdict.claim,
        "statement": statement.split(": ", 1)[-1].strip().rstrip("."),
        "verdict": verdict.verdict,
        "predicted": "; ".join(predicted),
        "effect": verdict.effect,
        **{name: None if size is None else round(getattr(size, name), 5) for name in ("mean", "low", "high")},
        **{name: None if size is None else getattr(size, name) for name in ("seeds", "cells")},
        "condition": verdict.condition,
        "counter_evidence": verdict.counter_evidence,
        "tables": " ".join(verdict.tables),
        "rows_left_out": counted(tables.left_out),
        "cells_not_run": counted(tables.not_run),
        "preset": preset if preset == "full" else f"{preset} (preliminary)",
    }


def write_verdicts(preset: Preset, out: Path | None, file: Path | None) -> int:
    """Judge, print, and write where a file is given.

    Args:
        preset: Which grid the tables are of.
        out: Their folder; None for the committed ones. Claims whose table it lacks are not decided: tables of two
            origins are never mixed, apart from ``kernel``, which no preset changes.
        file: CSV to write; None for none.

    Returns:
        1 where a claim other than K7 could not be decided for want of a table, else 0.

    Raises:
        ValueError: If a table is damaged, lacks a column, or is of another preset.
        OSError: If there are no tables, or the file cannot be written.
    """
    if out is None:
        folder, shared = committed_folder(preset), committed_folder("full")
    else:
        folder, shared = out, _committed_or_none()
        if not any(find_table(folder, name) for name in EXPERIMENTS):
            raise FileNotFoundError(
                f"there are no tables S1 to S7 in {folder}; make them with: "
                f"python -m analysis.study run all --preset {preset} --out {folder}"
            )
        for name in EXPERIMENTS:
            _check_preset(folder, name, preset)
    table = judge(Tables([folder], shared=shared), preset)
    if file is not None:
        write_atomically(file, table.to_csv(index=False, lineterminator="\n"))
    print(f"from the tables of {shown(folder)}, preset {table['preset'].iloc[0]}")
    for line in table.to_dict("records"):
        interval = "" if pd.isna(line["mean"]) else f"  {line['mean']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
        print(f"{line['claim']}  {line['verdict']:12}{line['statement']}\n    {line['effect']}{interval}")
        print(f"    {line['condition']}")
        if line["counter_evidence"]:
            print(f"    but: {line['counter_evidence']}")
    if file is not None:
        print(f"wrote {shown(file)}")
    missing = table.loc[(table["tables"] == "") & (table["claim"] != "K7"), "claim"].tolist()
    if missing:
        print(f"not decided for want of a table: {', '.join(missing)}", file=sys.stderr)
    return int(bool(missing))


def _committed_or_none() -> Path | None:
    try:
        return committed_folder("full")
    except FileNotFoundError:
        return None


def _check_preset(folder: Path, name: str, preset: Preset) -> None:
    """Refuse a table whose sidecar names the grid of another preset."""
    path = find_table(folder, name)
    found = None if path is None else read_sidecar(path).get("configs_hash")
    if found is None or found == configs_hash(experiment(name).configs(preset)):
        return
    for other in PRESETS:
        if other != preset and found == configs_hash(experiment(name).configs(other)):
            raise ValueError(f"{path} is of the preset {other}: give --preset {other}, got {preset!r}.")
