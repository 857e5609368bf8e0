"""Claims K5 and K6: whether temperature and logit capping restore the effect of smoothing, in S5 and on a real model.

Effects are gains of b = .1 in calibration error, falls in confidence that it brings, and rises: either of an arm minus
that of the same arm and seed at T = 1 without a cap, read as trained. A temperature or a cap restores where smoothing
takes more confidence than without *and* gains (:func:`restores`): where it takes less, a harm disappears and nothing is
restored. The simulation asks in which way norms are limited; of the real model it is asked whether smoothing acted
without, as then there is nothing to restore.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from .effects import HEAD, SEEDS, difference, named, without_penalty
from .findings import SMALL, Finding, Findings, word
from .runs import Runs
from .sources import Tables
from .statistics import mean_effect

__all__ = ["NORMS", "WAYS", "capping", "restored", "restores", "temperature"]

NORMS = ("budget", "free norms", "weight decay")
WAYS = ("kept", "in training only", "in reading only")
_COLD = 0.25  # the training temperature that K5 is asked at
_CELL = [*HEAD, "temperature", "softcap", "softcap_form", "evaluation"]
_CONTROLS = ("sparse", "trunk", "adam")
# Column of the effects -> the finding that it is of an arm, and its unit.
_EFFECTS = {"fall_rise": ("fall_rise", "probability"), "difference": ("gain", "ECE"), "rise": ("rise", "ECE")}


def temperature(tables: Tables, found: Findings) -> str:
    """K5: whether training at T = .25 raises the fall, with a gain, under a budget and with free norms."""
    table = without_penalty(tables("S5"))
    gains = _gains(table)
    as_trained = (gains["temperature"] == _COLD) & gains["softcap"].isna() & (gains["evaluation"] == "as_trained")
    norms, lbfgs, trunk = gains["norms"], gains["optimiser"] == "lbfgs", gains["features"] == "trunk"
    arms = {name: lbfgs & ~trunk & (norms == name) for name in NORMS} | {
        "Adam under the budget": ~lbfgs,
        "trunk under the budget": trunk & (norms == "budget"),
        "trunk with free norms": trunk & (norms == "free norms"),
    }
    for name, rows in arms.items():
        arm = gains.loc[as_trained & rows].dropna(subset="rise")
        for value, (finding, unit) in _EFFECTS.items():
            found.add(finding, mean_effect(arm, value, cell=_CELL), unit, arm=name)
    found.add("seeds_run", gains["data_seed"].nunique(), "count")
    later = gains.loc[(gains["evaluation"] == f"T={_COLD:g}") & (norms == "budget")]
    found.add("gain_read_cold", mean_effect(later, "difference", cell=HEAD), "ECE")
    _read_at_one(gains, found)
    _both_against_neither(table, found)
    budget, free = (found("fall_rise", arm=name) for name in ("budget", "free norms"))
    return word(
        supported=restores(found, budget) and restores(found, free),
        refuted=_restores_not(found, budget),
        known=budget.known and free.known,
    )


def _gains(table: pd.DataFrame) -> pd.DataFrame:
    """Gain of b = .1 in true ECE and fall in confidence for every training and reading of S5, and their rises."""
    on = [*_CELL, "eval_softcap", "eval_form", *SEEDS]
    gains, falls = (
        difference(table, value, column="label_smoothing", first=0.0, second=0.1, on=on)
        for value in ("true_ece", "confidence")
    )
    gains = gains.merge(falls.rename(columns={"difference": "fall"}), on=on)
    base = (gains["temperature"] == 1) & gains["softcap"].isna() & (gains["evaluation"] == "as_trained")
    only_read = gains["softcap"].isna() & gains["eval_softcap"].notna()
    norms = gains["norm"].map({"budget": "budget", "free": "free norms"})
    norms = norms.mask(gains["weight_decay"] > 0, "weight decay")
    way = pd.Series("", index=gains.index).mask(only_read, "in reading only")
    for evaluation, name in (("as_trained", "kept"), ("plain", "in training only")):
        way = way.mask(gains["softcap"].notna() & (gains["evaluation"] == evaluation), name)
    return _with_rise(gains, gains.loc[base], [*HEAD, *SEEDS]).assign(
        norms=norms, way=way, c=gains["softcap"].fillna(gains["eval_softcap"]),
        form=gains["softcap_form"].mask(only_read, gains["eval_form"]),
    )  # fmt: skip


def _with_rise(gains: pd.DataFrame, base: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Gains and falls with their rise above the base of ``on``; nan where there is none."""
    rises = {"difference": "rise", "fall": "fall_rise"}
    both = gains.merge(base[[*on, *rises]], on=list(on), how="left", suffixes=("", "_base"))
    return both.assign(**{rise: both[name] - both[f"{name}_base"] for name, rise in rises.items()})


def _read_at_one(gains: pd.DataFrame, found: Findings) -> None:
    """Gain of heads trained at T < 1 and read at T = 1, by arm."""
    chosen = gains.loc[(gains["temperature"] < 1) & gains["softcap"].isna() & (gains["evaluation"] == "plain")]
    for (norms, t), rows in chosen.groupby(["norms", "temperature"]):  # pyright: ignore[reportGeneralTypeIssues]
        for _, arm in rows.groupby(HEAD):
            effect = mean_effect(arm, "difference", cell=_CELL)
            found.add("gain_read_at_one", effect, "ECE", **(named(arm) | {"norm": norms, "T": t}))


def _both_against_neither(table: pd.DataFrame, found: Findings) -> None:
    """What temperature and smoothing together gain over neither, in true ECE, for each arm under the budget."""
    chosen = (table["evaluation"] == "as_trained") & table["softcap"].isna() & (table["norm"] == "budget")
    neither = (table["temperature"] == 1) & (table["label_smoothing"] == 0)
    both = (table["temperature"] == _COLD) & (table["label_smoothing"] == 0.1)
    rows = table.loc[chosen & (neither | both)].assign(both=both)
    gains = difference(rows, "true_ece", column="both", first=False, second=True, on=[*HEAD, *SEEDS])
    for _, arm in gains.groupby(["teacher", "vocab_size", "features", "optimiser"]):
        found.add("gain_of_both", mean_effect(arm, "difference", cell=HEAD), "ECE", **named(arm))


def capping(tables: Tables, found: Findings) -> str:
    """K6: whether some way to cap raises the fall, with a gain, asked of every cap by itself: signs change with c."""
    table = without_penalty(tables("S5"))
    gains = _gains(table)
    kept = (gains["form"] == "contraction") & (gains["norms"] == "budget") & (gains["way"] == "kept")
    found.add(
        "mean_fall_rise", mean_effect(gains.loc[kept].dropna(subset="rise"), "fall_rise", cell=_CELL), "probability"
    )
    for form, norms, ways in (("contraction", NORMS, WAYS), ("gain", ("budget",), ("kept", "in reading only"))):
        for setting in ({"form": form, "norms": norm, "way": way} for norm in norms for way in ways):
            rows = gains.loc[(gains[list(setting)] == list(setting.values())).all(axis=1)].dropna(subset="rise")
            for cell, arm in rows.groupby(["c", "vocab_size", "teacher", "features", "optimiser"]):
                c, v, *what = cell  # pyright: ignore[reportGeneralTypeIssues]
                control = " ".join(name for name in what if name in _CONTROLS)
                at = {"c": c, "V": v} | ({"control": control} if control else {})
                for value, (finding, unit) in _EFFECTS.items():
                    found.add(finding, mean_effect(arm, value, cell=_CELL), unit, **setting, **at)
    _price(table, found)
    under_budget = [found.at("fall_rise", form="contraction", norms="budget", way=way) for way in WAYS]
    others = [found.at("fall_rise", form="contraction", norms=n, way=way) for n in NORMS[1:] for way in WAYS]
    gain_form = [found.at("fall_rise", form="gain", way=way) for way in ("kept", "in reading only")]
    every = [*under_budget, *others, *gain_form]
    restored_anywhere = any(restores(found, rise) for rises in every for rise in rises)
    return word(
        supported=any(all(restores(found, rise) for rise in rises) for rises in under_budget),
        refuted=all(_restores_not(found, rise) for rises in every for rise in rises),
        known=all(any(rise.known for rise in rises) for rises in (under_budget if restored_anywhere else every)),
    )


def restores(found: Findings, rise: Finding) -> bool:
    """Whether smoothing lowers the confidence by more than counts as none beyond without, and gains, at its cell."""
    return rise.low > SMALL and found("gain", **rise.cell).low > 0


def _restores_not(found: Findings, rise: Finding) -> bool:
    """Whether the intervals leave no room for it."""
    return rise.high <= SMALL or found("gain", **rise.cell).high <= 0


def _price(table: pd.DataFrame, found: Findings) -> None:
    """Error of heads of free norms trained with a contraction and read without it, by c, and of those without any cap.

    Of the arm without controls, at the vocabulary that has most caps.
    """
    free = table.loc[(table["norm"] == "free") & (table["weight_decay"] == 0) & (table["temperature"] == 1)]
    free = free.loc[(free["features"] == "free") & (free["optimiser"] == "lbfgs") & (free["teacher"] == "lowrank")]
    contraction = free["softcap"].notna() & (free["softcap_form"] == "contraction")
    removed = free.loc[contraction & (free["evaluation"] == "plain")]
    if removed.empty:
        return
    v = removed.groupby("vocab_size")["softcap"].nunique().idxmax()
    uncapped = free.loc[free["softcap"].isna() & (free["evaluation"] == "as_trained") & (free["vocab_size"] == v)]
    for b in (0.0, 0.1):
        found.add("error", uncapped.loc[uncapped["label_smoothing"] == b, "true_ece"].mean(), "ECE", V=v, b=b)
    for (c, b), rows in removed.loc[removed["vocab_size"] == v].groupby(["softcap", "label_smoothing"]):  # pyright: ignore
        found.add("error_uncapped_after", rows["true_ece"].mean(), "ECE", V=v, c=c, b=b)


def restored(column: str, values: Sequence[float]) -> Callable[[Runs, Findings], str]:
    """The rule of K5 or K6 for a real model: whether training with another value of ``column`` restores.

    Where smoothing acts without, there is nothing to restore: then a larger fall does not support the claim, nor does
    a smaller one refute it, and the verdict is that it depends on this.

    Args:
        column: ``"temperature"`` or ``"softcap"``.
        values: The values trained with, the one that counts first.
    """

    def rule(runs: Runs, found: Findings) -> str:
        asked, on = runs.at_end(runs.asked), [*runs.cell, *runs.seeds]
        suffix = {"temperature": "T", "softcap": "cap"}[column]
        arms = {f"{value:g}": f" {suffix}={value:g}" for value in values}
        asked, plain = (_where_all_are(rows, arms, on) for rows in (asked, runs.at_end(runs.train)))

        def effects(name: str) -> pd.DataFrame:
            gains, falls = (
                difference(asked, value, column="method", first=f"b=0{name}", second=f"b=0.1{name}", on=on)
                for value in ("error", "confidence")
            )
            return gains.merge(falls.rename(columns={"difference": "fall"}), on=on)

        base = effects("")
        for value, name in arms.items():
            both = _with_rise(effects(name), base, on)
            for effect, (finding, unit) in _EFFECTS.items():
                found.add(finding, runs.mean(both, effect), unit, **{suffix: value})
        found.add("gain", runs.mean(base), "ECE")
        found.add("activity", runs.mean(plain.loc[plain["method"] == "b=0"], "activity"), "index")
        _mean_errors(asked, {**arms, "none": ""}, suffix, found)
        rise, inert = found("fall_rise", **{suffix: next(iter(arms))}), found("activity").low > 1
        return word(supported=restores(found, rise) and inert, refuted=_restores_not(found, rise) and inert)

    return rule


def _where_all_are(rows: pd.DataFrame, arms: dict[str, str], on: list[str]) -> pd.DataFrame:
    """Rows of the cells and seeds where every arm was tuned; all rows where there is no such cell."""
    asked = {f"b=0{name}" for name in arms.values()}
    there = rows.groupby(on)["method"].transform(lambda had: asked <= set(had)).to_numpy(bool)
    return rows.loc[there] if there.any() else rows


def _mean_errors(asked: pd.DataFrame, arms: dict[str, str], suffix: str, found: Findings) -> None:
    """Mean error over cells and seeds of each arm, at the b that all arms have."""
    plain = "b=" + asked["label_smoothing"].map("{:g}".format)
    of = {value: asked.loc[asked["method"] == plain + name] for value, name in arms.items()}
    common = sorted(set.intersection(*(set(rows["label_smoothing"]) for rows in of.values())))
    for value, rows in of.items():
        for b in common:
            found.add("error", rows.loc[rows["label_smoothing"] == b, "error"].mean(), "ECE", **{suffix: value, "b": b})
