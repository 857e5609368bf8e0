"""What a verdict is made of: tables with flagged rows left out and counted, paired differences, the verdict itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..records import find_table, read_sidecar, read_table
from .registry import EXPERIMENTS
from .statistics import Effect

__all__ = ["MissingTableError", "Tables", "Verdict", "difference", "number", "word"]


class MissingTableError(LookupError):
    """A claim's table is not there."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the tables say of one claim.

    Attributes:
        claim: ``"K1"`` to ``"K9"``.
        verdict: ``"supported"``, ``"refuted"``, ``"depends on"`` or ``"not decided"``.
        effect: What the number is, in words, with its unit.
        size: The number with its 95 % interval over seeds; None where there is none.
        condition: On what it depends, or under which conditions it was found.
        counter_evidence: What speaks against the verdict.
        tables: Names of the tables behind it.
    """

    claim: str
    verdict: str
    effect: str
    size: Effect | None
    condition: str
    counter_evidence: str
    tables: tuple[str, ...]


def word(*, supported: bool, refuted: bool, known: bool = True) -> str:
    """The verdict's word from the two rules of a claim; ``"depends on"`` where neither holds.

    ``known`` says whether the rows that the rules read are there: what was not measured refutes nothing.
    """
    if not known:
        return "not decided"
    if supported:
        return "supported"
    return "refuted" if refuted else "depends on"


def number(value: float, form: str) -> str:
    """A number in a sentence; what no row tells is not known.

    Example:
        >>> number(0.25, ".0%"), number(float("nan"), ".0%")
        ('25%', 'not known')
    """
    return format(value, form) if value == value else "not known"


@dataclass
class Tables:
    """The tables of one preset, read when asked for, without the rows that break the convergence rule.

    Attributes:
        folders: Where to look, first one first.
        shared: Where alone tables lie that no preset changes: those of no experiment, such as ``kernel``; None where
            there are none.
        left_out: Name of a table read -> (rows left out because they have not converged, rows in all).
        not_run: Name of a table read -> (cells of its grid that are not complete, cells in all), from its sidecar.
    """

    folders: Sequence[Path]
    shared: Path | None = None
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)
    not_run: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, name: str) -> pd.DataFrame:
        """The converged rows of a table.

        Raises:
            MissingTableError: If no folder has it.
        """
        # An output folder also holds the numbers drawn in figures, under the figures' names: kernel.csv is one.
        looked = self.folders if name in EXPERIMENTS else [folder for folder in [self.shared] if folder is not None]
        for folder in looked:
            path = find_table(folder, name)
            if path is not None:
                table = read_table(path)
                sidecar = read_sidecar(path)
                if "cells" in sidecar:
                    self.not_run[name] = (sidecar["cells_not_run"], sidecar["cells"])
                if "converged" not in table:
                    return table
                converged = table["converged"].astype(bool)
                self.left_out[name] = (int((~converged).sum()), len(table))
                return table.loc[converged]
        raise MissingTableError(f"there is no {name}.csv in {' or '.join(map(str, looked)) or 'this installation'}")


def difference(
    table: pd.DataFrame, value: str, *, column: str, first: object, second: object, on: Sequence[str]
) -> pd.DataFrame:
    """Paired differences: ``value`` where ``column`` is ``first`` minus where it is ``second``, all else equal.

    Args:
        table: Rows.
        value: Column to subtract.
        column: What the two rows of a pair differ in.
        first: Its value in the first row.
        second: Its value in the second.
        on: Columns in which they agree; missing agrees with missing.

    Returns:
        ``on`` and ``difference``, one line for each pair that is complete.

    Raises:
        ValueError: If a side has two rows for one pair.

    Example:
        >>> table = pd.DataFrame({"b": [0, 1, 0], "seed": [1, 1, 2], "x": [5.0, 3.0, 4.0]})
        >>> difference(table, "x", column="b", first=0, second=1, on=["seed"]).to_dict("list")
        {'seed': [1], 'difference': [2.0]}
    """
    sides = [table.loc[table[column] == wanted, [*on, value]] for wanted in (first, second)]
    if any(side.duplicated(list(on)).any() for side in sides):
        raise ValueError(f"on must tell the rows of one {column} apart, got {list(on)}.")
    both = sides[0].merge(sides[1], on=list(on), suffixes=("_first", "_second"))
    return both[list(on)].assign(difference=both[f"{value}_first"] - both[f"{value}_second"])
