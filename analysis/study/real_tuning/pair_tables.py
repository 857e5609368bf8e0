"""Rows of tunings on pairs on disk, and the lines of a tier's table that figures and verdicts read: a tenth of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...lab.records import RowStore
from .pair_configs import PairConfig

__all__ = ["essential", "pair_rows"]

# Of what measures runs without smoothing. 2: a scale and a gain are found where they were nan for want of iterations.
_PREDICTING = 2


class _PairRows(RowStore):
    """Rows of which those of runs that predict no falls keep longer: with smoothing, or on some documents."""

    def _version(self, config: PairConfig) -> int:
        return 1 if config.label_smoothing or config.within is not None else _PREDICTING


def pair_rows(out: Path) -> RowStore:
    """The rows of tunings on pairs under a folder; those that were measured otherwise count as none."""
    return _PairRows(out / "rows")


def essential(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out what only a closer look needs.

    What stays: responses and text; of questions all files together, and at the ends of runs that ask all questions
    (``exam`` is ``whole``) each file too, and the reliability of all files together, as trained.
    """
    asked = table["exam"].notna()
    bins = table["bin"].notna() if "bin" in table else pd.Series(data=False, index=table.index)
    together, whole = table["source"] == "all", table["exam"] == "whole"
    scores = ~bins & (~asked | together | whole)
    reliability = bins & whole & together & (table["reading"] == "as_trained")
    return table.loc[scores | reliability].drop(columns=["measuring_seconds", "peak_mib"], errors="ignore")
