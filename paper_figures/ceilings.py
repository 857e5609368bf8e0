"""Confidence ceilings over hidden size and vocabulary, what a search reaches below them, and the shapes of LLMs.

Caption. *(a)* Most confidence that a head of norm product m can have of every one of V tokens at once, in log-odds: the
proven rank-aware cap (lines, A3, D where they end; the highest is the simplex, A2), the best head that projected
gradient found (filled, in the colour and shape of its D), and heads trained by plain cross-entropy to predict every
token (open; no better than the search, as they maximise a mean).
*(b)* The same as an effective logit gap, at the norm product whose simplex has the gap that smoothing of .1 asks for,
as a share of the simplex's gap, with the proven caps of every head (A3) and of heads whose features are aligned with
their rows (A4), and what random rows are proven to reach on average: geometry costs much in a few dimensions only.
*(c)* Public head shapes: the norm product that confidence .9 of every token takes, between what no head can undercut
and what random rows need (bars, mostly thinner than the marker; line: the simplex, A2). It follows log V, not the
hidden size, written beside each shape; the softcap of 30 of some adds to it ("cap"). Points of (a) and (b): means over
starts of the search, or over seeds, with 95 % intervals (Student's t; mostly thinner than the markers). Tables S1 and
S3; shapes from caps.csv, no weights seen.
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

from .drawing import LABEL_SIZE, check, end_labels, panel, points, spread, stamp
from .style import RC, TEXT_WIDTH, THEORY_COLOUR, looks

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S1", "S3", "caps"), ()
COLUMNS = [
    "kind", "name", "vocab_size", "hidden_size", "share", "norm_product", "seeds",
    *(f"{name}{end}" for name in ("confidence", "gap_share") for end in ("", "_low", "_high")),
    "needed_norm", "enough_norm", "softcap",
]  # fmt: skip
_AT = 1.0  # norm product of (b), in units of the smoothing-optimal gap
_HIDDEN_SIZES = (2, 4, 16, 64, 256)  # of (a)


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Searched heads of S1, trained heads of S3, and the brackets of public shapes.

    Returns:
        ``COLUMNS``; ``kind`` is ``"searched"``, ``"trained"`` or ``"shape"``. ``confidence`` is that of the least
        confident token, ``gap_share`` the attained gap over the simplex's.
    """
    rows = tables["S1"]
    searched = rows.loc[rows["attained_gap"].notna()].copy()
    searched["confidence"] = caps.gap_to_confidence(searched["attained_gap"], searched["vocab_size"])
    searched["gap_share"] = searched["attained_gap"] / searched["simplex_gap"]
    by = ["vocab_size", "hidden_size", "share", "norm_product"]
    cells = summarise(searched, by, ["confidence", "gap_share"]).assign(kind="searched", name="")
    shapes = tables["caps"].drop_duplicates("model").rename(
        columns={"model": "name", "needed_m_90": "needed_norm", "enough_m_90": "enough_norm"}
    )  # fmt: skip
    shapes = shapes.assign(kind="shape", name=[name.split("/")[-1] for name in shapes["name"]])
    return pd.concat([cells, _trained(tables["S3"]), shapes], ignore_index=True).reindex(columns=COLUMNS)


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Heads with one context for each token, trained under a norm budget with nothing but cross-entropy."""
    plain = rows.loc[
        (rows["teacher"] == "det") & (rows["label_smoothing"] == 0) & (rows["temperature"] == 1)
        & rows["softcap"].isna() & (rows["norm"] == "budget") & rows["converged"]
    ]  # fmt: skip
    plain = plain.assign(confidence=plain["min_target_probability"], norm_product=plain["norm_product"].round(4))
    return summarise(plain, ["vocab_size", "hidden_size", "norm_product"], ["confidence"]).assign(kind="trained")


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Ceilings against the norm product, against the hidden size, and of public shapes; see the caption above.

    Redraw: ``python -m paper_figures --only ceilings``.
    """
    check(table, COLUMNS)
    searched, trained, shapes = (table.loc[table["kind"] == kind] for kind in ("searched", "trained", "shape"))
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 2.45))
        places = ((0.085, 0.2), (0.385, 0.2), (0.66, 0.195))
        first, second, third = (fig.add_axes((x, 0.17, width, 0.7)) for x, width in places)
        _over_norms(fig, first, searched, trained)
        _over_sizes(second, searched)
        _shapes(fig, third, shapes)
        stamp(fig, preset, searched["seeds"])
    return fig


def _over_norms(fig: Figure, ax: Axes, searched: pd.DataFrame, trained: pd.DataFrame) -> None:
    vocab_size = int(
        max(set(searched["vocab_size"]) & set(trained["vocab_size"]), default=searched["vocab_size"].max())
    )
    rows = searched.loc[searched["vocab_size"] == vocab_size]
    sizes = [d for d in _HIDDEN_SIZES if d in set(rows["hidden_size"])]
    m = np.linspace(0, float(rows["norm_product"].max()) * 1.02, 200)[1:]
    ends = []
    for size, look in looks(sizes).items():
        gap = caps.rank_gap(m, vocab_size, min(size, vocab_size - 1))
        cap = caps.gap_to_confidence(gap, vocab_size)  # A3
        ax.plot(m, cap, color=look.colour, lw=1.1, ls=look.dashes, zorder=2)
        cells = rows.loc[rows["hidden_size"] == size]
        points(ax, cells, "norm_product", "confidence", look)
        heads = trained.loc[(trained["vocab_size"] == vocab_size) & (trained["hidden_size"] == size)]
        heads = heads.loc[heads["norm_product"] <= m[-1]]
        points(ax, heads, "norm_product", "confidence", look, filled=False, mew=0.7, zorder=4)
        ends.append((float(cap[-1]), str(size), look))
    # Log-odds, on which the lines are nearly straight and fan out.
    ax.set_yscale("logit")
    ax.set(xlim=(0, m[-1]), xlabel="norm product $m$ (logit units)", ylabel="confidence of every token")
    ax.set_ylim(0.7 / vocab_size, 1 - 0.3 * (1 - max(end[0] for end in ends)))
    ticks = [p for p in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999) if p < ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{p:g}" for p in ticks])
    ax.set_yticks([], minor=True)
    end_labels(fig, ax, ends, title="$D$")
    for row, text in enumerate(("lines: ceiling", "filled: search", "open: trained")):
        ax.text(0.03, 0.96 - 0.08 * row, text, transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    panel(ax, "a", f"ceiling and search, $V = {vocab_size}$")


def _over_sizes(ax: Axes, searched: pd.DataFrame) -> None:
    rows = searched.loc[np.isclose(searched["share"], _AT)]
    vocabularies = sorted(int(v) for v in rows["vocab_size"].unique())
    for vocab_size, look in looks(vocabularies).items():
        cells = rows.loc[rows["vocab_size"] == vocab_size]
        m = float(cells["norm_product"].iloc[0])
        sizes = np.unique(np.round(np.geomspace(2, vocab_size - 1, 24)).astype(int))
        simplex = float(caps.max_gap(m, vocab_size))
        bound = [float(caps.rank_gap(m, vocab_size, int(d))) / simplex for d in sizes]
        programme = caps.aligned_cap(m, vocab_size, sizes, method="linear_program")
        aligned = caps.confidence_to_gap(programme, vocab_size) / simplex  # A4
        codes = np.unique(np.round(np.geomspace(2, 2 * vocab_size, 24)).astype(int))
        reached = caps.confidence_to_gap(caps.random_code_confidence(m, vocab_size, codes), vocab_size) / simplex
        ax.plot(sizes, bound, color=THEORY_COLOUR, lw=0.9, ls=look.dashes, zorder=2)
        ax.plot(sizes, aligned, color="0.45", lw=0.8, ls=look.dashes, zorder=2)
        ax.plot(codes, reached, color="0.65", lw=0.9, ls=(0, (1, 1)), zorder=1)
        points(ax, cells, "hidden_size", "gap_share", look)
        place = 0.33 + 0.09 * vocabularies.index(vocab_size)
        ax.plot([0.58, 0.69], [place, place], ls=look.dashes, lw=0.9, color="0.45", transform=ax.transAxes)
        ax.plot(0.635, place, marker=look.marker, ms=3.6, color=look.colour, transform=ax.transAxes, ls="")
        ax.text(0.72, place, f"$V = {vocab_size}$", transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    ax.set(xscale="log", xlim=(1.7, 2.1 * max(vocabularies)), ylim=(0, 1.04), xlabel="hidden size $D$")
    ax.set_ylabel("gap, as a share of the simplex's")
    ticks = [d for d in (2, 4, 16, 64, 256) if d <= 2 * max(vocabularies)]
    ax.set_xticks(ticks, [str(d) for d in ticks])
    ax.set_xticks([], minor=True)
    for row, (text, colour) in enumerate(
        (("upper: every head (A3)", THEORY_COLOUR), ("middle: aligned (A4)", "0.45"), ("light: random rows", "0.55"))
    ):
        ax.text(
            0.98, 0.24 - 0.09 * row, text, transform=ax.transAxes, ha="right", va="center", fontsize=LABEL_SIZE,
            color=colour,
        )  # fmt: skip
    panel(ax, "b", "what dimensions cost")


def _shapes(fig: Figure, ax: Axes, shapes: pd.DataFrame) -> None:
    """One mark a shape; the names to the right of their vocabularies, in the order of the norm products."""
    listed: list[dict[str, Any]] = shapes.sort_values(["enough_norm", "name"], kind="stable").to_dict("records")
    v = np.round(np.geomspace(2.4e4, 3.4e5, 50))
    simplex = (v - 1) / v * caps.confidence_to_gap(np.full(v.shape, 0.9), v)  # A2 solved for m
    ax.plot(v, simplex, color=THEORY_COLOUR, lw=0.9, zorder=2)
    middles = [(row["needed_norm"] + row["enough_norm"]) / 2 for row in listed]
    ax.errorbar(
        [row["vocab_size"] for row in listed], middles,
        yerr=[[m - row["needed_norm"] for m, row in zip(middles, listed, strict=True)],
              [row["enough_norm"] - m for m, row in zip(middles, listed, strict=True)]],
        ls="", marker="o", ms=2.6, color="0.15", elinewidth=0.8, capsize=1.5, zorder=3,
    )  # fmt: skip
    low, high = 12.2, 0.3 + max(row["enough_norm"] for row in listed)
    ax.set(xscale="log", xlim=(v[0], v[-1]), ylim=(low, high), xlabel="vocabulary $V$")
    ax.set_ylabel("norm product for confidence .9")
    ax.set_xticks([32_000, 64_000, 128_000, 256_000], ["32k", "64k", "128k", "256k"])
    ax.set_xticks([], minor=True)
    height = ax.get_position().height * fig.get_figheight() * 72
    wanted = [(m - low) / (high - low) for m in middles]
    for place, row, middle in zip(spread(wanted, 7.4 / height, 0.02, 0.98), listed, middles, strict=True):
        name = str(row["name"]).replace("-Instruct", "").replace("-4k-instruct", "").replace("Meta-", "")
        cap = "" if np.isnan(row["softcap"]) else ", cap"
        ax.annotate(
            f"{name}, {int(row['hidden_size'])}{cap}", (row["vocab_size"], middle), (1.06, place),
            textcoords="axes fraction", va="center", fontsize=6,
            arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "0.7", "shrinkA": 0, "shrinkB": 1,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
    ax.text(1.06, 1.06, "model, $D$", transform=ax.transAxes, va="center", fontsize=6.5, fontweight="bold")
    panel(ax, "c", "public shapes")
