"""Claims K3 and K4 on trained heads: what caps confidence, and when smoothing acts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from ..caps import simplex_cap
from .effects import CELL, SEEDS, difference, paired_effects
from .findings import SMALL, Finding, Findings, word
from .sources import Tables
from .statistics import Effect, explained_effect, mean_effect

__all__ = ["MAIN_SIZE", "below_full_rank", "capacity", "small_hidden_size"]

MAIN_SIZE = 256  # V of most det cells
_ROUNDING = 1e-5  # of two numbers of six digits
_FEWEST = 20  # cells that a share of explained variance is computed of
_TRANSITION = (0.05, 6.0)  # of A
_INERT, _ACTING = 1.25, 0.8  # of A: smoothing does nothing above, and lowers confidence below
_BLURRED = (1.3, 3.0)  # of A, where noise blurs the turn


def capacity(tables: Tables, found: Findings) -> str:
    """K3: whether hidden size and vocabulary cap confidence at one norm product, and no head exceeds a proven cap."""
    ceilings, heads = tables("S1"), tables("S3")
    det = heads.loc[(heads["teacher"] == "det") & heads["softcap"].isna() & (heads["label_smoothing"] == 0)]
    det = det.assign(norm_budget=det["norm_coefficient"] * det["hidden_size"])
    _proven_caps(ceilings, det, found)
    det = det.assign(norm_budget=det["norm_budget"].round(6))
    for first, second in ((256, 64), (64, 16)):
        _step(det, first, second, found)
    at_k = difference(
        det.loc[(det["norm_coefficient"] == 0.1) & (det["temperature"] == 1)],
        "confidence", column="hidden_size", first=256, second=64, on=["vocab_size", "temperature", *SEEDS],
    )  # fmt: skip
    found.add("step_at_fixed_k", mean_effect(at_k, "difference", cell=["vocab_size"]), "probability")
    found.add("spread_at_full_rank", _spread_at_full_rank(det), "probability")
    _by_vocabulary(heads, found)
    if tables.has("S10"):
        _at_fixed_difficulty(tables("S10"), found)
    steps = [*below_full_rank(found, 64), *below_full_rank(found, 16)]
    falls = [b.high < a.low for a, b in pairwise(found.at("confidence_share"))]
    moves = [step.low > SMALL for step in steps]
    exceeded = found["above_a_cap"] > 0
    return word(
        supported=not exceeded and found["geometry_share"] > 0.05 and all([*moves, *falls]),
        # a cap exceeded refutes the theory
        refuted=exceeded or all([*(step.high <= SMALL for step in steps), *(not fall for fall in falls)]),
        known=bool(moves and falls),
    )


def _proven_caps(ceilings: pd.DataFrame, det: pd.DataFrame, found: Findings) -> None:
    """How many attained confidences exceed a proven cap, and what the geometry of D dimensions costs."""
    searched = ceilings.loc[ceilings["attained_gap"].notna()]
    proven = np.minimum(searched["simplex_gap"], searched["rank_gap"])
    over = int((searched["attained_gap"] > proven * (1 + _ROUNDING)).sum())
    cap = simplex_cap(det["norm_budget"] / det["temperature"], det["vocab_size"])
    over += int((det["confidence"] > cap + 1e-6).sum())
    found.add("above_a_cap", over, "count")
    found.add("compared_with_a_cap", len(searched) + len(det), "count")
    public = ceilings.loc[ceilings["model"].notna() & (ceilings["share"] == 1.0)]
    found.add("geometry_share", (1 - public["random_code_gap"] / public["simplex_gap"]).max(), "share")
    narrow = searched.loc[(searched["hidden_size"] <= 4) & (searched["share"] == 1.0)]
    least = (1 - narrow["attained_gap"] / narrow["simplex_gap"]).groupby(narrow["vocab_size"]).min()
    for v, cost in least.items():
        found.add("geometry_share_narrow", cost, "share", V=v)


def _step(det: pd.DataFrame, first: int, second: int, found: Findings) -> None:
    """Confidence at hidden size ``first`` minus at ``second``, at one norm product m, V and T."""
    cell = ["vocab_size", "temperature", "norm_budget"]
    steps = difference(det, "confidence", column="hidden_size", first=first, second=second, on=[*cell, *SEEDS])
    name = f"step_from_{second}"
    if second == 64:
        found.add(name, mean_effect(steps, "difference", cell=cell), "probability")
    for (v, temperature, m), rows in steps.groupby(cell):  # pyright: ignore[reportGeneralTypeIssues]
        found.add(name, mean_effect(rows, "difference", cell=cell), "probability", V=v, T=temperature, m=m)


def below_full_rank(found: Findings, start: int) -> list[Finding]:
    """Every step in hidden size from ``start``, where that is below V - 1."""
    return [step for step in found.at(f"step_from_{start}") if step.cell["V"] > start + 1]


def moves(found: Findings) -> tuple[int, int]:
    """Steps below full rank in which confidence moves, and all of them."""
    steps = [*below_full_rank(found, 64), *below_full_rank(found, 16)]
    return sum(step.low > SMALL for step in steps), len(steps)


def _by_vocabulary(heads: pd.DataFrame, found: Findings) -> None:
    """Confidence of plain low-rank heads that differ in V alone, of those V that have several seeds, and its share.

    The teacher's own ceiling falls with V: a head of any norm ends at the counts of its sample. So the share is that of
    the saturated head, which is the one of largest m / T.
    """
    plain = heads.loc[(heads["teacher"] == "lowrank") & heads["softcap"].isna() & (heads["label_smoothing"] == 0)]
    scale = plain["norm_coefficient"] * plain["hidden_size"] / plain["temperature"]
    by = ["vocab_size", *SEEDS]
    most = plain.loc[scale == scale.groupby(plain["vocab_size"]).transform("max")]
    ceiling = most.groupby(by)["confidence"].mean().rename("saturated").reset_index()
    alike = plain.loc[
        (plain["hidden_size"] == 64) & (plain["norm_coefficient"] == 0.1) & (plain["temperature"] == 1)
    ].merge(ceiling, on=by)
    alike = alike.assign(share=alike["confidence"] / alike["saturated"])
    columns = {"confidence": "confidence", "saturated_confidence": "saturated", "confidence_share": "share"}
    for v, rows in alike.groupby("vocab_size"):
        for name, column in columns.items():
            effect = mean_effect(rows, column, cell=["vocab_size"])
            if effect.seeds > 1:
                found.add(name, effect, "share" if column == "share" else "probability", V=v)


def _at_fixed_difficulty(table: pd.DataFrame, found: Findings) -> None:
    """Confidence of plain heads on one problem, by how many tokens there are that never occur (S10)."""
    plain = table.loc[table["label_smoothing"] == 0]
    for (t, v), rows in plain.groupby(["temperature", "vocab_size"]):  # pyright: ignore[reportGeneralTypeIssues]
        effect = mean_effect(rows, "confidence", cell=["vocab_size"])
        found.add("confidence_with_dead_tokens", effect, "probability", T=t, V=v)


def _spread_at_full_rank(det: pd.DataFrame) -> float:
    """Largest difference of confidence between heads of full rank that differ in hidden size alone; nan without any."""
    full = det.loc[det["hidden_size"] >= det["vocab_size"] - 1]
    cells = full.groupby(["vocab_size", "norm_budget", "temperature", *SEEDS])["confidence"]
    spread = (cells.max() - cells.min()).loc[cells.size() > 1]
    return float(spread.max())


def small_hidden_size(tables: Tables, found: Findings) -> str:
    """K4: whether sizes, and not the activity index, tell where smoothing acts."""
    pairs = paired_effects(tables("S3"))
    kinds = {name: pairs.loc[pairs["teacher"] == teacher] for name, teacher in (("det", "det"), ("noisy", "lowrank"))}
    det, noisy = kinds.values()
    inert, acting = det.loc[det["activity_index"] > _INERT], det.loc[det["activity_index"] < _ACTING]
    setting = [*CELL, "label_smoothing"]
    for name, rows in (("acting", acting), ("inert", inert)):
        found.add(f"fall_where_{name}", mean_effect(rows, "confidence_fall", cell=setting), "probability")
        found.add(f"pairs_{name}", len(rows), "count")
        # det targets are the same for every seed: pairs of one setting differ in the solver's first values alone
        found.add(f"settings_{name}", rows.groupby(setting, dropna=False).ngroups, "count")
        found.add(f"pairs_{name}", (rows["vocab_size"] == MAIN_SIZE).sum(), "count", V=MAIN_SIZE)
    for b, rows in acting.groupby("label_smoothing"):  # about b p: the mean over b says little of any
        found.add("fall_where_acting", mean_effect(rows, "confidence_fall", cell=setting), "probability", b=b)
    found.add("obeyed_inert", (inert["confidence_fall"].abs() < SMALL).mean(), "share")
    found.add("obeyed_acting", (acting["confidence_fall"] > 0).mean(), "share")
    for name, turning in (("explained", False), ("explained_of_transition", True)):
        for kind, frame in kinds.items():
            for predictor, share in _explained(frame, turning=turning).items():
                found.add(name, share, "share of variance", teacher=kind, predictor=predictor)
    blurred = noisy.loc[noisy["activity_index"].between(*_BLURRED), "confidence_fall"]
    found.add("largest_fall_blurred", blurred.max(), "probability")
    if tables.has("S4"):  # else of an unfinished study: S3 decides
        _with_samples(tables("S4"), found)
    obeyed = min(found["obeyed_inert"], found["obeyed_acting"])
    by_size = all(_size_explains(found, kind) for kind in kinds)
    return word(supported=by_size, refuted=not by_size and obeyed < 0.95)


def _size_explains(found: Findings, kind: str) -> bool:
    """Whether sizes explain as much as A."""
    share = {made.cell["predictor"]: made.mean for made in found.at("explained", teacher=kind)}
    return max(share["sqrt(D)/ln V"], share["D/sqrt(V)"]) >= share["A"]


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


def _with_samples(samples: pd.DataFrame, found: Findings) -> None:
    """The fall at the least hidden size of free norms, and in how many cells the sign rule holds."""
    free = paired_effects(samples.loc[samples["norm"] == "free"])
    least = int(free["hidden_size"].min())
    found.add("least_free_size", least, "D")
    narrow = mean_effect(free.loc[free["hidden_size"] == least], "confidence_fall", cell=CELL)
    found.add("fall_at_free_norms", narrow, "probability")
    plain, keys = samples.loc[samples["label_smoothing"] == 0], [*CELL, *SEEDS]
    plain = plain.assign(held_out_gap=plain["true_nll"] - plain["entropy"])[[*keys, "held_out_gap"]]
    pairs = paired_effects(samples)
    both = pairs.loc[pairs["label_smoothing"] == 0.1].merge(plain, on=keys)
    cells = both.groupby(CELL, dropna=False)[["held_out_gap", "true_ece_gain"]].mean()
    # the gain in true ECE is positive exactly where H - CE < 0 on new data
    found.add("sign_rule_holds", ((cells["held_out_gap"] > 0) == (cells["true_ece_gain"] > 0)).sum(), "count")
    found.add("sign_rule_cells", len(cells), "count")
