"""What findings say of tuning, simulated and of a real model: K1, K2, K8 and K9 in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from ..findings import Findings
from ..tuning import RIVALS, lower_rank_and_error
from ._phrases import Sentences, at_sizes, by_kind


def _epochs(found: Findings) -> tuple[int, int]:
    return int(found["first_epoch"]), int(found["last_epoch"])


def k1(found: Findings) -> Sentences:
    (first, last), depends_on = _epochs(found), "the distribution"
    rises = [rise.mean > 0 for rise in (*found.at("rise_elsewhere"), *found.at("rise_asked"))]
    return Sentences(
        headline=found("rise_elsewhere"),
        effect=f"true ECE on the broad distribution, epoch {last} minus before tuning",
        depends_on=depends_on,
        condition=f"{depends_on}: without smoothing it rises on the broad one, and on new shifted contexts by "
        f"{found('rise_asked')} from epoch {first} to {last}; the means of {sum(rises)} of {len(rises)} (V, D) of both "
        "are above 0",
        counter_evidence="on the shifted distribution tuning changes the true ECE of the pretrained model, by "
        f"(V, D), by {at_sizes(found.at('rise_asked_from_start'))}; on the broad one accuracy changes by "
        f"{found('accuracy_rise_elsewhere')}",
    )


def k1_model(found: Findings) -> Sentences:
    first, last = _epochs(found)
    return Sentences(
        headline=found("rise_elsewhere"),
        effect=f"ECE on ordinary text, epoch {last} minus before tuning",
        depends_on="the kind of text",
        condition=f"no smoothing; on new questions the ECE changes by {found('rise_asked')} from epoch {first} to "
        f"{last}, among the four options by {found('rise_options')}",
        counter_evidence=f"on new questions the ECE of the model before tuning changes by "
        f"{found('rise_asked_from_start')}, accuracy by {found('accuracy_rise_asked')}; NLL on text by "
        f"{found('nll_rise_elsewhere')}",
    )


def _further(found: Findings, names: Mapping[str, str]) -> tuple[str, str]:
    """Gains of other methods, by what they are to be called, and those that gain more than b = .1 in the same cells."""
    listed, better = [], []
    for method, name in names.items():
        gain, fewer = found("gain_of", method=method), found.at("gain_beside", method=method)
        listed.append(f"{name} {gain}" + "".join(f" (b = .1 there {beside})" for beside in fewer))
        better += [name] * (gain.mean > (fewer[0].mean if fewer else found["gain"]))
    return ", ".join(listed), ", ".join(better) or "none"


def themselves(found: Findings) -> tuple[str, str]:
    """Gains of other methods under their own names, and those that gain more than b = .1."""
    return _further(found, {f.cell["method"]: f.cell["method"] for f in found.at("gain_of")})


def k2(found: Findings) -> Sentences:
    depends_on = "how far confidence exceeds accuracy"
    gains, (others, better) = [*found.at("gain"), *found.at("gain_elsewhere")], themselves(found)
    sampled = found.at("gain_sampled")
    fitted, smoothed = ([gain.mean for gain in found.at(f"gain_s5_{name}")] for name in ("fitted", "smoothed"))
    ahead = sum(f >= s for f, s in zip(fitted, smoothed, strict=True))
    return Sentences(
        headline=found("gain"),
        effect="true ECE on new shifted contexts at the last epoch, b = 0 minus b = .1",
        depends_on=depends_on,
        condition=f"{depends_on}: on the broad distribution {found('gain_elsewhere')}, above 0 in "
        f"{sum(gain.low > 0 for gain in gains)} of {len(gains)} (V, D) of both; on the population, where |H - CE| of "
        f"plain heads is at most {found['population_balance']:.4f}, the gain is {found('gain_population')}, with "
        f"{found['most_samples']:.0f} samples a context {found('gain_sampled')} (with an interval below 0 in "
        f"{sum(gain.high < 0 for gain in sampled)} of {len(sampled)} cells). Gains of others over b = 0 in tuning: "
        f"{others}{_beside_the_penalty(found)}",
        counter_evidence=f"lowers the true ECE further: {better}; change in AURC {found('aurc_gain')} "
        "(positive: better). Heads of S5 without a cap: a temperature fitted afterwards raises the true ECE of the "
        f"plain head in {sum(gain < 0 for gain in fitted)} of {len(fitted)} arms (gain {min(fitted):.3f} to "
        f"{max(fitted):.3f}) and does at least as well as smoothing in {ahead}; of over-fitted heads at least as well "
        f"had been predicted{_penalised_heads(found)}",
    )


def _beside_the_penalty(found: Findings) -> str:
    """Gains in tuning where a confidence penalty is among the methods."""
    gains = found.at("gain_beside_penalty")
    if not gains:
        return ""
    listed = ", ".join(f"{gain.cell['method']} {gain}" for gain in gains)
    return f". In {gains[0].cells} of {len(found.at('gain'))} (V, D) a confidence penalty was tuned too: {listed}"


def _penalised_heads(found: Findings) -> str:
    """Gains of a confidence penalty over plain heads of S5, by gamma."""
    gammas: dict[float, list[str]] = {}
    for gain in found.at("gain_s5_penalised"):
        arm = f"{gain.cell['norm']} T = {gain.cell['T']:g} {gain}"
        gammas.setdefault(gain.cell["gamma"], []).append(arm)
    listed = "; ".join(f"gamma = {gamma:g}: {', '.join(arms)}" for gamma, arms in gammas.items())
    return f". Gains of a confidence penalty there, by norms and T: {listed}" if gammas else ""


def k2_model(found: Findings) -> Sentences:
    names = {
        "b=0.2": "b = .2",
        "b=0 post_hoc": "post-hoc temperature of b = 0 (one a view)",
        "early stopping": "early stopping of b = 0 (one epoch a run)",
    }
    others, better = _further(found, names)
    stopped = found("accuracy_loss_of", method="early stopping")
    return Sentences(
        headline=found("gain"),
        effect="ECE on new questions at the last epoch, b = 0 minus b = .1",
        depends_on="the kind of text",
        condition=f"{by_kind(found.at('gain'))}; on ordinary text {found('gain_elsewhere')}; among the four options "
        f"{found('gain_options')}. Gains of others over b = 0: {others}",
        counter_evidence=f"lowers the ECE further: {better}; change in AURC {found('aurc_gain')} and in RMS error "
        f"{found('rms_gain')} (positive: better); early stopping costs {stopped} of the accuracy, b = .1 "
        f"{found('accuracy_loss')}",
    )


def k8(found: Findings) -> Sentences:
    depends_on, both = "hidden size", lower_rank_and_error(found)
    named = {f.cell["method"]: (f, e) for f, e in zip(found.at("rank_rise_of"), found.at("error_rise_of"), strict=True)}
    return Sentences(
        headline=found("rank_rise"),
        effect="effective rank of the features on new shifted contexts at the last epoch, b = .1 minus b = 0",
        depends_on=depends_on,
        condition=f"{depends_on}: the rank changes, by (V, D), by {at_sizes(found.at('rank_rise'))}. That it helps is "
        f"another question: correlation of rank and true ECE over methods without smoothing (plain, "
        f"{', '.join(RIVALS)}) {at_sizes(found.at('correlation'))}",
        counter_evidence="lower rank and error alike: "
        + ", ".join(f"{name} (rank {named[name][0]}, error {named[name][1]})" for name in both)
        + f"; the smaller half of the spectrum gains {found('smallest_share_rise')} of the variance; along b, which "
        f"moves both and is no evidence, the correlation is {at_sizes(found.at('correlation_along_b'))}",
    )


def k8_model(found: Findings) -> Sentences:
    return Sentences(
        headline=found("rank_rise"),
        effect="effective rank of the features on new questions at the last epoch, b = .1 minus b = 0",
        depends_on="the kind of question",
        condition=f"{by_kind(found.at('rank_rise'))}; that it helps: correlation of rank and ECE over the tunings of "
        f"one seed is {found('correlation_along_b')} ({by_kind(found.at('correlation_along_b'))})",
        counter_evidence=f"over tunings without smoothing {found('correlation')} "
        f"({by_kind(found.at('correlation'))}); the smaller half of the spectrum gains "
        f"{found('smallest_share_rise')} of the variance",
    )


def k9(found: Findings) -> Sentences:
    rivals = {f.cell["method"]: f for f in found.at("gap_fall_of")}
    return Sentences(
        headline=found("gap_fall"),
        effect="gap of held-out minus training NLL (nats) at the last epoch, b = 0 minus b = .1",
        depends_on="hidden size and vocabulary",
        condition=f"accuracy, b = 0 minus b = .1: {found('accuracy_loss')}; few examples, each seen once an epoch",
        counter_evidence=f"held-out NLL itself falls by {found('held_out_fall')}; the gap narrows by "
        f"{rivals['dropout']} with dropout and {rivals['weight_decay']} with weight decay",
    )


def k9_model(found: Findings) -> Sentences:
    return Sentences(
        headline=found("gap_fall"),
        effect="gap of held-out minus training NLL (nats) at the last epoch, b = 0 minus b = .1",
        depends_on="the kind of question",
        condition=f"{by_kind(found.at('gap_fall'))}; accuracy, b = 0 minus b = .1: "
        f"{by_kind(found.at('accuracy_loss'))}, mean {found('accuracy_loss')}",
        counter_evidence=f"held-out NLL itself falls by {found('held_out_fall')} "
        f"({by_kind(found.at('held_out_fall'))}), AURC by {found('aurc_gain')} ({by_kind(found.at('aurc_gain'))})",
    )
