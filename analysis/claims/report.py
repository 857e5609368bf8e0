"""All prose of the verdicts: what findings say, in sentences. Nothing is decided here, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .capping import NORMS, SMALL, WAYS, restores
from .cost import efficient_rivals
from .findings import Finding, Findings
from .heads import MAIN_SIZE, below_full_rank, moves
from .tuning import RIVALS, lower_rank_and_error

__all__ = ["MODEL", "STATEMENTS", "STUDY", "Sentences", "number"]

STATEMENTS = {
    "K1": "instruction tuning degrades calibration",
    "K2": "smoothing keeps calibration during tuning",
    "K3": "hidden size and vocabulary cap confidence",
    "K4": "smoothing has little effect at small hidden size and large vocabulary",
    "K5": "temperature restores the effect of smoothing",
    "K6": "logit capping restores the effect of smoothing",
    "K7": "the smoothed loss costs nothing in memory, speed or accuracy, which efficient losses could not do",
    "K8": "smoothing makes features more diverse, and that helps calibration",
    "K9": "accuracy kept, gap between training and held-out NLL narrower",
}
_UNKNOWN = "not known (no rows)"
_SOLVER = "first values of the solver"  # deterministic targets are the same for every seed


class Sentences(NamedTuple):
    """What is said of one claim.

    Attributes:
        headline: The finding that the verdict is about.
        effect: What it is, in words.
        depends_on: On what the claim depends, should the verdict say so.
        condition: Under which conditions it was found.
        counter_evidence: What speaks against the verdict.
        interval_over: What varies within the interval of the headline.
    """

    headline: Finding
    effect: str
    depends_on: str
    condition: str
    counter_evidence: str
    interval_over: str = "seeds"


def number(value: float, form: str) -> str:
    """A number in a sentence; what no row tells is not known.

    Example:
        >>> number(0.25, ".0%"), number(float("nan"), ".0%")
        ('25%', 'not known')
    """
    return format(value, form) if value == value else "not known"


def _at_sizes(found: Sequence[Finding]) -> str:
    return ", ".join(f"{effect} at ({effect.cell['V']}, {effect.cell['D']})" for effect in found)


def _by_kind(found: Sequence[Finding]) -> str:
    return ", ".join(f"{effect.cell['kind']} {effect}" for effect in found)


def _span(means: Iterable[float]) -> str:
    ends = [f"{end(means):.4f}" for end in (min, max)] if (means := list(means)) else []
    return " to ".join(dict.fromkeys(ends)) or _UNKNOWN


def _epochs(found: Findings) -> tuple[int, int]:
    return int(found["first_epoch"]), int(found["last_epoch"])


def _k1(found: Findings) -> Sentences:
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
        f"(V, D), by {_at_sizes(found.at('rise_asked_from_start'))}; on the broad one accuracy changes by "
        f"{found('accuracy_rise_elsewhere')}",
    )


def _k1_model(found: Findings) -> Sentences:
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
    """Gains of other methods, by what they are to be called, and those that gain more than b = .1."""
    others = {name: found("gain_of", method=method) for method, name in names.items()}
    better = [name for name, gain in others.items() if gain.mean > found["gain"]]
    return ", ".join(f"{name} {gain}" for name, gain in others.items()), ", ".join(better) or "none"


def _themselves(found: Findings) -> dict[str, str]:
    return {f.cell["method"]: f.cell["method"] for f in found.at("gain_of")}


def _k2(found: Findings) -> Sentences:
    depends_on = "how far confidence exceeds accuracy"
    gains, (others, better) = [*found.at("gain"), *found.at("gain_elsewhere")], _further(found, _themselves(found))
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


def _k2_model(found: Findings) -> Sentences:
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
        condition=f"{_by_kind(found.at('gain'))}; on ordinary text {found('gain_elsewhere')}; among the four options "
        f"{found('gain_options')}. Gains of others over b = 0: {others}",
        counter_evidence=f"lowers the ECE further: {better}; change in AURC {found('aurc_gain')} and in RMS error "
        f"{found('rms_gain')} (positive: better); early stopping costs {stopped} of the accuracy, b = .1 "
        f"{found('accuracy_loss')}",
    )


def _k3(found: Findings) -> Sentences:
    depends_on, (moved, steps) = "the norm product m", moves(found)
    narrow = ", ".join(f"{f.mean:.0%} at V = {f.cell['V']}" for f in found.at("geometry_share_narrow")) or "not known"
    of_saturated = zip(found.at("confidence_share"), found.at("confidence"), strict=True)
    by_vocabulary = ", ".join(f"{f.mean:.2f} at V = {f.cell['V']} ({p.mean:.3f})" for f, p in of_saturated)
    sizes = {step.cell["V"] for start in (64, 16) for step in found.at(f"step_from_{start}")}
    return Sentences(
        headline=found("step_from_64"),
        effect="confidence at D = 256 minus D = 64, det teacher, one norm product (D = 64 minus D = 16: up to "
        f"{_most(below_full_rank(found, 16))})",
        depends_on=depends_on,
        condition=f"{depends_on}: at fixed k = .1 (m = k D) the same step adds {found('step_at_fixed_k')}; at one m it "
        f"adds up to {_largest(below_full_rank(found, 64))}, the step from D = 16 to 64 up to "
        f"{_largest(below_full_rank(found, 16))} (V = {', '.join(map(str, sorted(sizes))) or 'none'}). Vocabulary: "
        "lowrank, D = 64, k = .1, T = 1, confidence as a share of the saturated head's (and itself), which falls with "
        f"V too: {by_vocabulary}. "
        f"{found['above_a_cap']:.0f} of {found['compared_with_a_cap']:.0f} attained confidences exceed a proven cap. "
        f"Geometry takes at most {number(found['geometry_share'], '.1%')} of the gap at public model shapes, and for D "
        f"<= 4 at least {narrow}",
        counter_evidence=f"at one norm product hidden size moves the confidence by more than .01 in {moved} of "
        f"{steps} steps that begin below full rank; among hidden sizes >= V - 1 it differs by "
        f"{number(found['spread_at_full_rank'], '.1e')} at most",
        interval_over=_SOLVER,
    )


def _largest(steps: Sequence[Finding]) -> str:
    if not steps:
        return _UNKNOWN
    step = max(steps, key=lambda step: abs(step.mean))
    return f"{step.mean:.3f} at m / T = {step.cell['m'] / step.cell['T']:g}"


def _most(steps: Sequence[Finding]) -> str:
    return _largest(steps).partition(" at ")[0]


def _k4(found: Findings) -> Sentences:
    depends_on, still = "the activity index A < 1 (norm budget)", found("fall_where_inert")

    def explained(name: str) -> str:
        kinds = {kind: found.at(name, teacher=kind) for kind in ("det", "noisy")}
        listed = {kind: ", ".join(f"{f.cell['predictor']} {f}" for f in shares) for kind, shares in kinds.items()}
        return "; ".join(f"{kind}: {shares}" for kind, shares in listed.items())

    free, rule = "any width: not known (no S4)", "not known (no S4)"
    if found.has("sign_rule_cells"):
        free = f"D = {found['least_free_size']:.0f} too: {found('fall_at_free_norms')}"
        holds, cells = found["sign_rule_holds"], found["sign_rule_cells"]
        rule = f"the gain in true ECE has the sign of CE - H on new data in {holds:.0f} of {cells:.0f} cells"
    nearly = number(round(still.mean, 4) + 0.0, ".4f")  # four digits, and no minus before 0
    return Sentences(
        headline=found("fall_where_acting"),
        effect=f"fall in confidence by smoothing where A < .8 (A > 1.25: {nearly}), det teacher under a norm budget",
        depends_on=depends_on,
        condition=f"{depends_on}, at any D, V, T, cap: where A > 1.25 the fall is {still} (rule obeyed by "
        f"{number(found['obeyed_inert'], '.0%')} and {number(found['obeyed_acting'], '.0%')} of pairs). Explained "
        f"variance of the fall, {explained('explained')}; of the transition, .05 < A < 6, "
        f"{explained('explained_of_transition')}. Whether it helps: {rule}",
        counter_evidence=f"with free norms smoothing acts at {free}; in noisy cells with A from 1.3 to 3 confidence "
        f"still falls by up to {number(found['largest_fall_blurred'], '.3f')}; {found['pairs_of_other_sizes']:.0f} of "
        f"the {found['pairs_inert']:.0f} and {found['pairs_acting']:.0f} det pairs of the rule lie outside V = "
        f"{MAIN_SIZE}",
        interval_over=_SOLVER,
    )


def _k5(found: Findings) -> Sentences:
    depends_on, rise = "norms that bind while training", {f.cell["arm"]: f for f in found.at("rise")}
    trunk = rise["trunk under the budget"]
    parts = []
    for name in dict.fromkeys((f.cell["norm"], f.cell["T"]) for f in found.at("gain_read_at_one")):
        gains = found.at("gain_read_at_one", norm=name[0], T=name[1])
        parts.append(f"{name[0]} T = {name[1]:g} {_span(gain.mean for gain in gains)}")
    both = [
        f"{f.cell['teacher']} V = {f.cell['V']} {f.cell['features']} features {f.cell['optimiser']} {f}"
        for f in found.at("gain_of_both")
    ]
    return Sentences(
        headline=rise["budget"],
        effect="gain of b = .1 in true ECE, trained at T = .25 minus trained at T = 1, norm budget",
        depends_on=depends_on,
        condition=f"{depends_on}: free norms {rise['free norms']}, weight decay {rise['weight decay']}, Adam under the "
        f"budget {rise['Adam under the budget']}, trunk under the budget {trunk} ({trunk.seeds} of "
        f"{found['seeds_run']:.0f} seeds converged), trunk with free norms {rise['trunk with free norms']}. Reading T "
        f"= 1 heads at T = .25 afterwards, the gain is {found('gain_read_cold')}",
        counter_evidence=f"trained at T and read at T = 1, the gain is {', '.join(parts) or _UNKNOWN}; true ECE of "
        f"plain heads at T = 1 minus smoothed ones at T = .25, by budget arm: {', '.join(both)}",
    )


def _k6(found: Findings) -> Sentences:
    depends_on = "form, norms and c"
    rises = {f"{n}, {way}": found.at("fall_rise", form="contraction", norms=n, way=way) for n in NORMS for way in WAYS}
    gain_form = {way: found.at("fall_rise", form="gain", way=way) for way in ("kept", "in reading only")}
    restoring = [name for name, several in rises.items() if any(restores(found, rise) for rise in several)]
    return Sentences(
        headline=found("mean_fall_rise"),
        effect="fall in confidence from b = .1, contraction cap in training and reading minus none, norm budget",
        depends_on=depends_on,
        condition=f"{depends_on}. Contraction: "
        + "; ".join(f"{name} {_over_caps(found, several)}" for name, several in rises.items())
        + ". Gain form, budget: "
        + "; ".join(f"{way} {_over_caps(found, several)}" for way, several in gain_form.items())
        + ". (It restores where the fall rises by more than .01 and smoothing gains.)",
        counter_evidence=f"a contraction restores at some c: {'; '.join(restoring) or 'nowhere'}{_price(found)}",
    )


def _over_caps(found: Findings, rises: Sequence[Finding]) -> str:
    """The least and largest rise over caps and arms, and which of them restore the effect or turn it round."""
    beyond = (
        ("restores at c =", [rise for rise in rises if restores(found, rise)]),
        ("lowers it at c =", [rise for rise in rises if rise.high < -SMALL]),
    )
    said = [f"{words} {_caps(several)}" for words, several in beyond if several]
    return _span(rise.mean for rise in rises) + (f" ({', '.join(said)})" if said else "")


def _caps(rises: Sequence[Finding]) -> str:
    """Caps by their vocabulary: ``5, 5 trunk at V = 256, 5 at V = 4096``."""
    by_size: dict[int, list[str]] = {}
    for rise in rises:
        by_size.setdefault(rise.cell["V"], []).append(f"{rise.cell['c']:g} {rise.cell.get('control', '')}".strip())
    return ", ".join(f"{', '.join(caps)} at V = {v}" for v, caps in by_size.items())


def _price(found: Findings) -> str:
    """Errors with a cap in training alone, and without any."""
    errors = {(f.cell["c"], f.cell["b"]): f.mean for f in found.at("error_uncapped_after")}
    if not errors:
        return ""
    plain, smoothed = found.at("error")
    caps = dict.fromkeys(c for c, _ in errors)
    listed = ", ".join(f"c = {c:g} {errors[c, 0.0]:.3f} and {errors[c, 0.1]:.3f}" for c in caps)
    return (
        f"; true ECE of plain and smoothed heads of free norms (V = {plain.cell['V']}) trained with a contraction and "
        f"read without it: {listed}; without any cap {plain.mean:.3f} and {smoothed.mean:.3f}"
    )


def _restored(column: str, name: str) -> Callable[[Findings], Sentences]:
    """K5 or K6 of a real model; ``column`` is what the cells of its findings are named by."""

    def sentences(found: Findings) -> Sentences:
        strongest, *rest = found.at("rise")
        common = list(dict.fromkeys(f.cell["b"] for f in found.at("error")))
        lowest = {arm: min(f.mean for f in found.at("error", **{column: arm})) for arm in _arms(found, column)}
        errors = ", ".join(
            f"{error:.4f} " + ("without" if arm == "none" else f"at {name} {arm}") for arm, error in lowest.items()
        )
        activity = found("activity")
        return Sentences(
            headline=strongest,
            effect=f"gain of b = .1 in ECE on new questions at {name} {strongest.cell[column]} minus that without, "
            "read as trained",
            depends_on="whether smoothing acted without",
            condition="; ".join(f"at {name} {rise.cell[column]}: {rise}" for rise in rest)
            + f"; without, the gain is {found('gain')} and the activity index of b = 0 on its examples {activity} "
            f"({_acted(activity)})",
            counter_evidence=f"the lowest ECE over b of {', '.join(f'{b:g}' for b in common)} is {errors}",
        )

    return sentences


def _arms(found: Findings, column: str) -> list[str]:
    return list(dict.fromkeys(f.cell[column] for f in found.at("error")))


def _acted(activity: Finding) -> str:
    if activity.low <= 1 <= activity.high:
        return "1 is within: not known whether there was something to restore"
    return "below 1: smoothing acted, nothing to restore" if activity.high < 1 else "above 1: smoothing did not act"


def _k7(found: Findings) -> Sentences:
    depends_on, rivals = "the rival", efficient_rivals(found)
    shapes = [f.mean for f in found.at("time_over_fastest_rival")]
    ran = [str(f.cell["implementation"]) for f in found.at("shapes_smoothed")]
    return Sentences(
        headline=found("time_ratio"),
        effect="time of loss and gradients of our kernel, with smoothing over without",
        depends_on=depends_on,
        condition=f"{depends_on}: {' and '.join(rivals) or 'no other efficient loss'} ran with smoothing too. The "
        f"interval is the range over shapes of the head in one run, without softcap; peak memory at most "
        f"{found['memory_ratio']:.2f} times",
        counter_evidence=f"time over that of the fastest rival: {min(shapes):.2f} to {max(shapes):.2f} over shapes; "
        f"all that ran with smoothing: {', '.join(name for name in ran if not name.startswith('torch'))}",
        interval_over="shapes",
    )


def _k8(found: Findings) -> Sentences:
    depends_on, both = "hidden size", lower_rank_and_error(found)
    named = {f.cell["method"]: (f, e) for f, e in zip(found.at("rank_rise_of"), found.at("error_rise_of"), strict=True)}
    return Sentences(
        headline=found("rank_rise"),
        effect="effective rank of the features on new shifted contexts at the last epoch, b = .1 minus b = 0",
        depends_on=depends_on,
        condition=f"{depends_on}: the rank changes, by (V, D), by {_at_sizes(found.at('rank_rise'))}. That it helps is "
        f"another question: correlation of rank and true ECE over methods without smoothing (plain, "
        f"{', '.join(RIVALS)}) {_at_sizes(found.at('correlation'))}",
        counter_evidence="lower rank and error alike: "
        + ", ".join(f"{name} (rank {named[name][0]}, error {named[name][1]})" for name in both)
        + f"; the smaller half of the spectrum gains {found('smallest_share_rise')} of the variance; along b, which "
        f"moves both and is no evidence, the correlation is {_at_sizes(found.at('correlation_along_b'))}",
    )


def _k8_model(found: Findings) -> Sentences:
    return Sentences(
        headline=found("rank_rise"),
        effect="effective rank of the features on new questions at the last epoch, b = .1 minus b = 0",
        depends_on="the kind of question",
        condition=f"{_by_kind(found.at('rank_rise'))}; that it helps: correlation of rank and ECE over the tunings of "
        f"one seed is {found('correlation_along_b')} ({_by_kind(found.at('correlation_along_b'))})",
        counter_evidence=f"over tunings without smoothing {found('correlation')} "
        f"({_by_kind(found.at('correlation'))}); the smaller half of the spectrum gains "
        f"{found('smallest_share_rise')} of the variance",
    )


def _k9(found: Findings) -> Sentences:
    rivals = {f.cell["method"]: f for f in found.at("gap_fall_of")}
    return Sentences(
        headline=found("gap_fall"),
        effect="gap of held-out minus training NLL (nats) at the last epoch, b = 0 minus b = .1",
        depends_on="hidden size and vocabulary",
        condition=f"accuracy, b = 0 minus b = .1: {found('accuracy_loss')}; few examples, each seen once an epoch",
        counter_evidence=f"held-out NLL itself falls by {found('held_out_fall')}; the gap narrows by "
        f"{rivals['dropout']} with dropout and {rivals['weight_decay']} with weight decay",
    )


def _k9_model(found: Findings) -> Sentences:
    return Sentences(
        headline=found("gap_fall"),
        effect="gap of held-out minus training NLL (nats) at the last epoch, b = 0 minus b = .1",
        depends_on="the kind of question",
        condition=f"{_by_kind(found.at('gap_fall'))}; accuracy, b = 0 minus b = .1: "
        f"{_by_kind(found.at('accuracy_loss'))}, mean {found('accuracy_loss')}",
        counter_evidence=f"held-out NLL itself falls by {found('held_out_fall')} "
        f"({_by_kind(found.at('held_out_fall'))}), AURC by {found('aurc_gain')} ({_by_kind(found.at('aurc_gain'))})",
    )


STUDY = {"K1": _k1, "K2": _k2, "K3": _k3, "K4": _k4, "K5": _k5, "K6": _k6, "K7": _k7, "K8": _k8, "K9": _k9}
MODEL = {
    "K1": _k1_model,
    "K2": _k2_model,
    "K5": _restored("T", "training T ="),
    "K6": _restored("cap", "a training cap of"),
    "K8": _k8_model,
    "K9": _k9_model,
}
