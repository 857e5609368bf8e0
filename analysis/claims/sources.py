"""The tables that rules read, without the rows that break the convergence rule; how many these are is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..lab.registry import EXPERIMENTS
from ..lab.tables import find_table, read_sidecar, read_table

__all__ = ["MissingTableError", "Tables"]


class MissingTableError(LookupError):
    """A table is not where it was looked for."""


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

    def _looked(self, name: str) -> Sequence[Path]:
        # An output folder also holds the numbers drawn in figures, under the figures' names: kernel.csv is one.
        return self.folders if name in EXPERIMENTS else [] if self.shared is None else [self.shared]

    def path(self, name: str) -> Path | None:
        """The file of a table; None where no folder has it."""
        return next((path for folder in self._looked(name) if (path := find_table(folder, name))), None)

    def has(self, name: str) -> bool:
        """Whether some folder has the table."""
        return self.path(name) is not None

    def __call__(self, name: str) -> pd.DataFrame:
        """The converged rows of a table.

        Raises:
            MissingTableError: If no folder has it.
        """
        path = self.path(name)
        if path is None:
            looked = " or ".join(map(str, self._looked(name))) or "this installation"
            raise MissingTableError(f"there is no {name}.csv in {looked}")
        table, sidecar = read_table(path), read_sidecar(path)
        grid = sidecar.get("grid", {})
        if "cells" in grid:
            self.not_run[name] = (grid["cells_not_run"], grid["cells"])
        if "converged" not in table:
            return table
        converged = table["converged"].astype(bool)
        self.left_out[name] = (int((~converged).sum()), len(table))
        return table.loc[converged]
