"""Tables of the notes on the study, from the findings of the claims, and what the full tables took."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import signed

__all__ = ["cost", "law", "rivals", "temperature", "uncapped"]

_REMEDIES = {  # method of S7 -> what the notes call it
    "b=0 post_hoc": "temperature fitted afterwards",
    "b=0.2": "smoothing, b = 0.2",
    "early stopping": "early stopping",
    "b=0.1": "smoothing, b = 0.1",
    "weight_decay": "weight decay",
    "b=0.05": "smoothing, b = 0.05",
    "dropout": "dropout",
    "penalty=0.2": r"confidence penalty, $\gamma$ = 0.2",
    "penalty=0.05": r"confidence penalty, $\gamma$ = 0.05",
}


def _numbers(data: Path, finding: str) -> dict[str, Any]:
    """Cell -> line of a finding: mean, low, high and more; the empty cell is the mean over all."""
    table: Any = pd.read_csv(data / "findings.csv")
    return {row.cell: row for row in table[table["finding"] == finding].fillna({"cell": ""}).itertuples()}


def temperature(data: Path) -> str:
    """What a training temperature does to fall and gain, arm by arm."""
    fall, gain, restored = (_numbers(data, name) for name in ("fall_rise", "rise", "gain"))
    lines = [
        "| trained at T = 0.25 instead of 1 | the fall rises by | the gain rises by | restored |",
        "|---|---|---|---|",
    ]
    for cell, row in fall.items():
        if cell.startswith("arm="):
            yes = row.mean > 0.01 and restored[cell].mean > 0
            more = [_with_interval(x.mean, x.low, x.high) for x in (row, gain[cell])]
            name = cell.removeprefix("arm=").replace("budget", "norm budget")
            word = "not decided" if row.low != row.low else "yes" if yes else "no"
            lines.append(f"| {name} | {' | '.join(more)} | {word} |")
    return "\n".join(lines)


def _with_interval(mean: float, low: float, high: float) -> str:
    """A number with its interval, which one seed does not give."""
    if abs(mean) > 10:
        return f"{mean:.0f} [{low:.0f}, {high:.0f}]".replace("-", "\N{MINUS SIGN}")
    return signed(mean) + ("" if pd.isna(low) else f" [{signed(low)}, {signed(high)}]")


def law(data: Path) -> str:
    """What was registered of the law (S9), part by part."""
    table: Any = pd.read_csv(data / "S9_predictions.csv")
    lines = ["| | predicted | asked | found | settings (sin²: heads) | holds |", "|---|---|---|---|---|---|"]
    for row in table.itertuples():
        share = pd.isna(row.low) and row.asked not in ("at most 0.01",)
        found = f"in {row.found:.0%}" if share else _with_interval(row.found, row.low, row.high)
        known = "" if row.holds == "not run" else found
        holds = {"no": "**no**"}.get(row.holds, row.holds)
        if 0 < row.cells < _FEW and holds != "not run" and "R2" in row.part:
            holds = f"{holds}, of few"
        part = _RULES.sub(lambda rule: _SAID[rule[0]], row.part)
        lines.append(f"| {row.prediction} | {part} | {row.asked} | {known} | {row.cells or ''} | {holds} |")
    return "\n".join(lines)


_FEW = 10  # settings below which a share of variance says little
_SAID = {
    "clipped_fall": "b (p - 1/V) max(0, 1 - A)",
    "rational_fall": "b (p - 1/V) / (1 + A)",
    "R2": "R²",
    "sin2": "sin²",
    "chi": "χ",
}
_RULES = re.compile("|".join(_SAID))


def uncapped(data: Path) -> str:
    """Errors of heads with free norms that were trained under a cap and are read without it."""
    errors, none = _numbers(data, "error_uncapped_after"), _numbers(data, "error")
    caps = list(dict.fromkeys(cell.split("; ")[1].removeprefix("c=") for cell in errors))
    lines = ["| true ECE, V = 256 | plain | smoothed | gain |", "|---|---|---|---|"]
    pairs = [("no cap", none["V=256; b=0"].mean, none["V=256; b=0.1"].mean)]
    pairs += [(f"c = {c}", *(errors[f"V=256; c={c}; b={b}"].mean for b in ("0", "0.1"))) for c in caps]
    return "\n".join([*lines, *(f"| {name} | {p:.3f} | {s:.3f} | {signed(p - s)} |" for name, p, s in pairs)])


def rivals(data: Path) -> str:
    """Remedies in the tuning simulation: what they gain, and what they cost in accuracy."""
    of_all, cost = _numbers(data, "gain_of"), _numbers(data, "accuracy_loss_of")
    of_all["method=b=0.1"], cost["method=b=0.1"] = (_numbers(data, name)[""] for name in ("gain", "accuracy_loss"))
    here, loss = _numbers(data, "gain_beside_penalty"), _numbers(data, "held_out_fall_beside_penalty")
    head = (
        "| remedy | gain, seven sizes | accuracy lost | gain, V = 1024, D = 64 | held-out loss there falls by, nats |"
    )
    lines = [head, "|---|---|---|---|---|"]
    for method, name in _REMEDIES.items():
        cell = f"method={method}"
        everywhere = [signed(t[cell].mean) if cell in t else "" for t in (of_all, cost)]
        lines.append(f"| {name} | {' | '.join(everywhere)} | {here[cell].mean:.3f} | {loss[cell].mean:.3f} |")
    return "\n".join(lines)


def cost(data: Path) -> str:
    """What the rows of the full tables took, from the sidecars: the sum over rows, each in a process of its own."""
    from analysis.lab.tables import find_table, read_table

    lines = ["| table | rows | hours, one after the other | on |", "|---|---|---|---|"]
    total = 0.0
    for name in (*(f"S{n}" for n in (*range(1, 8), *range(9, 13))), "instruction_full"):
        path = find_table(data, name)
        if path is None and name in ("S11", "S12"):  # not run yet
            continue
        assert path is not None
        about = json.loads((data / f"{name}.json").read_text(encoding="utf-8"))
        rows, hours = read_table(path)["key"].nunique(), about["wall_seconds"] / 3600
        total += hours
        devices = " and ".join("CPU cores" if device == "cpu" else device for device in about["device"])
        lines.append(f"| `{name}` | {rows:,} | {hours:.1f} | {devices} |")
    return "\n".join([*lines, f"| all | | {total:.1f} | |"])
