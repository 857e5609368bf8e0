"""Findings on the further arms of S11: other tunings at the corners of its grid, and other ways to pretrain.

No verdict hangs on them. Their predictions are in :mod:`analysis.study.from_scratch.predictions`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from .effects import difference
from .findings import Findings
from .runs import main_grid
from .sizes import ALIKE, SIZES, by_size, shares_of_fall
from .statistics import mean_effect

__all__ = ["KINDS", "add_arms", "other_models"]

KINDS = ("dead", "few", "tied", "smoothed")  # dead tokens; little text; one matrix; smoothing in pretraining too
_FROZEN = ("b=0 frozen", "b=0.1 frozen")


def add_arms(table: pd.DataFrame, found: Findings) -> None:
    """Falls of other tunings beside that of b = .1 in the same cells, and shares and starts of other models.

    Args:
        table: Of S11.
        found: Gets ``fall_of`` (``method``), the mean over the cells where every tuning was run; and by ``kind`` of
            model and (V, D) ``share_of``, the fall over b (confidence - 1/V) on new shifted tokens, and before tuning
            on the broad language ``start_share_of``, confidence over the truth's own, and ``start_error_of``.
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


def other_models(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each kind of model that differs from the first grid in one thing."""
    kinds = {
        "dead": table["symbols"] == "dead", "few": table["distinct"] > 0, "tied": table["tied"].astype(bool),
        "smoothed": table["pretraining_smoothing"] > 0,
    }  # fmt: skip
    for kind in KINDS:
        if kinds[kind].any():
            yield kind, table.loc[kinds[kind]]


def _plain(method: str) -> bool:
    """Whether it is smoothing, or none, alone."""
    return method.startswith("b=") and " " not in method


def _of_kind(rows: pd.DataFrame, value: str, name: str, unit: str, kind: str, found: Findings) -> None:
    sized = Findings(found.claim)
    by_size(rows, value, name, unit, sized)
    for made in sized.listed:
        found.add(name, made.effect, unit, kind=kind, **made.cell)
