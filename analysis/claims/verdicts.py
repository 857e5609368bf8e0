"""The verdicts as a command gives them: judged from a folder of tables, printed, and written where a file is named."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..command import shown
from ..lab.files import check_writable
from ..lab.provenance import made_here
from ..lab.records import configs_hash
from ..lab.registry import EXPERIMENTS, PRESETS, Preset, experiment
from ..lab.running import committed_folder
from ..lab.tables import find_table, read_sidecar, read_table, sidecar_of, write_table
from .judging import EARLY, Judged, judge
from .sources import Tables

__all__ = ["judge_table", "write_judged", "write_verdicts"]


def write_verdicts(preset: Preset, out: Path | None, file: Path | None) -> int:
    """Judge, print, and write where a file is given.

    Args:
        preset: Which grid the tables are of.
        out: Their folder; None for the committed ones. Claims whose table it lacks are not decided: tables of two
            origins are never mixed, apart from ``kernel``, which no preset changes.
        file: CSV to write, with the findings beside it; None for none.

    Returns:
        1 where a claim other than K7 could not be decided for want of a table, else 0.

    Raises:
        ValueError: If a table is damaged, lacks a column, or is of another preset.
        OSError: If there are no tables, or the file cannot be written.
    """
    start = time.perf_counter()
    if file is not None:
        check_writable(*(path for table in (file, _findings_of(file)) for path in (table, sidecar_of(table))))
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
    judged = judge(Tables([folder], shared=shared), preset)
    table = judged.verdicts
    findings = None
    if file is not None:
        command = f"python -m analysis.study verdicts --preset {preset} --file {shown(file)}"
        findings = write_judged(judged, file, command, {"preset": preset}, time.perf_counter() - start)
    print(f"from the tables of {shown(folder)}, preset {table['preset'].iloc[0]}")
    for line in table.to_dict("records"):
        interval = "" if pd.isna(line["mean"]) else f"  {line['mean']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
        print(f"{line['claim']}  {line['verdict']:12}{line['statement']}\n    {line['effect']}{interval}")
        if line["early_verdict"]:
            print(
                f"    at epoch {EARLY}: {line['early_verdict']}  {line['early_mean']:.4f} "
                f"[{line['early_low']:.4f}, {line['early_high']:.4f}]"
            )
        print(f"    {line['condition']}")
        if line["counter_evidence"]:
            print(f"    but: {line['counter_evidence']}")
    if file is not None and findings is not None:
        print(f"wrote {shown(file)} and {shown(findings)}")
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
    found = None if path is None else read_sidecar(path).get("config", {}).get("hash")
    if found is None or found == configs_hash(experiment(name).configs(preset)):
        return
    for other in PRESETS:
        if other != preset and found == configs_hash(experiment(name).configs(other)):
            raise ValueError(f"{path} is of the preset {other}: give --preset {other}, got {preset!r}.")


def _findings_of(file: Path) -> Path:
    return file.with_name(file.stem.removesuffix("verdicts") + "findings.csv")


def write_judged(judged: Judged, file: Path, command: str, config: Mapping[str, Any], seconds: float) -> Path:
    """Write the verdicts to a file, ``NAMEverdicts.csv``, and beside them the findings, whose file is returned."""
    note = "no seeds of their own: those of the tables"
    made = made_here(command, config=config, seeds=None, wall_seconds=round(seconds, 3), note=note)
    findings = _findings_of(file)
    for path, table in ((file, judged.verdicts), (findings, judged.findings)):
        write_table(table, path, made)
    return findings


def judge_table(
    judge: Callable[[pd.DataFrame], Judged], table: Path, file: Path, command: str, config: Mapping[str, Any]
) -> int:
    """Judge the table of a real model, write verdicts and findings, and print them; returns 0.

    Args:
        judge: Table -> what is said of it.
        table: CSV.
        file: CSV to write the verdicts to, with the findings beside it.
        command: What was called, without the two files.
        config: Of which runs the table must be, for the sidecar.

    Raises:
        ValueError: If the table lacks a column or runs.
        OSError: If a file cannot be read or written.
    """
    check_writable(file)
    start = time.perf_counter()
    try:
        judged = judge(read_table(table))
    except KeyError as column:
        which = " ".join(f"{name} {value}" for name, value in config.items())
        raise ValueError(f"{table} is no table of the {which}: it has no column or row {column}.") from None
    called = f"{command} {shown(table)} {shown(file)}"
    findings = write_judged(judged, file, called, config, time.perf_counter() - start)
    for line in judged.verdicts.to_dict("records"):
        print(f"{line['claim']}  {line['verdict']:12}{line['statement']} (predicted: {line['predicted']})")
        print(f"    {line['effect']}  {line['mean']:.4f} [{line['low']:.4f}, {line['high']:.4f}]")
        print(f"    {line['condition']}\n    but: {line['counter_evidence']}")
    print(f"wrote {shown(file)} and {shown(findings)}")
    return 0
