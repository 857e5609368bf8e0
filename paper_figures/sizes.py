"""What hidden size and what vocabulary do to the effect of smoothing, in transformers that differ in nothing else.

Caption. Fall in confidence that smoothing of b = .1 in tuning brings on new tokens of the language tuned on, over
b (p - 1/V), with p the confidence of the model tuned without: 1 where smoothing takes all that it asks of a head that
follows its targets, 0 where it does nothing. Transformers trained from scratch on a hidden-Markov language, with a
bottleneck of D in front of the head; V grows by splitting each class of the language into tokens of known weights. Left
against D, a line for each V, right against V, a line for each D: the same points. Means over seeds with 95 % t
intervals, on the axis up to twice what smoothing asks for; models whose pretraining had not ended are left out. The
preset quick is of two layers of width 32 and 16 classes: a rehearsal, which says nothing of language models. Table S11.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.claims.effects import summarise
from analysis.claims.runs import main_grid
from analysis.claims.sizes import shares_of_fall

from .drawing import check, end_labels, panel, points, stamp
from .style import RC, TEXT_WIDTH, looks

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S11",), ()
_SIZES = ["vocab_size", "hidden_size"]
COLUMNS = [*_SIZES, "seeds", "share", "share_low", "share_high"]
_TOP, _BOTTOM = 2.0, -0.5  # of the axis; intervals of three seeds may be wider


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Shares of the fall on new shifted tokens after the last epoch, of the main grid; converged models.

    Returns:
        ``COLUMNS``, one line a (V, D).
    """
    rows = main_grid(tables["S11"])
    last = (rows["epoch"] == rows["epoch"].max()) & (rows["reading"] == "as_trained") & rows["converged"].astype(bool)
    shares = shares_of_fall(rows.loc[last & (rows["distribution"] == "shifted")])
    return summarise(shares, _SIZES, ["share"]).reindex(columns=COLUMNS)


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Two panels, against D and against V; see the caption.

    Redraw: ``python -m paper_figures --only sizes``.
    """
    check(table, COLUMNS)
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 2.3))
        left, right = (fig.add_axes((x, 0.2, 0.34, 0.68)) for x in (0.1, 0.58))
        _panel(fig, left, table, "hidden_size", "vocab_size", "hidden size $D$", "$V$")
        _panel(fig, right, table, "vocab_size", "hidden_size", "vocabulary $V$", "$D$")
        left.set_ylabel("fall in confidence over $b\\,(p - 1/V)$\n(1: all that smoothing asks for)")
        panel(left, "a", "what hidden size does")
        panel(right, "b", "what vocabulary does")
        stamp(fig, preset, table["seeds"])
    return fig


def _panel(fig: Figure, ax: Axes, table: pd.DataFrame, across: str, lines: str, name: str, title: str) -> None:
    ticks = sorted(int(x) for x in table[across].unique())
    ax.set(xscale="log", xlabel=name, ylim=(_BOTTOM, _TOP))
    ax.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)
    ax.set_xticks(ticks, [str(x) for x in ticks])
    ax.set_xticks([], minor=True)
    for level in (0, 1):
        ax.axhline(level, color="0.7", lw=0.6, zorder=0)
    ends = []
    for value, look in looks(sorted(int(x) for x in table[lines].unique())).items():
        line = table.loc[table[lines] == value].sort_values(across)
        ax.plot(line[across], line["share"], color=look.colour, ls=look.dashes, lw=0.9)
        points(ax, line, across, "share", look)
        ends.append((float(line["share"].iloc[-1]), str(value), look))
    end_labels(fig, ax, ends, title=title)
