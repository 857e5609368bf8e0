"""What temperature and logit capping do to the effect of smoothing: in training, in reading, or both, with controls.

Caption. Gain of smoothing (b = .1) in true ECE, plain minus smoothed head of the same data and first values: right of 0
smoothing helps; within the grey band (.01) it does nothing that was predicted to matter. Columns: what limits the norms
while training. Rows: what was done to the logits in training (top) or when a head trained without was read (bottom).
Filled: read as trained; open: cap or temperature taken away for the reading. Under a budget a training temperature
restores the effect, and so does the scaled tanh c tanh z where c is 8 or more (at 4 hardly, at 2 not): both lower the
index A; a contraction c tanh(z / c) does not, at any c. Of what is done in reading alone under a budget the scaled tanh
at c = 4 does most: it raises the gain by up to .023, to .014. Under weight decay (.2) a training temperature raises the
gain too, though not the fall in confidence, and a contraction turns the gain into harm. With free norms smoothing acts
without help. A cap in training alone leaves raw
logits too large there, and what smoothing then does depends on c: far more at 5 and 15, nothing at 2, and at 48 more or
less than without a cap, the interval does not tell; a temperature in training alone makes it harmful, at any T and
under a budget too. Controls: peaks in the targets, Adam at a tuned step size, and features from a trained trunk, which
agree under a budget as far as the trunk's two converged seeds tell; with free norms scaled tanhs and caps in reading do
more, for good or ill, to a trunk. Means over seeds with 95 % t intervals; runs that break the convergence rule
are left out. Table S5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.claims.effects import cell_effects, paired_effects

from .drawing import check, points, stamp
from .style import RC, TEXT_WIDTH, Look, ramp

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("S5",), ()
_SETTING = ["teacher", "vocab_size", "hidden_size", "features", "optimiser"]
COLUMNS = [
    "regime", "treatment", "form", "value", "reading", *_SETTING, "seeds",
    *(f"{name}{end}" for name in ("true_ece_gain", "activity_index") for end in ("", "_low", "_high")),
]  # fmt: skip
_REGIMES = {"budget": "norm budget", "free": "free norms", "decay": "weight decay"}
_BAND = 0.01  # what the predictions call no difference


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Paired gains of b = .1 for every treatment of the logits and every reading that undoes or adds one.

    Returns:
        ``COLUMNS``. ``form`` and ``value``: ``"none"``, ``"temperature"``, ``"contraction"`` or ``"gain"`` with its T
        or c. ``reading``: ``"as trained"``, ``"removed"`` (treated in training only) or ``"only"`` (in reading only).
    """
    parts = []
    rows = tables["S5"]
    for evaluation, group in rows.groupby("evaluation", sort=True):
        if evaluation in ("post_hoc", "inverted", "no_cap", "T=1"):
            continue
        pairs = paired_effects(group)
        pairs = pairs.loc[np.isclose(pairs["label_smoothing"], 0.1)]
        if pairs.empty or not pairs["converged"].any():
            continue
        cells = cell_effects(pairs)
        form = cells["softcap_form"].where(cells["softcap"].notna(), "temperature").where(
            cells["softcap"].notna() | (cells["temperature"] != 1), "none"
        )  # fmt: skip
        value = cells["softcap"].fillna(cells["temperature"])
        reading = {"as_trained": "as trained", "plain": "removed"}.get(str(evaluation), "only")
        if reading == "only":  # the head was trained without either; the reading names what it was read with
            read = group.iloc[0]
            capped = not pd.isna(read["eval_softcap"])
            form = pd.Series(str(read["eval_form"]) if capped else "temperature", index=cells.index)
            value = pd.Series(float(read["eval_softcap" if capped else "eval_temperature"]), index=cells.index)
        parts.append(cells.assign(form=form, value=value, reading=reading))
    drawn = pd.concat(parts, ignore_index=True)
    drawn["regime"] = drawn["norm"].where(drawn["weight_decay"] == 0, "decay")
    drawn["treatment"] = [_name(form, value) for form, value in zip(drawn["form"], drawn["value"], strict=True)]
    return drawn.reindex(columns=COLUMNS)


def _name(form: str, value: float) -> str:
    if form == "none":
        return "nothing"
    if form == "temperature":
        return f"$T = {value:g}$"
    return f"${value:g}\\,\\tanh(z/{value:g})$" if form == "contraction" else f"${value:g}\\,\\tanh\\,z$"


_ORDER = {"none": 0, "temperature": 1, "gain": 2, "contraction": 3}


def make(table: pd.DataFrame, *, preset: str) -> Figure:
    """Gains by treatment (rows) and what limits the norms (columns), see the caption above.

    Redraw: ``python -m paper_figures --only capping``.
    """
    check(table, COLUMNS)
    table = table.assign(only=table["reading"] == "only")
    kinds = table[["only", "form", "value", "treatment"]].drop_duplicates()
    kinds = kinds.assign(order=[_ORDER[form] for form in kinds["form"]], down=-kinds["value"]).sort_values(
        ["only", "order", "down"]
    )
    treatments = list(zip(kinds["only"], kinds["treatment"], strict=True))
    row_of = {treatment: -row for row, treatment in enumerate(treatments)}
    table = table.assign(row=[float(row_of[key]) for key in zip(table["only"], table["treatment"], strict=True)])
    regimes = [name for name in _REGIMES if name in set(table["regime"])]
    settings = _settings(table)
    with mpl.rc_context(RC):
        height = 0.75 + 0.185 * len(row_of)
        fig = Figure(figsize=(TEXT_WIDTH, height))
        limits = [_limits(table.loc[table["regime"] == regime]) for regime in regimes]
        widths = [0.35 + high - low for low, high in limits]
        grid = fig.add_gridspec(
            1, len(regimes), left=0.13, right=0.835, bottom=0.42 / height, top=1 - 0.25 / height, wspace=0.07,
            width_ratios=widths,
        )  # fmt: skip
        axes = [fig.add_subplot(grid[0, i]) for i in range(len(regimes))]
        for ax, regime, (low, high) in zip(axes, regimes, limits, strict=True):
            _column(ax, table.loc[table["regime"] == regime], settings, len(row_of))
            ax.set(xlim=(low, high), title=_REGIMES[regime])
            ax.set_xticks(_ticks(low, high))
        axes[0].set_yticks(list(row_of.values()), [name for _, name in treatments])
        axes[0].tick_params(axis="y", length=0)
        axes[len(axes) // 2].set_xlabel("gain of smoothing in true ECE")
        _group_lines(axes, list(zip(kinds["only"], kinds["form"], strict=True)))
        _group_names(fig, axes[0], kinds["only"].tolist())
        _legend(fig, settings)
        stamp(fig, preset, table["seeds"])
    return fig


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    low, high = float(rows["true_ece_gain_low"].min()), float(rows["true_ece_gain_high"].max())
    return min(low - 0.01, -0.03), max(high + 0.015, 0.08)


def _ticks(low: float, high: float) -> list[float]:
    """Few ticks, none at the very edges, where those of neighbouring columns would touch."""
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / step < 5)
    inside = 0.09 * (high - low)
    first, last = int(np.ceil((low + inside) / step)), int(np.floor((high - inside) / step))
    return [round(i * step, 2) for i in range(first, last + 1)]


def _settings(table: pd.DataFrame) -> dict[tuple[Any, ...], Look]:
    """A look for each kind of data and training; cells that differ in D alone share one."""
    keys = table[["teacher", "vocab_size", "features", "optimiser"]].drop_duplicates()
    keys = keys.assign(control=(keys["features"] != "free") | (keys["optimiser"] != "lbfgs")).sort_values(
        ["control", "teacher", "vocab_size", "features", "optimiser"], ascending=[True, True, False, True, False]
    )
    listed = [tuple(key) for key in keys.drop(columns="control").itertuples(index=False)]
    colours = ramp(len(listed))[::-1]
    return {key: Look(colours[i], "osD^vPX<>"[i % 9], "-") for i, key in enumerate(listed)}


def _label(key: tuple[Any, ...]) -> str:
    teacher, vocab_size, features, optimiser = key
    extra = [{"trunk": "trunk"}.get(str(features)), {"adam": "Adam"}.get(str(optimiser))]
    extra.append({"sparse": "peaks", "det": "deterministic"}.get(str(teacher)))
    return ", ".join([f"$V = {int(vocab_size)}$", *(text for text in extra if text)])


def _column(ax: Axes, rows: pd.DataFrame, settings: dict[tuple[Any, ...], Look], rows_in_all: int) -> None:
    """Points of one regime; those of one row and reading that would touch are set apart in height."""
    ax.axvspan(-_BAND, _BAND, color="0.93", lw=0, zorder=0)
    ax.axvline(0, color="0.6", lw=0.6, zorder=1)
    keys = ["teacher", "vocab_size", "features", "optimiser"]
    order = {key: i for i, key in enumerate(settings)}
    rows = rows.assign(look=[order[tuple(key)] for key in rows[keys].itertuples(index=False)])
    rows = rows.sort_values(["row", "look", "hidden_size", "reading"], kind="stable").reset_index(drop=True)
    for _, group in rows.groupby("row"):
        steps = [0.0] * len(group)
        values = group["true_ece_gain"].tolist()
        for i in range(len(values)):  # as many steps down as there are points near before this one
            steps[i] = sum(abs(values[i] - other) < 0.012 for other in values[:i])
        middle = max(steps) / 2
        step = min(0.2, 0.7 / max(1.0, max(steps)))
        rows.loc[group.index, "row"] = group["row"] - step * (np.array(steps) - middle)
    for key, look in settings.items():
        for reading, filled in (("as trained", True), ("only", True), ("removed", False)):
            chosen = rows.loc[(rows["look"] == order[key]) & (rows["reading"] == reading)]
            if not chosen.empty:
                points(ax, chosen, "true_ece_gain", "row", look, size=3.2, filled=filled, mew=0.7, capsize=1.0)
    lowest = 1 - rows_in_all
    ax.set(ylim=(lowest - 0.6, 0.6), yticks=[])
    ax.spines["left"].set_visible(False)
    for row in range(lowest, 1):
        ax.axhline(row, color="0.9", lw=0.4, zorder=0)


def _group_lines(axes: list[Axes], forms: list[tuple[bool, str]]) -> None:
    """Lines between nothing, temperatures, scaled tanhs and contractions; a stronger one before what was only read."""
    for i in range(1, len(forms)):
        for ax in axes if forms[i] != forms[i - 1] else ():
            ax.axhline(0.5 - i, color="0.5", lw=0.5 if forms[i][0] == forms[i - 1][0] else 1.2, zorder=1)


def _group_names(fig: Figure, ax: Axes, only: list[bool]) -> None:
    """Whether the treatment was one of training or of reading, along the left edge."""
    for read, name in ((False, "in training"), (True, "in reading only")):
        rows = [-row for row, value in enumerate(only) if value == read]
        if rows:
            _, middle = fig.transFigure.inverted().transform(ax.transData.transform((0, (rows[0] + rows[-1]) / 2)))
            fig.text(0.012, middle, name, rotation=90, va="center", ha="center", fontsize=8)


def _legend(fig: Figure, settings: dict[tuple[Any, ...], Look]) -> None:
    def mark(label: str, look: Look, filled: bool = True) -> Line2D:
        face = look.colour if filled else "white"
        return Line2D([], [], ls="", marker=look.marker, ms=3.6, mec=look.colour, mfc=face, mew=0.8, label=label)

    grey = Look("0.3", "o", "-")
    handles = [
        mark("cap or $T$ kept", grey),
        mark("removed for reading", grey, filled=False),
        *(mark(_label(key), look) for key, look in settings.items()),
    ]
    fig.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.845, 0.93), handlelength=1.0, handletextpad=0.4,
        labelspacing=0.35, borderaxespad=0, borderpad=0, fontsize=6.5,
    )  # fmt: skip
