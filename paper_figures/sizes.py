"""What hidden size and what vocabulary do to the effect of smoothing, in transformers that differ in nothing else.

Caption. Fall in confidence that smoothing of b = .1 in tuning brings on new tokens of the language tuned on, over b (p
- 1/V), with p the confidence of the model tuned without: 1 where it takes what smoothing asks of a head that follows
its targets, as on the tokens tuned on, 0 where it does nothing. Transformers trained from scratch on a hidden-Markov
language, with a bottleneck of D in front of the head; V grows by splitting each class of the language into tokens of
known weights. Left against D, a line for each V, right against V, a line for each D: the same points. Hollow: at a V
that is not comparable with the least one, as the models of the largest D know the language less well, or better, there
(by more than .02 nats, before tuning or after). Grey, right: V that grows by tokens that never occur, at the largest D;
pale where it is not comparable either. Tied heads, in which small D takes more from the fall, are not drawn. Means over
seeds with 95 % t intervals, cut where they are wider than the axis, marks side by side where they share a place;
models whose pretraining had not ended are left out. The preset quick is of two layers of width 32 and 16 classes: a
rehearsal, which says nothing of language models. Table S11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims.effects import summarise
from analysis.claims.runs import main_grid
from analysis.claims.sizes import Grid, comparable_vocabularies, grown, shares_of_fall

from .drawing import LABEL_SIZE, check, end_labels, panel, points, stamp
from .style import RC, TEXT_WIDTH, Look, looks

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S11",), ()
_SIZES = ["vocab_size", "hidden_size"]
COLUMNS = ["symbols", *_SIZES, "comparable", "seeds", "share", "share_low", "share_high"]
_GREY, _PALE = "0.5", "0.75"
_TOP, _BOTTOM = 2.0, -0.5  # that the axis has at least; intervals of three seeds may be wider than the axis
_WIDER = 1.2  # by how much the axis goes beyond the highest mean at most
_APART = 0.025  # of the axis, from a mark to the next one at the same place


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Shares of the fall on new shifted tokens after the last epoch, live symbols and dead ones; converged models.

    Returns:
        ``COLUMNS``, one line a (symbols, V, D); dead tokens begin at the least V, which both have.
    """
    table = tables["S11"].loc[tables["S11"]["converged"].astype(bool)]
    grid = Grid(*(sorted(main_grid(table)[name].unique()) for name in _SIZES))
    last = (table["epoch"] == table["epoch"].max()) & (table["reading"] == "as_trained")
    shares = shares_of_fall(table.loc[last & (table["distribution"] == "shifted")])
    lines, comparable = [], comparable_vocabularies(table, grid)
    for symbols, rows in grown(shares, grid.vocabularies[0]):
        line = summarise(rows, _SIZES, ["share"]).assign(symbols=symbols)
        alike = [v for v in grid.vocabularies if v == grid.vocabularies[0] or (symbols, v) in comparable]
        lines.append(line.assign(comparable=line["vocab_size"].isin(alike)))
    return pd.concat(lines, ignore_index=True).reindex(columns=COLUMNS)


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Two panels, against D and against V; see the caption.

    Redraw: ``python -m paper_figures --only sizes``.
    """
    check(table, COLUMNS)
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 2.3))
        left, right = (fig.add_axes((x, 0.2, 0.34, 0.68)) for x in (0.1, 0.58))
        live = table.loc[table["symbols"] == "live"]
        for ax in (left, right):
            ax.set_ylim(*_limits(table))
        _panel(fig, left, live, "hidden_size", "vocab_size", "hidden size $D$", "$V$")
        _panel(fig, right, live, "vocab_size", "hidden_size", "vocabulary $V$", "$D$")
        _dead(right, table.loc[(table["symbols"] == "dead") & (table["hidden_size"] == table["hidden_size"].max())])
        left.set_ylabel("fall in confidence over $b\\,(p - 1/V)$\n(1: what smoothing asks for)")
        _key(right, table)
        panel(left, "a", "what hidden size does")
        panel(right, "b", "what vocabulary does")
        stamp(fig, preset, table["seeds"])
    return fig


def _limits(table: pd.DataFrame) -> tuple[float, float]:
    """Ends of the axis, in half steps: all means, and what of the intervals is not far from them."""
    most = min(float(table["share_high"].max()), float(table["share"].max()) + _WIDER)
    least = float(table["share"].min())
    return (_BOTTOM if least < -_BOTTOM else 0.0), max(_TOP, math.ceil(2 * most) / 2 if most == most else _TOP)


def _beside(ax: Axes, table: pd.DataFrame, across: str, place: float) -> pd.DataFrame:
    """The rows with ``across`` moved by so many places, on its logarithmic axis."""
    low, high = ax.get_xlim()
    return table.assign(**{across: table[across] * (high / low) ** (_APART * place)})


def _panel(fig: Figure, ax: Axes, table: pd.DataFrame, across: str, lines: str, name: str, title: str) -> None:
    ticks = sorted(int(x) for x in table[across].unique())
    ax.set(xscale="log", xlabel=name)
    margin = (ticks[-1] / ticks[0]) ** 0.09
    ax.set_xlim(ticks[0] / margin, ticks[-1] * margin)
    ax.set_xticks(ticks, [str(x) for x in ticks])
    ax.set_xticks([], minor=True)
    for level in (0, 1):
        ax.axhline(level, color="0.7", lw=0.6, zorder=0)
    ends = []
    values = looks(sorted(int(x) for x in table[lines].unique()))
    for place, (value, look) in enumerate(values.items()):
        line = table.loc[table[lines] == value].sort_values(across)
        line = _beside(ax, line, across, place - (len(values) - 1) / 2)
        ax.plot(line[across], line["share"], color=look.colour, ls=look.dashes, lw=0.9)
        for comparable, part in line.groupby("comparable"):
            points(ax, part, across, "share", look, filled=bool(comparable))
        ends.append((float(line["share"].iloc[-1]), str(value), look))
    end_labels(fig, ax, ends, title=title)


def _key(ax: Axes, table: pd.DataFrame) -> None:
    """What the marks mean that are there, so that the figure needs no caption."""
    live, dead = (table.loc[table["symbols"] == symbols] for symbols in ("live", "dead"))
    apart = ["hollow"] * (not live["comparable"].all()) + ["pale"] * (not dead["comparable"].all())
    meant = [
        f"{' or '.join(apart)}: not comparable over $V$" * bool(apart),
        r"grey $\times$: tokens that never occur" * (not dead.empty),
    ]
    low, high = ax.get_ylim()
    ends = table["share_low"].fillna(table["share"])
    top = 0.25 if (ends.min() - low) / (high - low) > 0.25 else 0.97  # where no mark is
    for place, text in enumerate(filter(None, meant)):
        ax.text(0.03, top - 0.1 * place, text, transform=ax.transAxes, va="top", fontsize=LABEL_SIZE, color="0.35")


def _dead(ax: Axes, line: pd.DataFrame) -> None:
    """V that grows by tokens that never occur; the least V is a point of the live ones."""
    if line.empty:
        return
    line = _beside(ax, line.sort_values("vocab_size"), "vocab_size", 2)
    ax.plot(line["vocab_size"], line["share"], color=_GREY, ls=":", lw=0.9)
    for comparable, part in line.iloc[1:].groupby("comparable"):
        look = Look(colour=_GREY if comparable else _PALE, marker="x", dashes=":")
        points(ax, part, "vocab_size", "share", look)
