"""How far smoothing lowers confidence: measured, against what the model trained without it predicts, nothing fitted.

Caption. Each mark is a setting of S9, the mean over seeds of pairs of heads that differ in label smoothing alone; a
head that stands in several tables, or whose budget and temperature have one ratio, is one mark. *Up:* the fall in mean
max p that training with smoothing brought. *Across:* what the plain head says beforehand; on the line it is right.
*Left:* the frozen-head response P, which moves the hidden states alone. *Right:* two numbers of the plain head, its
confidence p and its activity index A, counted as -1 where it is lower. Axes are linear from -.001 to .001 (grey) and
logarithmic beyond. Stars, on the right alone: SmolLM2 tuned on questions and on pairs, and Gemma-3-270M (open; Gemma
terms of use) on pairs, with its whole vocabulary and cut, on their training examples at the last epoch;
its features are not free, so that P is no prediction, and its table has the two numbers alone. Squares: transformers
trained from scratch and tuned, likewise; P was computed for them, and says too much. Only pairs that
converged, whose response was solved and whose plain head is that of its table; ``heads`` counts their plain heads.
Numbers in the panels are those of the heads. Tables S9, and S3, S4 and S5 for the measured falls; S11 and S12;
tuned models: instruction_full, real_smollm2 and real_gemma, where there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims.effects import summarise
from analysis.claims.law_pairs import CELL, distinct, joined
from analysis.claims.response import unfitted_share
from analysis.claims.sizes import ALIKE
from analysis.response import clipped_fall

from .drawing import check, stamp
from .style import HIDDEN_SIZE_COLOURS, RC, TEXT_WIDTH, THEORY_COLOUR

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S9", "S3"), ("S4", "S5", "S11", "S12", "instruction_full", "real_smollm2", "real_gemma")
COLUMNS = [
    "kind", "vocab_size", "hidden_size", "label_smoothing", "seeds", "heads", "predicted", "clipped", "fall",
]  # fmt: skip
_TUNED = "SmolLM2, tuned"
_GEMMA = "Gemma, tuned"
_REAL = (_TUNED, _GEMMA)
_SCRATCH = "transformers"
_LOOKS: dict[str, dict[str, Any]] = {
    "one right token": {"marker": "o", "color": HIDDEN_SIZE_COLOURS[3], "ms": 3.4, "mfc": "none", "mew": 0.8},
    "several (noisy)": {"marker": "^", "color": HIDDEN_SIZE_COLOURS[0], "ms": 3.8, "mec": "#8a7a12", "mew": 0.4},
    _SCRATCH: {"marker": "s", "color": "white", "ms": 4.2, "mec": THEORY_COLOUR, "mew": 0.9},
    _TUNED: {"marker": "*", "color": THEORY_COLOUR, "ms": 9, "mec": "white", "mew": 0.5},
    _GEMMA: {"marker": "*", "color": "white", "ms": 9, "mec": THEORY_COLOUR, "mew": 1.0},
}
_SIZE = 9.5  # of all text, in points: 7 pixels and more where a phone shows the figure 390 wide
_SMOOTHING, _VOCABULARY = 0.1, 49152  # that the tuned models' index is stated at, and the V of SmolLM2
_TEXT = ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize", "axes.titlesize")
_LINEAR = 1e-3  # falls below this are drawn on a linear scale


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Cells of S9 with their measured falls, transformers trained from scratch, and the tuned models.

    Returns:
        ``COLUMNS``; ``kind`` is the kind of targets, transformers, or a tuned model; ``heads`` how many plain heads
        are drawn.
    """
    pairs = joined(tables["S9"], {name: tables[name] for name in ("S3", "S4", "S5") if name in tables})
    pairs = distinct(pairs.loc[pairs["confirmed"]])
    pairs = pairs.rename(columns={"predicted_fall": "predicted", "clipped_fall": "clipped"})
    by = [name for name in CELL if name in pairs]
    values = ["predicted", "clipped", "fall"]
    once: Any = pairs.groupby([*by, "data_seed"], dropna=False, as_index=False)[
        values
    ].mean()  # some stand in two tables
    cells = summarise(once, by, values)
    noisy = cells["teacher"] != "det"
    kind = np.where(noisy, "several (noisy)", "one right token")
    parts = [cells.assign(kind=kind, heads=pairs["key"].nunique())]
    parts += [_scratch(tables[name]).assign(kind=_SCRATCH) for name in ("S11", "S12") if name in tables]
    if "instruction_full" in tables:
        parts.append(_tuned(_questions(tables["instruction_full"])).assign(kind=_TUNED))
    for name, kind in (("real_smollm2", _TUNED), ("real_gemma", _GEMMA)):
        if name in tables:
            parts.append(_tuned(_pairs(tables[name])).assign(kind=kind))
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def _scratch(tuned: pd.DataFrame) -> pd.DataFrame:
    """Transformers whose pretraining had ended, on the tokens tuned on, at the last epoch, T = 1 and no softcap."""
    kept = tuned.loc[(tuned["distribution"] == "train") & (tuned["epoch"] == tuned["epoch"].max())]
    if "converged" in kept:
        kept = kept.loc[kept["converged"].astype(bool)]
    alike = [name for name in ALIKE if name in kept]
    plain = kept.loc[kept["method"] == "b=0"]
    parts = []
    for column in plain.filter(regex=r"^frozen_fall_"):
        b = column.rpartition("_")[2]
        smoothed = kept.loc[kept["method"] == f"b={b}", [*alike, "confidence"]]
        both = plain.loc[plain[column].notna()].merge(smoothed, on=alike, suffixes=("", "_smoothed"))
        p = both["confidence"]
        parts.append(both.assign(
            label_smoothing=float(b), predicted=both[column], fall=p - both["confidence_smoothed"],
            clipped=clipped_fall(p, both["activity"] * _SMOOTHING / float(b), both["vocab_size"], float(b)),
        ))  # fmt: skip
    by = [name for name in alike if name not in ("data_seed", "model_seed")]
    return summarise(pd.concat(parts), [*by, "label_smoothing"], ["predicted", "clipped", "fall"])


def _questions(tuned: pd.DataFrame) -> pd.DataFrame:
    """Tunings of SmolLM2 on questions, T = 1 and no softcap; V is not in the table."""
    plain = (tuned["temperature"] == 1) & tuned["softcap"].isna()
    return tuned.loc[plain & tuned["view"].isin(["letter", "tokens"])].assign(rows=_VOCABULARY, documents="all")


def _pairs(tuned: pd.DataFrame) -> pd.DataFrame:
    """Tunings on pairs, on all documents and, of Gemma, on those of frequent tokens, whose head was cut."""
    responses = tuned.loc[tuned["view"] == "response"]
    return responses.assign(documents=responses["within"].isna().map({True: "all", False: "frequent tokens"}))


def _tuned(tuned: pd.DataFrame) -> pd.DataFrame:
    """Falls of a tuned model on its training examples, and what its plain confidence and index say."""
    kept = tuned.loc[
        (tuned["split"] == "train") & (tuned["reading"] == "as_trained") & (tuned["epoch"] == tuned["epoch"].max())
    ]
    cell = ["view", "documents", "rows"]
    keys = [*cell, "data_seed"]
    plain = kept.loc[kept["label_smoothing"] == 0, [*keys, "confidence", "activity"]]
    smoothed = kept.loc[kept["label_smoothing"] > 0, [*keys, "label_smoothing", "confidence"]]
    both = smoothed.merge(plain, on=keys, suffixes=("", "_plain"))
    b, p = both["label_smoothing"], both["confidence_plain"]
    both["fall"] = p - both["confidence"]
    both["clipped"] = clipped_fall(p, both["activity"] * _SMOOTHING / b, both["rows"], b)
    return summarise(both, [*cell, "label_smoothing"], ["clipped", "fall"])


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Measured against predicted fall, see the caption above.

    Args:
        table: From :func:`prepare`.
        preset: Printed in the figure.

    Returns:
        The figure, unsaved. Redraw: ``python -m paper_figures --only response``.

    Raises:
        ValueError: If a column is missing or there is no cell.
    """
    check(table, COLUMNS)
    cells = table.loc[~table["kind"].isin([*_REAL, _SCRATCH])]
    check(cells, COLUMNS)
    drawn = table[["predicted", "clipped", "fall"]].to_numpy()
    ends = min(-_LINEAR / 2, 1.4 * float(np.nanmin(drawn))), 1.25 * float(np.nanmax(drawn))
    with mpl.rc_context(RC | dict.fromkeys(_TEXT, _SIZE)):
        fig = Figure(figsize=(TEXT_WIDTH, 3.9))
        left, right = (fig.add_axes((x, 0.165, 0.385, 0.745)) for x in (0.105, 0.605))
        _panel(left, table, "predicted", ends)
        _panel(right, table, "clipped", ends)
        left.set_title("(a) computed from the unsmoothed head", loc="left")
        right.set_title(r"(b) the rule $b\,(p - 1/V)\,\max(0, 1 - A)$", loc="left")
        left.set_ylabel("measured fall in confidence")
        handles, labels = right.get_legend_handles_labels()
        simulated = [at for at, label in enumerate(labels) if label not in _REAL]
        style: dict[str, Any] = {"loc": "upper left", "handletextpad": 0.2, "labelspacing": 0.3, "borderpad": 0.1}
        left.legend([handles[at] for at in simulated], [labels[at] for at in simulated], **style)
        stars = [at for at, label in enumerate(labels) if label in _REAL]
        right.legend([handles[at] for at in stars], [labels[at] for at in stars], **style)
        stamp(fig, preset, cells["seeds"])
    return fig


def _panel(ax: Axes, table: pd.DataFrame, x: str, ends: tuple[float, float]) -> None:
    """Measured falls against one prediction, and how far that is off."""
    for span in (ax.axvspan, ax.axhspan):
        span(-_LINEAR, _LINEAR, color="0.93", lw=0, zorder=0)
    ax.plot(ends, ends, color="0.6", lw=0.9, zorder=1)
    for kind, look in _LOOKS.items():
        rows = table.loc[(table["kind"] == kind) & table[x].notna()].sort_values([x, "fall"], kind="stable")
        if len(rows):
            ax.plot(rows[x], rows["fall"], ls="", label=kind, zorder=4 if kind in _REAL else 3, **look)
    for axis in ("x", "y"):
        getattr(ax, f"set_{axis}scale")("symlog", linthresh=_LINEAR, linscale=0.4)
        ticks = {"\N{MINUS SIGN}0.01": -0.01, "0": 0, "0.01": 0.01, "0.1": 0.1}
        ticks = {name: at for name, at in ticks.items() if at >= ends[0]}
        getattr(ax, f"set_{axis}ticks")(list(ticks.values()), list(ticks))
        getattr(ax, f"set_{axis}lim")(*ends)
    ax.minorticks_off()
    ax.set_xlabel("predicted fall")
    cells = table.loc[~table["kind"].isin([*_REAL, _SCRATCH])]
    share = unfitted_share(cells[x].to_numpy(), cells["fall"].to_numpy())
    error = float((cells[x] - cells["fall"]).abs().max())
    note = f"{len(cells)} settings\nof heads:\n$R^2$ = {share:.3f},\noff by {error:.3f}\nat most"
    below = ends[0] < -_LINEAR  # falls below 0 take the lower right corner
    at: dict[str, Any] = {"x": 0.03, "y": 0.42} if below else {"x": 0.97, "y": 0.05, "ha": "right"}
    ax.text(s=note, transform=ax.transAxes, va="bottom", linespacing=1.2, **at)
    grey: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "color": "0.35", "linespacing": 1.2}
    if below:
        ax.text(0.98, 0.49, "on the line:\nexact", **grey)
        said = "linear where grey,\nelse logarithmic" if x == "predicted" else "column: all\nwith A above 1"
        high = 0.02 if x == "predicted" else 0.11
        ax.text(0.98, high, said, va="bottom", **grey)
