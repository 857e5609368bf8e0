"""What was registered of the law (S9), each sentence beside what the pairs say: ``S9_predictions.csv``.

A part that asks of an interval holds where the whole interval does and fails where none of it does; one that asks of
every cell holds where every cell does. Between is ``"open"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from .parts import ClaimPart, holds_within
from .statistics import Effect

__all__ = ["judged"]

_CELLS = ("det", "noisy")
_NEAR = 0.2  # share of the fall within which P is to be with a trunk
_TINY = 1e-3  # of confidence


def judged(table: pd.DataFrame, pairs: pd.DataFrame, plain: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """One line for each part of the four predictions of S9.

    Args:
        table: From :func:`.response.accuracy`.
        pairs: From :func:`.law_pairs.joined`, of :func:`.law_pairs.distinct` cells.
        plain: The table of S9.
        cell: Columns that make a cell, over whose seeds pairs are averaged.

    Returns:
        ``prediction`` (1 to 4), ``part``, ``asked``, ``found`` with ``low`` and ``high`` (95 % over seeds; empty for
        counts of cells), ``cells``, ``holds``: ``"yes"``, ``"no"``, ``"open"`` or ``"not run"``.
    """
    pairs = pairs.loc[pairs["confirmed"]]
    by = [name for name in cell if name in pairs]
    numbers = ["fall", "predicted_fall", "first_order_fall", "activity_index"]
    cells: Any = pairs.groupby(by, dropna=False, as_index=False)[numbers].mean()
    lines = table.set_index(["group", "predictor"])
    parts = [*_sizes(lines), *_rivals(lines), *_first_order(cells, plain), *_beyond(lines, cells)]
    found = pd.DataFrame([part.line() for part in parts]).drop(columns="seeds")
    return found.rename(columns={"claim": "prediction"}).astype({"prediction": int})


def _effect(lines: pd.DataFrame, group: str, column: str, predictor: str = "predicted_fall") -> Effect:
    if (group, predictor) not in lines.index:
        return Effect(math.nan, math.nan, math.nan, 0, 0)
    line: Any = lines.loc[(group, predictor)]
    mean, low, high = (float(line[f"{column}{end}"]) for end in ("", "_low", "_high"))
    return Effect(mean, low, high, int(line["seeds"]), int(line["cells"]))


def _within(effect: Effect, least: float, most: float = math.inf) -> str:
    """Whether an interval lies in a range."""
    return holds_within(effect, least, most) if effect.cells else "not run"


def _sizes(lines: pd.DataFrame) -> Iterator[ClaimPart]:
    """P explains the falls, and neither over- nor understates them."""
    groups = {"all cells": 0.98, **{f"{kind}, .05 < A < 6": 0.97 for kind in _CELLS}}
    for group, least in groups.items():
        for all_of_it in (group, f"{group}, unsolved kept"):
            share = _effect(lines, all_of_it, "r2")
            if all_of_it == group or share.cells:
                yield ClaimPart("1", f"R2 of P, {all_of_it}", f"at least {least:g}", share, _within(share, least))
    for group in groups:
        slope = _effect(lines, group, "slope")
        yield ClaimPart("1", f"slope of the fall on P, {group}", "0.95 to 1.05", slope, _within(slope, 0.95, 1.05))


def _rivals(lines: pd.DataFrame) -> Iterator[ClaimPart]:
    """P beats the rules of two numbers."""
    inside = ", .05 < A < 6"
    smoothings = sorted(
        {name for name, _ in lines.index if name.startswith("b = ")}, key=lambda x: float(x.split()[2][:-1])
    )
    for rival, groups in (
        ("clipped_fall", [f"{kind}{inside}" for kind in _CELLS] + smoothings),
        ("rational_fall", ["det", *(name for name in smoothings if float(name.split()[2][:-1]) <= 0.05)]),
    ):
        for group in groups:
            ahead = _effect(lines, group, "ahead", rival)
            yield ClaimPart("2", f"R2 of P minus that of {rival}, {group}", "above 0", ahead, _within(ahead, 0.0))


def _share(kept: pd.Series, asked_of: str) -> tuple[str, Effect, str]:
    share = float(kept.mean()) if len(kept) else math.nan
    holds = "not run" if kept.empty else "yes" if kept.all() else "no"
    return asked_of, Effect(share, math.nan, math.nan, 0, len(kept)), holds


def _first_order(cells: pd.DataFrame, plain: pd.DataFrame) -> Iterator[ClaimPart]:
    """Of heads on which smoothing hardly acts, and of the angle of its pull."""
    far = cells.loc[(cells["activity_index"] > 3) & (cells["label_smoothing"] <= 0.1 + 1e-9)]
    for kind in _CELLS:
        some = far.loc[(far["teacher"] != "det") == (kind == "noisy")]
        off = (some["fall"] - some["first_order_fall"]).abs()
        near = (off <= _TINY) | (off <= 0.25 * some["first_order_fall"].abs())
        yield ClaimPart("3", f"fall near b chi where A > 3 and b <= 0.1, {kind}", *_share(near, "within 25 % or .001"))
    heads = plain.loc[plain["converged"].astype(str) == "True"].drop_duplicates("key")
    det = heads["teacher"] == "det"
    full = heads.loc[det & (heads["hidden_size"] >= heads["vocab_size"] - 1), "sin_squared"]
    yield ClaimPart("3", "sin2 of plain heads, det, D >= V - 1", *_share(full < 0.01, "below .01"))
    yield ClaimPart("3", "sin2 of plain heads, noisy", *_share(heads.loc[~det, "sin_squared"] > 0.02, "above .02"))


def _beyond(lines: pd.DataFrame, cells: pd.DataFrame) -> Iterator[ClaimPart]:
    """Features from a trunk, more contexts, larger vocabularies."""
    trunk = cells.loc[cells["arm"] == "trunk"]
    for samples in (8, 64):
        some = trunk.loc[trunk["samples_per_context"] == samples]
        near = (some["predicted_fall"] - some["fall"]).abs() <= _NEAR * some["fall"].abs()
        yield ClaimPart("4", f"P near the fall, trunk, {samples} samples", *_share(near, "within 20 %"))
    one = trunk.loc[trunk["samples_per_context"] == 1]
    yield ClaimPart(
        "4", "P an upper bound, trunk, 1 sample", *_share(one["predicted_fall"] >= one["fall"], "P >= fall")
    )
    share = _effect(lines, "arm contexts", "r2")
    yield ClaimPart("4", "R2 of P, 128 to 4096 contexts", "at least 0.97", share, _within(share, 0.97))
    for v in (1024, 4096, 32768):
        some = cells.loc[(cells["arm"] == "det") & (cells["vocab_size"] == v)]
        error = float(np.abs(some["predicted_fall"] - some["fall"]).max()) if len(some) else math.nan
        holds = "not run" if some.empty else "yes" if error <= 0.01 else "no"
        found = Effect(error, math.nan, math.nan, 0, len(some))
        yield ClaimPart("4", f"largest error of P, det, V = {v}", "at most 0.01", found, holds)
