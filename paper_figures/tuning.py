"""Instruction tuning in small: reliability before, after and with smoothing, and the true error along the way.

Caption. A model pretrained on a broad distribution of known conditionals is tuned on few repeated examples of a
shifted, nearly deterministic one. *(a), (b)* Reliability on new contexts of one setting: before tuning, after the last
epoch without smoothing, and with b = .1; small marks: bins of equal width that hold at least 10 contexts of every seed,
large: means over all contexts. Vertical lines: the confidence that b = .1 asks for on a certain answer, 1 - b + b / V,
and the ceiling that the norms of the tuned model's features and head rows allow (A3). Accuracies are true
probabilities of the predictions, not samples. *(c), (d)* True ECE (15 bins) through tuning, same setting; a
confidence penalty gamma H was tuned in it alone.
*(e)* At the last epoch, mean over all settings: what smoothing does beside weight decay, dropout, early stopping at the
least validation loss, a temperature fitted afterwards, and inverting the smoothing (the last two were measured on
the shifted distribution alone). Means over seeds with 95 % intervals (Student's t), cut at 0 and 1. Table S7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import caps
from analysis.claims.effects import summarise
from analysis.smoothing import optimal_confidence

from .drawing import LABEL_SIZE, check, end_labels, panel, points, stamp
from .style import RC, TEXT_WIDTH, THEORY_COLOUR, Look, looks

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S7",), ()
COLUMNS = [
    "kind", "name", "distribution", "vocab_size", "hidden_size", "bin", "epoch", "seeds",
    *(f"{name}{end}" for name in ("confidence", "accuracy", "true_ece") for end in ("", "_low", "_high")),
    "norm_product",
]  # fmt: skip
_SETTINGS = ((1024, 64), (512, 64))  # of all panels but the last: the first that is in the table, else its largest
_BINS = 15
_LEAST_COUNT = 10  # contexts of a bin and seed
_SMOOTHING = 0.1
_DISTRIBUTIONS = {"shifted": "tuned distribution", "broad": "broad distribution"}
_STAGES = {
    "before": Look("0.55", "D", (0, (1, 1))),
    "after": Look("#00224e", "o", "-"),
    "smoothed": Look("#8c7a33", "^", (0, (4, 1.5))),
}
_STAGE_NAMES = {"before": "before tuning", "after": "after, $b = 0$", "smoothed": "after, $b = 0.1$"}
_METHODS = {
    "b=0": "$b = 0$", "b=0.05": "$b = 0.05$", "b=0.1": "$b = 0.1$", "b=0.2": "$b = 0.2$",
    "weight_decay": "weight decay", "dropout": "dropout",
}  # fmt: skip
_PENALTIES = {"penalty=0.05": "penalty 0.05", "penalty=0.2": "penalty 0.2"}  # in one setting alone
_READINGS = {
    "early stopping": "$b = 0$, stopped early", "b=0 post_hoc": "$b = 0$, $T$ fitted",
    "b=0.1 inverted": "$b = 0.1$, inverted", "b=0.1 post_hoc": "$b = 0.1$, $T$ fitted",
}  # fmt: skip


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Reliability at three stages, the course of the error, and the last epoch of every method.

    Returns:
        ``COLUMNS``; ``kind`` is ``"bin"`` or ``"stage"`` (``name``: before, after, smoothed), ``"course"`` (``name``:
        the method) or ``"final"`` (``name``: the method, with its reading where it has one; all settings).
    """
    rows = tables["S7"]
    rows = rows.loc[rows["converged"] & (rows["distribution"] != "train")]
    known = set(zip(rows["vocab_size"], rows["hidden_size"], strict=True))
    vocab_size, hidden_size = next((s for s in _SETTINGS if s in known), max(known))
    one = rows.loc[(rows["vocab_size"] == vocab_size) & (rows["hidden_size"] == hidden_size)]
    course = one.loc[one["reading"] == "as_trained"].rename(columns={"method": "name"})
    parts = [
        *_stages(course),
        summarise(course, ["name", "distribution", "epoch"], ["true_ece"]).assign(kind="course"),
        _final(rows).assign(kind="final"),
    ]
    drawn = pd.concat(parts, ignore_index=True)
    shown = drawn["kind"] != "final"
    drawn.loc[shown, ["vocab_size", "hidden_size"]] = vocab_size, hidden_size
    return drawn.reindex(columns=COLUMNS)


def _stages(course: pd.DataFrame) -> list[pd.DataFrame]:
    """Means and bins of the three models."""
    last, parts = course["epoch"].max(), list[pd.DataFrame]()
    for stage, method, epoch in (("before", "b=0", 0), ("after", "b=0", last), ("smoothed", f"b={_SMOOTHING:g}", last)):
        rows = course.loc[(course["name"] == method) & (course["epoch"] == epoch)].assign(name=stage)
        means = summarise(rows, ["name", "distribution"], ["confidence", "accuracy"]).assign(kind="stage")
        if "feature_norm_max" in rows:
            norms = (rows["head_norm"] * rows["feature_norm_max"]).groupby(rows["distribution"]).mean()
            means["norm_product"] = means["distribution"].map(norms)
        parts.append(means)
        bins = _bins(rows)
        if not bins.empty:
            curve = summarise(bins, ["name", "distribution", "bin"], ["confidence", "accuracy"]).assign(kind="bin")
            parts.append(curve.loc[curve["seeds"] == means["seeds"].max()])
    return parts


def _bins(rows: pd.DataFrame) -> pd.DataFrame:
    """Bins of each seed, from ``count:confidence:accuracy;...``; those with few contexts are left out."""
    lines: list[dict[str, Any]] = []
    for row in rows.to_dict("records") if "reliability" in rows else ():
        for text in str(row["reliability"]).split(";"):
            count, confidence, accuracy = map(float, text.split(":"))
            if count >= _LEAST_COUNT:
                place = int(np.ceil(confidence * _BINS)) - 1
                lines.append(
                    {"name": row["name"], "distribution": row["distribution"], "bin": place}
                    | {"confidence": confidence, "accuracy": accuracy}
                )
    return pd.DataFrame(lines)


def _final(rows: pd.DataFrame) -> pd.DataFrame:
    """True ECE at the last epoch of every method and reading, and of early stopping: mean over settings a seed."""
    keys = ["vocab_size", "hidden_size", "data_seed"]
    trained = rows.loc[rows["reading"] == "as_trained"]
    plain = trained.loc[(trained["method"] == "b=0") & (trained["epoch"] > 0)]
    shifted = plain.loc[plain["distribution"] == "shifted"]
    best = shifted.loc[shifted.groupby(keys)["validation_nll"].idxmin(), [*keys, "epoch"]]
    stopped = plain.merge(best, on=[*keys, "epoch"]).assign(method="early stopping")
    last = rows.loc[rows["epoch"] == rows["epoch"].max()]
    read = last.loc[last["reading"] != "as_trained"]
    read = read.assign(method=read["method"] + " " + read["reading"])
    every = pd.concat([last.loc[last["reading"] == "as_trained"], stopped, read])
    every = every.loc[every["method"].isin([*_METHODS, *_READINGS])].rename(columns={"method": "name"})
    by_seed = every.groupby(["name", "distribution", "data_seed"], as_index=False)["true_ece"].mean()
    return summarise(by_seed, ["name", "distribution"], ["true_ece"])


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Reliability, the course of the error and the methods compared; see the caption above.

    Redraw: ``python -m paper_figures --only tuning``.
    """
    check(table, COLUMNS)
    # Accuracies, confidences and errors lie between 0 and 1; intervals of three seeds may not.
    ends = [f"{name}_{end}" for name in ("confidence", "accuracy", "true_ece") for end in ("low", "high")]
    table = table.assign(**{end: table[end].clip(0, 1) for end in ends})
    kinds = {kind: table.loc[table["kind"] == kind] for kind in ("bin", "stage", "course", "final")}
    for rows in kinds["stage"], kinds["course"], kinds["final"]:
        check(rows, COLUMNS)
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 4.3))
        lefts, width = (0.065, 0.335), 0.22
        for i, (distribution, name) in enumerate(_DISTRIBUTIONS.items()):
            ax = fig.add_axes((lefts[i], 0.585, width, 0.335))
            reliability, means = (kinds[k].loc[kinds[k]["distribution"] == distribution] for k in ("bin", "stage"))
            _reliability(ax, reliability, means, first=i == 0)
            panel(ax, "ab"[i], name)
        courses = [fig.add_axes((left, 0.115, width, 0.33)) for left in lefts]
        _courses(fig, courses, kinds["course"])
        _methods(fig.add_axes((0.795, 0.115, 0.19, 0.805)), kinds["final"])
        size = kinds["stage"].iloc[0]
        fig.text(
            0.065, 0.985, f"one setting, $V = {size['vocab_size']:.0f}$, $D = {size['hidden_size']:.0f}$", va="top",
            fontsize=LABEL_SIZE, color="0.35",
        )  # fmt: skip
        stamp(fig, preset, table["seeds"])
    return fig


def _reliability(ax: Axes, bins: pd.DataFrame, means: pd.DataFrame, *, first: bool) -> None:
    ax.plot([0, 1], [0, 1], color="0.75", lw=0.7, zorder=0)
    for row, (stage, look) in enumerate(_STAGES.items()):
        curve = bins.loc[bins["name"] == stage].sort_values("bin")
        ax.plot(curve["confidence"], curve["accuracy"], color=look.colour, ls=look.dashes, lw=0.9, zorder=2)
        points(ax, curve, "confidence", "accuracy", look, size=2.4, mew=0.5, elinewidth=0.5, capsize=0.8)
        points(
            ax,
            means.loc[means["name"] == stage],
            "confidence",
            "accuracy",
            look,
            size=5.5,
            mec="white",
            mew=0.4,
            zorder=4,
        )
        if first:
            place = 0.93 - 0.1 * row
            ax.plot([0.03, 0.13], [place, place], color=look.colour, ls=look.dashes, lw=0.9, transform=ax.transAxes)
            ax.plot(0.08, place, marker=look.marker, ms=3.2, color=look.colour, transform=ax.transAxes, ls="")
            ax.text(0.16, place, _STAGE_NAMES[stage], transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    _references(ax, means, named=not first)
    ax.set(xlim=(0, 1.0), ylim=(0, 1), xlabel="confidence")
    if first:
        ax.set_ylabel("true accuracy")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_ticks([0.25, 0.75], minor=True)


def _references(ax: Axes, means: pd.DataFrame, *, named: bool) -> None:
    """What smoothing asks for and what the norms allow; named beside the axes."""
    vocab_size, hidden_size = (int(means[name].iloc[0]) for name in ("vocab_size", "hidden_size"))
    asked = float(optimal_confidence(_SMOOTHING, vocab_size))
    lines: list[tuple[float, Any, str]] = [(asked, (0, (1, 1)), "dotted: asked\nfor by $b = 0.1$")]
    m = means.loc[means["name"] == "after", "norm_product"].iloc[0]
    if not np.isnan(m):
        gap = caps.rank_gap(m, vocab_size, min(hidden_size, vocab_size - 1))
        lines.append((float(caps.gap_to_confidence(gap, vocab_size)), (0, (4, 1.5)), "dashed: ceiling\nof the norms"))
    for row, (at, dashes, name) in enumerate(lines):
        ax.axvline(at, color=THEORY_COLOUR, lw=0.8, ls=dashes, zorder=1, clip_on=False)
        if named:
            ax.text(
                1.04, 0.9 - 0.27 * row, f"{name}, {at:.3f}", transform=ax.transAxes, va="center", fontsize=LABEL_SIZE,
                color=THEORY_COLOUR,
            )  # fmt: skip


def _courses(fig: Figure, axes: list[Axes], course: pd.DataFrame) -> None:
    """True ECE over epochs, evenly spaced at their powers of two."""
    names = {**_METHODS, **_PENALTIES}
    present = [name for name in names if name in set(course["name"])]
    look_of = dict(zip(present[::-1], looks(present).values(), strict=True))  # b = 0 darkest
    epochs = sorted(int(e) for e in course["epoch"].unique())
    place = {epoch: i for i, epoch in enumerate(epochs)}
    top = 1.06 * float(course["true_ece_high"].max())
    for i, (ax, distribution) in enumerate(zip(axes, _DISTRIBUTIONS, strict=True)):
        rows = course.loc[course["distribution"] == distribution]
        for name in present[::-1]:
            line = rows.loc[rows["name"] == name].sort_values("epoch")
            line = line.assign(place=line["epoch"].map(place))
            ax.plot(line["place"], line["true_ece"], color=look_of[name].colour, ls=look_of[name].dashes, lw=0.9)
            points(ax, line, "place", "true_ece", look_of[name], size=2.8, mew=0.5, elinewidth=0.5, capsize=0.8)
        ax.set(ylim=(0, top), xlim=(-0.3, len(epochs) - 0.7), xlabel="epoch of tuning")
        ax.set_xticks(range(len(epochs)), [str(e) for e in epochs])
        ax.set_yticks(np.arange(0, top, 0.1))
        panel(ax, "cd"[i], _DISTRIBUTIONS[distribution])
    axes[0].set_ylabel("true ECE")
    axes[1].tick_params(labelleft=False)
    last = course.loc[(course["distribution"] == "broad") & (course["epoch"] == epochs[-1])].set_index("name")
    ends = [(float(last.loc[name, "true_ece"]), names[name], look_of[name]) for name in present if name in last.index]
    end_labels(fig, axes[1], ends)


def _methods(ax: Axes, final: pd.DataFrame) -> None:
    """A row for each method and reading, both distributions."""
    names = {**_METHODS, **_READINGS}
    present = [name for name in names if name in set(final["name"])]
    kinds = {"shifted": (Look("#00224e", "o", "-"), True, 0.14), "broad": (Look("#8c7a33", "s", "-"), True, -0.14)}
    for distribution, (look, filled, up) in kinds.items():
        rows = final.loc[(final["distribution"] == distribution) & final["name"].isin(present)]
        rows = rows.assign(row=[up - present.index(name) for name in rows["name"]])
        points(ax, rows, "true_ece", "row", look, size=3.4, filled=filled)
    for row in range(len(present)):
        ax.axhline(-row, color="0.92", lw=0.5, zorder=0)
    ax.set_yticks([-row for row in range(len(present))], [names[name] for name in present], fontsize=LABEL_SIZE)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(ylim=(0.5 - len(present), 1.0), xlabel="true ECE, last epoch")
    ax.set_xlim(0, 1.08 * float(final["true_ece_high"].max()))
    for i, (distribution, (look, _, _)) in enumerate(kinds.items()):
        ax.plot(0.02 + 0.48 * i, 0.975, marker=look.marker, ms=3.4, color=look.colour, transform=ax.transAxes, ls="")
        ax.text(0.07 + 0.48 * i, 0.975, "tuned" if distribution == "shifted" else "broad", transform=ax.transAxes,
                va="center", fontsize=LABEL_SIZE)  # fmt: skip
    panel(ax, "e", "all settings", offset=-0.1)
