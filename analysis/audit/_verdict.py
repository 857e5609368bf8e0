"""The table of an audit in sentences: is the model calibrated here, would smoothing act, and which way."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ._intervals import Estimate

# Falls of tunings over clipped_fall, on new texts: of SmolLM2-135M on questions, a test reads them off
# instruction_full.csv and instruction_candidates.csv; it, too, reads off the tables real_* that all tunings on pairs
# lie between.
TUNED = "0.3 to 3.2"
TUNED_MODELS = "SmolLM2 and Gemma"
_SLIGHT = 0.05  # confidence off accuracy by less is called slight


class Lookup:
    """Numbers of an audit's table by part, name and group."""

    def __init__(self, table: pd.DataFrame) -> None:
        groups = [_group(value) for value in table["group"]]
        keys = zip(table["part"], table["name"], groups, strict=True)
        values = zip(table["value"], table["low"], table["high"], strict=True)
        self.found = {key: Estimate(*map(float, value)) for key, value in zip(keys, values, strict=True)}
        self.bounded = bool((table["text"].eq("at a bound") & table["part"].eq("temperature")).any())
        caps = table.assign(group=groups).loc[table["part"] == "cap", ["group", "name", "value", "text"]]
        self.caps = [(g, n, float(v), t) for g, n, v, t in caps.itertuples(index=False)]

    def __call__(self, part: str, name: str, group: str = "") -> Estimate:
        try:
            return self.found[part, name, group]
        except KeyError as error:
            raise ValueError(f"table must hold {name} {group} of {part}: it is no table of an audit.") from error

    def groups(self, part: str, name: str) -> list[str]:
        """Groups that have such a number, in ascending order."""
        return sorted((group for p, n, group in self.found if (p, n) == (part, name)), key=float)


def verdict(table: pd.DataFrame) -> str:
    """Put the table of an audit into sentences: calibration, what smoothing would do, and the ceilings.

    Raises:
        ValueError: If the table is no such table.
    """
    return "\n".join((*_calibration(Lookup(table)), *_smoothing(Lookup(table)), *_ceiling(Lookup(table))))


def regimes(get: Lookup) -> dict[str, str]:
    """For each b on which side of 1 its index lies: above, below, unknown where its interval holds 1; none without one.

    There is none where the model gives the tokens less probability than uniform ones, and then for no b.
    """
    asked = get.groups("smoothing", "activity")
    if all(get("smoothing", "pull", b).value <= 0 for b in asked):  # of one sign for all b
        return dict.fromkeys(asked, "none")
    indices = {b: get("smoothing", "activity", b) for b in asked}
    return {b: "unknown" if covers(a, 1.0) else "above" if a.value > 1 else "below" for b, a in indices.items()}


def _calibration(get: Lookup) -> Iterator[str]:
    confidence, accuracy = get("prediction", "confidence"), get("prediction", "accuracy")
    gap, ece = get("prediction", "scale_gap"), get("calibration", "ece")
    fit, after = get("temperature", "best"), get("temperature", "ece_after")
    best = f"beyond {fit.value:g}" if get.bounded else _text(fit)
    side = side_of(get)
    said = _SIDES[side]
    if slightly(get):
        said = f"the model is slightly {side}-confident (by {abs(_excess(get)):.3f})"
    yield (
        f"Calibration. On this text {said}: entropy minus cross entropy is {_text(gap)} nats, "
        f"confidence {_text(confidence)} against accuracy {_text(accuracy)}, ECE {_text(ece)} where perfect "
        f"calibration would show {get('calibration', 'ece_if_calibrated').value:.3f} on average. The temperature that "
        f"fits best is {best}; it leaves an ECE of {after.value:.3f}."
    )


_SIDES = {
    "over": "the model is over-confident",
    "under": "the model is under-confident",
    "even": "the model is as confident as it should be",
    "unknown": "the model is not calibrated, and whether it is over- or under-confident is not told",
    "mixed": "the model is over-confident by one measure and under-confident by the other",
}


def side_of(get: Lookup) -> str:
    """Whether confidence is too high (over), too low (under) or right (even) here, or cannot be told.

    Entropy minus cross entropy says so, and confidence beside accuracy: where they contradict each other it is mixed,
    where neither tells and the ECE exceeds that of calibrated predictions, unknown. An interval that holds 0 is no
    proof of calibration.
    """
    ece, floor = get("calibration", "ece").value, get("calibration", "ece_if_calibrated").high
    by_scale = sign_of(get("prediction", "scale_gap"), negative="over", positive="under", neither="")
    sure, right = get("prediction", "confidence"), get("prediction", "accuracy")
    apart = sure.low > right.high or right.low > sure.high
    if sure.low != sure.low:  # of one document
        apart = abs(sure.value - right.value) > floor
    by_accuracy = ("over" if sure.value > right.value else "under") if apart else ""
    if by_scale and by_accuracy and by_scale != by_accuracy:
        return "mixed"
    return by_scale or by_accuracy or ("even" if ece <= floor else "unknown")


def slightly(get: Lookup) -> str:
    """The word where confidence is off accuracy by little, to the side that the model is said to be on."""
    excess = _excess(get)
    return "slightly " if abs(excess) < _SLIGHT and excess * {"over": 1, "under": -1}.get(side_of(get), 0) > 0 else ""


def _excess(get: Lookup) -> float:
    """Confidence minus accuracy, of the numbers that are shown."""
    return round(get("prediction", "confidence").value, 3) - round(get("prediction", "accuracy").value, 3)


def _smoothing(get: Lookup) -> Iterator[str]:
    regime = regimes(get)
    unknown, above, below = ([b for b, name in regime.items() if name == n] for n in ("unknown", "above", "below"))
    if "none" in regime.values():
        yield (
            "Smoothing. No activity index: the model gives the tokens of this text less probability than tokens drawn "
            f"uniformly (cross entropy {get('prediction', 'cross_entropy').value:.2f} against "
            f"{get('prediction', 'uniform_cross_entropy').value:.2f}). Both losses want smaller logits; smoothing "
            "does not pull that way here, it weakens the pull of the data."
        )
        return
    indices = {b: get("smoothing", "activity", b) for b in regime}

    def shown(several: list[str]) -> str:
        return "Smoothing. Activity index " + ", ".join(f"{_text(indices[b])} (b = {b})" for b in several)

    if unknown:
        yield f"{shown(unknown)}: this text cannot tell whether smoothing would act."
    if above:
        yield (
            f"{shown(above)}, above 1: smoothing would not act at first; even the smoothed loss wants larger logits "
            "than these, and its pull only slows their growth. Noisy targets and unfinished training blur the turn at "
            "1: in simulations with noisy targets confidence still fell at indices of 1 to 3, by up to 0.052."
        )
    if below:
        gap = get("prediction", "scale_gap")
        plain = sign_of(gap, negative=", and plain training on this text would go it too", positive="", neither="")
        way = _WAYS[side_of(get)] + (plain if side_of(get) == "over" else "")
        pulls = ", ".join(f"{get('smoothing', 'pull', b).value:.2f}" for b in below)
        yield (
            f"{shown(below)}, below 1: smoothing would act and make logits smaller, confidence lower: {way}. It pulls "
            f"with {pulls} nats for each unit of log T; the data with {-gap.value:.2f}."
        )
    falls = {b: get("smoothing", "predicted_fall", b) for b in get.groups("smoothing", "predicted_fall")}
    if falls:  # not in tables of earlier audits
        yield (
            "Predicted fall in confidence " + ", ".join(f"{_text(fall)} (b = {b})" for b, fall in falls.items()) + ", "
            "from the confidence and A alone. It is for targets and features that are free in every context; the "
            f"features of a trained model are not free: tunings of {TUNED_MODELS} fell by {TUNED} times as "
            "much on new texts, two to three times on ordinary text."
        )


_WAYS = {
    "over": "the right way here, as the model is over-confident",
    "under": "the wrong way here, as the model is under-confident",
    "even": "away from where the model is calibrated",
    "unknown": "whether that is the right way here this text cannot tell",
    "mixed": "whether that is the right way here this text cannot tell",
}


def _ceiling(get: Lookup) -> Iterator[str]:
    typical, largest = get("gap", "median").value, get("gap", "largest").value
    asked = {b: get("smoothing", "asked_gap", b).value for b in get.groups("smoothing", "asked_gap")}
    binding = {b: [name for group, name, _, text in get.caps if group == b and text == "binds"] for b in asked}
    lowest = min((gap, name) for _, name, gap, _ in get.caps)
    wanted = ", ".join(f"{gap:.1f} (b = {b})" for b, gap in asked.items())
    named = [f"{_listed(names)} (b = {b})" for b, names in binding.items() if names]
    if named:
        so = f"below it for every token at once lie the caps {'; '.join(named)}: they keep smoothing from its optimum"
    else:
        so = f"no cap stands in the way: the lowest, {lowest[1].replace('_', ' ')}, allows {lowest[0]:.1f}"
    yield (
        f"Ceiling. The confidence gap is {typical:.1f} nats for the median token and {largest:.1f} at most; smoothing "
        f"asks for {wanted}; {so}."
    )


def _listed(names: list[str]) -> str:
    """The names of caps as a sentence has them: a, b and c."""
    *first, last = (name.replace("_", " ") for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def _group(value: object) -> str:
    """A group as it was written, also where a file was read back as numbers."""
    try:
        number = float(str(value))
    except ValueError:
        return str(value)
    return "" if number != number else f"{number:g}"


def covers(estimate: Estimate, value: float) -> bool:
    """Whether the interval holds the value; one that is not known holds none."""
    return estimate.low <= value <= estimate.high


def sign_of(estimate: Estimate, *, negative: str, positive: str, neither: str) -> str:
    """A word for where the interval lies about 0; without an interval, for where the value does."""
    if covers(estimate, 0.0) or estimate.value == 0:
        return neither
    return positive if estimate.value > 0 else negative


def _text(estimate: Estimate) -> str:
    shown = f"{estimate.value:.3f}"
    return shown if estimate.low != estimate.low else f"{shown} [{estimate.low:.3f}, {estimate.high:.3f}]"
