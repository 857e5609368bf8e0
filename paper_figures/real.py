"""Real models tuned on pairs: reliability before and after, the course of the error, and what the vocabulary changes.

Caption. Gemma-3-270M (a base model, V = 262144, D = 640) tuned on 1,024 pairs of instruction and response; weights
dequantised from 4 bits, under the Gemma terms of use. *(a)* Reliability among the options of all scored questions,
which were not tuned on, by length-normalised cloze: before tuning, after the last epoch without smoothing, and with
b = .1; bins of equal width that hold at least 50 questions of every seed. *(b)* ECE over the whole vocabulary through
tuning, on held-out responses and on ordinary text; dotted: two epochs, the paper's budget. *(c)* What b = .1 changes at
the last epoch where the head and the embedding keep fewer rows, the same documents of frequent tokens read in all: the
falls in confidence, accuracy, ECE and RMS-CE on held-out responses. *(d), (e), (f)* Accuracy, ECE and RMS-CE by file of
questions, at the three stages of (a), by normalised cloze. Means over seeds with 95% intervals (Student's t), cut at 0
and 1. Where its table is there, small marks of (b) are SmolLM2-135M-Instruct, which differs from Gemma in more than V.
Tables real_gemma and real_smollm2.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims.effects import difference, summarise

from .drawing import LABEL_SIZE, check, panel, points
from .style import RC, TEXT_WIDTH, Look

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("real_gemma",), ("real_smollm2",)
COLUMNS = [
    "kind", "model", "name", "view", "source", "bin", "epoch", "vocab_size", "seeds",
    *(f"{value}{end}" for value in ("confidence", "accuracy", "ece", "rms", "effect") for end in ("", "_low", "_high")),
]  # fmt: skip
_BUDGET = 2  # epochs that the paper tunes for
_LEAST_COUNT = 50  # questions of a bin and seed
_STAGES = {"before": (0.0, False), "after": (0.0, True), "smoothed": (0.1, True)}  # b, and whether at the last epoch
_LOOKS = {
    "before": Look("0.55", "D", (0, (1, 1))),
    "after": Look("#00224e", "o", "-"),
    "smoothed": Look("#8c7a33", "^", (0, (4, 1.5))),
}
_NAMES = {"before": "before tuning", "after": "after, $b = 0$", "smoothed": "after, $b = 0.1$"}
_DASHES = {"response": "-", "text": (0, (2, 1))}
_VIEWS = {"response": "responses", "text": "ordinary text"}
_EFFECTS = {
    "fall": ("confidence", "confidence"),
    "accuracy": ("accuracy", "accuracy"),
    "gain": ("ece", "ECE"),
    "rms": ("rms", "RMS-CE"),
}
_SCORES = {"accuracy": "accuracy", "ece": "ECE", "rms": "RMS-CE"}
_CHOICE = "cloze_norm"


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Reliability and errors at three stages, their course, and effects over the vocabulary.

    Returns:
        ``COLUMNS``; ``kind`` is ``"bin"`` or ``"file"`` (``name``: before, after, smoothed), ``"course"`` (``name``:
        ``"b=0"``, ``"b=0.1"``), or ``"vocabulary"`` (``name``: fall, accuracy, gain, rms).
    """
    gemma = _read(tables["real_gemma"])
    parts = [*_stages(gemma), _course(gemma).assign(model="gemma"), *_vocabulary(gemma)]
    if "real_smollm2" in tables:
        parts.append(_course(_read(tables["real_smollm2"])).assign(model="smollm2"))
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def _read(table: pd.DataFrame) -> pd.DataFrame:
    """Scored lines, read as trained."""
    table = table.loc[(table["split"] == "scored") & (table["reading"] == "as_trained")]
    return table.loc[table["label_smoothing"].isin([0.0, 0.1])]


def _stages(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Questions before tuning, after it, and after it with smoothing: bins of all files, and scores of each."""
    asked = table.loc[table["within"].isna() & (table["view"] == _CHOICE) & (table["exam"] == "whole")]
    last, parts = asked["epoch"].max(), list[pd.DataFrame]()
    for stage, (b, ends) in _STAGES.items():
        rows = asked.loc[(asked["label_smoothing"] == b) & (asked["epoch"] == (last if ends else 0))]
        rows = rows.assign(name=stage, model="gemma")
        bins = rows.loc[rows["bin"].notna() & (rows["n"] >= _LEAST_COUNT) & (rows["source"] == "all")]
        scores = rows.loc[rows["bin"].isna()]
        files = summarise(scores, ["name", "model", "source"], list(_SCORES)).assign(kind="file")
        curve = summarise(bins, ["name", "model", "bin"], ["confidence", "accuracy"]).assign(kind="bin")
        parts += [files, curve.loc[curve["seeds"] == files["seeds"].max()]]
    return parts


def _course(table: pd.DataFrame) -> pd.DataFrame:
    """ECE of responses and text over epochs."""
    rows = table.loc[table["within"].isna() & table["view"].isin(list(_VIEWS))]
    rows = rows.assign(name="b=" + rows["label_smoothing"].map("{:g}".format))
    return summarise(rows, ["name", "view", "epoch"], ["ece", "confidence", "accuracy"]).assign(kind="course")


def _vocabulary(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Scores of b = 0 minus those of b = .1 on responses at the end, by rows of the head."""
    rows = table.loc[table["within"].notna() & (table["view"] == "response") & (table["epoch"] == table["epoch"].max())]
    parts = []
    for name, (value, _) in _EFFECTS.items():
        pairs = difference(rows, value, column="label_smoothing", first=0.0, second=0.1, on=["rows", "data_seed"])
        pairs = pairs.rename(columns={"rows": "vocab_size", "difference": "effect"})
        found = summarise(pairs, ["vocab_size"], ["effect"])
        parts.append(found.assign(kind="vocabulary", name=name, model="gemma", view="response"))
    return parts


def make(table: pd.DataFrame, *, preset: str = "") -> Figure:
    """Reliability, the course of the error, the vocabulary, and scores by file; see the caption above.

    Redraw: ``python -m paper_figures --only real``.
    """
    check(table, COLUMNS)
    ends = [f"{name}_{end}" for name in ("confidence", *_SCORES) for end in ("low", "high")]
    table = table.assign(**{end: table[end].clip(0, 1) for end in ends})
    kinds = {kind: table.loc[table["kind"] == kind] for kind in ("bin", "course", "vocabulary", "file")}
    for rows in kinds.values():
        check(rows, COLUMNS)
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 4.3))
        _reliability(fig.add_axes((0.065, 0.585, 0.235, 0.335)), kinds["bin"])
        _courses(fig.add_axes((0.385, 0.585, 0.235, 0.335)), kinds["course"])
        _sizes(fig.add_axes((0.735, 0.585, 0.235, 0.335)), kinds["vocabulary"])
        for column, (value, name) in enumerate(_SCORES.items()):
            ax = fig.add_axes((0.145 + 0.29 * column, 0.1, 0.25, 0.335))
            _files(ax, kinds["file"], value, name, column)
        seeds = "-".join(str(int(n)) for n in sorted({table["seeds"].min(), table["seeds"].max()}))
        fig.text(0.995, 0.005, f"tier 1, {seeds} seeds", ha="right", va="bottom", fontsize=6, color="0.45")
    return fig


def _reliability(ax: Axes, bins: pd.DataFrame) -> None:
    ax.plot([0, 1], [0, 1], color="0.75", lw=0.7, zorder=0)
    for row, (stage, look) in enumerate(_LOOKS.items()):
        curve = bins.loc[bins["name"] == stage].sort_values("bin")
        ax.plot(curve["confidence"], curve["accuracy"], color=look.colour, ls=look.dashes, lw=0.9, zorder=2)
        points(ax, curve, "confidence", "accuracy", look, size=2.8, mew=0.5, elinewidth=0.5, capsize=0.8)
        place = 0.93 - 0.1 * row
        ax.plot([0.03, 0.13], [place, place], color=look.colour, ls=look.dashes, lw=0.9, transform=ax.transAxes)
        ax.plot(0.08, place, marker=look.marker, ms=3.2, color=look.colour, transform=ax.transAxes, ls="")
        ax.text(0.16, place, _NAMES[stage], transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence among the options", ylabel="accuracy")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel(ax, "a", "questions")


def _courses(ax: Axes, course: pd.DataFrame) -> None:
    top = 1.25 * float(course["ece_high"].max())
    ax.axvline(_BUDGET, ymax=0.8, color="0.6", ls=":", lw=0.7, zorder=0)
    for model, size in (("gemma", 3.2), ("smollm2", 1.8)):
        for view in _VIEWS:
            for name, stage in (("b=0", "after"), ("b=0.1", "smoothed")):
                rows = course.loc[(course["model"] == model) & (course["view"] == view) & (course["name"] == name)]
                look = _LOOKS[stage]
                line = rows.sort_values("epoch")
                ax.plot(
                    line["epoch"], line["ece"], color=look.colour, lw=0.9 if size > 2 else 0.4, ls=_DASHES[view],
                )  # fmt: skip
                points(
                    ax, rows, "epoch", "ece", look, size=size, filled=view == "response", mew=0.5, elinewidth=0.5,
                    capsize=0.8,
                )  # fmt: skip
    for row, (view, dashes) in enumerate(_DASHES.items()):
        place = 0.96 - 0.09 * row
        ax.plot([0.03, 0.15], [place, place], color="0.3", ls=dashes, lw=0.9, transform=ax.transAxes)
        ax.text(0.18, place, _VIEWS[view], transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    if (course["model"] == "smollm2").any():
        ax.text(0.98, 0.96, "small: SmolLM2", transform=ax.transAxes, va="center", ha="right", fontsize=LABEL_SIZE)
    ax.set(xlabel="epoch of tuning", ylabel="ECE, next token", ylim=(0, top), xlim=(-0.4, course["epoch"].max() + 0.4))
    ax.set_xticks(range(0, int(course["epoch"].max()) + 1, 2))
    panel(ax, "b", "responses and text")


def _sizes(ax: Axes, found: pd.DataFrame) -> None:
    ax.axhline(0, color="0.75", lw=0.7, zorder=0)
    looks = {
        "fall": Look("#00224e", "o", "-"),
        "accuracy": Look("0.55", "D", (0, (1, 1))),
        "gain": Look("#8c7a33", "s", (0, (4, 1.5))),
        "rms": Look("#c65102", "v", (0, (2, 1))),
    }
    top = 1.4 * max(0.01, float(found["effect_high"].max()))
    sizes = sorted(found["vocab_size"].unique())
    found = found.assign(place=[sizes.index(size) for size in found["vocab_size"]])
    for row, (name, look) in enumerate(looks.items()):
        rows = found.loc[found["name"] == name].sort_values("place")
        rows = rows.assign(place=rows["place"] + 0.07 * (row - 1.5))
        ax.plot(rows["place"], rows["effect"], color=look.colour, ls=look.dashes, lw=0.9)
        points(ax, rows, "place", "effect", look, size=3.2, filled=name == "fall")
        side, place = 0.5 * (row // 2), 0.96 - 0.09 * (row % 2)
        face = look.colour if name == "fall" else "white"
        ax.plot(
            side + 0.06, place, marker=look.marker, ms=3.2, color=look.colour, mfc=face, transform=ax.transAxes, ls=""
        )
        ax.text(side + 0.12, place, _EFFECTS[name][1], transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    ax.set_xticks(range(len(sizes)), [f"{size / 1024:.0f}k" for size in sizes])
    ax.set(
        xlim=(-0.4, len(sizes) - 0.6), xlabel="rows kept of the head (1k = 1024)", ylabel="fall by $b = 0.1$",
        ylim=(min(0.0, 1.1 * float(found["effect_low"].min())) - 0.005, top),
    )  # fmt: skip
    panel(ax, "c", "the vocabulary varied")


def _files(ax: Axes, files: pd.DataFrame, value: str, name: str, column: int) -> None:
    """A row for each file of questions, all together first."""
    sources = ["all", *sorted(set(files["source"]) - {"all"})]
    for shift, (stage, look) in zip((0.22, 0.0, -0.22), _LOOKS.items(), strict=True):
        rows = files.loc[files["name"] == stage]
        rows = rows.assign(row=[shift - sources.index(source) for source in rows["source"]])
        points(ax, rows, value, "row", look, size=3.0)
    for row in range(len(sources)):
        ax.axhline(-row - 0.5, color="0.92", lw=0.5, zorder=0)
    labels = [source.removesuffix("_test").replace("_", " ") if not column else "" for source in sources]
    ax.set_yticks([-row for row in range(len(sources))], labels, fontsize=LABEL_SIZE)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(ylim=(0.5 - len(sources), 0.5), xlabel=name)
    ax.set_xlim(0, min(1.0, 1.1 * float(np.nanmax(files[f"{value}_high"]))))
    panel(ax, "def"[column], f"{name} by file of questions" if not column else f"{name} by file")
