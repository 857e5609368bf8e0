"""What an audit measures, one part of the table each, from statistics of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..calibration import CalibrationState, SignedError, TemperatureFit, frequency_groups, sorted_rms_error
from ..diagnostics import HeadGeometry
from ..response import clipped_fall
from ..smoothing import activity_index, optimal_confidence, optimal_gap
from ._intervals import Documents, Estimate

Array = NDArray[np.float64]
Row = dict[str, Any]
BINS = 15
GROUPS = 5  # fifths of the tokens by frequency and by entropy
_CONTEXTS = 4  # each range of context lengths is so much longer than the one before
_QUANTILES = {"lowest": 0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "top_5_percent": 0.95, "largest": 1}


class Tokens(NamedTuple):
    """Statistics of the predicted tokens at one temperature, ``(n,)`` each, in nats where not said otherwise."""

    document: NDArray[np.int64]
    context: NDArray[np.int64]  # tokens before the target
    target: NDArray[np.int64]
    predicted: NDArray[np.int64]  # the most probable token
    entropy: Array
    nll: Array
    uniform: Array  # cross entropy against the uniform distribution, lse - mean logit
    confidence: Array  # probability of the most probable token
    log1m_confidence: Array
    correct: NDArray[np.bool_]

    @property
    def gap(self) -> Array:
        """Log p / (1 - p) of the confidence, without the log(V - 1) of the gap."""
        return np.log(self.confidence) - self.log1m_confidence


def row(part: str, name: str, value: float | Estimate = float("nan"), group: object = "", text: str = "") -> Row:
    """One line of the table."""
    estimate = value if isinstance(value, Estimate) else Estimate(float(value))
    return {"part": part, "name": name, "group": str(group), **estimate._asdict(), "text": text}


def geometry(head: HeadGeometry) -> Iterator[Row]:
    """Norms and spectra."""
    for name in (
        *("row_norm", "row_norm_rms", "centred_row_norm_rms", "feature_norm_max", "feature_norm_rms", "norm_product"),
        *("typical_norm_product", "logit_std", "target_cosine", "participation_ratio"),
    ):
        yield row("head", name, float(getattr(head, name)))
    ranks = np.unique(np.geomspace(1, head.hidden_size, 25).round().astype(int))
    for name in ("singular_values", "centred_singular_values"):
        for rank in ranks:
            yield row("spectrum", name, float(getattr(head, name)[rank - 1]), rank)


def prediction(tokens: Tokens, documents: Documents) -> Iterator[Row]:
    """Means over the tokens."""
    for name, values in (
        ("accuracy", tokens.correct), ("confidence", tokens.confidence), ("cross_entropy", tokens.nll),
        ("entropy", tokens.entropy), ("uniform_cross_entropy", tokens.uniform),
        ("scale_gap", tokens.entropy - tokens.nll),
    ):  # fmt: skip
        yield row("prediction", name, documents.mean(values))


def smoothing(
    tokens: Tokens, documents: Documents, head: HeadGeometry, softcap: float | None, label_smoothing: Sequence[float]
) -> Iterator[Row]:
    """For each b: the activity index, the slope whose sign it tells, what the smoothed loss asks for, and the caps."""
    for b in label_smoothing:

        def index(h: Array, ce: Array, u: Array, n: Array, b: float = b) -> Array:
            return activity_index(h / n, ce / n, u / n, b)

        ones = np.ones(len(tokens.nll))
        index_row = documents.estimate(index, tokens.entropy, tokens.nll, tokens.uniform, ones)
        yield row("smoothing", "activity", index_row, b)

        def fall(h: Array, ce: Array, u: Array, p: Array, n: Array, b: float = b) -> Array:
            return clipped_fall(np.clip(p / n, 0, 1), activity_index(h / n, ce / n, u / n, b), head.vocab_size, b)

        parts = (tokens.entropy, tokens.nll, tokens.uniform, tokens.confidence, ones)
        yield row("smoothing", "predicted_fall", documents.estimate(fall, *parts), b)
        pull = b * (tokens.uniform - tokens.nll)
        yield row("smoothing", "pull", documents.mean(pull), b)
        yield row("smoothing", "slope", documents.mean(tokens.entropy - tokens.nll - pull), b)
        asked = float(optimal_gap(b, head.vocab_size))
        yield row("smoothing", "asked_gap", asked, b)
        yield row("smoothing", "asked_confidence", float(optimal_confidence(b, head.vocab_size)), b)
        above = tokens.gap + np.log(head.vocab_size - 1) > asked
        yield row("smoothing", "share_above", documents.mean(above), b)
        for cap in head.cap_table(b, softcap=softcap):
            yield row("cap", cap.name, cap.gap, b, cap.verdict)


def gaps(tokens: Tokens, vocab_size: int) -> Iterator[Row]:
    """Confidence gaps of the most probable token: typical and largest."""
    gap = tokens.gap + np.log(vocab_size - 1)
    for name, share in _QUANTILES.items():
        yield row("gap", name, float(np.quantile(gap, share)))


def _state(
    tokens: Tokens, group: NDArray[np.int64] | None = None, names: Sequence[str] | None = None
) -> CalibrationState:
    """The tokens in a calibration state."""
    state = CalibrationState(BINS, groups=names)
    return state.update(
        tokens.confidence, tokens.correct, group, log1m_confidence=tokens.log1m_confidence, nll=tokens.nll
    )


def _binned(tokens: Tokens, documents: Documents, power: int) -> Estimate:
    """l1 or l2 calibration error over equal-width bins, resampled over documents."""
    index = np.clip(np.ceil(tokens.confidence * BINS).astype(int) - 1, 0, BINS - 1)
    one_hot = np.eye(BINS)[index]
    excess = one_hot * (tokens.confidence - tokens.correct)[:, None]

    def error(n: Array, over: Array) -> Array:
        share = n / n.sum(-1, keepdims=True)
        gap = np.abs(np.divide(over, n, out=np.zeros_like(over), where=n > 0))
        return (share * gap**power).sum(-1) ** (1 / power)

    return documents.error(error, one_hot, excess)


def calibration(tokens: Tokens, documents: Documents) -> Iterator[Row]:
    """Calibration errors of the most probable token, what perfect calibration would show, and the reliability table."""
    state = _state(tokens)
    signed: SignedError = state.signed_error()
    floor = state.noise_floor()
    for name, value in (
        ("ece", _binned(tokens, documents, 1)),
        ("rms", _binned(tokens, documents, 2)),
        ("rms_sorted", float(sorted_rms_error(tokens.confidence, tokens.correct)[0])),
        ("over", signed.over),
        ("under", signed.under),
        ("ece_if_calibrated", Estimate(floor.mean, float("nan"), floor.high)),
    ):
        yield row("calibration", name, value)
    for place, line in enumerate(state.reliability_table().to_dict("records"), start=1):
        for name in ("lower", "upper", "n", "confidence"):
            yield row("reliability", name, line[name], place)
        for name, centre in (("accuracy", "accuracy"), ("calibrated", "confidence")):
            yield row("reliability", name, Estimate(line[centre], line[f"{name}_low"], line[f"{name}_high"]), place)


def _frequency(tokens: Tokens) -> NDArray[np.int64]:
    """Fifth of each predicted token by its frequency among the targets of all other documents, rarest first.

    Not by the target's frequency: that is known afterwards only, and whoever is calibrated is wrong more often where it
    is rare. Nor by counts that hold the document itself: a token is then rare where it was predicted in vain, and who
    is calibrated looks over-confident there. What other documents hold says nothing about being right in this one.
    """
    _, seen = np.unique(np.concatenate([tokens.target, tokens.predicted]), return_inverse=True)
    target, predicted = np.split(seen, 2)
    total = np.bincount(target, minlength=int(seen.max()) + 1)
    index = np.empty(len(target), np.int64)
    for document in np.unique(tokens.document):
        own = tokens.document == document
        others = total - np.bincount(target[own], minlength=len(total))
        index[own] = frequency_groups(others, GROUPS)[predicted[own]]
    return index


def groups(tokens: Tokens, documents: Documents) -> Iterator[Row]:
    """Calibration by frequency of the predicted token, if there are two documents, and by entropy of the prediction."""
    order = np.empty(len(tokens.entropy), np.int64)
    order[np.argsort(tokens.entropy, kind="stable")] = np.arange(len(order))
    fifths = {"frequency": _frequency(tokens)} if documents.count > 1 else {}
    for part, index in {**fifths, "entropy": order * GROUPS // len(order)}.items():
        names = [str(i + 1) for i in range(GROUPS)]
        state = _state(tokens, index, names)
        for i, name in enumerate(names):
            kept = index == i
            if not kept.any():
                continue
            yield row(part, "n", int(kept.sum()), name)
            yield row(part, "accuracy", documents.mean(tokens.correct, kept), name)
            yield row(part, "confidence", documents.mean(tokens.confidence, kept), name)
            yield row(part, "over_confidence", documents.mean(tokens.confidence - tokens.correct, kept), name)
            yield row(part, "cross_entropy", documents.mean(tokens.nll, kept), name)
            yield row(part, "mean_entropy", documents.mean(tokens.entropy, kept), name)
            yield row(part, "ece", state.select(name).calibration_error(), name)


def contexts(tokens: Tokens, documents: Documents) -> Iterator[Row]:
    """Loss and calibration by the number of tokens before the predicted one; a range is named by its first number."""
    low, high = 1, 8
    while (tokens.context >= low).any():
        kept = (tokens.context >= low) & (tokens.context < high)
        if kept.any():
            yield row("context", "n", int(kept.sum()), low)
            for name, values in (
                ("cross_entropy", tokens.nll), ("scale_gap", tokens.entropy - tokens.nll),
                ("over_confidence", tokens.confidence - tokens.correct),
            ):  # fmt: skip
                yield row("context", name, documents.mean(values, kept), low)
        low, high = high, _CONTEXTS * high


def temperature(fit: TemperatureFit, after: Tokens, documents: Documents) -> Iterator[Row]:
    """The temperature that fits this text best, its interval over documents, and what is left at it."""
    slope = after.entropy - after.nll  # dCE / d log T: its mean is 0 there
    per_document = np.zeros(documents.count)
    np.add.at(per_document, documents.index, slope)
    # The fit's error takes tokens as independent; this is its ratio to that of documents.
    half = 1.96 * fit.standard_error * float(np.sqrt((per_document**2).sum() / (slope**2).sum()))
    ends = (fit.temperature - half, fit.temperature + half) if documents.count > 1 else (float("nan"),) * 2
    yield row("temperature", "best", Estimate(fit.temperature, *ends), text="at a bound" if fit.at_bound else "")
    yield row("temperature", "cross_entropy_after", documents.mean(after.nll))
    yield row("temperature", "confidence_after", documents.mean(after.confidence))
    yield row("temperature", "ece_after", _binned(after, documents, 1))
