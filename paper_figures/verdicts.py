"""The verdicts: what was claimed, what the tables say, how large the effect is, and what had been predicted.

Caption. One row a claim of the paper, in our words. *Verdict:* by rules in the code, from the rows of the tables that
keep the convergence rule; a "depends on" says on what. Rules of K1 to K8 were made stricter after tables had been seen,
and K1, K2 and K8 lost a "supported" by it (study_notes.md, "What was not blind"). *Effect:* the number behind the
verdict, its mean over cells with the 95 % interval over seeds (K7: the range over shapes); those in ECE or confidence
on one scale (filled, ticks every .1), ranks, nats and the ratio each on its own (open); the line is 0, for K7, a ratio,
1; "not run" counts cells of a grid that is not finished. *Predicted:* the verdicts expected of the experiments before
their first run (S3's quick ones: after a smaller table); bold where one was reached and was not among them. Conditions
and counter-evidence of every verdict: verdicts.csv. *On questions:* the same claims on SmolLM2 tuned on
questions; *Gemma, pairs* and *SmolLM2, pairs*: on models tuned on pairs; each where its table is
there, with the word at epoch 2, the paper's budget, where that is another. Tables verdicts.csv, findings.csv,
instruction_verdicts.csv, real_gemma_verdicts.csv and real_smollm2_verdicts.csv.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims.findings import headlines

from .drawing import check, stamp, wrapped
from .style import RC, TEXT_WIDTH

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

# Column of the verdict on a real model -> its table, and what the figure calls it.
_REAL = {
    "real_model": ("instruction_verdicts", "on questions"),
    "real_gemma": ("real_gemma_verdicts", "Gemma, pairs"),
    "real_smollm2": ("real_smollm2_verdicts", "SmolLM2, pairs"),
}
TABLES, OPTIONAL = ("verdicts", "findings"), tuple(table for table, _ in _REAL.values())
COLUMNS = [
    "claim", "statement", "verdict", "depends_on", "predicted", "effect", "mean", "low", "high", "seeds", "unit",
    "cells_not_run", *_REAL, *(f"{name}_early" for name in _REAL),
]  # fmt: skip
_SIZE, _LEADING = 6.5, 8.0  # points, of the type and from line to line
_COMMON = ("ECE", "probability")  # units that share a scale
_ZERO = 0.25  # where no effect lies, in widths of the strip
_TICK = 0.1  # of the common scale
_AIR = 5.0  # points, between rows
# Left edges and widths of the columns, in inches.
_PLACES = {
    "claim": (0.06, 0.2), "statement": (0.26, 1.5), "verdict": (1.84, 1.16), "effect": (3.1, 1.46),
    "strip": (4.64, 0.56), "numbers": (5.28, 0.78), "predicted": (6.12, 0.6),
}  # fmt: skip
_MARKS: dict[str, dict[str, Any]] = {
    "supported": {"marker": "o", "mfc": "#00224e", "mec": "#00224e"},
    "refuted": {"marker": "X", "mfc": "#c44e00", "mec": "#c44e00"},
    "depends on": {
        "marker": "o", "fillstyle": "left", "mfc": "#00224e", "markerfacecoloralt": "white", "mec": "#00224e",
    },
    "not decided": {"marker": "o", "mfc": "white", "mec": "0.5"},
}  # fmt: skip


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The verdicts with the numbers of their findings, and the verdicts on real models.

    Returns:
        ``COLUMNS``, one line a claim; those of real models are empty where there is none.
    """
    table = headlines(tables["verdicts"], tables["findings"])
    for column, (name, _) in _REAL.items():
        real = tables.get(name)
        found = {} if real is None else dict(zip(real["claim"], real["verdict"], strict=True))
        early = {}
        if real is not None and "early_verdict" in real:
            early = dict(zip(real["claim"], real["early_verdict"].fillna(""), strict=True))
        table[column] = [found.get(claim, "") for claim in table["claim"]]
        table[f"{column}_early"] = [early.get(claim, "") for claim in table["claim"]]
    return table.reindex(columns=COLUMNS)


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """A row for each claim; see the caption above.

    Redraw: ``python -m paper_figures --only verdicts``.
    """
    check(table, COLUMNS)
    rows = [_texts(row) for row in table.to_dict("records")]
    heights = [max(text.count("\n") + 1 for text in row.values()) * _LEADING + _AIR for row in rows]
    head, foot = 21.0, 10.0
    total = head + sum(heights) + foot
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, total / 72))
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, TEXT_WIDTH), ylim=(total, 0))
        ax.set_axis_off()
        titles = {"claim": "claim", "verdict": "verdict", "effect": "effect", "numbers": "mean [95 %]"}
        for name, title in {**titles, "predicted": "predicted"}.items():
            ax.text(_PLACES[name][0], 11, title, fontsize=_SIZE, fontweight="bold", va="center")
        scales = _scales(table)
        common = table.loc[table["unit"].isin(_COMMON) & table["mean"].notna(), "claim"]
        _scale(ax, scales[common.iloc[0]] if len(common) else None)
        top = head
        for row, texts, height in zip(table.to_dict("records"), rows, heights, strict=True):
            ax.axhline(top - _AIR / 2, color="0.8", lw=0.4)
            _row(ax, row, texts, top, scales)
            top += height
        ax.axhline(top - _AIR / 2, color="0.8", lw=0.4)
        stamp(fig, preset, (n for n in table["seeds"].dropna() if n > 0))
    return fig


def _scales(table: pd.DataFrame) -> dict[str, float]:
    """Inches to the unit for the effect of each claim that has one; common to those that are in one unit."""
    known = table.loc[table["mean"].notna()]
    ends = known[["low", "mean", "high"]].sub((known["unit"] == "ratio").astype(float), axis=0)
    groups = known["claim"].mask(known["unit"].isin(_COMMON), "common")
    width = _PLACES["strip"][1]
    scales = {}
    for group, part in ends.groupby(groups):
        most, least = float(part.to_numpy().max()), float(part.to_numpy().min())
        room = [width * (1 - _ZERO) / max(most, 1e-12), width * _ZERO / max(-least, 1e-12)]
        scales |= dict.fromkeys(known.loc[groups == group, "claim"], min(room))
    return scales


def _scale(ax: Axes, scale: float | None) -> None:
    """The ends of the common scale, in the line of titles."""
    left, width = _PLACES["strip"]
    last = 0 if scale is None else int((1 - _ZERO) * width / scale / _TICK)
    for tick in sorted({0, last}):
        x = left + _ZERO * width + tick * _TICK * (scale or 0)
        ax.text(x, 11, f"{tick * _TICK:.1g}", fontsize=_SIZE, ha="center", va="center", color="0.35")


def _texts(row: dict[Any, Any]) -> dict[str, str]:
    """What is written in each column, broken to its width."""
    verdict = str(row["verdict"])
    clause = f"{verdict} {row['depends_on']}" if row["depends_on"] else verdict
    clause += "".join(f"\n{called}: {_in_time(row, column)}" for column, (_, called) in _REAL.items() if row[column])
    numbers = [] if pd.isna(row["mean"]) else [f"{row['mean']:.3g}", f"[{row['low']:.3g}, {row['high']:.3g}]"]
    if not str(row["cells_not_run"]).startswith("0 "):
        numbers.append(f"{row['cells_not_run']} not run")
    effect = re.sub(r" ([=<>]) ", "\u00a0\\1\u00a0", str(row["effect"]))  # b = .1 stays on one line
    written = {
        "claim": str(row["claim"]), "statement": str(row["statement"]), "verdict": clause, "effect": effect,
        "numbers": "\n".join(numbers), "predicted": "\n".join(_expected(row)) or "none",
    }  # fmt: skip
    indent = {"verdict": 0.14}
    return {
        name: "\n".join(
            wrapped(line, 72 * (_PLACES[name][1] - indent.get(name, 0)), _SIZE) for line in text.split("\n")
        )
        for name, text in written.items()
    }


def _in_time(row: dict[Any, Any], column: str) -> str:
    """The verdict on a real model, and that at the paper's budget where it is another."""
    word, early = str(row[column]), row[f"{column}_early"]
    return word if early in ("", word) else f"{word} (epoch 2: {early})"


def _expected(row: dict[Any, Any]) -> list[str]:
    """Verdicts that were predicted, from ``"S5: refuted; S7: supported"``."""
    return list(dict.fromkeys(part.split(": ", 1)[-1] for part in str(row["predicted"]).split("; ") if part))


def _row(ax: Axes, row: dict[Any, Any], texts: dict[str, str], top: float, scales: dict[str, float]) -> None:
    line = top + _LEADING / 2  # middle of the first line
    expected = _expected(row)
    surprise = bool(expected) and row["verdict"] not in (*expected, "not decided")
    for name, text in texts.items():
        x = _PLACES[name][0] + (0.14 if name == "verdict" else 0)
        for i, part in enumerate(text.split("\n")):
            bold = name == "claim" or (name == "predicted" and surprise)
            ax.text(x, line + i * _LEADING, part, fontsize=_SIZE, va="center", fontweight="bold" if bold else "normal")
    left = _PLACES["verdict"][0] + 0.04
    ax.plot(left, line, ms=4.5, mew=0.8, ls="", **_MARKS[str(row["verdict"])])
    written = texts["verdict"].split("\n")
    for column, (_, called) in _REAL.items():
        if row[column]:
            below = line + _LEADING * next(i for i, part in enumerate(written) if part.startswith(f"{called}:"))
            ax.plot(left, below, ms=3.2, mew=0.7, ls="", **_MARKS[str(row[column])])
    if pd.isna(row["mean"]):
        return
    own = row["unit"] not in _COMMON
    reference = 1.0 if row["unit"] == "ratio" else 0.0
    left, width = _PLACES["strip"]
    zero, scale = left + _ZERO * width, scales[str(row["claim"])]
    ax.plot([left, left + width], [line, line], color="0.85", lw=0.6, zorder=0)
    if not own:
        ticks = np.arange(1, (left + width - zero) / scale / _TICK) * _TICK
        ax.plot(
            zero + scale * ticks, np.full(len(ticks), line), ls="", marker="|", ms=3, mew=0.5, color="0.6", zorder=0
        )
    low, mean, high = zero + scale * (np.array([row["low"], row["mean"], row["high"]], float) - reference)
    ax.plot([zero, zero], [top - 1, top + 2 * _LEADING - 3], color="0.6", lw=0.6, zorder=0)
    ax.errorbar(
        [mean], [line], xerr=[[mean - low], [high - mean]], marker="o", ms=3.2, color="#00224e",
        mfc="white" if own else "#00224e", mew=0.8, ecolor="0.3", capsize=1.5, elinewidth=0.8,
    )  # fmt: skip
