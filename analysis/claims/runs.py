"""Tunings, simulated (S7) and of a real model, under the same names, so that the same rules can judge both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .effects import SEEDS, difference
from .findings import Findings
from .sources import Tables
from .statistics import Effect, mean_effect

__all__ = [
    "PENALTY", "STOPPED", "Runs", "main_grid", "penalised_simulation", "tuned_model", "tuned_simulation",
    "tuned_transformers",
]  # fmt: skip

STOPPED = "early stopping"
PENALTY = "penalty="  # and gamma: the tunings of S7 with a confidence penalty, in one cell of all


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Tunings, simulated or of a real model, under the same names.

    Every table has one line for each run, epoch and cell, with ``method`` (``"b=0"``, ``"b=0.1"``, ``"dropout"``, ...),
    ``error`` (true ECE where it is known, else the estimate), ``held_out`` and ``nll`` (of new and of sampled tokens,
    in nats), ``accuracy``, ``aurc`` and, apart from ``train``, ``validation_nll``.

    Attributes:
        asked: New examples of what was tuned on, read as trained, of all tunings.
        elsewhere: What was not tuned on.
        train: The examples tuned on.
        read: The last epoch of ``asked`` in other readings, named ``"b=0 post_hoc"`` and the like.
        options: Multiple choice among the options alone; None where there is none.
        cell: Columns that name a cell, with the short names that findings have.
        run: Columns that tell trained models of one method apart.
        rank: Column of the rank of the features.
    """

    asked: pd.DataFrame
    elsewhere: pd.DataFrame
    train: pd.DataFrame
    read: pd.DataFrame
    cell: dict[str, str]
    run: list[str]
    seeds: list[str]
    options: pd.DataFrame | None = None
    rank: str = "effective_rank"
    named: dict[str, str] = field(default_factory=dict)  # values of a cell that findings call otherwise

    @property
    def last(self) -> int:
        """The last epoch."""
        return int(self.asked["epoch"].max())

    @property
    def first(self) -> int:
        """The first one that was measured after the start."""
        return int(self.asked.loc[self.asked["epoch"] > 0, "epoch"].min())

    def at_end(self, table: pd.DataFrame) -> pd.DataFrame:
        """The lines of the last epoch."""
        return table.loc[table["epoch"] == self.last]

    @property
    def final(self) -> pd.DataFrame:
        """What every method ends with on new examples, also in other readings and stopped early, under its name."""
        return pd.concat([self.at_end(self.asked), self._early_stopped(), self.at_end(self.read)])

    def _early_stopped(self) -> pd.DataFrame:
        """Plain runs at the epoch with the least validation NLL, one for each run, as a method of its own."""
        plain = self.asked.loc[(self.asked["method"] == "b=0") & (self.asked["epoch"] > 0)]
        best = plain.loc[plain.groupby(self.run)["validation_nll"].idxmin(), [*self.run, "epoch"]]
        return plain.merge(best, on=[*self.run, "epoch"]).assign(method=STOPPED)

    def mean(self, pairs: pd.DataFrame, value: str = "difference") -> Effect:
        """Mean over cells, with the interval over seeds."""
        return mean_effect(pairs, value, cell=list(self.cell))

    def between(self, table: pd.DataFrame, value: str, first: int, second: int) -> Effect:
        """``value`` without smoothing at epoch ``first`` minus at ``second``."""
        plain, on = table.loc[table["method"] == "b=0"], [*self.cell, *self.seeds]
        return self.mean(difference(plain, value, column="epoch", first=first, second=second, on=on))

    def gain(self, table: pd.DataFrame, value: str, method: str = "b=0.1", over: str = "b=0") -> Effect:
        """``value`` of b = 0, or of another method, minus that of a method."""
        on = [*self.cell, *self.seeds]
        return self.mean(difference(table, value, column="method", first=over, second=method, on=on))

    def by_cell(self, effect: Callable[..., Effect], table: pd.DataFrame, *arguments: object) -> list[Any]:
        """(cell, effect) of each cell, with the names that findings have."""
        found = []
        for values, rows in table.groupby(list(self.cell)):
            cell = dict(zip(self.cell.values(), values if isinstance(values, tuple) else (values,), strict=True))
            found.append(({name: self.named.get(str(v), v) for name, v in cell.items()}, effect(rows, *arguments)))
        return found

    def add(
        self, found: Findings, name: str, unit: str, effect: Callable[..., Effect], table: pd.DataFrame, *more: object
    ) -> None:
        """Keep an effect in all cells together and in each."""
        found.add(name, effect(table, *more), unit)
        for cell, number in self.by_cell(effect, table, *more):
            found.add(name, number, unit, **cell)


def tuned_simulation(tables: Tables) -> Runs:
    """Return the runs of S7 without a confidence penalty; a cell is a pretrained model's (V, D)."""
    table = tables("S7")
    return _simulated(table.loc[~_penalised(table)])


def penalised_simulation(tables: Tables) -> Runs | None:
    """Return all runs of S7 in the cells where a confidence penalty was tuned too; None where there is none."""
    table = tables("S7")
    sizes = ["vocab_size", "hidden_size"]
    cells = table.loc[_penalised(table), sizes].drop_duplicates()
    return None if cells.empty else _simulated(table.merge(cells, on=sizes))


def _penalised(table: pd.DataFrame) -> pd.Series:
    return table["method"].str.startswith(PENALTY)


def _simulated(table: pd.DataFrame) -> Runs:
    table = table.assign(error=table["true_ece"], held_out=table["true_nll"])
    trained = table.loc[table["reading"] == "as_trained"]
    asked, broad, train = (trained.loc[trained["distribution"] == name] for name in ("shifted", "broad", "train"))
    other = table.loc[(table["distribution"] == "shifted") & (table["reading"] != "as_trained")]
    cell = {"vocab_size": "V", "hidden_size": "D"}
    return Runs(
        asked=asked,
        elsewhere=broad,
        train=train,
        read=other.assign(method=other["method"] + " " + other["reading"]),
        cell=cell,
        run=[*cell, *SEEDS],
        seeds=SEEDS,
    )


def main_grid(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of S11 of live symbols and an untied head, pretrained on enough tokens without smoothing."""
    plain = (table["distinct"] == 0) & (table["pretraining_smoothing"] == 0) & ~table["tied"].astype(bool)
    return table.loc[plain & (table["symbols"] == "live")]


def tuned_transformers(table: pd.DataFrame) -> Runs:
    """Return the runs of S11's main grid; a cell is a model's (V, D)."""
    return _simulated(main_grid(table))


def tuned_model(table: pd.DataFrame) -> Runs:
    """Return the runs of a real model; a cell is a kind of question, and each run has both kinds."""
    kinds = {"letter": "multiple choice", "tokens": "short answers", "text": "text", "options": "options"}
    arm = [
        f"b={b:g}" + ("" if t == 1 else f" T={t:g}") + ("" if pd.isna(c) else f" cap={c:g}")
        for b, t, c in zip(table["label_smoothing"], table["temperature"], table["softcap"], strict=True)
    ]
    table = table.assign(method=arm, error=table["ece"], held_out=table["nll"])
    run = ["method", "data_seed"]
    validation = table.loc[(table["split"] == "validation") & table["view"].isin(["letter", "tokens"])]
    validation = validation.loc[validation["reading"] == "as_trained"].groupby([*run, "epoch"])["nll"].mean()
    table = table.merge(validation.rename("validation_nll").reset_index(), on=[*run, "epoch"], how="left")
    trained = table.loc[table["reading"] == "as_trained"]

    def part(rows: pd.DataFrame, split: str, *views: str) -> pd.DataFrame:
        return rows.loc[(rows["split"] == split) & rows["view"].isin(views)]

    post_hoc = part(table.loc[table["reading"] == "post_hoc"], "test", "letter", "tokens")
    return Runs(
        asked=part(trained, "test", "letter", "tokens"),
        elsewhere=part(trained, "test", "text"),
        train=part(trained, "train", "letter", "tokens"),
        read=post_hoc.assign(method=post_hoc["method"] + " post_hoc"),
        options=part(trained, "test", "options"),
        cell={"view": "kind"},
        run=["data_seed"],
        seeds=["data_seed"],
        named=kinds,
    )
