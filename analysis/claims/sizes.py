"""Claims K3 and K4 on transformers trained from scratch (S11), where D and V vary with everything else fixed.

Vocabularies are compared where the models know the language equally well: the divergence from the truth at the largest
D is within ``COMPARABLE`` of that at the least V. Else rare symbols were seen too seldom, and tokens that never occur
carry the comparison. Both are decided over the whole grid: without the smallest and the largest D at every V, or a step
to the largest V that may be compared, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from .effects import SEEDS, difference
from .findings import SMALL, Finding, Findings, word
from .runs import main_grid
from .statistics import Effect, mean_effect

__all__ = [
    "ALIKE", "COMPARABLE", "SIZES", "Grid", "all_known", "by_size", "capped", "comparable_vocabularies", "grown",
    "little_effect", "mean_over_v", "over_widths", "shares_of_fall", "step_between", "within",
]  # fmt: skip

COMPARABLE = 0.02  # nats
_SHARE = 0.2  # difference of the fall over b (confidence - 1/V) that counts
_B = 0.1
_GATES = ("divergence_over_v", "tuned_divergence_over_v")  # of pretrained models, of those tuned without smoothing
SIZES = ["vocab_size", "hidden_size"]
ALIKE = [*SIZES, "symbols", "tied", "distinct", "pretraining_smoothing", *SEEDS]


class Grid(NamedTuple):
    """What the full comparison is over: vocabularies and hidden sizes, both ascending, whatever was run of them."""

    vocabularies: Sequence[int]
    widths: Sequence[int]


def capped(table: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """K3: whether confidence over the truth's own is less at small D though the model fits, and at large V.

    Of pretrained models, on the language of pretraining. A step in D is a cap if the narrow model is less confident
    and not further from the truth; if it is further, it underfits.
    """
    start = _pretrained(table)
    start = start.assign(share=start["confidence"] / start["truth_confidence"])
    live = main_grid(start)
    for name, unit in (("divergence", "nats"), ("share", "share"), ("confidence", "probability")):
        by_size(live, name, name, unit, found)
    steps, further = over_widths(live, "share", "share_step", "share", grid, found), _further(live, grid, found)
    excess = live.assign(excess=live["confidence"] - live["accuracy"])  # what of a step accuracy does not match
    by_size(excess, "excess", "excess", "probability", found)
    over_widths(excess, "excess", "excess_step", "probability", grid, found)
    _gates(start, _GATES[0], grid, found)
    over = _over_vocabulary(start, "share", "share", grid, _GATES[:1], found)
    caps = [step.low > SMALL and worse.high <= COMPARABLE for step, worse in zip(steps, further, strict=True)]
    none = [step.high <= SMALL or worse.low > 0 for step, worse in zip(steps, further, strict=True)]
    return word(
        supported=all(caps) and all(step.high < -SMALL for step in over),
        refuted=all(none) and all(within(step, SMALL) for step in over),
        known=all_known([*steps, *further]) and _reaches(over, grid),
    )


def little_effect(table: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """K4: whether the fall in confidence over b (confidence - 1/V) is less at small D and at large V, and A above 1.

    It is refuted where smoothing acts at the largest D of every V, and narrow models on which it acts less are further
    from the truth. Vocabularies are compared where models know the broad language equally well when pretrained, and the
    shifted one when tuned without smoothing.
    """
    ended = table.loc[(table["epoch"] == table["epoch"].max()) & (table["reading"] == "as_trained")]
    shifted, train = (shares_of_fall(ended.loc[ended["distribution"] == name]) for name in ("shifted", "train"))
    for name, falls in (("fall", shifted), ("fall_on_train", train)):
        _beside_predictions(main_grid(falls), name, found)
    live = main_grid(shifted)
    for name, rows in (("fall_share", live), ("fall_share_on_train", main_grid(train))):
        by_size(rows, "share", name, "share", found)
    by_size(main_grid(train), "activity", "activity", "index", found)
    steps = over_widths(live, "share", "fall_share_step", "share", grid, found)
    mean_over_v(live, "share", "fall_share_step", "share", grid, found)
    further = _further(live, grid, found)
    for name, rows in zip(_GATES, (_pretrained(table), shifted), strict=True):
        _gates(rows, name, grid, found)
    over = _over_vocabulary(shifted, "share", "fall_share", grid, _GATES, found)
    _early(table, grid, found)
    indices, wide = found.at("activity"), found.at("fall_share", D=grid.widths[-1])
    explained = [step.high <= _SHARE or worse.low > 0 for step, worse in zip(steps, further, strict=True)]
    return word(
        supported=all(step.low > _SHARE for step in steps) and all(step.high < -_SHARE for step in over),
        refuted=all(within(step, _SHARE) for step in over)
        and all(explained)
        and all(share.low > _SHARE for share in wide)
        and not any(index.high > 1 for index in indices),
        known=all_known([*steps, *further]) and all_known(indices) and _reaches(over, grid),
    )


def _early(table: pd.DataFrame, grid: Grid, found: Findings) -> None:
    """The same steps over V where tuning has just begun, which decide nothing."""
    epochs = sorted(set(table.loc[table["epoch"] > 0, "epoch"]))
    if len(epochs) > 1:
        begun = table.loc[(table["epoch"] == epochs[0]) & (table["distribution"] == "shifted")]
        begun = shares_of_fall(begun.loc[begun["reading"] == "as_trained"])
        for name, value, unit in (("fall_share", "share", "share"), ("tuned_divergence", "divergence", "nats")):
            for symbols, v, step in _steps_over_v(begun, value, grid):
                found.add(f"{name}_over_v_at_epoch_{epochs[0]}", step, unit, V=v, symbols=symbols)


def shares_of_fall(rows: pd.DataFrame) -> pd.DataFrame:
    """Plain rows with the fall that b = .1 brought, and its share of b (confidence - 1/V)."""
    alike = [name for name in ALIKE if name in rows]
    falls = difference(rows, "confidence", column="method", first="b=0", second="b=0.1", on=alike)
    both = rows.loc[rows["method"] == "b=0"].merge(falls.rename(columns={"difference": "fall"}), on=alike)
    return both.assign(share=both["fall"] / (_B * (both["confidence"] - 1 / both["vocab_size"])))


def _beside_predictions(falls: pd.DataFrame, name: str, found: Findings) -> None:
    """The fall by size, and what was predicted of it from the plain model."""
    by_size(falls, "fall", name, "probability", found)
    for kind in ("scale", "gain", "frozen"):
        column = f"{kind}_fall_{_B:g}"
        if column in falls:
            by_size(falls.dropna(subset=column), column, f"{name}_{kind}_predicted", "probability", found)


def by_size(rows: pd.DataFrame, value: str, name: str, unit: str, found: Findings) -> None:
    """The mean of ``value`` at each (V, D)."""
    for (v, d), cell in rows.groupby(SIZES):  # pyright: ignore[reportGeneralTypeIssues]
        found.add(name, mean_effect(cell, value, cell=SIZES), unit, V=v, D=d)


def _pretrained(table: pd.DataFrame) -> pd.DataFrame:
    """Models before tuning, on their own language."""
    return table.loc[(table["epoch"] == 0) & (table["distribution"] == "broad")]


def over_widths(
    rows: pd.DataFrame, value: str, name: str, unit: str, grid: Grid, found: Findings
) -> list[Finding]:  # fmt: skip
    """``value`` at the largest D of the grid minus at the smallest, at each V of it."""
    narrow, wide, made = grid.widths[0], grid.widths[-1], []
    for v in grid.vocabularies:
        step = step_between(rows.loc[rows["vocab_size"] == v], value, "hidden_size", wide, narrow, ["vocab_size"])
        made.append(found.add(name, step, unit, V=v))
    return made


def mean_over_v(rows: pd.DataFrame, value: str, name: str, unit: str, grid: Grid, found: Findings) -> None:
    """The same step as one number, the mean over V; it decides nothing, and was not registered."""
    rows = rows.loc[rows["vocab_size"].isin(grid.vocabularies)]
    found.add(name, step_between(rows, value, "hidden_size", grid.widths[-1], grid.widths[0], ["vocab_size"]), unit)


def _further(rows: pd.DataFrame, grid: Grid, found: Findings) -> list[Finding]:
    """By how much the smallest D is further from the truth than the largest, at each V of the grid."""
    turned = rows.assign(nearness=-rows["divergence"])
    return over_widths(turned, "nearness", "divergence_step", "nats", grid, found)


def _gates(rows: pd.DataFrame, name: str, grid: Grid, found: Findings) -> None:
    """Divergence of models of the largest D minus that at the least V, by V and how V grew."""
    for symbols, v, step in _steps_over_v(rows, "divergence", grid):
        found.add(name, step, "nats", V=v, symbols=symbols)


def _over_vocabulary(
    table: pd.DataFrame, value: str, name: str, grid: Grid, gates: Sequence[str], found: Findings
) -> list[Finding]:
    """Steps of ``value`` at the largest D from the least V to each other one; those that may be compared.

    Live symbols where every gate is within ``COMPARABLE``, and dead tokens likewise.
    """
    comparable = []
    for symbols, v, step in _steps_over_v(table, value, grid):
        made = found.add(f"{name}_over_v", step, "share", V=v, symbols=symbols)
        if made.known and _passes(found, gates, V=v, symbols=symbols):
            comparable.append(made)
    return comparable


def _steps_over_v(table: pd.DataFrame, value: str, grid: Grid) -> Iterator[tuple[str, int, Effect]]:
    """How V grew, V, and ``value`` there minus that at the least V, at the largest D of the grid."""
    least, *others = grid.vocabularies
    for symbols, rows in grown(table.loc[table["hidden_size"] == grid.widths[-1]], least):
        for v in others:
            yield symbols, v, step_between(rows, value, "vocab_size", v, least, ["hidden_size"])


def comparable_vocabularies(table: pd.DataFrame, grid: Grid) -> set[tuple[str, int]]:
    """How V grew, and V, where falls may be compared with those at the least V: by the gates of K4."""
    found = Findings("K4")
    ended = (table["epoch"] == table["epoch"].max()) & (table["reading"] == "as_trained") & (table["method"] == "b=0")
    for name, rows in zip(
        _GATES, (_pretrained(table), table.loc[ended & (table["distribution"] == "shifted")]), strict=True
    ):
        _gates(rows, name, grid, found)
    return {(f.cell["symbols"], f.cell["V"]) for f in found.at(_GATES[0]) if _passes(found, _GATES, **f.cell)}


def _passes(found: Findings, gates: Sequence[str], **cell: Any) -> bool:
    return all(abs(found(gate, **cell).mean) <= COMPARABLE for gate in gates)


def _reaches(over: Sequence[Finding], grid: Grid) -> bool:
    """Whether a step to the largest V of the grid may be compared."""
    return any(step.cell["V"] == grid.vocabularies[-1] for step in over)


def grown(table: pd.DataFrame, least: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Models of each way in which V grows, from the one vocabulary that both have; dead tokens first, if there are."""
    live = main_grid(table)
    dead = main_grid(table.assign(symbols=table["symbols"].replace({"live": "dead", "dead": "live"})))
    if not dead.empty:
        yield "dead", pd.concat([live.loc[live["vocab_size"] == least], dead])
    yield "live", live


def step_between(
    rows: pd.DataFrame, value: str, column: str, first: object, second: object, cell: Sequence[str]
) -> Effect:
    """``value`` where ``column`` is ``first`` minus where it is ``second``, paired by seed."""
    pairs = difference(rows, value, column=column, first=first, second=second, on=[*cell, *SEEDS])
    return mean_effect(pairs, "difference", cell=cell)


def within(step: Finding, bound: float) -> bool:
    """Whether the interval lies within the bound to each side of 0."""
    return -bound <= step.low and step.high <= bound


def all_known(findings: Sequence[Finding]) -> bool:
    """Whether there is a finding, and each has an interval."""
    return bool(findings) and all(made.known for made in findings)
