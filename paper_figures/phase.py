"""Random logits freeze at a spread of sqrt(2 log V), and trained heads below full rank start to act at an index of 1.

Caption. *(a)* Mean largest probability of V independent N(0, s^2) logits against s in units of the critical
s_c = sqrt(2 log V), where the random energy model freezes (vertical line). Solid: the exact expectation at this V (B1);
dashed: the limit of large V (B2), far off near s_c at every vocabulary in use. *(b)* Entropy as a share of log V, the
same draws. *(c)* Plane of vocabulary and spread: the critical line s_c, and the exact spread at which the mean largest
probability is .1, .5 and .9 (B1); points: where the draws of (a) cross these levels, between two measured spreads.
*(d)* Heads trained in D = 2 to 6 dimensions (V = 16 to 64, b = .1), where no exact line is known: fall in confidence by
smoothing against the index A that shape and norm product predict; the one head that acts right of 1 has a measured
index of .37. Points of (a) to (c): means over seeds with 95 % intervals (Student's t; mostly thinner than the markers);
of (d): one solution each, without noise to average over. Tables S2 and transition.csv.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import brentq

from analysis import random_energy
from analysis.claims.effects import summarise

from .drawing import LABEL_SIZE, check, end_labels, panel, points, stamp
from .style import RC, TEXT_WIDTH, THEORY_COLOUR, looks

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S2", "transition"), ()
_LEVELS = (0.1, 0.5, 0.9)  # of the mean largest probability, (c)
COLUMNS = [
    "kind", "vocab_size", "hidden_size", "share", "level", "predicted_activity", "seeds",
    *(f"{name}{end}" for name in ("confidence", "entropy_share", "logit_std", "fall") for end in ("", "_low", "_high")),
]  # fmt: skip


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Measured statistics of random logits, where they cross levels of confidence, and heads below full rank.

    Returns:
        ``COLUMNS``; ``kind`` is ``"draws"``, ``"crossing"`` or ``"head"``.
    """
    draws = tables["S2"].assign(entropy_share=tables["S2"]["entropy"] / np.log(tables["S2"]["vocab_size"]))
    means = summarise(draws, ["vocab_size", "share"], ["confidence", "entropy_share", "logit_std"])
    lines = []
    keys: Any
    for keys, group in draws.sort_values("logit_std").groupby(["vocab_size", "data_seed"]):
        p, std = group["confidence"].to_numpy(), group["logit_std"].to_numpy()
        for level in _LEVELS:
            if p[0] < level < p[-1]:  # p rises with the spread
                at = np.interp(_logit(level), _logit(p), std)
                lines.append({"vocab_size": keys[0], "data_seed": keys[1], "level": level, "logit_std": at})
    crossings = summarise(pd.DataFrame(lines), ["vocab_size", "level"], ["logit_std"]) if lines else pd.DataFrame()
    heads = tables["transition"]
    heads = heads.assign(fall=heads["confidence_plain"] - heads["confidence_smoothed"], kind="head")
    parts = [means.assign(kind="draws"), crossings.assign(kind="crossing"), heads]
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def _logit(p: np.ndarray | float) -> np.ndarray:
    return np.log(p / (1 - np.asarray(p)))


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Order parameters against the spread, the phase diagram, and the transition of trained heads; see the caption.

    Redraw: ``python -m paper_figures --only phase``.
    """
    check(table, COLUMNS)
    draws, crossings, heads = (table.loc[table["kind"] == kind] for kind in ("draws", "crossing", "head"))
    check(draws, COLUMNS)
    with mpl.rc_context(RC):
        fig = Figure(figsize=(TEXT_WIDTH, 4.1))
        grid = fig.add_gridspec(2, 2, left=0.075, right=0.985, bottom=0.125, top=0.945, hspace=0.5, wspace=0.42)
        axes = [fig.add_subplot(grid[i // 2, i % 2]) for i in range(4)]
        _order(axes[0], draws, "confidence", "a", "largest probability")
        _order(axes[1], draws, "entropy_share", "b", r"entropy / $\log V$")
        _plane(fig, axes[2], crossings, draws)
        _transition(axes[3], heads)
        stamp(fig, preset, draws["seeds"])
    return fig


@lru_cache(maxsize=64)
def _lines(vocab_size: int, low: float, high: float) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Shares of the critical spread; exact (B1) and limiting (B2) confidence and entropy share."""
    share = np.geomspace(low, high, 61)
    std, log_v = share * float(random_energy.critical_logit_std(vocab_size)), np.log(vocab_size)
    return share, {
        "confidence": (
            np.asarray(random_energy.expected_confidence(std, vocab_size)),
            np.asarray(random_energy.asymptotic_confidence(std, vocab_size)),
        ),
        "entropy_share": (
            np.asarray(random_energy.expected_entropy(std, vocab_size)) / log_v,
            np.asarray(random_energy.asymptotic_entropy(std, vocab_size)) / log_v,
        ),
    }


def _order(ax: Axes, draws: pd.DataFrame, value: str, letter: str, name: str) -> None:
    low, high = float(draws["share"].min()), float(draws["share"].max())
    vocabularies = sorted(int(v) for v in draws["vocab_size"].unique())
    rising = value == "confidence"
    for row, (vocab_size, look) in enumerate(looks(vocabularies).items()):
        share, lines = _lines(vocab_size, low, high)
        exact, limit = lines[value]
        ax.plot(share, exact, color=THEORY_COLOUR, lw=0.8, zorder=2)
        if not rising:  # that limit diverges at s_c
            limit = np.where(np.diff(np.sign(share - 1), prepend=-1) > 0, np.nan, limit)
        ax.plot(share, limit, color="0.55", lw=0.7, ls=(0, (4, 2)), zorder=1)
        points(ax, draws.loc[draws["vocab_size"] == vocab_size], "share", value, look, size=3.2, mew=0.6)
        if rising:
            place = 0.9 - 0.1 * row
            ax.plot(0.03, place, marker=look.marker, ms=3.2, color=look.colour, transform=ax.transAxes, ls="")
            ax.text(0.055, place, f"$V = {vocab_size}$", transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    ax.axvline(1, color="0.6", lw=0.6, zorder=0)
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel=r"spread of the logits, $s\,/\sqrt{2\,\log V}$", ylabel=name)
    ticks = [t for t in (0.25, 0.5, 1, 2, 4) if low / 1.1 <= t <= high * 1.1]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    if rising:
        ax.text(0.97, 0.16, "exact at this $V$", transform=ax.transAxes, ha="right", fontsize=LABEL_SIZE,
                color=THEORY_COLOUR)  # fmt: skip
        ax.text(0.97, 0.06, "dashed: large $V$", transform=ax.transAxes, ha="right", fontsize=LABEL_SIZE, color="0.4")
    panel(ax, letter, "confidence of random logits" if rising else "their entropy")


@lru_cache(maxsize=256)
def _spread_at(level: float, vocab_size: int) -> float:
    """Spread at which the exact mean largest probability is ``level``."""
    critical = float(random_energy.critical_logit_std(vocab_size))

    def excess(std: float) -> float:
        return float(np.asarray(random_energy.expected_confidence(std, vocab_size))) - level

    root: Any = brentq(excess, 0.01 * critical, 40 * critical, xtol=1e-4)
    return float(root)


def _plane(fig: Figure, ax: Axes, crossings: pd.DataFrame, draws: pd.DataFrame) -> None:
    v = np.unique(np.round(np.geomspace(100, max(3e5, 1.1 * draws["vocab_size"].max()), 13)).astype(int))
    critical = np.asarray(random_energy.critical_logit_std(v))
    ax.plot(v, critical, color="0.1", lw=1.3, zorder=2)
    look_of = looks(_LEVELS)
    ends = [(float(critical[-1]), r"$s_c$, critical line", "0.1")]
    for level, look in look_of.items():
        exact = [_spread_at(level, int(x)) for x in v]
        ends.append((exact[-1], f"$\\mathrm{{E}}\\,p_{{\\max}} = {level:g}$", THEORY_COLOUR))
        ax.plot(v, exact, color=THEORY_COLOUR, lw=0.9, ls=look.dashes, zorder=2)
        points(ax, crossings.loc[crossings["level"] == level], "vocab_size", "logit_std", look, size=3.4)
    ax.set(xscale="log", yscale="log", xlabel="vocabulary $V$", ylabel="spread of the logits, $s$")
    ax.set_xlim(80, float(v[-1]) * 1.1)
    ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.set_yticks([], minor=True)
    ax.set_ylim(0.7, 2.2 * max(end[0] for end in ends))
    style: Any = {"transform": ax.transAxes, "va": "center", "fontsize": LABEL_SIZE, "color": "0.35"}
    ax.text(0.03, 0.86, "few tokens hold the mass", **style)
    ax.text(0.97, 0.1, "many tokens share it", ha="right", **style)
    end_labels(fig, ax, ends)
    panel(ax, "c", "phase diagram")


def _transition(ax: Axes, heads: pd.DataFrame) -> None:
    ax.axvline(1, color="0.6", lw=0.6, zorder=0)
    ax.axhline(0, color="0.85", lw=0.6, zorder=0)
    shown = heads.assign(predicted_activity=heads["predicted_activity"].clip(lower=0.01))
    shown = shown.drop(columns=[name for name in shown if name.endswith(("_low", "_high"))])
    sizes = sorted(int(d) for d in heads["hidden_size"].unique())
    for row, (size, look) in enumerate(looks(sizes).items()):
        points(ax, shown.loc[shown["hidden_size"] == size], "predicted_activity", "fall", look, size=3.0, mew=0.5)
        place = 0.93 - 0.1 * row
        ax.plot(0.88, place, marker=look.marker, ms=3.2, color=look.colour, transform=ax.transAxes, ls="")
        ax.text(0.905, place, f"$D = {size}$", transform=ax.transAxes, va="center", fontsize=LABEL_SIZE)
    for x, text, side in ((0.92, "acts", "right"), (1.09, "inert", "left")):
        ax.text(x, 0.98, text, transform=ax.get_xaxis_transform(), va="top", ha=side, fontsize=LABEL_SIZE, color="0.35")
    ax.set(xscale="log", xlim=(0.008, 15), xlabel="activity index predicted from the shape, $A$")
    ax.set_ylabel("fall in confidence")
    ax.set_xticks([0.01, 0.1, 1, 10], [r"$\leq$0.01", "0.1", "1", "10"])
    panel(ax, "d", "trained heads below full rank, $V$ = 16 to 64")
