"""What findings say of transformers trained from scratch, K1 to K6, K8 and the law; and of those on real text."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..findings import Finding, Findings
from ._heads import restored
from ._phrases import Sentences, at_sizes, number, span
from ._tuning import k1, themselves


def k2_transformers(found: Findings) -> Sentences:
    others, better = themselves(found)
    gains = [*found.at("gain"), *found.at("gain_elsewhere")]
    return Sentences(
        headline=found("gain"),
        effect="true ECE on new shifted tokens at the last epoch, b = 0 minus b = .1",
        depends_on="the language, hidden size and vocabulary",
        condition=f"on the broad language {found('gain_elsewhere')}; above 0 in {sum(g.low > 0 for g in gains)} of "
        f"{len(gains)} (V, D) of both. Gains of others over b = 0: {others}",
        counter_evidence=f"lowers the true ECE further: {better}; change in AURC {found('aurc_gain')} and in RMS error "
        f"{found('rms_gain')} (positive: better), accuracy, b = 0 minus b = .1, {found('accuracy_loss')}",
    )


def k3_transformers(found: Findings) -> Sentences:
    steps, further = found.at("share_step"), found.at("divergence_step")
    return Sentences(
        headline=steps[0],
        effect="confidence over the truth's own on the language of pretraining, largest D minus smallest, at "
        f"V = {steps[0].cell['V']}",
        depends_on="vocabulary and fit",
        condition=f"the narrow model is further from the truth by {_at_v(further)} nats; over V at the largest D the "
        f"share changes by {_grown(found, 'share_over_v')}",
        counter_evidence=_gate(found),
    )


def k4_transformers(found: Findings) -> Sentences:
    shares, indices = found.at("fall_share"), found.at("activity")
    pairs = [(f, found.at("fall_gain_predicted", **f.cell)) for f in found.at("fall")]
    ratios = [p[0].mean / f.mean for f, p in pairs if p and f.mean]
    return Sentences(
        headline=found.at("fall_share_step")[0],
        effect="fall in confidence from b = .1 on new shifted tokens over b (confidence - 1/V), largest D minus "
        f"smallest, at V = {found.at('fall_share_step')[0].cell['V']}",
        depends_on="hidden size and vocabulary",
        condition=f"the fall over b (confidence - 1/V) is {at_sizes(shares)}; over V at the largest D it changes by "
        f"{_grown(found, 'fall_share_over_v')}. Over D it changes by {_at_v(found.at('fall_share_step'))}"
        f"{_of_others(found)}. The narrow model is further from the truth by "
        f"{_at_v(found.at('divergence_step'))} nats. A of the tokens tuned on: {span(i.mean for i in indices)}",
        counter_evidence=f"{_gate(found)}. A gain for each dimension, solved on the tokens tuned on, predicts "
        f"{number(min(ratios, default=float('nan')), '.2f')} to {number(max(ratios, default=float('nan')), '.2f')} "
        "times the fall" + _early(found),
    )


def k8_transformers(found: Findings) -> Sentences:
    return Sentences(
        headline=found("rank_rise"),
        effect="effective rank of the features on new shifted tokens at the last epoch, b = .1 minus b = 0",
        depends_on="hidden size and vocabulary",
        condition=f"by (V, D): {at_sizes(found.at('rank_rise'))}; correlation of rank and true ECE over tunings "
        f"without smoothing {found('correlation')}",
        counter_evidence=f"the smaller half of the spectrum gains {found('smallest_share_rise')} of the variance",
    )


def k3_text(found: Findings) -> Sentences:
    steps, further = found.at("confidence_step"), found.at("bits_step")
    return Sentences(
        headline=steps[0],
        effect="confidence of pretrained models on held-out text, largest D minus smallest, at "
        f"V = {steps[0].cell['V']}",
        depends_on="vocabulary and fit",
        condition=f"by V: {_at_v(steps)}; the narrow model needs more bits per byte by {_at_v(further)}",
        counter_evidence="confidence is not compared over V, as other tokens are predicted there",
    )


def k4_text(found: Findings) -> Sentences:
    return Sentences(
        headline=found.at("fall_share_step")[0],
        effect="fall in confidence from b = .1 on held-out pairs over b (confidence - 1/V), largest D minus smallest, "
        f"at V = {found.at('fall_share_step')[0].cell['V']}",
        depends_on="hidden size and vocabulary",
        condition=f"the fall over b (confidence - 1/V) is {at_sizes(found.at('fall_share'))}; over V at the largest D "
        f"it changes by {_at_v(found.at('fall_share_over_v'))}; over D by {_at_v(found.at('fall_share_step'))}, in the "
        f"mean {found('fall_share_step')}. A of the tokens tuned on: "
        f"{span(i.mean for i in found.at('activity'))}",
        counter_evidence="before tuning the models need so many bits per byte of held-out text: "
        f"{at_sizes(found.at('bits_per_byte'))}",
    )


def law(new: str) -> Callable[[Findings], Sentences]:
    """The law, its falls read on ``new`` tokens."""

    def said(found: Findings) -> Sentences:
        cells = len(found.at("gain_ratio"))
        near = {kind: sum(abs(r.mean - 1) <= 0.2 for r in found.at(f"{kind}_ratio")) for kind in _KINDS}
        solved = {
            kind: name for kind, name in _KINDS.items() if any(r.mean == r.mean for r in found.at(f"{kind}_ratio"))
        }
        named = [f"{name} {_range(found, kind)}, within 20 % at {near[kind]}" for kind, name in solved.items()]
        return Sentences(
            headline=found("gain_error"),
            effect=f"fall in confidence from b = .1 on {new} that a gain for each dimension predicts, minus the fall",
            depends_on="hidden size, vocabulary and prediction",
            condition=f"predicted over measured at {cells} (V, D): {'; '.join(named)}",
            counter_evidence=f"P of free features over the fall on the tokens tuned on: {_range(found, 'frozen')}",
        )

    return said


_KINDS = {
    "scale": "one scale",
    "gain": "a gain for each dimension",
    "low_rank": "a map of low rank",
    "affine": "an affine map",
    "clipped": "b (confidence - 1/V) (1 - A), clipped",
    "rational": "b (confidence - 1/V) / (1 + A)",
}


def _range(found: Findings, kind: str) -> str:
    ratios = [ratio.mean for ratio in found.at(f"{kind}_ratio") if ratio.mean == ratio.mean]
    return " to ".join(dict.fromkeys(f"{end(ratios):.2f}" for end in (min, max))) if ratios else number(math.nan, "")


def _at_v(found: list[Finding]) -> str:
    return ", ".join(f"{made} at V = {made.cell['V']}" for made in found)


def _grown(found: Findings, name: str) -> str:
    listed = [f"{made} at V = {made.cell['V']} ({made.cell['symbols']})" for made in found.at(name)]
    return ", ".join(listed) or "not known"


def _of_others(found: Findings) -> str:
    steps = found.at("share_step_of")
    return "".join(f", {made} ({made.cell['kind']})" for made in steps if "V" not in made.cell)


def _early(found: Findings) -> str:
    name = "fall_share_over_v_at_epoch_"
    epochs = sorted({f.finding.removeprefix(name) for f in found.listed if f.finding.startswith(name)})
    return "".join(
        f". After {e} epochs the fall over b (confidence - 1/V) changes over V by {_grown(found, name + e)}"
        for e in epochs
    )


def _gate(found: Findings) -> str:
    tuned = _grown(found, "tuned_divergence_over_v") * found.has("tuned_divergence_over_v")
    return (
        "comparisons over V count where the divergence from the truth at the largest D is within .02 nats of that at "
        f"the least V; it changes by {_grown(found, 'divergence_over_v')}"
        + f", and on the shifted language after tuning without smoothing by {tuned}"
        * bool(tuned)
    )


TRANSFORMERS = {
    "K1": k1,
    "K2": k2_transformers,
    "K3": k3_transformers,
    "K4": k4_transformers,
    "K5": restored("T", "training T =", "new shifted tokens"),
    "K6": restored("cap", "a training cap of", "new shifted tokens"),
    "K8": k8_transformers,
    "law": law("new shifted tokens"),
}
TEXTS = {"K3": k3_text, "K4": k4_text, "law": law("held-out pairs")}
