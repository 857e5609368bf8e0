"""An audit's advice in three lines: would smoothing act, how much could it take, what to do instead; with evidence.

Numbers of the model come from the audit's table, numbers of the studies from the committed tables, each with the file
that it stands in and the claim or experiment it is of. Where an installation has no tables the advice stands without.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from ..response import clipped_fall, rational_fall
from . import _studies as found
from ._studies import NEAR, Studies, cited
from ._verdict import TUNED, TUNED_MODELS, Lookup, regimes, side_of, slightly

NAMES = ("act", "at_most", "instead")


def recommendation(table: pd.DataFrame, *, evidence: bool = True) -> str:
    """Put an audit's advice into three lines: would smoothing act, how far, and what to do instead for calibration.

    The first says for each b what the activity index leads to expect, the second what two rules predict that need a
    confidence and an index alone, the third what the calibration on this text asks for. Each ends with what the studies
    found, with its claim or experiment and its table: files in ``paper_figures/data`` of the repository, of which a
    wheel has copies.

    Args:
        table: Of an audit (:func:`audit_model`).
        evidence: False leaves out what the studies found: three short lines, of this model alone.

    Raises:
        ValueError: If the table is no table of an audit.
    """
    get, studies = Lookup(table), Studies()
    lines = (_act(get, studies), _at_most(get, studies), _instead(get, studies))
    return "\n".join(" ".join(filter(None, line)) if evidence else line[0] for line in lines)


def _act(get: Lookup, studies: Studies) -> tuple[str, str]:
    kinds: dict[str, list[str]] = {}
    for b, regime in regimes(get).items():
        index, kind = get("smoothing", "activity", b), regime
        if regime in ("above", "below") and NEAR[0] <= index.value <= NEAR[1]:
            kind = f"{regime}, near"
        elif regime == "below" and (index.high if index.high == index.high else index.value) < 0:
            kind = "negative"
        kinds.setdefault(kind, []).append(b)
    said = "; ".join(f"b = {', '.join(several)}: {_EXPECTED[kind]}" for kind, several in kinds.items())
    acting = partial(found.acting, asked=[b for kind in ("below", "negative") for b in kinds.get(kind, ())])
    evidence: dict[str, Any] = {
        "none": found.nothing,
        "above": found.inert,
        "below": acting,
        "negative": acting,
    }
    made = [partial(find, studies) for find in dict.fromkeys(evidence.get(kind, found.turning) for kind in kinds)]
    if (cap := get("model", "softcap").value) == cap:
        made.append(partial(found.capped, studies, cap))
    return f"Would smoothing act, if the text is like the training data? {said}.", cited(*made)


_EXPECTED = {
    "none": "not as elsewhere: on this text it only weakens the data's own pull to smaller logits",
    "unknown": "this text cannot tell",
    "above": "not once trained to the end where one next token is right, somewhat where several are, as in most text",
    "above, near": "hardly where one next token is right, somewhat where several are, as in most text",
    "below, near": "a little where one next token is right, more where several are, as in most text",
    "below": "yes",
    "negative": "yes, and plain training on this text would lower confidence too",
}


def _at_most(get: Lookup, studies: Studies) -> tuple[str, str]:
    regime, p, v = regimes(get), get("prediction", "confidence").value, int(get("model", "vocab_size").value)
    if "none" in regime.values():
        none = "No rule says: each needs an activity index, and there is none here."
        return f"How much confidence would it take? {none}", ""
    most = ", ".join(f"{_most(get, b, p, v):.3f} (b = {b})" for b in regime)
    indices = [get("smoothing", "activity", b) for b in regime]
    low = [_low(get, b) for b in regime]
    rules = ["clipped_fall", "rational_fall"] if max(low) >= 0 else ["clipped_fall"]
    made = [partial(found.missed, studies, rules)]
    if min(low) < 1:  # above, clipped_fall is 0, and 3 times that says nothing
        made.append(partial(found.tuned, studies))
    said = "clipped_fall" + (", or rational_fall where it is larger" if len(rules) > 1 else "")
    end = "with the lower end of A's interval" if any(a.low == a.low for a in indices) else "with A as it is here"
    fared = f": tunings of {TUNED_MODELS} took {TUNED} times what clipped_fall says" if min(low) < 1 else ""
    rule = f"By {said}, {end}: {most} of a mean confidence of {p:.3f}; rules, no bounds{fared}."
    return f"How much confidence would it take? {rule}", cited(*made)


def _low(get: Lookup, b: str) -> float:
    """The lower end of the index, or the index where it has no interval."""
    index = get("smoothing", "activity", b)
    return index.low if index.low == index.low else index.value


def _most(get: Lookup, b: str, p: float, v: int) -> float:
    """The larger of the two rules, at the lower end of the index."""
    low = _low(get, b)
    falls = [float(clipped_fall(p, low, v, float(b)))]
    if ("smoothing", "predicted_fall", b) in get.found:  # clipped_fall with its interval; not in earlier tables
        fall = get("smoothing", "predicted_fall", b)
        falls.append(fall.high if fall.high == fall.high else fall.value)
    if low >= 0:  # below, rational_fall says less and less of what smoothing does
        falls.append(float(rational_fall(p, low, v, float(b))))
    return max(falls)


def _instead(get: Lookup, studies: Studies) -> tuple[str, str]:
    ece, floor = get("calibration", "ece"), get("calibration", "ece_if_calibrated")
    side = side_of(get)
    said, evidence = _ADVICE[side].format(slightly(get)), found.harm
    if get.bounded:
        said = f"{said}; take another text, as no temperature fits this one ({_fitted(get)})"
    elif side != "over" or ece.value <= floor.high:
        said = f"{said}; {_offer(get)}"
    else:
        acts = any(regime in ("below", "unknown") for regime in regimes(get).values())
        other = "stop earlier, or smooth and compare" if acts else "stop earlier"
        so = f"fit a temperature ({_fitted(get)})" if _mends(get) else f"{_offer(get)}: {other}"
        seen = f"its ECE of {ece.value:.3f} is above what chance alone shows (up to {floor.high:.3f})"
        said, evidence = f"{said}, and {seen}; {so}", found.rivals
    told = "No study had such a text." if get.bounded else cited(partial(evidence, studies))
    return f"What to do for calibration, if the text is new to the model? {said[0].upper()}{said[1:]}.", told


_ADVICE = {
    "over": "the model is {}over-confident",
    "under": "do not smooth, as the model is {}under-confident",
    "even": "do not smooth, as confidence is right on average",
    "unknown": "take more documents, as this text cannot tell whether the model is over- or under-confident",
    "mixed": "this text cannot tell whether the model is over- or under-confident, as entropy and confidence disagree",
}


def _mends(get: Lookup) -> bool:
    """Whether the best temperature lowers the error."""
    return not get.bounded and get("temperature", "ece_after").value < get("calibration", "ece").value


def _offer(get: Lookup) -> str:
    """What a temperature can do for the error, if there is any."""
    ece, most = get("calibration", "ece").value, get("calibration", "ece_if_calibrated").high
    if ece <= most:
        return f"leave it: an ECE of {ece:.3f} is seen of calibrated predictions too (up to {most:.3f})"
    return f"{'a temperature may help' if _mends(get) else 'no temperature mends it'} ({_fitted(get)})"


def _fitted(get: Lookup) -> str:
    """What the best temperature does to the error of the tokens that it is fitted to."""
    best, ece, after = (get(*key).value for key in _FITTED)
    if get.bounded:
        return f"the best lies beyond {best:g}, where the ECE is {after:.3f}"
    return f"the best one, {best:.3f}, takes the ECE from {ece:.3f} to {after:.3f}, fitted and measured on this text"


_FITTED = (("temperature", "best"), ("calibration", "ece"), ("temperature", "ece_after"))
