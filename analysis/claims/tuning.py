"""Claims K1, K2, K8 and K9 on instruction tuning, simulated (S7) and of a real model: the same rules for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from .effects import SEEDS, difference
from .findings import Findings, word
from .sources import Tables
from .statistics import Effect, mean_effect

__all__ = [
    "OTHERS", "PENALTY", "RIVALS", "SMALL", "Runs", "degrades", "diversity", "keeps", "penalised_simulation",
    "regularises", "tuned_model", "tuned_simulation",
]  # fmt: skip

RIVALS = ("weight_decay", "dropout")  # other ways to regularise
_SMALL_ACCURACY = 0.02
SMALL = 0.01  # differences of ECE below this are called none
_STOPPED = "early stopping"
OTHERS = ("b=0.05", "b=0.2", _STOPPED, "b=0 post_hoc", "b=0.1 inverted", *RIVALS)  # what K2 sets beside b = .1
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
        return plain.merge(best, on=[*self.run, "epoch"]).assign(method=_STOPPED)

    def mean(self, pairs: pd.DataFrame, value: str = "difference") -> Effect:
        """Mean over cells, with the interval over seeds."""
        return mean_effect(pairs, value, cell=list(self.cell))

    def between(self, table: pd.DataFrame, value: str, first: int, second: int) -> Effect:
        """``value`` without smoothing at epoch ``first`` minus at ``second``."""
        plain, on = table.loc[table["method"] == "b=0"], [*self.cell, *self.seeds]
        return self.mean(difference(plain, value, column="epoch", first=first, second=second, on=on))

    def gain(self, table: pd.DataFrame, value: str, method: str = "b=0.1") -> Effect:
        """``value`` of b = 0 minus that of a method."""
        on = [*self.cell, *self.seeds]
        return self.mean(difference(table, value, column="method", first="b=0", second=method, on=on))

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
    """The runs of S7 without a confidence penalty: cells are pretrained models' (V, D)."""
    table = tables("S7")
    return _simulated(table.loc[~_penalised(table)])


def penalised_simulation(tables: Tables) -> Runs | None:
    """All runs of S7 in the cells where a confidence penalty was tuned too; None where there is none."""
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


def tuned_model(table: pd.DataFrame) -> Runs:
    """The runs of a real model: cells are kinds of question, of which each run has both."""
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


def degrades(runs: Runs, found: Findings) -> str:
    """K1: whether tuning without smoothing raises the error elsewhere, and over its epochs on new examples."""
    first, last = runs.first, runs.last
    found.add("first_epoch", first, "epoch")
    found.add("last_epoch", last, "epoch")
    runs.add(found, "rise_elsewhere", "ECE", runs.between, runs.elsewhere, "error", last, 0)
    runs.add(found, "rise_asked", "ECE", runs.between, runs.asked, "error", last, first)
    runs.add(found, "rise_asked_from_start", "ECE", runs.between, runs.asked, "error", last, 0)
    for name, table in (("elsewhere", runs.elsewhere), ("asked", runs.asked)):
        found.add(f"accuracy_rise_{name}", runs.between(table, "accuracy", last, 0), "probability")
    found.add("nll_rise_elsewhere", runs.between(runs.elsewhere, "nll", last, 0), "nats")
    if runs.options is not None:
        found.add("rise_options", runs.between(runs.options, "error", last, first), "ECE")
    change, growth = found("rise_elsewhere"), found("rise_asked")
    rises = [*found.at("rise_elsewhere"), *found.at("rise_asked")]
    return word(
        supported=change.low > 0 and growth.low > 0 and all(rise.mean > 0 for rise in rises),
        refuted=change.high < 0,
    )


def keeps(runs: Runs, found: Findings, elsewhere: Sequence[Effect] = ()) -> str:
    """K2: whether smoothing lowers the error in every cell, on new examples and elsewhere.

    ``elsewhere`` are gains on other heads, which smoothing must not harm.
    """
    final = runs.final
    distant = runs.at_end(runs.elsewhere)
    runs.add(found, "gain", "ECE", runs.gain, final, "error")
    runs.add(found, "gain_elsewhere", "ECE", runs.gain, distant, "error")
    for method in (name for name in OTHERS if (final["method"] == name).any()):
        found.add("gain_of", runs.gain(final, "error", method), "ECE", method=method)
        found.add("accuracy_loss_of", runs.gain(final, "accuracy", method), "probability", method=method)
    found.add("accuracy_loss", runs.gain(final, "accuracy"), "probability")
    for name in ("aurc", "rms"):
        if name in final:
            found.add(f"{name}_gain", runs.gain(final, name), name.upper())
    if runs.options is not None:
        found.add("gain_options", runs.gain(runs.at_end(runs.options), "error"), "ECE")
    every = [*found.at("gain"), *found.at("gain_elsewhere")]
    return word(
        supported=all(gain.low > 0 for gain in every) and all(effect.low > -SMALL for effect in elsewhere),
        refuted=found("gain").high < 0 or all(gain.high < 0 for gain in every),
    )


def diversity(runs: Runs, found: Findings) -> str:
    """K8: whether smoothing raises the rank of the features in every cell, and whether rank helps without smoothing."""
    last = runs.at_end(runs.asked)
    unsmoothed, along_b = last.loc[last["label_smoothing"] == 0], last.loc[~last["method"].isin(RIVALS)]
    runs.add(found, "rank_rise", "rank", _rise(runs), last, runs.rank, "b=0.1")
    runs.add(found, "smallest_share_rise", "share", _rise(runs), last, "smallest_share", "b=0.1")
    runs.add(found, "correlation", "correlation", _within(runs), unsmoothed)
    runs.add(found, "correlation_along_b", "correlation", _within(runs), along_b)
    for method in (name for name in RIVALS if (last["method"] == name).any()):
        found.add("rank_rise_of", _rise(runs)(last, runs.rank, method), "rank", method=method)
        found.add("error_rise_of", _rise(runs)(last, "error", method), "ECE", method=method)
    ranks, helps = found.at("rank_rise"), found.at("correlation")
    return word(
        supported=all(rank.low > 0 for rank in ranks)
        and all(r.high < 0 for r in helps)
        and not lower_rank_and_error(found),
        refuted=all(rank.high < 0 for rank in ranks) or all(r.low > 0 for r in helps),
    )


def lower_rank_and_error(found: Findings) -> list[str]:
    """Other methods that lower both the rank and the error."""
    ranks, errors = found.at("rank_rise_of"), found.at("error_rise_of")
    return [r.cell["method"] for r, e in zip(ranks, errors, strict=True) if r.high < 0 and e.high < 0]


def _rise(runs: Runs) -> Callable[..., Effect]:
    def rise(table: pd.DataFrame, value: str, method: str) -> Effect:
        gain = runs.gain(table, value, method)
        return Effect(-gain.mean, -gain.high, -gain.low, gain.seeds, gain.cells)

    return rise


def _within(runs: Runs) -> Callable[[pd.DataFrame], Effect]:
    """Mean over pretrained models of the correlation of rank and error over their tunings."""

    def within(table: pd.DataFrame) -> Effect:
        keys, lines = [*runs.cell, "data_seed"], []
        for values, group in table.groupby(keys):
            r = float(np.corrcoef(group[runs.rank], group["error"])[0, 1])
            lines.append(dict(zip(keys, values, strict=True)) | {"difference": r})  # pyright: ignore
        return runs.mean(pd.DataFrame(lines).dropna())

    return within


def regularises(runs: Runs, found: Findings) -> str:
    """K9: whether the gap of held-out minus training NLL narrows in every cell, and accuracy is kept in every one."""
    asked, train = runs.at_end(runs.asked), runs.at_end(runs.train)
    keys = ["method", *runs.cell, *runs.seeds]
    both = asked[[*keys, "held_out"]].merge(train[[*keys, "nll"]], on=keys)
    both["gap"] = both["held_out"] - both["nll"]
    runs.add(found, "gap_fall", "nats", runs.gain, both, "gap")
    runs.add(found, "accuracy_loss", "probability", runs.gain, asked, "accuracy")
    runs.add(found, "held_out_fall", "nats", runs.gain, asked, "held_out")
    runs.add(found, "aurc_gain", "AURC", runs.gain, asked, "aurc")
    for method in (name for name in RIVALS if (both["method"] == name).any()):
        found.add("gap_fall_of", runs.gain(both, "gap", method), "nats", method=method)
    gaps, losses = found.at("gap_fall"), found.at("accuracy_loss")
    kept = all(max(abs(loss.low), abs(loss.high)) < _SMALL_ACCURACY for loss in losses)
    return word(supported=kept and all(gap.low > 0 for gap in gaps), refuted=all(gap.high < 0 for gap in gaps))
