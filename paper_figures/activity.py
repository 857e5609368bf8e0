"""Effect of smoothing on confidence, against rho and against the activity index: does one number tell when it acts?"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.caps import gap_to_confidence
from analysis.smoothing import optimal_gap
from analysis.study.effects import cell_effects, paired_effects

from .style import HIDDEN_SIZE_COLOURS, RC, TEXT_WIDTH, THEORY_COLOUR

__all__ = ["COLUMNS", "GRID", "make", "predicted_fall", "prepare"]

GRID = "S3"
_SMOOTHING = 0.1
_INTERVALS = ("effectiveness_ratio", "activity_index", "confidence_fall")
COLUMNS = [
    "teacher", "vocab_size", "hidden_size", "norm_coefficient", "temperature", "label_smoothing", "seeds",
    *(f"{name}{end}" for name in _INTERVALS for end in ("", "_low", "_high")),
]  # fmt: skip
_MARKERS = {"det": "o", "lowrank": "^", "sparse": "s"}
_NAMES = {"det": "deterministic", "lowrank": "noisy, 8 samples", "sparse": "noisy with peaks"}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), ":", "-.")
_LEAST_INDEX = 1e-2  # smaller indices are drawn here: the head is saturated and the index has no scale left


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Cells of the figure from rows of S3: paired effects of b = .1 without softcap, averaged over converged seeds."""
    pairs = paired_effects(rows.loc[rows["softcap"].isna()])
    return cell_effects(pairs.loc[pairs["label_smoothing"] == _SMOOTHING]).filter(COLUMNS)


def predicted_fall(effectiveness_ratio: np.ndarray, vocab_size: int, label_smoothing: float) -> np.ndarray:
    """Plain minus smoothed confidence for a det teacher and D >= V - 1, from rho (C1).

    The gap of the plain head is rho G_LS, that of the smoothed head min(rho, 1) G_LS.
    """
    wanted = optimal_gap(label_smoothing, vocab_size)
    plain = gap_to_confidence(effectiveness_ratio * wanted, vocab_size)
    return plain - gap_to_confidence(np.minimum(effectiveness_ratio, 1) * wanted, vocab_size)


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Fall in confidence against rho (left) and the activity index (right); one point per cell, 95 % bars over seeds.

    The lines are theory where it is exact (C1: det teacher, D >= V - 1). There the head is a simplex, for which
    A = (1 - p) V / (b (V - 1)), so that the fall is b (V - 1) / V max(0, 1 - A) on the right.

    Args:
        table: Cells with ``COLUMNS``, of one label smoothing.
        preset: Printed in the figure.

    Returns:
        The figure, unsaved. Redraw: ``python -m paper_figures --only activity``.

    Raises:
        ValueError: If a column is missing, or the table has no or several label smoothings.
    """
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"table must have the columns {COLUMNS}, it lacks {missing}.")
    smoothings = sorted({float(b) for b in table["label_smoothing"]})
    if len(smoothings) != 1:
        raise ValueError(f"table must have cells of one label_smoothing, got {smoothings}.")
    (smoothing,) = smoothings
    sizes = sorted(table["hidden_size"].unique())
    shades = LinearSegmentedColormap.from_list("hidden", HIDDEN_SIZE_COLOURS)
    colours = {size: shades(i / max(1, len(sizes) - 1)) for i, size in enumerate(sizes)}
    vocabularies = sorted(table["vocab_size"].unique())
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 2.55), layout="constrained")
        left, right = fig.subplots(1, 2, sharey=True)
        _points(left, table, "effectiveness_ratio", colours, vocabularies)
        _points(right, table, "activity_index", colours, vocabularies)
        _theory(left, right, table, smoothing)
        left.margins(y=0.13)
        left.set(ylim=(-0.006, None), xscale="log", xlabel=r"gap that norms allow / gap that smoothing asks, $\rho$")
        left.set_ylabel(f"fall in confidence\n(plain $-$ smoothed, $b={smoothing:g}$)")
        right.set(xscale="log", xlabel=r"activity index of the plain head, $A$", xlim=(0.7 * _LEAST_INDEX, 14))
        left.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        right.set_xticks([0.01, 0.1, 1, 10], [r"$\leq$0.01", "0.1", "1", "10"])
        for ax, text in ((left, r"$\rho = 1$"), (right, "$A = 1$")):
            ax.axvline(1, color="0.75", lw=0.6, zorder=0)
            ax.annotate(
                text, (1, 1), (-4 if ax is left else 4, 0), xycoords=("data", "axes fraction"), va="top",
                textcoords="offset points", ha="right" if ax is left else "left", color="0.35", fontsize=7,
            )  # fmt: skip
        _legend(fig, table, colours, vocabularies)
        seeds = "-".join(str(n) for n in sorted({int(table["seeds"].min()), int(table["seeds"].max())}))
        fig.text(0.995, 0.005, f"preset {preset}, {seeds} seeds", ha="right", va="bottom", fontsize=5.5, color="0.45")
    return fig


def _size(vocab_size: int, vocabularies: list[int]) -> float:
    return 3.0 + 1.6 * vocabularies.index(vocab_size)


def _points(ax: Axes, table: pd.DataFrame, x: str, colours: dict[int, tuple], vocabularies: list[int]) -> None:
    """Means with 95 % intervals over seeds; filled at T = 1, open where training was sharper.

    Cells that agree in both directions, off the line of no effect, are drawn as rings around each other, the larger
    hidden size outside.
    """
    keys = ["vocab_size", "hidden_size", "teacher", "temperature", "norm_coefficient"]
    cells = table.sort_values(keys, kind="stable").to_dict("records")
    falls = [round(cell["confidence_fall"], 3) for cell in cells]
    places = [
        (cell["vocab_size"], round(float(np.log(cell[x])), 2), fall) for cell, fall in zip(cells, falls, strict=True)
    ]
    beneath = [places[:i].count(place) if place[-1] > 0 else 0 for i, place in enumerate(places)]
    for cell, rings in reversed(list(zip(cells, beneath, strict=True))):
        at, height = cell[x], cell["confidence_fall"]
        low, high = cell[f"{x}_low"], cell[f"{x}_high"]
        if x == "activity_index":
            at, low, high = (max(value, _LEAST_INDEX) for value in (at, low, high))
        colour = colours[cell["hidden_size"]]
        ax.errorbar(
            at,
            height,
            xerr=[[max(at - low, 0)], [max(high - at, 0)]],
            yerr=[[max(height - cell["confidence_fall_low"], 0)], [max(cell["confidence_fall_high"] - height, 0)]],
            fmt=_MARKERS[cell["teacher"]],
            ms=_size(cell["vocab_size"], vocabularies) + 2.4 * rings,
            mfc=colour if cell["temperature"] == 1 else "white",
            mec=colour,
            mew=0.9,
            ecolor="0.3",
            elinewidth=0.7,
            capsize=1.2,
            zorder=3,
        )


def _theory(left: Axes, right: Axes, table: pd.DataFrame, smoothing: float) -> None:
    """The exact lines, as far as the points go."""
    rho = np.geomspace(table["effectiveness_ratio"].min(), table["effectiveness_ratio"].max(), 400)
    index = np.geomspace(_LEAST_INDEX, 12, 400)
    for vocab_size, dashes in zip(_exact_vocabularies(table), _DASHES, strict=False):
        style: dict[str, Any] = {"color": THEORY_COLOUR, "ls": dashes, "lw": 1.0, "zorder": 2}
        left.plot(rho, predicted_fall(rho, vocab_size, smoothing), **style)
        top = smoothing * (vocab_size - 1) / vocab_size
        right.plot(index, top * np.maximum(0, 1 - index), **style)


def _exact_vocabularies(table: pd.DataFrame) -> list[int]:
    """Vocabularies of which a det head with D >= V - 1 is in the table."""
    return sorted({int(v) for v in table.query("teacher == 'det' and hidden_size >= vocab_size - 1")["vocab_size"]})


def _legend(fig: Figure, table: pd.DataFrame, colours: dict[int, tuple], vocabularies: list[int]) -> None:
    def mark(label: str, marker: str = "o", colour: object = "0.3", size: float = 4.6, filled: bool = True) -> Line2D:
        face = colour if filled else "white"
        return Line2D([], [], ls="", marker=marker, ms=size, mec=colour, mfc=face, mew=0.9, label=label)

    def head(text: str) -> Line2D:
        return Line2D([], [], ls="", label=text)

    teachers = [name for name in _MARKERS if name in set(table["teacher"])]
    temperatures = sorted(table["temperature"].unique(), reverse=True)
    handles = [
        head("teacher"),
        *(mark(_NAMES[name], marker=_MARKERS[name]) for name in teachers),
        head("hidden size $D$"),
        *(mark(str(size), colour=colours[size]) for size in colours),
        head("vocabulary $V$"),
        *(mark(str(v), size=_size(v, vocabularies)) for v in vocabularies),
        head("training temperature"),
        *(mark(f"{t:g}", filled=t == 1) for t in temperatures),
        head("theory, $D \\geq V - 1$"),
        *(
            Line2D([], [], color=THEORY_COLOUR, ls=dashes, lw=1.0, label=f"$V = {v}$")
            for v, dashes in zip(_exact_vocabularies(table), _DASHES, strict=False)
        ),
    ]
    legend = fig.legend(
        handles=handles, loc="outside right upper", handlelength=1.2, handletextpad=0.5, labelspacing=0.22,
        borderaxespad=0.2, fontsize=6.5,
    )  # fmt: skip
    for text, handle in zip(legend.get_texts(), handles, strict=True):
        if handle.get_marker() in ("None", None) and handle.get_linestyle() == "None":
            text.set_fontweight("bold")
