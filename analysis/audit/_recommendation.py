"""An audit's advice in three lines: would smoothing act, how much could it take, what to do instead; with evidence.

Numbers of the model come from the audit's table, numbers of the studies from the committed tables, each with the claim
and the file that it stands in. Where an installation has no tables the advice stands without them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from ..command import committed_folder
from ..lab.tables import find_table, read_table
from ..response import clipped_fall, rational_fall
from ._verdict import TUNED, Lookup, regimes, sign_of

NAMES = ("act", "at_most", "instead")
NEAR = (0.8, 1.25)  # of A: between them the rule of K4 says nothing
_NO_TABLES = "What the studies found is not in this installation: it lacks their tables."


def recommendation(table: pd.DataFrame) -> str:
    """Put an audit's advice into three lines: would smoothing act, how far, and what to do instead for calibration.

    The first says for each b what the activity index leads to expect, the second the most that the two rules predict
    that need a confidence and an index alone, the third what the calibration on this text asks for. Each ends with what
    the studies found, with its claim and table: files in ``paper_figures/data`` of the repository.

    Raises:
        ValueError: If the table is no table of an audit.
    """
    get, studies = Lookup(table), _Studies()
    return "\n".join((_act(get, studies), _at_most(get, studies), _instead(get, studies)))


class _Studies:
    """Numbers of the committed tables."""

    def __init__(self) -> None:
        self.read: dict[str, pd.DataFrame] = {}

    def table(self, name: str) -> pd.DataFrame:
        if name not in self.read:
            path = find_table(committed_folder(), name)
            if path is None:
                raise FileNotFoundError(name)
            self.read[name] = read_table(path)
        return self.read[name]

    def __call__(self, claim: str, finding: str, cell: str = "", table: str = "findings") -> float:
        """The mean of a finding."""
        found = self.table(table)
        rows = (found["claim"] == claim) & (found["finding"] == finding) & (found["cell"].fillna("") == cell)
        return float(found.loc[rows, "mean"].iloc[0])

    def largest_error(self, rule: str) -> float:
        """The largest miss of a rule in a cell of S9."""
        found = self.table("S9_accuracy")
        return float(found.loc[found["predictor"] == rule, "largest_error"].max())


def _cited(*made: Callable[[], str]) -> str:
    """The sentences that the tables give, or one that says that there are none."""
    try:
        return " ".join(make() for make in made)
    except (OSError, LookupError):
        return _NO_TABLES


def _act(get: Lookup, studies: _Studies) -> str:
    kinds: dict[str, list[str]] = {}
    for b, regime in regimes(get).items():
        index, kind = get("smoothing", "activity", b), regime
        if regime in ("above", "below") and NEAR[0] <= index.value <= NEAR[1]:
            kind = f"{regime}, near"
        elif regime == "below" and (index.high if index.high == index.high else index.value) < 0:
            kind = "negative"
        kinds.setdefault(kind, []).append(b)
    said = "; ".join(f"b = {', '.join(several)}: {_EXPECTED[kind]}" for kind, several in kinds.items())
    made = [partial(find, studies) for find in dict.fromkeys(_EVIDENCE[kind] for kind in kinds)]
    if (cap := get("model", "softcap").value) == cap:
        made.append(partial(_capped, studies, cap))
    return f"Would smoothing act, if the text is like the training data? {said}. {_cited(*made)}"


_EXPECTED = {
    "none": "not as elsewhere: on this text it only weakens the data's own pull to smaller logits",
    "unknown": "this text cannot tell",
    "above": "not once trained to the end where one next token is right, a little where several are, as in most text",
    "above, near": "hardly where one next token is right, somewhat where several are, as in most text",
    "below, near": "a little",
    "below": "yes",
    "negative": "yes, and plain training on this text would lower confidence too",
}


def _found_inert(studies: _Studies) -> str:
    fall, settings = abs(studies("K4", "fall_where_inert")), studies("K4", "settings_inert")
    return (
        f"In small simulated heads with A above {NEAR[1]:g} it lowered confidence by {fall:.4f} where one token was "
        f"right (mean of {settings:.0f} settings, several b), by up to "
        f"{studies('K4', 'largest_fall_blurred'):.3f} where several were and A was 1.3 to 3 [K4, findings.csv]."
    )


def _found_acting(studies: _Studies) -> str:
    fall, settings = studies("K4", "fall_where_acting"), studies("K4", "settings_acting")
    explained = studies("K4", "explained", "teacher=noisy; predictor=A")
    tuned = studies("K5", "activity", table="instruction_findings")
    return (
        f"In small simulated heads with A of 0 to {NEAR[0]:g} it lowered confidence by {fall:.3f} where one token was "
        f"right (mean of {settings:.0f} settings, several b); where several were, A explained {explained:.0%} of the "
        f"fall [K4, findings.csv]. It acted on SmolLM2-135M tuned to A = {tuned:.2f} [K5, instruction_findings.csv]."
    )


def _found_turning(studies: _Studies) -> str:
    one, several = (studies("K4", "explained_of_transition", f"teacher={t}; predictor=A") for t in ("det", "noisy"))
    return (
        f"About the turn at 1 A explained {one:.0%} of the fall in small simulated heads where one token was right, "
        f"{several:.0%} where several were [K4, findings.csv]."
    )


def _found_nothing(studies: _Studies) -> str:
    return "No study had such a model."


_EVIDENCE = {
    "none": _found_nothing,
    "unknown": _found_turning,
    "above": _found_inert,
    "above, near": _found_turning,
    "below, near": _found_turning,
    "below": _found_acting,
    "negative": _found_acting,
}


def _capped(studies: _Studies, cap: float) -> str:
    verdicts = studies.table("verdicts").set_index("claim")
    on = verdicts.loc["K6", "depends_on"]
    word = f"{verdicts.loc['K6', 'verdict']} {on}" if isinstance(on, str) else f"is {verdicts.loc['K6', 'verdict']}"
    return (
        f"The index is of logits capped at {cap:g}, as this model's are; whether a cap adds to what smoothing does "
        f"{word} [K6, verdicts.csv]."
    )


def _at_most(get: Lookup, studies: _Studies) -> str:
    regime, p, v = regimes(get), get("prediction", "confidence").value, int(get("model", "vocab_size").value)
    if "none" in regime.values():
        return "How much confidence would it take? No rule says: each needs an activity index, and there is none here."
    most = ", ".join(f"{_most(get, b, p, v):.3f} (b = {b})" for b in regime)
    known = any((index := get("smoothing", "activity", b)).low == index.low for b in regime)
    where = " at the upper end of the interval" if known else ""

    def missed() -> str:
        clipped, rational = (studies.largest_error(rule) for rule in ("clipped_fall", "rational_fall"))
        return f"In small simulated models they missed by up to {clipped:.3f} and {rational:.3f} [S9, S9_accuracy.csv]."

    def tuned() -> str:
        studies.table("instruction_full")  # where it is from
        return f"Tunings of SmolLM2-135M took {TUNED} times clipped_fall on new texts [K2, instruction_full.csv]."

    cited = _cited(missed, tuned) if "below" in regime.values() else _cited(missed)  # else there is no clipped_fall
    return (
        f"How much confidence would it take? By clipped_fall and rational_fall {most} of {p:.3f}{where}; they "
        f"are rules, no bounds. {cited}"
    )


def _most(get: Lookup, b: str, p: float, v: int) -> float:
    """The larger of the two rules, at the lower end of the index."""
    index = get("smoothing", "activity", b)
    low = index.low if index.low == index.low else index.value
    falls = [float(clipped_fall(p, low, v, float(b)))]
    if ("smoothing", "predicted_fall", b) in get.found:  # clipped_fall with its interval; not in earlier tables
        fall = get("smoothing", "predicted_fall", b)
        falls.append(fall.high if fall.high == fall.high else fall.value)
    if low >= 0:  # below, rational_fall says less and less of what smoothing does
        falls.append(float(rational_fall(p, low, v, float(b))))
    return max(falls)


def _instead(get: Lookup, studies: _Studies) -> str:
    gap, ece, floor = get("prediction", "scale_gap"), get("calibration", "ece"), get("calibration", "ece_if_calibrated")
    best, after = get("temperature", "best").value, get("temperature", "ece_after").value
    side = sign_of(gap, negative="over", positive="under", neither="neither")
    shown, found = f"the best one, {best:.3f}, takes the ECE from {ece.value:.3f} to {after:.3f}", _found_harm
    if side == "under":
        said = f"do not smooth, as the model is under-confident; a temperature may help ({shown})"
    elif side == "neither":
        said = f"do not smooth, as confidence is right on average; a temperature may help ({shown})"
    elif get.bounded:
        said, found = f"take another text, as no temperature fits this one (at {best:g} its ECE is {after:.3f})", None
    elif ece.value <= floor.high:
        said = f"leave it: an ECE of {ece.value:.3f} is seen of calibrated predictions too (up to {floor.high:.3f})"
    elif after < ece.value:
        said, found = f"fit a temperature ({shown})", _found_rivals
    else:
        said, found = f"a temperature does not mend it ({shown}): stop earlier, or smooth and compare", _found_rivals
    cited = "No study had such a text." if found is None else _cited(partial(found, studies))
    return f"What to do for calibration, if the text is new to the model? {said[0].upper()}{said[1:]}. {cited}"


def _found_rivals(studies: _Studies) -> str:
    def gains(table: str, cost: str = "") -> str:
        fitted, early = (studies("K2", "gain_of", f"method={m}", table) for m in ("b=0 post_hoc", "early stopping"))
        return f"{fitted:.3f}, {early:.3f}{cost} and {studies('K2', 'gain', table=table):.3f}"

    real, arms = "instruction_findings", studies.table("findings").query("finding == 'gain_s5_fitted'")["mean"]
    cost = f" (at {studies('K2', 'accuracy_loss_of', 'method=early stopping', real):.3f} of the accuracy)"
    return (
        f"A temperature, early stopping and b = 0.1 lowered the ECE by {gains('findings')} in simulated tuning [K2, "
        f"findings.csv], by {gains(real, cost)} on SmolLM2-135M [K2, {real}.csv]; in heads fitted to few samples a "
        f"temperature raised it in {(arms < 0).sum()} of {len(arms)} arms [K2, findings.csv]."
    )


def _found_harm(studies: _Studies) -> str:
    harm = -studies("K2", "gain_population")
    held, cells = (studies("K4", f"sign_rule_{name}") for name in ("holds", "cells"))
    return (
        f"Where simulated heads were calibrated, b = 0.1 raised the ECE by {harm:.3f} [K2, findings.csv]; it "
        f"helped where H - CE on new data was below 0, and only there, in {held:.0f} of {cells:.0f} cells "
        "[K4, findings.csv]."
    )
