"""What was registered of S11 and S12, each sentence beside what the full tables say: ``S11_predictions.csv``.

A part that asks of an interval holds where the whole interval does, fails where none of it does, and is open between;
one that asks of every cell holds where all do, fails where one does. Models pretrained on little text mostly break the
convergence rule: their parts read them all the same and say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from .effects import SEEDS, difference
from .findings import SMALL
from .foretold import NEAR, SHARED
from .parts import ClaimPart, KnownFindings, beside, every, holds_within, ratio_of, within
from .runs import main_grid
from .sizes import ALIKE, COMPARABLE, SIZES, Grid, shares_of_fall, step_between
from .statistics import Effect, mean_effect

__all__ = ["registered"]

_NAMES = {"scale": "one scale", "gain": "a gain"}
_SHARE = 0.2
_KIND = ["symbols", "tied", "distinct", "pretraining_smoothing"]
_FLAGGED = ", little text (pretraining still falling)"


def registered(name: str, table: pd.DataFrame, findings: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """One line for each part of the predictions of S11 or S12, whose full table it is.

    Args:
        name: ``"S11"`` or ``"S12"``.
        table: All its rows, also those that break the convergence rule.
        findings: From :func:`.transformers.judge_transformers`.
        grid: Of the first grid.

    Returns:
        ``claim``, ``part``, ``asked``, ``found`` with ``low`` and ``high`` (95 % over seeds; none of counts of cells),
        ``seeds``, ``cells``, ``holds``: ``"yes"``, ``"no"``, ``"open"``, ``"confounded"`` or ``"not measured"``.
    """
    known = KnownFindings(findings)
    parts = _languages(table, known, grid) if name == "S11" else _texts(known, grid)
    return pd.DataFrame([part.line() for part in parts])


def _languages(table: pd.DataFrame, known: KnownFindings, grid: Grid) -> Iterator[ClaimPart]:
    fit = table.loc[table["converged"].astype(bool)]
    yield from _confidence(table, fit, known, grid)
    yield from _falls(table, fit, known, grid)
    # the last amendment: "not within 20 % everywhere"; one of S12 did not say so
    yield from _law(known, grid, everywhere=False, narrow=True)
    for finding, where in (
        ("rise_elsewhere", "broad language, epoch 16 minus before"),
        ("rise_asked", "new shifted tokens, epoch 16 minus 2"),
    ):
        yield every(
            "K1",
            f"rise of the true ECE without smoothing, {where}, least (V, D)",
            "above 0",
            known.at("K1", finding),
            0.0,
        )
    yield from _errors(fit, known)
    for t in ("0.5", "0.25"):
        rise = known("K5", "fall_rise", f"T={t}")
        yield within("K5", f"rise of the fall, trained at T = {t}", "below 0.01", rise, -math.inf, SMALL)
    for c, asked, least, most in (("30", "within 0.01 of 0", -SMALL, SMALL), ("5", "below 0", -math.inf, 0.0)):
        rise = known("K6", "fall_rise", f"cap={c}")
        yield within("K6", f"rise of the fall, trained with a cap of {c}", asked, rise, least, most)


def _texts(known: KnownFindings, grid: Grid) -> Iterator[ClaimPart]:
    for v in grid.vocabularies:
        more = known("K3", "bits_step", f"V={v}")
        yield within("K3", f"bits per byte, D = 32 minus D = 256, V = {v}", "above 0", more, 0.0)
    yield _over(
        "fall over b (p - 1/V)", known("K4", "fall_share_over_v", f"V={grid.vocabularies[-1]}"), grid, _SHARE, ""
    )
    yield _index(known)
    yield from _law(known, grid, everywhere=True, narrow=False)


def _confidence(table: pd.DataFrame, fit: pd.DataFrame, known: KnownFindings, grid: Grid) -> Iterator[ClaimPart]:
    """K3, of pretrained models on the broad language."""
    start, all_start = (
        rows.loc[(rows["epoch"] == 0) & (rows["distribution"] == "broad") & (rows["method"] == "b=0")].assign(
            share=lambda rows: rows["confidence"] / rows["truth_confidence"]
        )
        for rows in (fit, table)
    )
    for v in grid.vocabularies:
        more = known("K3", "divergence_step", f"V={v}")
        yield within("K3", f"nats from the truth, D = 16 minus D = 256, V = {v}", "above 0", more, 0.0)
    yield from _over_v("K3", "confidence over the truth's own", "share_over_v", SMALL, known, grid)
    few = all_start.loc[(all_start["distinct"] > 0) & (all_start["hidden_size"] == grid.widths[-1])]
    for v, rows in few.groupby("vocab_size"):
        for value, name, least in (("share", "confidence over the truth's own", 1.0), ("true_ece", "true ECE", 0.02)):
            found = mean_effect(rows, value, cell=SIZES)
            yield within("K3", f"{name}, D = 256, V = {v}{_FLAGGED}", f"above {least:g}", found, least)
    for v in grid.vocabularies:
        tied = start.loc[start["tied"].astype(bool) & (start["vocab_size"] == v)]
        step = step_between(tied, "share", "hidden_size", grid.widths[-1], grid.widths[0], ["vocab_size"])
        up = known("K3", "share_step", f"V={v}").mean > 0
        said = f"confidence over the truth's own, tied, D = 256 minus D = 16, V = {v}"
        yield within(
            "K3",
            said,
            f"{'above' if up else 'below'} 0, as untied",
            step,
            *((0.0, math.inf) if up else (-math.inf, 0.0)),
        )
    on = [*SIZES, "symbols", "tied", "distinct", *SEEDS]
    lower = ratio_of(start, "confidence", "pretraining_smoothing", 0.1, 0.0, on)
    yield within("K3", "confidence, pretrained with b = 0.1 over without", "0.9 to 1", lower, 0.9, 1.0)


def _falls(table: pd.DataFrame, fit: pd.DataFrame, known: KnownFindings, grid: Grid) -> Iterator[ClaimPart]:
    """K4, on new shifted tokens after the last epoch."""
    yield from _over_v("K4", "fall over b (p - 1/V)", "fall_share_over_v", _SHARE, known, grid)
    for v in grid.vocabularies:
        step, more = (known("K4", name, f"V={v}") for name in ("fall_share_step", "divergence_step"))
        holds = (
            "yes" if step.high <= _SHARE or more.low > 0 else "no" if step.low > _SHARE and more.high < 0 else "open"
        )
        said = f"fall over b (p - 1/V), D = 256 minus D = 16, V = {v}"
        yield ClaimPart("K4", said, "at most 0.2, or D = 16 further from the truth", step, holds)
    wide = [known("K4", "fall_share", f"V={v}; D={grid.widths[-1]}") for v in grid.vocabularies]
    yield every("K4", "fall over b (p - 1/V), D = 256, least V", "above 0.2", wide, _SHARE)
    yield _index(known)
    last = (
        (table["epoch"] == table["epoch"].max())
        & (table["distribution"] == "shifted")
        & (table["reading"] == "as_trained")
    )
    shifted, shifted_all = fit.loc[last.loc[fit.index]], table.loc[last]
    plain = main_grid(shifted)
    falls = {method: _fall(plain, "b=0", method) for method in ("b=0.05", "b=0.1", "b=0.2")}
    for method, least, most in (("b=0.05", 0.4, 0.6), ("b=0.2", 1.6, 2.4)):
        ratio = beside(falls[method], falls["b=0.1"], ratio=True)
        said = f"fall of {method.replace('=', ' = ')} over that of b = 0.1"
        yield within("K4", said, f"{least:g} to {most:g}", ratio, least, most)
    changed = beside(_fall(plain, "b=0 frozen", "b=0.1 frozen"), falls["b=0.1"])
    yield within("K4", "fall with the gain frozen minus that with it free", "within 0.01 of 0", changed, -SMALL, SMALL)
    smoothed = shifted.loc[shifted["pretraining_smoothing"] > 0]
    changed = beside(_fall(smoothed, "b=0", "b=0.1"), falls["b=0.1"])
    yield within(
        "K4", "fall after smoothed pretraining minus that after plain", "within 0.02 of 0", changed, -0.02, 0.02
    )
    of_all = shares_of_fall(shifted_all).loc[lambda rows: (rows["vocab_size"] == 256) & (rows["hidden_size"] == 256)]
    first = main_grid(of_all)
    for kind, rows in (
        ("tied heads", of_all["tied"].astype(bool)),
        ("little text (pretraining still falling)", of_all["distinct"] > 0),
    ):
        both = of_all.loc[rows, [*SIZES, *SEEDS, "share"]].merge(
            first[[*SEEDS, "share"]], on=SEEDS, suffixes=("", "_first")
        )
        step = mean_effect(both.assign(step=both["share"] - both["share_first"]), "step", cell=SIZES)
        said = f"fall over b (p - 1/V), {kind} minus first grid, D = V = 256"
        yield within("K4", said, "within 0.2 of 0", step, -_SHARE, _SHARE)


def _errors(fit: pd.DataFrame, known: KnownFindings) -> Iterator[ClaimPart]:
    """K2, on new shifted tokens."""
    yield every("K2", "gain in true ECE, epoch 16, least (V, D)", "above 0", known.at("K2", "gain"), 0.0)
    early = known("K2", "gain_at_epoch_2")
    yield within("K2", "gain in true ECE, epoch 2", "below 0.02", early, -math.inf, 0.02)
    last = main_grid(fit.loc[(fit["epoch"] == fit["epoch"].max()) & (fit["distribution"] == "shifted")])
    last = last.assign(
        arm=last["method"] + last["reading"].map(lambda reading: "" if reading == "as_trained" else f" {reading}")
    )
    for first, second, least in (
        ("b=0.1", "b=0 post_hoc", -SMALL),
        ("b=0.1", "b=0.2", 0.0),
        ("b=0", "penalty=0.1", 0.0),
        ("penalty=0.1", "b=0.1", 0.0),
    ):
        gain = mean_effect(
            difference(last, "true_ece", column="arm", first=first, second=second, on=ALIKE), "difference", cell=SIZES
        )
        yield within("K2", f"true ECE of {first} minus that of {second}", f"above {least:g}", gain, least)


def _law(known: KnownFindings, grid: Grid, *, everywhere: bool, narrow: bool) -> Iterator[ClaimPart]:
    """Shares of the (V, D) where a prediction is near the fall, and where P is at least the fall.

    Args:
        known: What was found.
        grid: Of the first grid.
        everywhere: Whether the shared changes were expected near the fall at every (V, D); else not at every one.
        narrow: Whether an affine map was expected near the fall at the smallest D.
    """
    ratios = {
        kind: np.array([ratio.mean for ratio in known.at("law", f"{kind}_ratio")])
        for kind in (*SHARED, "affine", "frozen")
    }
    for kind in SHARED:
        solved = ratios[kind][np.isfinite(ratios[kind])]
        near, said = np.abs(solved - 1) <= NEAR, f"{_NAMES[kind]} is within 20 % of the fall"
        yield _share(said, near) if everywhere else _share(said, near, asked="below 1", holds=not near.all())
    missed = {kind: np.abs(values - 1) for kind, values in ratios.items()}
    solved = np.isfinite(ratios["affine"])
    nearer = missed["affine"] < np.fmin(*(missed[kind] for kind in SHARED)) if solved.any() else solved
    yield _share("an affine map is nearer to the fall than one scale and a gain", nearer[solved])
    if narrow:
        small = [known("law", "affine_ratio", f"V={v}; D={grid.widths[0]}").mean for v in grid.vocabularies]
        near = np.array([abs(ratio - 1) <= NEAR for ratio in small if math.isfinite(ratio)])
        yield _share(f"an affine map is within 20 % of the fall, D = {grid.widths[0]}", near)
    yield _share("P is at least the fall, tokens tuned on", ratios["frozen"] >= 1)


def _share(said: str, which: np.ndarray, asked: str = "1", holds: bool | None = None) -> ClaimPart:
    """The share of the (V, D) where something is so: expected at all of them, or as ``holds`` says."""
    found = Effect(float(which.mean()) if which.size else math.nan, math.nan, math.nan, 0, which.size)
    word = "yes" if (which.all() if holds is None else holds) else "no"
    return ClaimPart("law", f"share of (V, D) where {said}", asked, found, word if which.size else "not measured")


def _over_v(claim: str, name: str, finding: str, bound: float, known: KnownFindings, grid: Grid) -> Iterator[ClaimPart]:
    """Steps from the least V to the largest, of dead tokens and of live ones; confounded where a gate says so."""
    for symbols in ("dead", "live"):
        cell = f"V={grid.vocabularies[-1]}; symbols={symbols}"
        gates = ["divergence_over_v", *["tuned_divergence_over_v"] * (claim == "K4")]
        far = [known("K4", gate, cell).mean for gate in gates]
        passes = all(abs(mean) <= COMPARABLE for mean in far)
        yield _over(name, known(claim, finding, cell), grid, bound, f", {symbols}", claim, passes)


def _over(
    name: str, step: Effect, grid: Grid, bound: float, kind: str, claim: str = "K4", passes: bool = True
) -> ClaimPart:
    said = f"{name}, V = {grid.vocabularies[-1]} minus V = {grid.vocabularies[0]}{kind}, D = 256"
    holds = holds_within(step, -bound, bound) if passes else "confounded"
    return ClaimPart(claim, said, f"within {bound:g} of 0", step, holds)


def _index(known: KnownFindings) -> ClaimPart:
    indices = known.at("K4", "activity")
    largest = max(indices, key=lambda index: index.high)
    return within("K4", "A of the tokens tuned on, epoch 16, largest (V, D)", "at most 1", largest, -math.inf, 1.0)


def _fall(rows: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    return difference(rows, "confidence", column="method", first=first, second=second, on=[*SIZES, *_KIND, *SEEDS])
