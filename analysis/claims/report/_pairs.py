"""What findings say of real models tuned on pairs of instruction and response."""

from __future__ import annotations

from ..findings import Findings
from ._phrases import Sentences

__all__ = ["PAIRS"]


def _k1(found: Findings) -> Sentences:
    first, last = int(found["first_epoch"]), int(found["last_epoch"])
    return Sentences(
        headline=found("rise_elsewhere"),
        effect=f"ECE on ordinary text, epoch {last} minus before tuning",
        depends_on="what is read",
        condition=f"no smoothing; on held-out responses the ECE changes by {found('rise_asked')} from epoch {first} to "
        f"{last}, among the options of questions, by normalised cloze, by {found('rise_options')}",
        counter_evidence=f"on held-out responses the ECE before tuning changes by {found('rise_asked_from_start')}, "
        f"accuracy by {found('accuracy_rise_asked')}; NLL on text by {found('nll_rise_elsewhere')}",
    )


def _k2(found: Findings) -> Sentences:
    gains = {
        "a temperature fitted on other responses": found("gain_of", method="b=0 post_hoc"),
        "early stopping": found("gain_of", method="early stopping"),
    }
    better = [name for name, gain in gains.items() if gain.mean > found["gain"]]
    return Sentences(
        headline=found("gain"),
        effect="ECE on held-out responses at the last epoch, b = 0 minus b = .1",
        depends_on="what is read",
        condition=f"on ordinary text {found('gain_elsewhere')}; among the options of questions "
        f"{found('gain_options')}. Gains of others over b = 0: "
        + ", ".join(f"{name} {gain}" for name, gain in gains.items()),
        counter_evidence=f"lowers the ECE further: {', '.join(better) or 'none'}; change in AURC {found('aurc_gain')} "
        f"and in RMS error {found('rms_gain')} (positive: better); accuracy falls by {found('accuracy_loss')}, with "
        f"early stopping by {found('accuracy_loss_of', method='early stopping')}",
    )


def _k4(found: Findings) -> Sentences:
    cuts = ", ".join(f"{fall} at V = {fall.cell['V']}" for fall in found.at("fall_at"))
    shrinks = f"; from the smallest to the whole it shrinks by {found('shrinks')}" if found.has("shrinks") else ""
    before, after = found.at("activity")
    return Sentences(
        headline=found("fall"),
        effect="fall in confidence on held-out responses from b = .1 at the last epoch, whole vocabulary",
        depends_on="the vocabulary",
        condition=f"without smoothing confidence exceeds accuracy by {found('excess')}"
        + (f". On the same documents, the vocabulary cut: {cuts}{shrinks}" if cuts else ""),
        counter_evidence=f"activity index of b = .1 on the responses tuned on {before} before tuning and {after} after "
        f"it without smoothing (above 1: inert); accuracy falls by {found('accuracy_loss')}",
    )


def _k8(found: Findings) -> Sentences:
    return Sentences(
        headline=found("rank_rise"),
        effect="effective rank of the features on held-out responses at the last epoch, b = .1 minus b = 0",
        depends_on="the seed",
        condition=f"without smoothing it is {found('rank')}",
        counter_evidence=f"the smaller half of the spectrum gains {found('smallest_share_rise')} of the variance; that "
        "more rank helps is not asked of two losses",
    )


def _k9(found: Findings) -> Sentences:
    return Sentences(
        headline=found("gap_fall"),
        effect="gap of held-out minus training NLL (nats) at the last epoch, b = 0 minus b = .1",
        depends_on="what counts as keeping the accuracy",
        condition=f"accuracy on held-out responses falls by {found('accuracy_loss')}",
        counter_evidence=f"held-out NLL itself falls by {found('held_out_fall')}, AURC by {found('aurc_gain')}",
    )


PAIRS = {"K1": _k1, "K2": _k2, "K4": _k4, "K8": _k8, "K9": _k9}
