"""Claims K3 and K4 on transformers trained from scratch (S11), where D and V vary with everything else fixed.

Vocabularies are compared where the models know the language equally well: the divergence from the truth at the largest
D is within ``COMPARABLE`` of that at the least V. Else rare symbols were seen too seldom, and tokens that never occur
carry the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from .effects import SEEDS, difference
from .findings import SMALL, Finding, Findings, word
from .runs import main_grid
from .statistics import Effect, mean_effect

__all__ = ["COMPARABLE", "capped", "little_effect", "shares_of_fall"]

COMPARABLE = 0.02  # nats
_SHARE = 0.2  # difference of the fall over b (confidence - 1/V) that counts
_B = 0.1
_SIZES = ["vocab_size", "hidden_size"]
_ALIKE = [*_SIZES, "symbols", "tied", "distinct", "pretraining_smoothing", *SEEDS]


def capped(table: pd.DataFrame, found: Findings) -> str:
    """K3: whether confidence over the truth's own is less at small D though the model fits, and at large V.

    Of pretrained models, on the language of pretraining. A step in D is a cap if the narrow model is less confident
    and not further from the truth; if it is further, it underfits.
    """
    start = table.loc[(table["epoch"] == 0) & (table["distribution"] == "broad")]
    start = start.assign(share=start["confidence"] / start["truth_confidence"])
    live = main_grid(start)
    for name, unit in (("divergence", "nats"), ("share", "share"), ("confidence", "probability")):
        _by_size(live, name, name, unit, found)
    for v, rows in live.groupby("vocab_size"):
        found.add("share_step", _over_width(rows, "share"), "share", V=v)
        found.add("divergence_step", _negative(_over_width(rows, "divergence")), "nats", V=v)
    steps, further = found.at("share_step"), found.at("divergence_step")
    over = _over_vocabulary(start, "share", "share", found)
    caps = [step.low > SMALL and worse.high <= COMPARABLE for step, worse in zip(steps, further, strict=True)]
    none = [step.high <= SMALL or worse.low > 0 for step, worse in zip(steps, further, strict=True)]
    return word(
        supported=all(caps) and all(step.high < -SMALL for step in over),
        refuted=all(none) and all(_within(step, SMALL) for step in over),
        known=_known([*steps, *further]) and bool(over),
    )


def little_effect(table: pd.DataFrame, found: Findings) -> str:
    """K4: whether the fall in confidence over b (confidence - 1/V) is less at small D and at large V, and A above 1."""
    ended = table.loc[(table["epoch"] == table["epoch"].max()) & (table["reading"] == "as_trained")]
    shifted, train = (shares_of_fall(ended.loc[ended["distribution"] == name]) for name in ("shifted", "train"))
    for name, falls in (("fall", shifted), ("fall_on_train", train)):
        _beside_predictions(main_grid(falls), name, found)
    live = main_grid(shifted)
    _by_size(live, "share", "fall_share", "share", found)
    _by_size(main_grid(train), "activity", "activity", "index", found)
    for v, rows in live.groupby("vocab_size"):
        found.add("fall_share_step", _over_width(rows, "share"), "share", V=v)
    _gates(table.loc[(table["epoch"] == 0) & (table["distribution"] == "broad")], found)
    over = _over_vocabulary(shifted, "share", "fall_share", found)
    steps, indices = found.at("fall_share_step"), found.at("activity")
    return word(
        supported=all(step.low > _SHARE for step in steps) and all(step.high < -_SHARE for step in over),
        refuted=all(_within(step, _SHARE) for step in over) and not any(index.high > 1 for index in indices),
        known=_known(steps) and _known(indices) and bool(over),
    )


def shares_of_fall(rows: pd.DataFrame) -> pd.DataFrame:
    """Plain rows with the fall that b = .1 brought, and its share of b (confidence - 1/V)."""
    falls = difference(rows, "confidence", column="method", first="b=0", second="b=0.1", on=_ALIKE)
    both = rows.loc[rows["method"] == "b=0"].merge(falls.rename(columns={"difference": "fall"}), on=_ALIKE)
    return both.assign(share=both["fall"] / (_B * (both["confidence"] - 1 / both["vocab_size"])))


def _beside_predictions(falls: pd.DataFrame, name: str, found: Findings) -> None:
    """The fall by size, and what was predicted of it from the plain model."""
    _by_size(falls, "fall", name, "probability", found)
    for kind in ("scale", "gain", "frozen"):
        column = f"{kind}_fall_{_B:g}"
        if column in falls:
            _by_size(falls.dropna(subset=column), column, f"{name}_{kind}_predicted", "probability", found)


def _by_size(rows: pd.DataFrame, value: str, name: str, unit: str, found: Findings) -> None:
    for (v, d), cell in rows.groupby(_SIZES):  # pyright: ignore[reportGeneralTypeIssues]
        found.add(name, mean_effect(cell, value, cell=_SIZES), unit, V=v, D=d)


def _over_width(rows: pd.DataFrame, value: str) -> Effect:
    """At the largest D minus at the smallest."""
    widths = rows["hidden_size"]
    return _between(rows, value, "hidden_size", widths.max(), widths.min(), ["vocab_size"])


def _gates(start: pd.DataFrame, found: Findings) -> None:
    """Divergence of pretrained models of the largest D minus that at the least V, by V and how V grew."""
    widest = start.loc[start["hidden_size"] == start["hidden_size"].max()]
    for symbols, rows in _grown(widest):
        for v in sorted(set(rows["vocab_size"]))[1:]:
            step = _between(rows, "divergence", "vocab_size", v, min(rows["vocab_size"]), ["hidden_size"])
            found.add("divergence_over_v", step, "nats", V=v, symbols=symbols)


def _over_vocabulary(table: pd.DataFrame, value: str, name: str, found: Findings) -> list[Finding]:
    """Steps of ``value`` at the largest D from the least V to each other one; those that may be compared.

    Live symbols where the divergence from the truth is the same within ``COMPARABLE``, and dead tokens likewise.
    """
    if not found.has("divergence_over_v"):
        _gates(table, found)
    widest = table.loc[table["hidden_size"] == table["hidden_size"].max()]
    steps = []
    for symbols, rows in _grown(widest):
        for v in sorted(set(rows["vocab_size"]))[1:]:
            step = _between(rows, value, "vocab_size", v, min(rows["vocab_size"]), ["hidden_size"])
            made = found.add(f"{name}_over_v", step, "share", V=v, symbols=symbols)
            if made.known and abs(found("divergence_over_v", V=v, symbols=symbols).mean) <= COMPARABLE:
                steps.append(made)
    return steps


def _grown(table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Models of each way in which V grows, from the one vocabulary that both have."""
    live = main_grid(table)
    yield "live", live
    dead = main_grid(table.assign(symbols=table["symbols"].replace({"live": "dead", "dead": "live"})))
    if not dead.empty:
        yield "dead", pd.concat([live.loc[live["vocab_size"] == live["vocab_size"].min()], dead])


def _between(rows: pd.DataFrame, value: str, column: str, first: object, second: object, cell: Sequence[str]) -> Effect:
    """``value`` where ``column`` is ``first`` minus where it is ``second``, paired by seed."""
    pairs = difference(rows, value, column=column, first=first, second=second, on=[*cell, *SEEDS])
    return mean_effect(pairs, "difference", cell=cell)


def _negative(effect: Effect) -> Effect:
    return Effect(-effect.mean, -effect.high, -effect.low, effect.seeds, effect.cells)


def _within(step: Finding, bound: float) -> bool:
    return -bound <= step.low and step.high <= bound


def _known(findings: Sequence[Finding]) -> bool:
    return bool(findings) and all(made.known for made in findings)
