"""Parts of predictions: what was asked, what was found, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .effects import SEEDS, difference
from .sizes import SIZES
from .statistics import Effect, mean_effect

__all__ = ["ClaimPart", "KnownFindings", "beside", "every", "holds_within", "ratio_of", "within"]


class ClaimPart(NamedTuple):
    """One part of a prediction: what was asked, what was found, and whether it holds."""

    claim: str
    part: str
    asked: str
    found: Effect
    holds: str

    def line(self) -> dict[str, Any]:
        """As a line of the table."""
        found = dict(zip(("found", "low", "high", "seeds", "cells"), self.found, strict=True))
        return {"claim": self.claim, "part": self.part, "asked": self.asked, **found, "holds": self.holds}


class KnownFindings:
    """Findings of a table, as effects."""

    def __init__(self, findings: pd.DataFrame) -> None:
        self._rows = findings.assign(cell=findings["cell"].astype(object).fillna(""))

    def at(self, claim: str, finding: str) -> list[Effect]:
        """Those of single cells."""
        return self._effects(claim, finding, self._rows["cell"] != "")

    def __call__(self, claim: str, finding: str, cell: str = "") -> Effect:
        """The one at this cell; one without numbers where there is none."""
        found = self._effects(claim, finding, self._rows["cell"] == cell)
        return found[0] if found else Effect(math.nan, math.nan, math.nan, 0, 0)

    def _effects(self, claim: str, finding: str, which: pd.Series) -> list[Effect]:
        named = (self._rows["claim"] == claim) & (self._rows["finding"] == finding)
        rows: Any = self._rows.loc[named & which, list(Effect._fields)]
        return [Effect(*line) for line in rows.itertuples(index=False)]


def every(claim: str, part: str, asked: str, effects: Sequence[Effect], least: float) -> ClaimPart:
    """That all effects are at least so much, told by the one that comes nearest to failing."""
    each = [holds_within(effect, least) for effect in effects]
    holds = next((word for word in ("no", "open", "not measured") if word in each), "yes")
    worst = min((effect for effect, word in zip(effects, each, strict=True) if word == holds), key=lambda e: e.low)
    return ClaimPart(claim, part, asked, worst, holds)


def within(claim: str, part: str, asked: str, found: Effect, least: float, most: float = math.inf) -> ClaimPart:
    """That an effect lies between two numbers."""
    return ClaimPart(claim, part, asked, found, holds_within(found, least, most))


def holds_within(effect: Effect, least: float, most: float = math.inf) -> str:
    """Whether an interval lies in a range."""
    if not math.isfinite(effect.low):
        return "not measured"
    if least <= effect.low and effect.high <= most:
        return "yes"
    return "no" if effect.high < least or effect.low > most else "open"


def ratio_of(rows: pd.DataFrame, value: str, column: str, first: Any, second: Any, on: list[str]) -> Effect:
    """``value`` where ``column`` is ``first`` over that where it is ``second``, the geometric mean over pairs."""
    logs = rows.assign(**{value: np.log(rows[value])})
    return _exponent(
        mean_effect(difference(logs, value, column=column, first=first, second=second, on=on), "difference", cell=SIZES)
    )


def beside(first: pd.DataFrame, second: pd.DataFrame, *, ratio: bool = False) -> Effect:
    """A fall minus another of the same size and seed, or over it: then the geometric mean."""
    both = first.merge(second, on=[*SIZES, *SEEDS], suffixes=("", "_second"))
    one, other = both["difference"], both["difference_second"]
    found = mean_effect(both.assign(step=np.log(one / other) if ratio else one - other), "step", cell=SIZES)
    return _exponent(found) if ratio else found


def _exponent(effect: Effect) -> Effect:
    return effect._replace(mean=math.exp(effect.mean), low=math.exp(effect.low), high=math.exp(effect.high))
