"""What the tables of S11 and S12 say of transformers trained from scratch, for the page on the study."""

from __future__ import annotations

import json
import lzma
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["registered", "transformers"]

_ON = {"S11": "a language of known truth (S11)", "S12": "real text (S12)"}
# Column of the table of sizes -> finding and its claim, digits.
_SIZES: dict[str, dict[str, tuple[str, str, str]]] = {
    "S11": {
        "divergence before tuning, nats": ("K3", "divergence", ".3f"),
        "confidence over the truth's own": ("K3", "share", ".3f"),
        "fall over $b\\,(p - 1/V)$": ("K4", "fall_share", ".2f"),
        "that on tokens tuned on": ("K4", "fall_share_on_train", ".2f"),
        "$A$ of the tokens tuned on": ("K4", "activity", ".2f"),
    },
    "S12": {
        "bits per byte before tuning": ("K4", "bits_per_byte", ".3f"),
        "confidence then": ("K3", "confidence", ".3f"),
        "fall over $b\\,(p - 1/V)$": ("K4", "fall_share", ".2f"),
        "that on tokens tuned on": ("K4", "fall_share_on_train", ".2f"),
        "$A$ of the tokens tuned on": ("K4", "activity", ".2f"),
    },
}
_LAW = {
    "one scale": ("law", "scale_ratio", ".2f"),
    "a gain": ("law", "gain_ratio", ".2f"),
    "an affine map": ("law", "affine_ratio", ".2f"),
    "$P$, tokens tuned on": ("law", "frozen_ratio", ".2f"),
}
_KINDS = {
    "dead": "dead tokens", "few": "little text", "tied": "tied heads", "smoothed": "pretrained with $b = .1$",
}  # fmt: skip


def transformers(data: Path) -> str:
    """Where each stands, its verdicts, and its numbers by size; from the full tables where they are there."""
    return "\n\n".join(_study(name, *_folder(data, name)) for name in _ON)


def _folder(data: Path, name: str) -> tuple[Path, str]:
    full = (data / f"{name}_verdicts.csv").exists()
    return (data, "full") if full else (data / "quick", "quick")


def _study(name: str, folder: Path, preset: str) -> str:
    texts = ["depends_on", "counter_evidence"]  # a column that is empty throughout would be one of numbers
    verdicts = pd.read_csv(folder / f"{name}_verdicts.csv").astype(dict.fromkeys(texts, object))
    verdicts = verdicts.fillna(dict.fromkeys(texts, ""))
    findings: Any = pd.read_csv(folder / f"{name}_findings.csv").fillna({"cell": ""})
    known = {(row.claim, row.finding, row.cell): row for row in findings.itertuples()}
    where = f"`{folder.relative_to(folder.parents[1 if preset == 'full' else 2])}/{name}_verdicts.csv`"
    beside = f"{where}, with the numbers behind it in `{name}_findings.csv`"
    parts = [_wrapped(f"**On {_ON[name]}.** {_state(name, folder, preset)} Verdicts: {beside}.")]
    parts += [_judged(verdicts), _sizes(name, known, _seconds(folder, name) if preset == "full" else {})]
    return "\n\n".join(part for part in (*parts, _tunings(known), _models(known)) if part)


def _state(name: str, folder: Path, preset: str) -> str:
    """How much was run, and what it took."""
    made = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    grid, rows = made["grid"], made["config"]["configs"]
    missing = len(grid.get("not_run", []))
    each = made["wall_seconds"] / max(1, rows - missing)
    device = " and ".join("CPU cores" if device == "cpu" else device for device in made["device"])
    took = f"{rows - missing} of {rows} rows on {device}, {each:.0f} seconds each where several run at once."
    if preset == "quick":
        return f"Only `quick` was run, tiny models that test the machinery and say nothing of language models: {took}"
    return took + f" {grid['cells_not_run']} of {grid['cells']} cells are not complete." * bool(grid["cells_not_run"])


def _judged(verdicts: pd.DataFrame) -> str:
    lines = ["| | claim | predicted | found | 95 % interval of the main effect |", "|---|---|---|---|---|"]
    for row in verdicts.to_dict("records"):
        word = f"{row['verdict']}" + f" ({row['depends_on']})" * bool(row["depends_on"])
        effect = "" if pd.isna(row["mean"]) else f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]: "
        effect += "" if pd.isna(row["effect"]) else str(row["effect"])
        lines.append(f"| {row['claim']} | {row['statement']} | {row['predicted']} | {word} | {effect} |")
    return "\n".join(lines)


def _seconds(folder: Path, name: str) -> dict[str, str]:
    """Median seconds that a row of the first grid took, by (V, D), from the packed rows; several ran on one GPU."""
    found = defaultdict[str, list[float]](list)
    with lzma.open(folder / "full_rows.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            if f'"experiment": "{name}"' not in line:
                continue
            row = json.loads(line)["row"]
            first = row.get("symbols", "live") == "live" and not any(
                row.get(column) for column in ("tied", "distinct", "pretraining_smoothing")
            )
            if first and {line["method"] for line in row["measurements"]} == {"b=0", "b=0.1"}:
                found[f"V={row['vocab_size']}; D={row['hidden_size']}"].append(row["wall_seconds"])
    return {cell: f"{statistics.median(seconds):.0f}" for cell, seconds in found.items()}


def _sizes(name: str, known: Mapping[tuple[str, str, str], Any], seconds: Mapping[str, str]) -> str:
    columns = {
        title: column
        for title, column in {**_SIZES[name], **_LAW}.items()
        if any(row.mean == row.mean for (claim, finding, _), row in known.items() if (claim, finding) == column[:2])
    }
    cells = [cell for claim, finding, cell in known if (claim, finding) == ("K4", "fall_share")]
    names = [*columns, *["seconds a row"] * bool(seconds)]
    lines = [f"| $V$ | $D$ | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for cell in cells:
        sizes = [part.partition("=")[2] for part in cell.split("; ")]
        numbers = [_number(known, (claim, finding, cell), form) for claim, finding, form in columns.values()]
        numbers += [seconds.get(cell, "")] * bool(seconds)
        lines.append(f"| {' | '.join([*sizes, *numbers])} |")
    said = (
        f"By size. Under {', '.join(title for title in _LAW if title in columns)}: the fall that the plain model "
        "predicts over the one that came (1: right; a dash: solved for no model)."
    )
    return f"{said}\n\n" + "\n".join(lines)


def _tunings(known: Mapping[tuple[str, str, str], Any]) -> str:
    falls = {cell.removeprefix("method="): row for (_, finding, cell), row in known.items() if finding == "fall_of"}
    if len(falls) < 2:  # b = .1 alone
        return ""
    listed = "; ".join(f"{name}: {row.mean:.4f} [{row.low:.4f}, {row.high:.4f}]" for name, row in falls.items())
    return _wrapped(f"Falls in confidence of other tunings, mean over the corners of the first grid: {listed}.")


def _models(known: Mapping[tuple[str, str, str], Any]) -> str:
    """Models that differ from the first grid in one thing, of all seeds."""
    columns = {
        "true ECE before tuning": "start_error_of",
        "confidence over the truth's own": "start_share_of",
        "fall over $b\\,(p - 1/V)$": "share_of",
    }
    found = {cell: row.seeds for (_, finding, cell), row in known.items() if finding == "share_of"}
    cells = [cell for cell, seeds in found.items() if seeds == max(found.values())]  # others are what broke no rule
    lines = [f"| models | $V$ | $D$ | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    for cell in cells:
        kind, v, d = (part.partition("=")[2] for part in cell.split("; "))
        numbers = [_number(known, ("K4", finding, cell), ".3f") for finding in columns.values()]
        lines.append(f"| {' | '.join([_KINDS[kind], v, d, *numbers])} |")
    return "\n".join(lines) if cells else ""


def _number(known: Mapping[tuple[str, str, str], Any], key: tuple[str, str, str], form: str) -> str:
    """The mean of a finding; a dash where it is not known."""
    value = known[key].mean if key in known else float("nan")
    return format(value, form).replace("-", "\N{MINUS SIGN}") if value == value else "\N{EN DASH}"


def registered(data: Path) -> str:
    """How many parts of the predictions hold, and those that do not, or not surely."""
    tables: Any = pd.concat(
        [pd.read_csv(data / f"{name}_predictions.csv").assign(on=name) for name in _ON], ignore_index=True
    )
    counts = tables["holds"].value_counts()
    words = ("yes", "no", "open", "confounded", "not measured")
    counted = ", ".join(f"{counts[word]} *{word}*" for word in words if word in counts)
    lines = ["| | claim | asked | found | holds |", "|---|---|---|---|---|"]
    for row in tables[tables["holds"] != "yes"].itertuples():
        interval = "" if row.low != row.low else f" [{_signed(row.low)}, {_signed(row.high)}]"
        found = "" if row.found != row.found else f"{_signed(row.found)}{interval}"
        lines.append(f"| {row.on} | {row.claim} | {row.part}: {row.asked} | {found} | {row.holds} |")
    said = f"Of {len(tables)} parts: {counted}. All that is not a plain *yes*:"
    return "\n".join([_wrapped(said), "", *lines])


def _signed(value: float) -> str:
    return format(value, ".3f").replace("-", "\N{MINUS SIGN}")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
