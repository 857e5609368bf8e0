"""Claims K5 and K6 on trained heads: whether temperature and logit capping restore the effect of smoothing.

Effects are gains in true calibration error, plain minus smoothed, and rises: the gain of an arm minus that of the same
arm and seed at T = 1 without a cap, read as trained.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from .judging import Tables, Verdict, difference, word
from .statistics import Effect, mean_effect

__all__ = ["capping", "temperature"]

_SMALL = 0.01  # differences of ECE below this are called none
_ARM = ["teacher", "vocab_size", "hidden_size", "norm", "norm_coefficient", "weight_decay", "features", "optimiser"]
_SEEDS = ["data_seed", "model_seed"]
_CELL = [*_ARM, "temperature", "softcap", "softcap_form", "evaluation"]
_READ = r"cap (?P<c>\S+) (?P<form>\S+)"  # names of readings with a cap
_Caps = list[tuple[str, Effect]]  # which cap, in which arm, at which V; its rise


def temperature(tables: Tables) -> Verdict:
    """K5: temperature restores the effect of smoothing."""
    table = tables("S5")
    gains = _gains(table)
    trained = (gains["temperature"] == 0.25) & gains["softcap"].isna() & (gains["evaluation"] == "as_trained")
    under_budget, unbound = gains["norm"] == "budget", (gains["norm"] == "free") & (gains["weight_decay"] == 0)
    lbfgs, on_trunk = gains["optimiser"] == "lbfgs", gains["features"] == "trunk"
    budget = _rise(gains, trained & lbfgs & ~on_trunk & under_budget)
    free = _rise(gains, trained & lbfgs & ~on_trunk & unbound)
    decay = _rise(gains, trained & lbfgs & ~on_trunk & (gains["weight_decay"] > 0))
    trunk, free_trunk = (_rise(gains, trained & on_trunk & norm) for norm in (under_budget, unbound))
    adam = _rise(gains, trained & ~lbfgs)
    seeds = gains["data_seed"].nunique()
    later = mean_effect(gains.loc[(gains["evaluation"] == "T=0.25") & under_budget], "difference", cell=_ARM)
    verdict = word(
        supported=budget.low > 0 and free.low > _SMALL, refuted=budget.high <= _SMALL, known=_known(budget, free)
    )  # fmt: skip
    return Verdict(
        claim="K5",
        verdict=verdict,
        effect="gain of b = .1 in true ECE, trained at T = .25 minus trained at T = 1, norm budget",
        size=budget,
        condition=f"norms that bind while training: free norms {free}, weight decay {decay}, Adam under the budget "
        f"{adam}, trunk under the budget {trunk} ({trunk.seeds} of {seeds} seeds converged), trunk with free norms "
        f"{free_trunk}. Reading T = 1 heads at T = .25 afterwards, the gain is {later}",
        counter_evidence=f"trained at T and read at T = 1, the gain is {_read_at_one(gains)}; true ECE of plain heads "
        f"at T = 1 minus smoothed ones at T = .25, by budget arm: {_both_against_neither(table)}",
        tables=("S5",),
    )


def capping(tables: Tables) -> Verdict:
    """K6: logit capping restores the effect of smoothing."""
    table = tables("S5")
    gains = _gains(table)
    contraction = gains["form"] == "contraction"
    kept = gains["softcap"].notna() & (gains["evaluation"] == "as_trained")
    removed = gains["softcap"].notna() & (gains["evaluation"] == "plain")
    only_read = gains["evaluation"].str.match(_READ)
    ways = {"kept": kept, "in training only": removed, "in reading only": only_read}
    unbound = gains["norm"] == "free"
    regimes = {
        "budget": gains["norm"] == "budget",
        "free norms": unbound & (gains["weight_decay"] == 0),
        "weight decay": unbound & (gains["weight_decay"] > 0),
    }
    found = {
        (regime, way): _by_cap(gains, contraction & rows & how)
        for regime, rows in regimes.items()
        for way, how in ways.items()
    }
    gain_form = {
        way: _by_cap(gains, (gains["form"] == "gain") & regimes["budget"] & ways[way])
        for way in ("kept", "in reading only")
    }
    under_budget = [caps for (regime, _), caps in found.items() if regime == "budget"]
    every = [*found.values(), *gain_form.values()]
    restored = any(effect.low > _SMALL for caps in every for _, effect in caps)
    measured = all(_measured(caps) for caps in (under_budget if restored else every))
    verdict = word(
        supported=any(all(effect.low > _SMALL for _, effect in caps) for caps in under_budget),
        refuted=all(effect.high <= _SMALL for caps in every for _, effect in caps),
        known=measured,
    )
    listed = "; ".join(f"{regime}, {way} {_range(caps)}" for (regime, way), caps in found.items())
    restoring = [f"{regime}, {way}" for (regime, way), caps in found.items() if any(e.low > _SMALL for _, e in caps)]
    return Verdict(
        claim="K6",
        verdict=verdict,
        effect="gain of b = .1 in true ECE, contraction cap in training and reading minus none, norm budget",
        size=_rise(gains, contraction & regimes["budget"] & kept),
        condition=f"form, norms and c. Contraction: {listed}. Gain form, budget: "
        + "; ".join(f"{way} {_range(caps)}" for way, caps in gain_form.items()),
        counter_evidence="a contraction restores at some c: " + ("; ".join(restoring) or "nowhere") + _price(table),
        tables=("S5",),
    )


def _gains(table: pd.DataFrame) -> pd.DataFrame:
    """Gain of b = .1 in true ECE for every training and reading of S5, and its rise; ``c`` and ``form`` of its cap."""
    gains = difference(
        table, "true_ece", column="label_smoothing", first=0.0, second=0.1, on=[*_CELL, *_SEEDS]
    )  # fmt: skip
    base = (gains["temperature"] == 1) & gains["softcap"].isna() & (gains["evaluation"] == "as_trained")
    keys = [*_ARM, *_SEEDS]
    reference = gains.loc[base, [*keys, "difference"]].rename(columns={"difference": "reference"})
    gains = gains.merge(reference, on=keys, how="left")
    read = gains["evaluation"].str.extract(_READ)
    return gains.assign(
        rise=gains["difference"] - gains["reference"],
        c=gains["softcap"].fillna(read["c"].astype(float)),
        form=read["form"].fillna(gains["softcap_form"]),
    )


def _rise(gains: pd.DataFrame, chosen: pd.Series) -> Effect:
    return mean_effect(gains.loc[chosen].dropna(subset="rise"), "rise", cell=_CELL)


def _read_at_one(gains: pd.DataFrame) -> str:
    """Gain of heads trained at T < 1 and read at T = 1, their range over arms for each T and way to limit norms."""
    chosen = gains.loc[(gains["temperature"] < 1) & gains["softcap"].isna() & (gains["evaluation"] == "plain")]
    parts = []
    for (norm, decayed, t), rows in chosen.groupby(["norm", chosen["weight_decay"] > 0, "temperature"]):  # pyright: ignore
        means = [mean_effect(arm, "difference", cell=_CELL).mean for _, arm in rows.groupby(_ARM)]
        name = "weight decay" if decayed else {"budget": "budget", "free": "free norms"}[norm]
        parts.append(f"{name} T = {t:g} {_span(means)}")
    return ", ".join(parts) or "not known (no rows)"


def _span(means: Iterable[float]) -> str:
    ends = [f"{end(means):.4f}" for end in (min, max)] if (means := list(means)) else []
    return " to ".join(dict.fromkeys(ends)) or "not known (no rows)"


def _both_against_neither(table: pd.DataFrame) -> str:
    """What temperature and smoothing together gain over neither, in true ECE, for each arm under the budget."""
    chosen = (table["evaluation"] == "as_trained") & table["softcap"].isna() & (table["norm"] == "budget")
    neither = (table["temperature"] == 1) & (table["label_smoothing"] == 0)
    both = (table["temperature"] == 0.25) & (table["label_smoothing"] == 0.1)
    rows = table.loc[chosen & (neither | both)].assign(both=both)
    gains = difference(rows, "true_ece", column="both", first=False, second=True, on=[*_ARM, *_SEEDS])
    parts = []
    by = ["teacher", "vocab_size", "features", "optimiser"]
    for (teacher, v, features, optimiser), arm in gains.groupby(by):  # pyright: ignore
        parts.append(f"{teacher} V = {v} {features} features {optimiser} {mean_effect(arm, 'difference', cell=_ARM)}")
    return ", ".join(parts)


def _by_cap(gains: pd.DataFrame, chosen: pd.Series) -> _Caps:
    """The rise for each cap in each arm, never averaged over caps: its sign changes with c."""
    rows = gains.loc[chosen].dropna(subset="rise")
    found = []
    for (c, v, teacher, features, optimiser), arm in rows.groupby(
        ["c", "vocab_size", "teacher", "features", "optimiser"]
    ):  # pyright: ignore
        control = [name for name in (teacher, features, optimiser) if name in ("sparse", "trunk", "adam")]
        found.append((" ".join([f"{c:g}", *control, f"V = {v}"]), mean_effect(arm, "rise", cell=_CELL)))
    return found


def _range(caps: _Caps) -> str:
    """The least and largest rise over caps and arms, and which of them restore the effect or turn it round."""
    beyond = (
        ("restores at c =", [name for name, effect in caps if effect.low > _SMALL]),
        ("lowers it at c =", [name for name, effect in caps if effect.high < -_SMALL]),
    )
    said = [f"{words} {_joined(names)}" for words, names in beyond if names]
    return _span(effect.mean for _, effect in caps) + (f" ({', '.join(said)})" if said else "")


def _joined(names: list[str]) -> str:
    """Caps by their vocabulary.

    Example:
        >>> _joined(["5 V = 256", "5 trunk V = 256", "5 V = 4096"])
        '5, 5 trunk at V = 256, 5 at V = 4096'
    """
    by_size: dict[str, list[str]] = {}
    for name in names:
        cap, _, v = name.partition(" V = ")
        by_size.setdefault(v, []).append(cap)
    return ", ".join(f"{', '.join(caps)} at V = {v}" for v, caps in by_size.items())


def _measured(caps: _Caps) -> bool:
    """Whether some cap has rows of several seeds."""
    return any(_known(effect) for _, effect in caps)


def _known(*effects: Effect) -> bool:
    """Whether each of them has rows of several seeds, so that it has an interval."""
    return all(np.isfinite(effect.low) for effect in effects)


def _price(table: pd.DataFrame) -> str:
    """Error of heads trained with a contraction and read without it, by c, against plain heads without any, free norms.

    The arm without controls, at the vocabulary that has most caps.
    """
    free = table.loc[(table["norm"] == "free") & (table["weight_decay"] == 0) & (table["temperature"] == 1)]
    free = free.loc[(free["features"] == "free") & (free["optimiser"] == "lbfgs") & (free["teacher"] == "lowrank")]
    removed = free.loc[
        free["softcap"].notna() & (free["softcap_form"] == "contraction") & (free["evaluation"] == "plain")
    ]
    if removed.empty:
        return ""
    v = removed.groupby("vocab_size")["softcap"].nunique().idxmax()
    errors = (
        removed.loc[removed["vocab_size"] == v].groupby(["softcap", "label_smoothing"])["true_ece"].mean().unstack()
    )
    uncapped = free.loc[free["softcap"].isna() & (free["evaluation"] == "as_trained") & (free["vocab_size"] == v)]
    plain, smoothed = (uncapped.loc[uncapped["label_smoothing"] == b, "true_ece"].mean() for b in (0, 0.1))
    listed = ", ".join(f"c = {c:g} {pair[0.0]:.3f} and {pair[0.1]:.3f}" for c, pair in errors.iterrows())
    return (
        f"; true ECE of plain and smoothed heads of free norms (V = {v}) trained with a contraction and read without "
        f"it: {listed}; without any cap {plain:.3f} and {smoothed:.3f}"
    )
