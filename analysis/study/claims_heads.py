"""Claims K3 to K6 on trained heads: what caps confidence, when smoothing acts, what temperature and softcap do."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..caps import simplex_cap
from .effects import CELL, paired_effects
from .judging import MissingTableError, Tables, Verdict, difference, number, word
from .statistics import Effect, explained_effect, mean_effect

__all__ = ["capacity", "capping", "small_hidden_size", "temperature"]

_ROUNDING = 1e-5  # of two numbers of six digits
_FEWEST = 20  # cells that a share of explained variance is computed of
_SMALL = 0.01  # differences of confidence or ECE below this are called none
_ARM = ["teacher", "vocab_size", "hidden_size", "norm", "norm_coefficient", "weight_decay", "features", "optimiser"]
_SEEDS = ["data_seed", "model_seed"]


def capacity(tables: Tables) -> Verdict:
    """K3: hidden size and vocabulary cap confidence."""
    ceilings, heads = tables("S1"), tables("S3")
    searched = ceilings.loc[ceilings["attained_gap"].notna()]
    proven = np.minimum(searched["simplex_gap"], searched["rank_gap"])
    over = int((searched["attained_gap"] > proven * (1 + _ROUNDING)).sum())
    det = heads.loc[(heads["teacher"] == "det") & heads["softcap"].isna() & (heads["label_smoothing"] == 0)]
    m = det["norm_coefficient"] * det["hidden_size"]
    over += int((det["confidence"] > simplex_cap(m / det["temperature"], det["vocab_size"]) + 1e-6).sum())
    public = ceilings.loc[ceilings["model"].notna() & (ceilings["share"] == 1.0)]
    geometry = float((1 - public["random_code_gap"] / public["simplex_gap"]).max())
    narrow = searched.loc[(searched["hidden_size"] <= 4) & (searched["vocab_size"] == 64) & (searched["share"] == 1.0)]
    narrow_cost = float((1 - narrow["attained_gap"] / narrow["simplex_gap"]).min())
    # hidden size at one norm product, and at one norm coefficient: from D = 64 to 256
    det = det.assign(norm_budget=m.round(6))
    on = ["vocab_size", "temperature", *_SEEDS]
    wide = det.loc[det["hidden_size"].isin([64, 256])]
    at_m = difference(
        wide, "confidence", column="hidden_size", first=256, second=64, on=[*on, "norm_budget"]
    )  # fmt: skip
    at_k = difference(
        wide.loc[wide["norm_coefficient"] == 0.1],
        "confidence",
        column="hidden_size",
        first=256,
        second=64,
        on=on,
    )
    fixed_m = mean_effect(at_m, "difference", cell=["vocab_size", "norm_budget"])
    fixed_k = mean_effect(at_k.loc[at_k["temperature"] == 1], "difference", cell=["vocab_size"])
    cells = np.asarray(at_m.groupby(["vocab_size", "norm_budget"])["difference"].mean(), np.float64)
    full_rank = _spread_at_full_rank(det)
    largest = float(np.abs(cells).max(initial=0.0))
    verdict = word(supported=not over and geometry > 0.05, refuted=over > 0)  # a cap exceeded refutes the theory
    return Verdict(
        claim="K3",
        verdict=verdict,
        effect="confidence at D = 256 minus D = 64, det teacher, one norm product",
        size=fixed_m,
        condition=f"the norm product m: at fixed k = .1 (m = k D) the same step adds {fixed_k}. {over} of "
        f"{len(searched) + len(det)} attained confidences exceed a proven cap. Geometry takes at most "
        f"{number(geometry, '.1%')} of the gap at public model shapes, and at least {number(narrow_cost, '.0%')} for "
        "D <= 4, V = 64",
        counter_evidence=f"at one norm product this step in hidden size moves the confidence of a cell by up to "
        f"{largest:.3f}; among hidden sizes >= V - 1 it differs by {number(full_rank, '.1e')} at most",
        tables=("S1", "S3"),
    )


def _spread_at_full_rank(det: pd.DataFrame) -> float:
    """Largest difference of confidence between heads of full rank that differ in hidden size alone; nan without any."""
    full = det.loc[det["hidden_size"] >= det["vocab_size"] - 1]
    cells = full.groupby(["vocab_size", "norm_budget", "temperature", *_SEEDS])["confidence"]
    spread = (cells.max() - cells.min()).loc[cells.size() > 1]
    return float(spread.max())


def small_hidden_size(tables: Tables) -> Verdict:
    """K4: smoothing has little effect at small hidden size and large vocabulary."""
    pairs = paired_effects(tables("S3"))
    det, noisy = pairs.loc[pairs["teacher"] == "det"], pairs.loc[pairs["teacher"] == "lowrank"]
    inert, acting = det.loc[det["activity_index"] > 1.25], det.loc[det["activity_index"] < 0.8]
    obeyed = (inert["confidence_fall"].abs() < _SMALL).mean(), (acting["confidence_fall"] > 0).mean()
    size = mean_effect(acting, "confidence_fall", cell=[*CELL, "label_smoothing"])
    still = mean_effect(inert, "confidence_fall", cell=[*CELL, "label_smoothing"])
    shares = {kind: _explained(frame) for kind, frame in (("det", det), ("noisy", noisy))}
    explained = "; ".join(f"{kind}: {_listed(share)}" for kind, share in shares.items())
    by_size = all(
        max(share["sqrt(D)/ln V"].mean, share["D/sqrt(V)"].mean) >= share["A"].mean for share in shares.values()
    )
    above = noisy.loc[noisy["activity_index"].between(1.3, 3)]["confidence_fall"]
    try:
        (free, rule), used = _with_samples(tables("S4")), ("S3", "S4")
    except MissingTableError:  # of an unfinished study; S3 decides
        free, rule, used = "any width: not known (no S4)", "not known (no S4)", ("S3",)
    return Verdict(
        claim="K4",
        verdict=word(supported=by_size, refuted=not by_size and min(obeyed) < 0.95),
        effect="fall in confidence by smoothing where A < .8, det teacher under a norm budget",
        size=size,
        condition=f"the activity index A < 1 (norm budget), at any D, V, T, cap: where A > 1.25 the fall is {still} "
        f"(rule obeyed by {number(obeyed[0], '.0%')} and {number(obeyed[1], '.0%')} of pairs). Explained variance of "
        f"the fall, {explained}. "
        f"Whether it helps: {rule}",
        counter_evidence=f"with free norms smoothing acts at {free}; in noisy cells with A from 1.3 "
        f"to 3 confidence still falls by up to {number(above.max(), '.3f')}",
        tables=used,
    )


def _listed(shares: dict[str, Effect]) -> str:
    return ", ".join(f"{name} {share}" for name, share in shares.items())


def _explained(pairs: pd.DataFrame) -> dict[str, Effect]:
    """Share of the variance of the fall in confidence over cells of b = .1 that each predictor explains."""
    chosen = pairs.loc[(pairs["label_smoothing"] == 0.1) & pairs["converged"]]
    d, v = chosen["hidden_size"], chosen["vocab_size"]
    predictors = {
        "A": chosen["activity_index"],
        "rho": chosen["effectiveness_ratio"],
        "sqrt(D)/ln V": np.sqrt(d) / np.log(v),
        "D/sqrt(V)": d / np.sqrt(v),
    }
    cell = chosen.groupby(CELL, dropna=False).ngroup()
    if cell.nunique() < _FEWEST:
        unknown = Effect(float("nan"), float("nan"), float("nan"), 0, 0)
        return dict.fromkeys(predictors, unknown)
    return {
        name: explained_effect(chosen.assign(predictor=x, cell=cell), "predictor", "confidence_fall", cell="cell")
        for name, x in predictors.items()
    }


def _with_samples(samples: pd.DataFrame) -> tuple[str, str]:
    """The fall at the least hidden size of free norms, and how often the sign rule holds, in words."""
    free = paired_effects(samples.loc[samples["norm"] == "free"])
    least = free["hidden_size"].min()
    narrow = mean_effect(free.loc[free["hidden_size"] == least], "confidence_fall", cell=CELL)
    right, cells = _sign_rule(samples)
    return (
        f"D = {least} too: {narrow}",
        f"the gain in true ECE has the sign of CE - H on new data in {right} of {cells} cells",
    )


def _sign_rule(samples: pd.DataFrame) -> tuple[int, int]:
    """Cells of S4 in which the gain of smoothing in true ECE is positive exactly where CE > H on new data."""
    pairs = paired_effects(samples)
    plain = samples.loc[samples["label_smoothing"] == 0]
    keys = [*CELL, *_SEEDS]
    plain = plain.assign(held_out_gap=plain["true_nll"] - plain["entropy"])[[*keys, "held_out_gap"]]
    both = pairs.loc[pairs["label_smoothing"] == 0.1].merge(plain, on=keys)
    cells = both.groupby(CELL, dropna=False)[["held_out_gap", "true_ece_gain"]].mean()
    return int(((cells["held_out_gap"] > 0) == (cells["true_ece_gain"] > 0)).sum()), len(cells)


def _gains(table: pd.DataFrame) -> pd.DataFrame:
    """Gain of b = .1 in true ECE for every training and reading of S5."""
    on = [*_ARM, "temperature", "softcap", "softcap_form", "evaluation", *_SEEDS]
    return difference(table, "true_ece", column="label_smoothing", first=0.0, second=0.1, on=on)


def _above_reference(gains: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """Chosen gains minus the gain of the same arm and seed at T = 1 without a cap, read as trained."""
    base = (gains["temperature"] == 1) & gains["softcap"].isna() & (gains["evaluation"] == "as_trained")
    keys = [*_ARM, *_SEEDS]
    both = gains.loc[chosen].merge(gains.loc[base, [*keys, "difference"]], on=keys, suffixes=("", "_reference"))
    return both.assign(rise=both["difference"] - both["difference_reference"])


def _rise(gains: pd.DataFrame, chosen: pd.Series) -> Effect:
    cell = [*_ARM, "temperature", "softcap", "softcap_form", "evaluation"]
    rises = _above_reference(gains, chosen)
    return mean_effect(rises, "rise", cell=cell)


def temperature(tables: Tables) -> Verdict:
    """K5: temperature restores the effect of smoothing."""
    table = tables("S5")
    gains = _gains(table)
    trained = (gains["temperature"] == 0.25) & gains["softcap"].isna() & (gains["evaluation"] == "as_trained")
    lbfgs = (gains["optimiser"] == "lbfgs") & (gains["features"] == "free")
    budget = _rise(gains, trained & lbfgs & (gains["norm"] == "budget"))
    free = _rise(gains, trained & lbfgs & (gains["norm"] == "free") & (gains["weight_decay"] == 0))
    decay = _rise(gains, trained & lbfgs & (gains["weight_decay"] > 0))
    trunk = _rise(gains, trained & (gains["features"] == "trunk"))
    adam = _rise(gains, trained & (gains["optimiser"] == "adam"))
    after = gains.loc[(gains["evaluation"] == "T=0.25") & (gains["norm"] == "budget")]
    later = mean_effect(after, "difference", cell=_ARM)
    both = _both_against_neither(table)
    verdict = word(
        supported=budget.low > 0 and free.low > _SMALL, refuted=budget.low <= 0, known=_known(budget, free)
    )  # fmt: skip
    return Verdict(
        claim="K5",
        verdict=verdict,
        effect="gain of b = .1 in true ECE, trained at T = .25 minus trained at T = 1, norm budget",
        size=budget,
        condition=f"norms that bind while training: free norms {free}, weight decay {decay}, trunk under the budget "
        f"{trunk}, Adam {adam}. Reading T = 1 heads at T = .25 afterwards, the gain is {later}",
        counter_evidence="true ECE of plain heads at T = 1 minus smoothed ones at T = .25, by budget arm: " + both,
        tables=("S5",),
    )


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


def capping(tables: Tables) -> Verdict:
    """K6: logit capping restores the effect of smoothing."""
    table = tables("S5")
    gains = _gains(table)
    contraction = gains["softcap"].notna() & (gains["softcap_form"] == "contraction")
    budget = gains["norm"] == "budget"
    both = _rise(gains, contraction & budget & (gains["evaluation"] == "as_trained"))
    training = _rise(gains, contraction & budget & (gains["evaluation"] == "plain"))
    reading = _rise(gains, budget & gains["evaluation"].str.match(r"cap \S+ contraction"))
    gain_form = (gains["softcap_form"] == "gain") & gains["softcap"].notna() & (gains["evaluation"] == "as_trained")
    gain = _rise(gains, gain_form & budget)
    large = _rise(gains, contraction & budget & (gains["softcap"] >= 48) & (gains["evaluation"] == "as_trained"))
    unbound = gains["norm"] == "free"
    elsewhere = {}
    for name, arm in (
        ("free norms", unbound & (gains["weight_decay"] == 0)),
        ("weight decay", unbound & (gains["weight_decay"] > 0)),
    ):
        for way, evaluation in (("cap kept", "as_trained"), ("cap in training only", "plain")):
            chosen = contraction & arm & (gains["evaluation"] == evaluation)
            elsewhere[f"{name}, {way}"] = _rise(gains, chosen)
    budget_restores = max(both.low, training.low, reading.low) > _SMALL
    other_restores = [name for name, effect in elsewhere.items() if effect.low > _SMALL]
    restored = bool(other_restores) or gain.low > _SMALL
    measured = _known(both, training, reading) and (restored or _known(gain, *elsewhere.values()))
    verdict = word(supported=budget_restores, refuted=not restored, known=measured)
    listed = "; ".join(f"{name} {effect}" for name, effect in elsewhere.items())
    return Verdict(
        claim="K6",
        verdict=verdict,
        effect="gain of b = .1 in true ECE, contraction cap in training and reading minus none, norm budget",
        size=both,
        condition=f"form and norms. Budget: contraction in training only {training}, in reading only {reading}, c of "
        f"48 and more {large}, gain form {gain}. Without a budget: {listed}",
        counter_evidence="restoring arms: " + (", ".join(other_restores) or "none") + _price(table),
        tables=("S5",),
    )


def _known(*effects: Effect) -> bool:
    """Whether each of them has rows of several seeds, so that it has an interval."""
    return all(np.isfinite(effect.low) for effect in effects)


def _price(table: pd.DataFrame) -> str:
    """Error of smoothed heads trained with the cap and read without it, against plain heads without any, free norms."""
    free = table.loc[(table["norm"] == "free") & (table["weight_decay"] == 0) & (table["temperature"] == 1)]
    capped = free.loc[free["softcap"].notna() & (free["softcap_form"] == "contraction")]
    removed = capped.loc[(capped["evaluation"] == "plain") & (capped["label_smoothing"] == 0.1)]["true_ece"]
    plain = free.loc[free["softcap"].isna() & (free["evaluation"] == "as_trained") & (free["label_smoothing"] == 0)]
    if removed.empty or plain.empty:
        return ""
    alone = capped.loc[(capped["evaluation"] == "plain") & (capped["label_smoothing"] == 0)]["true_ece"]
    return (
        f"; with free norms, trained with a contraction and read without it, true ECE is {alone.mean():.3f} plain and "
        f"{removed.mean():.3f} smoothed, against {plain['true_ece'].mean():.3f} plain without any cap"
    )
