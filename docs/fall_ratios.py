"""By what factor predictions of the fall in confidence are off in transformers, from scratch and of real models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["factor", "of_others", "on_new_texts"]

_TRIED = ("scale", "gain", "low_rank", "affine", "rational")  # beside the clipped rule and the response


def on_new_texts(data: Path) -> list[float]:
    """Falls of tunings of SmolLM2 and Gemma over the clipped rule, on new texts, by setting, in the mean over seeds.

    Raises:
        FileNotFoundError: If a table of such tunings is missing, as the range would be too narrow.
    """
    from analysis.audit import _studies as studies
    from analysis.lab.tables import find_table, read_table

    rules = dict.fromkeys(studies.TUNED_ON_QUESTIONS, studies.question_ratios)
    rules |= dict.fromkeys(studies.TUNED_ON_PAIRS, studies.pair_ratios)
    ratios: list[float] = []
    for name, rule in rules.items():
        if (path := find_table(data, name)) is None:
            raise FileNotFoundError(f"{data} must hold {name}, whose tunings are counted.")
        ratios += rule(read_table(path))
    return ratios


def of_others(data: Path, response: Iterable[float]) -> dict[str, float]:
    """The largest factor by which each prediction is off that was tried beside the clipped rule.

    Args:
        data: Folder of the tables.
        response: What the response P says over the fall, of transformers from scratch, the only ones it was tried on.

    Returns:
        Name -> factor, of what was solved. Of real models it is of groups of settings: a single one may be further off.
    """
    scratch: Any = pd.concat([pd.read_csv(data / f"{name}_findings.csv") for name in ("S11", "S12")])
    scratch = scratch[scratch["claim"] == "law"].groupby("finding")["mean"]  # prediction over fall
    real: Any = pd.read_csv(data / "shared_changes.csv").groupby("predictor")["ratio"]  # fall over prediction
    return {"response": factor(response)} | {
        name: max(factor(scratch.get_group(f"{name}_ratio")), factor(real.get_group(name))) for name in _TRIED
    }


def factor(ratios: Iterable[float]) -> float:
    """The largest factor between predictions and falls, of their ratios either way; nan, not solved, counts as none."""
    known = [float(ratio) for ratio in ratios if ratio == ratio]
    if not known:
        return 1.0
    return max(*known, 1 / min(known)) if min(known) > 0 else float("inf")
