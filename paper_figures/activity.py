"""Effect of smoothing on confidence, against rho and against the activity index: does one number tell when it acts?

Caption. Fall in mean confidence from training with label smoothing b (plain minus smoothed head, the same data and
first values), as a share of b (V - 1) / V, which is what smoothing takes from a sure head on the simplex. *Left:*
against rho, the gap that the norm budget allows over the gap that smoothing asks for. *Right:* against the activity
index A of the plain head, measured by forward passes alone, over all sweeps: hidden size, vocabulary, temperature,
smoothing, norm budget, softcap. Deterministic targets follow one line, max(0, 1 - A), but for small D, whose sure heads
fall by more than the share; noisy ones turn at about the same A, more smoothly and to a lower level. Lines: C1 (left:
at b = .1), exact for D >= V - 1. Points: means over seeds with 95 % intervals (Student's t; a lone seed has none).
*Above:* where public head shapes would lie, for deterministic targets, if their norm product were m; no weights were
seen. Stars: a real language model, tuned to answer questions by letters or in short (three seeds), on its training
examples; an arrow gives the end of a bar that goes on beyond the axes. Tables S3 and caps.csv; the tuned model:
instruction_full.csv, where it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.caps import gap_to_confidence
from analysis.claims.effects import cell_effects, paired_effects, summarise
from analysis.smoothing import optimal_gap, predicted_activity

from .drawing import check, points, stamp
from .style import RC, TEXT_WIDTH, THEORY_COLOUR, Look, ramp

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "predicted_fall", "prepare"]

TABLES, OPTIONAL = ("S3", "caps"), ("instruction_full",)
_INTERVALS = ("effectiveness_ratio", "activity_index", "share")
COLUMNS = [
    "kind", "name", "teacher", "vocab_size", "hidden_size", "norm_coefficient", "temperature", "softcap",
    "softcap_form", "label_smoothing", "seeds",
    *(f"{name}{end}" for name in _INTERVALS for end in ("", "_low", "_high")),
]  # fmt: skip
_MARKERS = {"det": "o", "lowrank": "^", "sparse": "s"}
_NAMES = {"det": "deterministic", "lowrank": "noisy, 8 samples", "sparse": "noisy with peaks"}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.2, 1, 1.2)))
_LEAST_INDEX = 1e-2  # smaller indices are drawn here: the head is saturated and the index has no scale left
_SMOOTHING = 0.1  # of the lines and of real heads
# Of the tuned model: what a view asks for, beside its star where there are no cells and its bars do not go.
_VIEWS = {"letter": "letters", "tokens": "short\nanswers"}
_STAR = Look("black", "*", "-")
_NORM_PRODUCTS = (10, 13, 16)  # of the public shapes: below, at and above where smoothing begins to act


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Cells of S3 (every smoothing, cap and budget; converged seeds), and the indices of real heads.

    Returns:
        ``COLUMNS``; ``kind`` is ``"cell"``, ``"shape"`` (index predicted from a public shape, its norm product in
        ``name``) or ``"measured"``.
    """
    pairs = paired_effects(tables["S3"])
    most = pairs["label_smoothing"] * (pairs["vocab_size"] - 1) / pairs["vocab_size"]
    pairs["confidence_fall"] /= most  # the pairs of a cell share b and V
    cells = cell_effects(pairs).assign(kind="cell", name="")
    cells = cells.rename(columns={f"confidence_fall{end}": f"share{end}" for end in ("", "_low", "_high")})
    parts = [cells, *_shapes(tables["caps"])]
    if "instruction_full" in tables:
        parts.append(_measured(tables["instruction_full"]))
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def _shapes(caps: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Indices that public shapes would have at a few norm products."""
    shapes = caps.drop_duplicates(["hidden_size", "vocab_size"])
    shapes = shapes[["vocab_size", "hidden_size", "label_smoothing"]].assign(kind="shape")
    for m in _NORM_PRODUCTS:
        index = predicted_activity(float(m), shapes["vocab_size"], shapes["hidden_size"], shapes["label_smoothing"])
        yield shapes.assign(name=f"m = {m}", activity_index=np.asarray(index))


def _measured(tuned: pd.DataFrame) -> pd.DataFrame:
    """A tuned language model on its training examples: the index without smoothing, the fall in confidence from b."""
    kept = tuned.loc[
        (tuned["split"] == "train") & (tuned["reading"] == "as_trained") & (tuned["temperature"] == 1)
        & tuned["softcap"].isna() & (tuned["epoch"] == tuned["epoch"].max()) & tuned["view"].isin(list(_VIEWS))
    ]  # fmt: skip
    keys = ["view", "data_seed"]
    plain, smoothed = (kept.loc[np.isclose(kept["label_smoothing"], b)] for b in (0.0, _SMOOTHING))
    pairs = plain[[*keys, "confidence", "activity"]].merge(smoothed[[*keys, "confidence"]], on=keys)
    pairs["share"] = (pairs["confidence_x"] - pairs["confidence_y"]) / _SMOOTHING  # (V - 1) / V is 1 to five digits
    cells = summarise(pairs.rename(columns={"activity": "activity_index"}), ["view"], ["activity_index", "share"])
    return cells.rename(columns={"view": "name"}).assign(kind="measured", label_smoothing=_SMOOTHING)


def predicted_fall(effectiveness_ratio: np.ndarray, vocab_size: int, label_smoothing: float) -> np.ndarray:
    """Plain minus smoothed confidence for a det teacher and D >= V - 1, from rho (C1).

    The gap of the plain head is rho G_LS, that of the smoothed head min(rho, 1) G_LS.
    """
    wanted = optimal_gap(label_smoothing, vocab_size)
    plain = gap_to_confidence(effectiveness_ratio * wanted, vocab_size)
    return plain - gap_to_confidence(np.minimum(effectiveness_ratio, 1) * wanted, vocab_size)


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Fall in confidence against rho (left) and the activity index (right), see the caption above.

    Redraw: ``python -m paper_figures --only activity``.
    """
    check(table, COLUMNS)
    cells = table.loc[table["kind"] == "cell"].copy()
    check(cells, COLUMNS)
    cells["activity_index_low"], cells["activity_index_high"] = (
        cells[f"activity_index_{end}"].clip(lower=_LEAST_INDEX) for end in ("low", "high")
    )
    cells["activity_index"] = cells["activity_index"].clip(lower=_LEAST_INDEX)
    vocabularies = sorted(int(v) for v in cells["vocab_size"].unique())
    sizes = sorted(int(d) for d in cells["hidden_size"].unique())
    colours = dict(zip(sizes, ramp(len(sizes)), strict=True))
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 3.0))
        grid = fig.add_gridspec(
            2, 2, height_ratios=(0.62, 3), left=0.1, right=0.85, bottom=0.14, top=0.97, hspace=0.06, wspace=0.07
        )
        left, right = (fig.add_subplot(grid[1, i]) for i in range(2))
        right.sharey(left)
        right.tick_params(labelleft=False)
        for ax, x in ((left, "effectiveness_ratio"), (right, "activity_index")):
            _cells(ax, cells, x, colours, vocabularies)
            ax.axhline(0, color="0.85", lw=0.5, zorder=0)
        _theory(left, right, cells)
        left.set(
            xscale="log",
            xlabel=r"gap that norms allow / gap that smoothing asks for, $\rho$",
            ylim=(-0.12, max(1.2, 1.05 * float(np.nanmax([cells["share_high"].max(), table["share"].max()])))),
        )
        left.set_ylabel("fall in confidence, plain $-$ smoothed,\n" r"as a share of $b\,(V-1)/V$")
        right.set(
            xscale="log", xlabel="activity index of the plain head, $A$", xlim=(0.7 * _LEAST_INDEX, _most_index(cells))
        )
        left.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        right.set_xticks([0.01, 0.1, 1, 10], [r"$\leq$0.01", "0.1", "1", "10"])
        right.text(0.63, 0.6, r"theory: $\max(0,\, 1-A)$", transform=right.transAxes, va="center", fontsize=7,
                   color=THEORY_COLOUR)  # fmt: skip
        for ax in (left, right):
            ax.axvline(1, color="0.75", lw=0.6, zorder=0)
        _shape_rows(fig.add_subplot(grid[0, 1], sharex=right), table.loc[table["kind"] == "shape"])
        measured = table.loc[table["kind"] == "measured"]
        if not measured.empty:
            _real(right, measured)
        _legend(fig, cells, colours, vocabularies, tuned=not measured.empty)
        stamp(fig, preset, cells["seeds"])
    return fig


def _size(vocab_size: int, vocabularies: list[int]) -> float:
    return 2.6 + 3.4 * vocabularies.index(vocab_size) / max(1, len(vocabularies) - 1)


def _cells(ax: Axes, cells: pd.DataFrame, x: str, colours: dict[int, str], vocabularies: list[int]) -> None:
    """Means with 95 % intervals over seeds, the larger vocabularies beneath; filled at T = 1, open where sharper."""
    by = ["vocab_size", "hidden_size", "teacher", "sharper"]
    ordered = cells.assign(sharper=cells["temperature"] != 1).sort_values(by, ascending=[False, True, True, True])
    key: Any
    for key, group in ordered.groupby(by, sort=False):
        vocab_size, size, teacher, sharper = key
        look = Look(colours[int(size)], _MARKERS[str(teacher)], "-")
        points(
            ax, group, x, "share", look, size=_size(int(vocab_size), vocabularies), filled=not sharper, mew=0.7,
            elinewidth=0.5, capsize=0.8,
        )  # fmt: skip


def _theory(left: Axes, right: Axes, cells: pd.DataFrame) -> None:
    """The exact lines, as far as the points go."""
    rho = np.geomspace(cells["effectiveness_ratio"].min(), cells["effectiveness_ratio"].max(), 400)
    for vocab_size, dashes in zip(_exact_vocabularies(cells), _DASHES, strict=False):
        share = predicted_fall(rho, vocab_size, _SMOOTHING) / (_SMOOTHING * (vocab_size - 1) / vocab_size)
        left.plot(rho, share, color=THEORY_COLOUR, ls=dashes, lw=1.0, zorder=2)
    index = np.geomspace(_LEAST_INDEX, _most_index(cells), 400)
    right.plot(index, np.maximum(0, 1 - index), color=THEORY_COLOUR, lw=1.0, zorder=2)


def _most_index(cells: pd.DataFrame) -> float:
    """Right end of the axis: beyond every cell."""
    return 1.4 * float(np.nanmax([cells["activity_index"].max(), cells["activity_index_high"].max()]))


def _exact_vocabularies(cells: pd.DataFrame) -> list[int]:
    """Vocabularies of which a det head with D >= V - 1 and b = .1 is in the table."""
    exact = cells.query("teacher == 'det' and hidden_size >= vocab_size - 1 and label_smoothing == .1")
    return sorted({int(v) for v in exact["vocab_size"]})


def _shape_rows(ax: Axes, shapes: pd.DataFrame) -> None:
    """A strip of public shapes above the right panel, one row a norm product."""
    names = sorted(set(shapes["name"]))
    for row, name in enumerate(names):
        index = shapes.loc[shapes["name"] == name, "activity_index"].clip(lower=_LEAST_INDEX).sort_values()
        ax.plot(index, np.full(len(index), -row), ls="", marker="|", ms=4.5, color="0.25", mew=0.7)
        label = f"public shapes if ${name}$" if row == 0 else f"if ${name}$"
        beyond = float(index.min()) > 0.4  # the strip ends soon after the last mark
        ax.annotate(
            label, (float(index.min() if beyond else index.max()), -row), (-5 if beyond else 5, 0),
            textcoords="offset points", va="center", ha="right" if beyond else "left", fontsize=6.5, color="0.25",
            bbox={"fc": "white", "lw": 0, "pad": 0.8},
        )  # fmt: skip
    ax.set(ylim=(-len(names) + 0.3, 0.7), yticks=[])
    ax.axvline(1, color="0.75", lw=0.6, zorder=0)
    ax.tick_params(bottom=False, labelbottom=False, which="both")
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _real(ax: Axes, measured: pd.DataFrame) -> None:
    """A tuned language model beside the cells; few seeds have wide intervals, and what passes the top is an arrow."""
    top = ax.get_ylim()[1]
    ends = {name: measured[name].clip(lower=_LEAST_INDEX) for name in measured if name.startswith("activity_index")}
    points(ax, measured.assign(**ends), "activity_index", "share", _STAR, size=7, mec="white", mew=0.5, zorder=5)
    for row in measured.assign(**ends).sort_values("name").to_dict("records"):
        at = row["activity_index"], row["share"]
        ax.annotate(_VIEWS[row["name"]], at, (3, -3), textcoords="offset points", va="top", fontsize=6.5,
                    linespacing=0.95)  # fmt: skip
        if row["share_high"] > top:
            arrow = {"arrowstyle": "-|>,head_length=0.25,head_width=0.12", "lw": 0.7, "color": "0.3", "shrinkA": 0,
                     "shrinkB": 0}  # fmt: skip
            ax.annotate("", (at[0], top), at, arrowprops=arrow)
            ax.annotate(f"to {row['share_high']:.1f}", (at[0], top), (3, 0), textcoords="offset points", va="top",
                        fontsize=6.5, color="0.3")  # fmt: skip


def _legend(fig: Figure, cells: pd.DataFrame, colours: dict[int, str], vocabularies: list[int], tuned: bool) -> None:
    def mark(label: str, marker: str = "o", colour: object = "0.3", size: float = 4.2, filled: bool = True) -> Line2D:
        face = colour if filled else "white"
        return Line2D([], [], ls="", marker=marker, ms=size, mec=colour, mfc=face, mew=0.8, label=label)

    def head(text: str) -> Line2D:
        return Line2D([], [], ls="", label=text)

    temperatures = sorted((float(t) for t in cells["temperature"].unique()), reverse=True)
    sharp = ", ".join(f"{t:g}" for t in temperatures if t != 1)
    exact = list(zip(_exact_vocabularies(cells), _DASHES, strict=False))
    above = [
        *(mark(_NAMES[name], marker=_MARKERS[name]) for name in _MARKERS if name in set(cells["teacher"])),
        *([mark("tuned language model", marker=_STAR.marker, colour=_STAR.colour, size=6)] if tuned else []),
        *([mark("trained at $T=1$")] if 1.0 in temperatures else []),
        *([mark(f"$T={sharp}$", filled=False)] if sharp else []),
    ]
    beside = [
        head("hidden size $D$"),
        *(mark(str(size), colour=colours[size]) for size in colours),
        head("vocabulary $V$"),
        *(mark(str(v), size=_size(v, vocabularies)) for v in vocabularies),
        *([head("theory, $D \\geq V - 1$")] if exact else []),
        *(Line2D([], [], color=THEORY_COLOUR, ls=dashes, lw=1.0, label=f"$V = {v}$") for v, dashes in exact),
    ]
    style: dict[str, Any] = {
        "loc": "upper left", "handlelength": 1.2, "handletextpad": 0.4, "labelspacing": 0.2, "borderaxespad": 0,
        "borderpad": 0, "fontsize": 6.5, "columnspacing": 1.0,
    }  # fmt: skip
    fig.legend(handles=above, bbox_to_anchor=(0.1, 0.975), ncols=2, **style)
    legend = fig.legend(handles=beside, bbox_to_anchor=(0.86, 0.975), **style)
    for text, handle in zip(legend.get_texts(), beside, strict=True):
        if handle.get_marker() in ("None", None) and handle.get_linestyle() == "None":
            text.set_fontweight("bold")
