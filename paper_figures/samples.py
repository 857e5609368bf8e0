"""Where smoothing helps and where it hurts: samples per context x hidden size, under a norm budget and with free norms.

Caption. Gain of smoothing (b = .1) in true ECE, plain minus smoothed head of the same data and first values, of noisy
targets: above 0 smoothing helps, below it hurts (scale logarithmic beyond .1). First panels: against the samples that
each context was trained on, one line a hidden size, broken where no pair converged. Few samples are fitted too closely
and smoothing helps, by up to .1 (.3 in four dimensions); at 64 there is little to mend, and it hurts where it acts, by
.01 to .057. A norm budget at T = 1 leaves it inert in few dimensions, as it keeps the plain head from over-confidence;
at T = .25 less so. Last panel: the same gains, of every cell in the table, against the over-confidence of the plain
head on new data, -(H - CE) in nats, H - CE being its scale gap; the prediction was that both have the same sign
(the unshaded quarters; in the title, how many of the cells do). It fails most where many samples leave CE above H and
smoothing hurts all the same. Free norms have a weight decay of 1e-4. Means over seeds with 95 % t intervals;
runs that break the convergence rule are left out. Table S4.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.claims.effects import CELL, PAIR, paired_effects, summarise

from .drawing import LABEL_SIZE, check, end_labels, panel, points, stamp
from .style import RC, TEXT_WIDTH, Look, looks

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S4",), ()
_VALUES = ("true_ece_gain", "over_confidence")
COLUMNS = [
    "norm", "teacher", "vocab_size", "hidden_size", "samples_per_context", "temperature", "seeds",
    *(f"{name}{end}" for name in _VALUES for end in ("", "_low", "_high")),
]  # fmt: skip
_LINEAR = 0.1  # nats; the axis of scale gaps is logarithmic beyond
_LINEAR_GAIN = 0.1  # the axis of gains is logarithmic beyond, so that one extreme cell does not flatten the others


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Paired gains of b = .1, and -(H - CE) of the plain head on new data; converged seeds.

    Returns:
        ``COLUMNS``, one line a cell.
    """
    rows = tables["S4"]
    pairs = paired_effects(rows)
    plain = rows.loc[rows["label_smoothing"] == 0].assign(over_confidence=lambda r: r["held_out_nll"] - r["entropy"])
    pairs = pairs.merge(plain[[*PAIR, "over_confidence"]], on=PAIR)
    kept = pairs.loc[np.isclose(pairs["label_smoothing"], 0.1) & pairs["converged"]]
    return summarise(kept, CELL, list(_VALUES)).reindex(columns=COLUMNS)


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Gains against samples, a panel for each way of limiting norms, and against the scale gap; see the caption.

    Redraw: ``python -m paper_figures --only samples``.
    """
    check(table, COLUMNS)
    teacher = "lowrank" if "lowrank" in set(table["teacher"]) else str(table["teacher"].iloc[0])
    vocab_size = int(table["vocab_size"].min())
    shown = table.loc[(table["teacher"] == teacher) & (table["vocab_size"] == vocab_size)]
    groups = sorted({(str(n), float(t)) for n, t in zip(shown["norm"], shown["temperature"], strict=True)})
    groups.sort(key=lambda group: (group[0] == "free", -group[1]))
    look_of = looks(sorted(int(d) for d in shown["hidden_size"].unique()))
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 2.6))
        count = len(groups) + 1
        width, start, gap = 0.0, 0.09, 0.03
        width = (0.985 - start - 0.105 - gap * (count - 2)) / count
        axes = [fig.add_axes((start + i * (width + gap), 0.2, width, 0.69)) for i in range(len(groups))]
        low, high = float(shown["true_ece_gain_low"].min()), float(shown["true_ece_gain_high"].max())
        low, high = 1.35 * low, 1.15 * high
        for i, (ax, (norm, temperature)) in enumerate(zip(axes, groups, strict=True)):
            cells = shown.loc[(shown["norm"] == norm) & (shown["temperature"] == temperature)]
            _over_samples(ax, cells, look_of)
            _gain_axis(ax, low, high)
            title = "free norms" if norm == "free" else "norm budget"
            panel(ax, "abcdef"[i], title + (f", $T = {temperature:g}$" if norm != "free" or temperature != 1 else ""))
            if i:
                ax.tick_params(labelleft=False)
        axes[0].set_ylabel("gain of smoothing in true ECE")
        last = shown.loc[(shown["norm"] == groups[-1][0]) & (shown["temperature"] == groups[-1][1])]
        ends_at = last.sort_values("samples_per_context").groupby("hidden_size")["true_ece_gain"].last()
        ends = [(float(gain), str(size), look_of[size]) for size, gain in ends_at.items()]
        end_labels(fig, axes[-1], ends, title="$D$")
        _signs(fig.add_axes((0.985 - width, 0.2, width, 0.69)), table, low, high, "abcdef"[len(groups)])
        stamp(fig, preset, table["seeds"])
    return fig


def _gain_axis(ax: Axes, low: float, high: float) -> None:
    ax.set_yscale("symlog", linthresh=_LINEAR_GAIN, linscale=1.0)
    ticks = [g for g in (-0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.3, 0.5) if low <= g <= high]
    ax.set_yticks(ticks, [f"{g:g}".replace("-", "\u2212") for g in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(low, high)


def _over_samples(ax: Axes, cells: pd.DataFrame, look_of: dict[int, Look]) -> None:
    ax.axhline(0, color="0.6", lw=0.6, zorder=0)
    ticks = sorted(int(n) for n in cells["samples_per_context"].unique())
    for size, look in look_of.items():
        line = cells.loc[cells["hidden_size"] == size]
        across = line.set_index("samples_per_context")["true_ece_gain"].reindex(ticks)  # a lost cell breaks the line
        ax.plot(ticks, across, color=look.colour, ls=look.dashes, lw=0.9)
        points(ax, line, "samples_per_context", "true_ece_gain", look)
    ax.set(xscale="log", xlabel="samples per context")
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.set_xticks([], minor=True)


def _signs(ax: Axes, table: pd.DataFrame, low: float, high: float, letter: str) -> None:
    """Gains against -(H - CE) on new data, with the quarters where the signs differ shaded."""
    low = min(low, 1.05 * float(table["true_ece_gain_low"].min()))
    high = max(high, 1.05 * float(table["true_ece_gain_high"].max()))
    gaps = table[["over_confidence_low", "over_confidence_high"]]
    left, right = min(3 * float(gaps.min().min()), -1.0), max(1.6 * float(gaps.max().max()), 1.0)
    for corner, height in (((left, 0), high), ((0, low), -low)):
        width = -left if corner[0] else right
        ax.add_patch(Rectangle(corner, width, height, fc="0.93", lw=0, zorder=0))
    ax.axhline(0, color="0.6", lw=0.6, zorder=0)
    ax.axvline(0, color="0.6", lw=0.6, zorder=0)
    for row, (norm, look) in enumerate((("budget", Look("#00224e", "o", "-")), ("free", Look("#8c7a33", "^", "-")))):
        cells = table.loc[table["norm"] == norm]
        if not cells.empty:
            points(ax, cells, "over_confidence", "true_ece_gain", look, size=2.8, mew=0.6, elinewidth=0.5)
        place = 0.94 - 0.085 * row
        ax.plot(0.05, place, marker=look.marker, ms=3, color=look.colour, transform=ax.transAxes, ls="")
        ax.text(0.09, place, norm, transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    known = table.loc[(table["over_confidence"] != 0) & (table["true_ece_gain"] != 0)]
    same = int((np.sign(known["over_confidence"]) == np.sign(known["true_ece_gain"])).sum())
    ax.set_xscale("symlog", linthresh=_LINEAR, linscale=0.5)
    ax.set(xlim=(left, right), xlabel="$-$(H $-$ CE) on new data (nats)")
    ticks = [x for x in (-10, -1, 0, 1, 10, 100) if left <= x <= right]
    ax.set_xticks(ticks, [f"{x:g}".replace("-", "\u2212") for x in ticks])
    ax.set_xticks([x for x in (-0.1, 0.1) if left <= x <= right], minor=True)
    _gain_axis(ax, low, high)
    panel(ax, letter, f"sign rule: {same} of {len(known)}")
