"""Findings on which no verdict hangs: the further arms of S11, and text that S11 and S12 were not tuned on.

The arms are other tunings at the corners of the grid, and other ways to pretrain. Their predictions are in
:mod:`analysis.study.from_scratch.predictions`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from .effects import difference
from .findings import Findings
from .runs import main_grid
from .sizes import ALIKE, SIZES, Grid, by_size, mean_over_v, over_widths, shares_of_fall
from .statistics import mean_effect

__all__ = ["KINDS", "add_arms", "elsewhere", "other_models"]

KINDS = ("dead", "few", "tied", "smoothed")  # dead tokens; little text; one matrix; smoothing in pretraining too
_FROZEN = ("b=0 frozen", "b=0.1 frozen")


def add_arms(table: pd.DataFrame, found: Findings) -> None:
    """Falls of other tunings beside that of b = .1 in the same cells, and shares and starts of other models.

    Args:
        table: Of S11.
        found: Gets ``fall_of`` (``method``), the mean over the cells where every tuning was run; and by ``kind`` of
            model and (V, D) ``share_of``, the fall over b (confidence - 1/V) on new shifted tokens, and before tuning
            on the broad language ``start_share_of``, confidence over the truth's own, and ``start_error_of``. By
            ``kind`` and V, largest D minus smallest, ``share_step_of``, and ``nearness_step_of``, by how many nats the
            largest D is nearer to the truth of the shifted language; without V the mean over V. Both likewise after
            fewer epochs, with ``_at_epoch_``.
    """
    ended = table.loc[(table["epoch"] == table["epoch"].max()) & (table["reading"] == "as_trained")]
    shifted = ended.loc[ended["distribution"] == "shifted"]
    plain = main_grid(shifted)
    smoothed = [m for m in plain["method"].unique() if _plain(m) or m.startswith("penalty=")]
    cells = plain.groupby(SIZES)["method"].transform(lambda methods: set(smoothed) <= set(methods))
    plain = plain.loc[cells]
    pairs = [("b=0", method, method) for method in sorted(smoothed) if method != "b=0"]
    for first, second, name in [*pairs, (*_FROZEN, "b=0.1, gain frozen")]:
        if {first, second} <= set(plain["method"]):
            falls = difference(plain, "confidence", column="method", first=first, second=second, on=ALIKE)
            found.add("fall_of", mean_effect(falls, "difference", cell=SIZES), "probability", method=name)
    start = table.loc[(table["epoch"] == 0) & (table["distribution"] == "broad")]
    start = start.assign(share=start["confidence"] / start["truth_confidence"])
    for kind, models in other_models(start):
        for column, name, unit in (("share", "start_share_of", "share"), ("true_ece", "start_error_of", "ECE")):
            _of_kind(models, column, name, unit, kind, found)
    for kind, models in other_models(shifted):
        _of_kind(shares_of_fall(models), "share", "share_of", "share", kind, found)
    _steps(table, found)


def elsewhere(rows: pd.DataFrame, error: str, found: Findings) -> None:
    """What smoothing does to text that was not tuned on, by (V, D): findings that decide nothing.

    Args:
        rows: Of one distribution, as trained or not; other readings are left out.
        error: The column that smoothing is to lower.
        found: Gets ``fall_share_elsewhere``, ``excess_elsewhere`` (confidence minus accuracy without smoothing) and
            ``gain_elsewhere`` after the last epoch, and after the others with ``_at_epoch_``.
    """
    rows = rows.loc[rows["reading"] == "as_trained"] if "reading" in rows else rows
    epochs = sorted(set(rows.loc[rows["epoch"] > 0, "epoch"]))
    for epoch in epochs:
        at, here = "" if epoch == epochs[-1] else f"_at_epoch_{epoch}", rows.loc[rows["epoch"] == epoch]
        falls = shares_of_fall(here)
        alike = [name for name in ALIKE if name in here]
        gains = difference(here, error, column="method", first="b=0", second="b=0.1", on=alike)
        excess = falls.assign(excess=falls["confidence"] - falls["accuracy"])
        by_size(falls, "share", f"fall_share_elsewhere{at}", "share", found)
        by_size(excess, "excess", f"excess_elsewhere{at}", "probability", found)
        by_size(gains, "difference", f"gain_elsewhere{at}", "ECE", found)


def other_models(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each kind of model that differs from the first grid in one thing."""
    kinds = {
        "dead": table["symbols"] == "dead", "few": table["distinct"] > 0, "tied": table["tied"].astype(bool),
        "smoothed": table["pretraining_smoothing"] > 0,
    }  # fmt: skip
    for kind in KINDS:
        if kinds[kind].any():
            yield kind, table.loc[kinds[kind]]


def _steps(table: pd.DataFrame, found: Findings) -> None:
    """What D does to other models, where both ends of it are there: to the fall, and to the distance from the truth."""
    epochs, widths = sorted(set(table.loc[table["epoch"] > 0, "epoch"])), main_grid(table)["hidden_size"]
    ends = [widths.min(), widths.max()]
    for epoch in reversed(epochs):
        at = "" if epoch == epochs[-1] else f"_at_epoch_{epoch}"
        here = table.loc[(table["epoch"] == epoch) & (table["reading"] == "as_trained")]
        for kind, models in other_models(here.loc[here["distribution"] == "shifted"]):
            rows = shares_of_fall(models)
            sides = rows.loc[rows["hidden_size"].isin(ends)].groupby("vocab_size")["hidden_size"].nunique()
            grid = Grid(sorted(sides.index[sides == len(ends)]), ends)
            rows = rows.loc[rows["vocab_size"].isin(grid.vocabularies)].assign(nearness=-rows["divergence"])
            for value, unit in (("share", "share"), ("nearness", "nats")) if len(grid.vocabularies) else ():
                sized = Findings(found.claim)
                over_widths(rows, value, value, unit, grid, sized)
                mean_over_v(rows, value, value, unit, grid, sized)
                for made in sized.listed:
                    found.add(f"{value}_step_of{at}", made.effect, unit, kind=kind, **made.cell)


def _plain(method: str) -> bool:
    """Whether it is smoothing, or none, alone."""
    return method.startswith("b=") and " " not in method


def _of_kind(rows: pd.DataFrame, value: str, name: str, unit: str, kind: str, found: Findings) -> None:
    sized = Findings(found.claim)
    by_size(rows, value, name, unit, sized)
    for made in sized.listed:
        found.add(name, made.effect, unit, kind=kind, **made.cell)
