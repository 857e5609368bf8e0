"""What the rules of a claim find: numbers with intervals, by name, cell and unit; and the verdict they lead to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from .statistics import Effect

__all__ = ["COLUMNS", "SMALL", "Finding", "Findings", "Verdict", "headlines", "word"]

COLUMNS = ("claim", "finding", "cell", "mean", "low", "high", "seeds", "cells", "unit")
SMALL = 0.01  # differences of ECE or of confidence below this are called none
_DIGITS = 6  # significant digits of a written number


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number that a rule found.

    Attributes:
        claim: ``"K1"`` to ``"K9"``.
        finding: Its name, such as ``"gain"``; the same in every cell.
        cell: What it was found at, such as ``{"V": 256, "D": 8}``; empty for the mean over all cells.
        mean: The number.
        low: Lower end of its 95 % interval; nan where there is none.
        high: Upper end.
        seeds: How many seeds are behind it; 0 for a number that is no mean over seeds.
        cells: Over how many cells it is a mean; 0 where no row was left, so that it is not known.
        unit: ``"ECE"``, ``"probability"``, ``"nats"``, ``"rank"``, ``"ratio"``, ``"count"``, ...
    """

    claim: str
    finding: str
    cell: dict[str, Any]
    mean: float
    low: float
    high: float
    seeds: int
    cells: int
    unit: str

    def __str__(self) -> str:
        return str(self.effect)

    @property
    def effect(self) -> Effect:
        """The number without its name."""
        return Effect(self.mean, self.low, self.high, self.seeds, self.cells)

    @property
    def where(self) -> str:
        """The cell as text: ``"V=256; D=8"``."""
        return "; ".join(f"{name}={_shown(value)}" for name, value in self.cell.items())

    @property
    def known(self) -> bool:
        """Whether it has an interval, which takes rows of several seeds."""
        return math.isfinite(self.low)


class Findings:
    """The findings of one claim, in the order in which the rules made them.

    Example:
        >>> found = Findings("K1")
        >>> _ = found.add("rise", Effect(0.2, 0.1, 0.3, 5, 7), "ECE")
        >>> _ = found.add("rise", Effect(0.4, 0.2, 0.6, 5, 1), "ECE", V=256, D=8)
        >>> str(found("rise")), [finding.cell for finding in found.at("rise", V=256)]
        ('0.2000 [0.1000, 0.3000]', [{'V': 256, 'D': 8}])
    """

    def __init__(self, claim: str) -> None:
        self.claim = claim
        self.listed: list[Finding] = []

    def add(self, finding: str, number: Effect | float, unit: str, **cell: Any) -> Finding:
        """Keep an effect, or a plain number, under a name; without a cell it is that of all cells together."""
        effect = number if isinstance(number, Effect) else Effect(float(number), math.nan, math.nan, 0, 1)
        made = Finding(claim=self.claim, finding=finding, cell=cell, unit=unit, **effect._asdict())
        self.listed.append(made)
        return made

    def __call__(self, finding: str, **cell: Any) -> Finding:
        """The one finding of this name at exactly this cell.

        Raises:
            LookupError: If there is none.
        """
        for made in self.listed:
            if made.finding == finding and made.cell == cell:
                return made
        raise LookupError(f"{self.claim} has no finding {finding} at {cell}")

    def at(self, finding: str, **cell: Any) -> list[Finding]:
        """The findings of this name in single cells, of those that agree with ``cell``."""
        return [f for f in self.listed if f.finding == finding and f.cell and cell.items() <= f.cell.items()]

    def has(self, finding: str) -> bool:
        """Whether there is any of this name."""
        return any(made.finding == finding for made in self.listed)

    def __getitem__(self, finding: str) -> float:
        """The plain number of this name."""
        return self(finding).mean

    @staticmethod
    def table(several: Sequence[Findings]) -> pd.DataFrame:
        """One line for each finding, with ``COLUMNS``; a cell is written as text (:attr:`Finding.where`)."""
        lines = [asdict(made) | {"cell": made.where} for found in several for made in found.listed]
        for line in lines:
            line |= {name: float(f"{line[name]:.{_DIGITS}g}") for name in ("mean", "low", "high")}
        return pd.DataFrame(lines, columns=list(COLUMNS))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def headlines(verdicts: pd.DataFrame, findings: pd.DataFrame) -> pd.DataFrame:
    """Join a table of verdicts with the numbers of the finding that each of them is about.

    Returns:
        The verdicts with ``mean``, ``low``, ``high``, ``seeds``, ``cells`` and ``unit`` of their finding. Missing texts
        are empty.
    """
    key = ["claim", "finding", "cell"]
    texts = ("depends_on", "predicted", "effect", "interval_over", "early_verdict", *key[1:])
    text = [name for name in texts if name in verdicts]
    verdicts = verdicts.assign(**verdicts[text].fillna("")).drop(columns=["mean", "low", "high", "seeds", "cells"])
    return verdicts.merge(findings.assign(cell=findings["cell"].fillna("")), on=key, how="left")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the tables say of one claim.

    Attributes:
        claim: ``"K1"`` to ``"K9"``.
        verdict: ``"supported"``, ``"refuted"``, ``"depends on"`` or ``"not decided"``.
        depends_on: On what, in a few words; empty for another verdict.
        effect: What the number is, in words, with its unit.
        size: The number with its 95 % interval over seeds; None where there is none.
        condition: Under which conditions it was found.
        counter_evidence: What speaks against the verdict.
        tables: Names of the tables behind it.
        interval_over: What varies within the interval.
        early: The word of the same rule at the epochs of the paper's budget; empty where nothing has epochs.
        early_size: The number then.
    """

    claim: str
    verdict: str
    depends_on: str = ""
    effect: str = ""
    size: Finding | None = None
    condition: str = ""
    counter_evidence: str = ""
    tables: tuple[str, ...] = ()
    interval_over: str = "seeds"
    early: str = ""
    early_size: Finding | None = None


def word(*, supported: bool, refuted: bool, known: bool = True) -> str:
    """Choose the verdict's word from the two rules of a claim: ``"depends on"`` where neither holds.

    ``known`` says whether the rows that the rules read are there: what was not measured refutes nothing.
    """
    if not known:
        return "not decided"
    if supported:
        return "supported"
    return "refuted" if refuted else "depends on"
