"""The law on transformers trained from scratch (S11, S12): predicted falls beside those that smoothing brought.

Every prediction is made from the model tuned without smoothing, with nothing fitted. Those of a shared change of the
features are read on new tokens, that of free features (P) on the tokens tuned on, as it is solved there.
"""

from __future__ import annotations

import math
from itertools import product

import pandas as pd

from ..response import clipped_fall, rational_fall
from .findings import Finding, Findings, word
from .runs import main_grid
from .sizes import SIZES, Grid, all_known, by_size, shares_of_fall
from .statistics import mean_effect

__all__ = ["MAPS", "NEAR", "SCALARS", "SHARED", "foretells", "foretold"]

SHARED = ("scale", "gain")  # shared changes, which decide
MAPS = ("low_rank", "affine")  # of many unknowns, set beside them
SCALARS = ("clipped", "rational")  # rules of two numbers, likewise
NEAR = 0.2  # share of the fall by which a prediction may miss it
_B = 0.1


def foretells(table: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """The law on S11: on new shifted tokens, in the first grid after the last epoch."""
    ended = table.loc[(table["epoch"] == table["epoch"].max()) & (table["reading"] == "as_trained")]
    asked, train = (main_grid(ended.loc[ended["distribution"] == name]) for name in ("shifted", "train"))
    return foretold(shares_of_fall(asked), shares_of_fall(train), found, grid)


def foretold(asked: pd.DataFrame, train: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """Supported where one shared change is near the fall at every (V, D), and P at least the fall.

    Refuted where no shared change is near at any (V, D), or P is below the fall at every one.

    Args:
        asked: Plain rows of new tokens, one a model, with their ``fall`` (:func:`.sizes.shares_of_fall`).
        train: Those of the tokens tuned on.
        found: Gets falls, predictions, and their ratios by (V, D).
        grid: What has to be known.
    """
    asked = asked.assign(
        **{
            f"{name}_fall_{_B:g}": rule(asked["confidence"], asked["activity"], asked["vocab_size"], _B)
            for name, rule in zip(SCALARS, (clipped_fall, rational_fall), strict=True)
        }
    )
    for name, rows in (("fall", asked), ("fall_on_train", train)):
        by_size(rows, "fall", name, "probability", found)
    kinds = (*SHARED, *MAPS, *SCALARS)
    near = {kind: [abs(r.mean - 1) <= NEAR for r in _ratios(asked, kind, found, grid)] for kind in kinds}
    enough = [ratio.mean >= 1 for ratio in _ratios(train, "frozen", found, grid)]
    for kind in kinds:
        column = f"{kind}_fall_{_B:g}"
        error = asked.assign(error=asked[column] - asked["fall"] if column in asked else math.nan)
        found.add(f"{kind}_error", mean_effect(error.dropna(subset="error"), "error", cell=SIZES), "probability")
    falls = [f for name in ("fall", "fall_on_train") for f in found.at(name)]
    return word(
        supported=any(all(near[kind]) for kind in SHARED) and all(enough),
        refuted=not any(any(near[kind]) for kind in SHARED) or not any(enough),
        known=all_known(falls) and len(falls) == 2 * len(enough),
    )


def _ratios(rows: pd.DataFrame, kind: str, found: Findings, grid: Grid) -> list[Finding]:
    """Mean prediction over mean fall at each (V, D) of the grid, of models where it was solved; nan where of none."""
    column, made = f"{kind}_fall_{_B:g}", []
    for v, d in product(grid.vocabularies, grid.widths):
        cell = rows.loc[(rows["vocab_size"] == v) & (rows["hidden_size"] == d)]
        solved = cell.dropna(subset=column) if column in cell else cell.iloc[:0]
        fall = solved["fall"].mean() if len(solved) else math.nan
        ratio = solved[column].mean() / fall if fall > 0 else math.nan
        made.append(found.add(f"{kind}_ratio", float(ratio), "ratio", V=v, D=d))
    return made
