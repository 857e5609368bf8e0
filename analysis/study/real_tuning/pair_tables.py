"""The lines of a tier's table that figures and verdicts read: a tenth of it."""

from __future__ import annotations

import pandas as pd

__all__ = ["essential"]


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
