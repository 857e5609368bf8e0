"""Claims K3 and K4 on trained heads: what caps confidence, and when smoothing acts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pandas as pd

from ..caps import simplex_cap
from .effects import CELL, paired_effects
from .judging import MissingTableError, Tables, Verdict, difference, number, word
from .statistics import Effect, explained_effect, mean_effect

__all__ = ["capacity", "small_hidden_size"]

_ROUNDING = 1e-5  # of two numbers of six digits
_FEWEST = 20  # cells that a share of explained variance is computed of
_TRANSITION = (0.05, 6.0)  # of A
_MAIN_SIZE = 256  # V of most det cells
_SMALL = 0.01  # differences of confidence or ECE below this are called none
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
    narrow = searched.loc[(searched["hidden_size"] <= 4) & (searched["share"] == 1.0)]
    least = (1 - narrow["attained_gap"] / narrow["simplex_gap"]).groupby(narrow["vocab_size"]).min()
    narrow_cost = ", ".join(f"{cost:.0%} at V = {v}" for v, cost in least.items()) or "not known"
    # hidden size at one norm product, and at one norm coefficient
    det = det.assign(norm_budget=m.round(6))
    on = ["vocab_size", "temperature", *_SEEDS]
    wide, narrow_step = (_at_norm_product(det, first, second) for first, second in ((256, 64), (64, 16)))
    at_k = difference(
        det.loc[(det["norm_coefficient"] == 0.1) & (det["temperature"] == 1)],
        "confidence",
        column="hidden_size",
        first=256,
        second=64,
        on=on,
    )
    fixed_m = mean_effect(wide, "difference", cell=["vocab_size", "norm_budget"])
    fixed_k = mean_effect(at_k, "difference", cell=["vocab_size"])
    steps = _below_full_rank(wide, 64), _below_full_rank(narrow_step, 16)
    moves = [effect.low > _SMALL for step in steps for _, effect in step]
    still = [effect.high <= _SMALL for step in steps for _, effect in step]
    by_vocabulary = _by_vocabulary(heads)
    falls = [b.high < a.low for a, b in pairwise(by_vocabulary.values())]
    verdict = word(
        supported=not over and geometry > 0.05 and all([*moves, *falls]),
        refuted=over > 0 or all([*still, *(not fall for fall in falls)]),  # a cap exceeded refutes the theory
        known=bool(moves and falls),
    )
    return Verdict(
        claim="K3",
        verdict=verdict,
        effect="confidence at D = 256 minus D = 64, det teacher, one norm product",
        size=fixed_m,
        condition=f"the norm product m: at fixed k = .1 (m = k D) the same step adds {fixed_k}; at one m it adds up to "
        f"{_largest(steps[0])}, the step from D = 16 to 64 up to {_largest(steps[1])} (V = "
        f"{_listed_sizes([*wide['vocab_size'], *narrow_step['vocab_size']])}). Vocabulary: lowrank, D = 64, k = .1, "
        f"T = 1, confidence {', '.join(f'{e.mean:.3f} at V = {v}' for v, e in by_vocabulary.items())}. "
        f"{over} of {len(searched) + len(det)} attained confidences exceed a proven cap. Geometry takes at most "
        f"{number(geometry, '.1%')} of the gap at public model shapes, and for D <= 4 at least {narrow_cost}",
        counter_evidence=f"at one norm product hidden size moves the confidence by more than .01 in {sum(moves)} of "
        f"{len(moves)} steps that begin below full rank; among hidden sizes >= V - 1 it differs by "
        f"{number(_spread_at_full_rank(det), '.1e')} at most",
        tables=("S1", "S3"),
    )


def _at_norm_product(det: pd.DataFrame, first: int, second: int) -> pd.DataFrame:
    on = ["vocab_size", "temperature", "norm_budget", *_SEEDS]
    return difference(det, "confidence", column="hidden_size", first=first, second=second, on=on)


def _below_full_rank(steps: pd.DataFrame, start: int) -> list[tuple[float, Effect]]:
    """Every step in hidden size from ``start``, where that is below V - 1: its m / T and its effect."""
    cell = ["vocab_size", "temperature", "norm_budget"]
    return [
        (m / temperature, mean_effect(group, "difference", cell=cell))
        for (_, temperature, m), group in steps.loc[steps["vocab_size"] > start + 1].groupby(cell)  # pyright: ignore
    ]


def _largest(steps: list[tuple[float, Effect]]) -> str:
    if not steps:
        return "not known (no rows)"
    at, effect = max(steps, key=lambda step: abs(step[1].mean))
    return f"{effect.mean:.3f} at m / T = {at:g}"


def _listed_sizes(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(sizes)))) or "none"


def _by_vocabulary(heads: pd.DataFrame) -> dict[int, Effect]:
    """Confidence of plain low-rank heads that differ in V alone, of those V that have several seeds."""
    alike = heads.loc[
        (heads["teacher"] == "lowrank") & (heads["hidden_size"] == 64) & (heads["norm_coefficient"] == 0.1)
        & (heads["temperature"] == 1) & heads["softcap"].isna() & (heads["label_smoothing"] == 0)
    ]  # fmt: skip
    found = {
        int(v): mean_effect(rows, "confidence", cell=["vocab_size"])  # pyright: ignore
        for v, rows in alike.groupby("vocab_size")
    }
    return {v: effect for v, effect in found.items() if effect.seeds > 1}


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
    both = {"det": det, "noisy": noisy}
    shares = {kind: _explained(frame) for kind, frame in both.items()}
    explained = "; ".join(f"{kind}: {_listed(share)}" for kind, share in shares.items())
    middle = "; ".join(f"{kind}: {_listed(_explained(frame, turning=True))}" for kind, frame in both.items())
    elsewhere = int((det["vocab_size"] != _MAIN_SIZE).loc[inert.index.union(acting.index)].sum())
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
        effect=f"fall in confidence by smoothing where A < .8 (A > 1.25: {_plain(still.mean)}), det teacher under "
        "a norm budget",
        size=size,
        condition=f"the activity index A < 1 (norm budget), at any D, V, T, cap: where A > 1.25 the fall is {still} "
        f"(rule obeyed by {number(obeyed[0], '.0%')} and {number(obeyed[1], '.0%')} of pairs). Explained variance of "
        f"the fall, {explained}; of the transition, .05 < A < 6, {middle}. "
        f"Whether it helps: {rule}",
        counter_evidence=f"with free norms smoothing acts at {free}; in noisy cells with A from 1.3 "
        f"to 3 confidence still falls by up to {number(above.max(), '.3f')}; {elsewhere} of the {len(inert)} and "
        f"{len(acting)} det pairs of the rule lie outside V = {_MAIN_SIZE}",
        tables=used,
    )


def _listed(shares: dict[str, Effect]) -> str:
    return ", ".join(f"{name} {share}" for name, share in shares.items())


def _plain(value: float) -> str:
    """Four digits, and no minus before 0."""
    return number(round(value, 4) + 0.0, ".4f")


def _explained(pairs: pd.DataFrame, *, turning: bool = False) -> dict[str, Effect]:
    """Share of the variance of the fall in confidence over cells of b = .1 that each predictor explains, and A - rho.

    A temperature is a norm, and dimensions beyond the rank of the logits are none: cells of equal k D / T and equal
    min(D, V - 1, contexts) are the same head and stay on one side of a split. ``turning`` keeps the cells of the
    transition, where there is more to explain than an inert and an acting end.
    """
    chosen = pairs.loc[(pairs["label_smoothing"] == 0.1) & pairs["converged"]]
    chosen = chosen.assign(cell=chosen.groupby(CELL, dropna=False).ngroup())
    if turning:
        chosen = chosen.loc[chosen.groupby("cell")["activity_index"].transform("mean").between(*_TRANSITION)]
    d, v = chosen["hidden_size"], chosen["vocab_size"]
    scale = (chosen["norm_coefficient"] * d / chosen["temperature"]).round(6)
    used = np.minimum(d, np.minimum(v - 1, chosen["n_contexts"]))
    head = [*(name for name in CELL if name not in ("norm_coefficient", "temperature", "hidden_size")), "scale", "used"]
    chosen = chosen.assign(
        head=chosen.assign(scale=scale, used=used).groupby(head, dropna=False).ngroup(),
        A=chosen["activity_index"],
        rho=chosen["effectiveness_ratio"],
    )
    sizes = {"sqrt(D)/ln V": np.sqrt(d) / np.log(v), "D/sqrt(V)": d / np.sqrt(v)}
    chosen = chosen.assign(**sizes)
    names = ["A", "rho", *sizes]
    if chosen["head"].nunique() < _FEWEST:
        unknown = Effect(float("nan"), float("nan"), float("nan"), 0, 0)
        return dict.fromkeys([*names, "A - rho"], unknown)
    fall = "confidence_fall"
    found = {name: explained_effect(chosen, name, fall, cell="cell", same="head") for name in names}
    return found | {"A - rho": explained_effect(chosen, "A", fall, cell="cell", minus="rho", same="head")}


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
