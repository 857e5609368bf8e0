"""Pairs of S9: what the law said of a head, what its twin with smoothing measured, and which heads are one setting."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["CELL", "TOLERANCE", "distinct", "equal", "flags", "joined"]

TOLERANCE = 1e-3  # of the confidence of a plain head that was trained again
CELL = [
    "arm", "teacher", "vocab_size", "n_contexts", "samples_per_context", "hidden_size", "norm",
    "norm_coefficient", "temperature", "softcap", "softcap_form", "weight_decay", "features", "optimiser",
    "label_smoothing",
]  # fmt: skip


def distinct(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs whose ``CELL`` says what the head is: a norm budget k at temperature T is the budget k/T at T = 1.

    So it is where features are free and no softcap stands between. Tables share settings too; ``source`` is no part
    of a cell.
    """
    same = equal(pairs, "norm", "budget") & equal(pairs, "features", "free")
    same &= pairs["softcap"].isna() if "softcap" in pairs else True
    if not same.any():
        return pairs
    strength = (pairs["norm_coefficient"] / pairs["temperature"]).round(9)
    return pairs.assign(
        norm_coefficient=pairs["norm_coefficient"].where(~same, strength),
        temperature=pairs["temperature"].where(~same, 1.0),
    )


def joined(predictions: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Predictions of S9 beside what the tables of S3, S4 and S5 measured.

    Args:
        predictions: The table of S9.
        tables: By name, as committed.

    Returns:
        The rows whose smoothed head is known and converged, with ``fall`` and ``true_ece_gain`` measured, and
        ``confirmed``: whether the plain head that was trained again has the confidence of its row within 1e-3 and its
        response was solved. Arms, which have no such row, count as confirmed where solved.
    """
    readings = [
        table.loc[table["evaluation"] == "as_trained"] if "evaluation" in table else table for table in tables.values()
    ]
    rows = pd.concat([table[["key", "confidence", "true_ece", "converged"]] for table in readings])
    known = rows.groupby("key").first()
    found = predictions.copy()
    for column in ("fall", "true_ece_gain", "smoothed_converged"):
        if column not in found:
            found[column] = np.nan
    plain, smoothed = (known.reindex(found[name]).reset_index(drop=True) for name in ("plain_key", "smoothed_key"))
    own = found["fall"].notna().to_numpy()
    for column, name in (("fall", "confidence"), ("true_ece_gain", "true_ece")):
        there = np.asarray(plain[name], np.float64) - np.asarray(smoothed[name], np.float64)
        found[column] = np.where(own, np.asarray(found[column], np.float64), there)
    off = np.asarray(found["plain_confidence"], np.float64) - np.asarray(plain["confidence"], np.float64)
    found["confidence_off"] = np.where(own, 0.0, off)
    found["confirmed"] = (found["confidence_off"].abs() <= TOLERANCE) & flags(found["solved"])
    twin = np.where(own, flags(found["smoothed_converged"]), flags(smoothed["converged"]))
    return found.loc[flags(found["converged"]) & twin & found["fall"].notna()].reset_index(drop=True)


def equal(pairs: pd.DataFrame, column: str, value: object) -> pd.Series:
    """Where a column that may be missing has a value."""
    return pairs[column] == value if column in pairs else pairs["confirmed"] & False


def flags(column: Iterable[object]) -> NDArray[np.bool_]:
    """Truth of a column; what is missing is not true."""
    return np.array([str(value) == "True" for value in column], np.bool_)
