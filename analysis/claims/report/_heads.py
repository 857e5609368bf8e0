"""What findings say of heads: K3 to K7 in sentences, and K5 and K6 of a real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..capping import NORMS, WAYS, restores
from ..cost import efficient_rivals
from ..findings import SMALL, Finding, Findings
from ..heads import MAIN_SIZE, below_full_rank, moves
from ._phrases import SOLVER, UNKNOWN, Sentences, number, span


def k3(found: Findings) -> Sentences:
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
        f"V too: {by_vocabulary}.{_dead_tokens(found)} "
        f"{found['above_a_cap']:.0f} of {found['compared_with_a_cap']:.0f} attained confidences exceed a proven cap. "
        f"Geometry takes at most {number(found['geometry_share'], '.1%')} of the gap at public model shapes, and for D "
        f"<= 4 at least {narrow}",
        counter_evidence=f"at one norm product hidden size moves the confidence by more than .01 in {moved} of "
        f"{steps} steps that begin below full rank; among hidden sizes >= V - 1 it differs by "
        f"{number(found['spread_at_full_rank'], '.1e')} at most",
        interval_over=SOLVER,
    )


def _dead_tokens(found: Findings) -> str:
    """Confidences on one problem with tokens that never occur, by T."""
    listed: dict[float, list[str]] = {}
    for f in found.at("confidence_with_dead_tokens"):
        listed.setdefault(f.cell["T"], []).append(f"{f.mean:.3f} at V = {f.cell['V']}")
    by_t = "; ".join(f"T = {t:g}: {', '.join(numbers)}" for t, numbers in listed.items())
    return f" With tokens that never occur added to one problem, {by_t}." if listed else ""


def _largest(steps: Sequence[Finding]) -> str:
    if not steps:
        return UNKNOWN
    step = max(steps, key=lambda step: abs(step.mean))
    return f"{step.mean:.3f} at m / T = {step.cell['m'] / step.cell['T']:g}"


def _most(steps: Sequence[Finding]) -> str:
    return _largest(steps).partition(" at ")[0]


def k4(found: Findings) -> Sentences:
    depends_on, still = "the activity index A < 1 (norm budget)", found("fall_where_inert")

    def explained(name: str) -> str:
        kinds = {kind: found.at(name, teacher=kind) for kind in ("det", "noisy")}
        listed = {kind: ", ".join(f"{f.cell['predictor']} {f}" for f in shares) for kind, shares in kinds.items()}
        return "; ".join(f"{kind}: {shares}" for kind, shares in listed.items())

    def counted(name: str) -> str:
        pairs, settings = found[f"pairs_{name}"], found[f"settings_{name}"]
        main = found(f"pairs_{name}", V=MAIN_SIZE).mean
        return f"{pairs:.0f} {name} ones of {settings:.0f} ({main:.0f} of {pairs:.0f} at V = {MAIN_SIZE})"

    free, rule = "any width: not known (no S4)", "not known (no S4)"
    if found.has("sign_rule_cells"):
        free = f"D = {found['least_free_size']:.0f} too: {found('fall_at_free_norms')}"
        holds, cells = found["sign_rule_holds"], found["sign_rule_cells"]
        rule = (
            f"smoothing helped where H - CE on new data is below 0, and only there, in {holds:.0f} of {cells:.0f} cells"
        )
    nearly = number(round(still.mean, 4) + 0.0, ".4f")  # four digits, and no minus before 0
    return Sentences(
        headline=found("fall_where_acting"),
        effect=f"fall in confidence by smoothing where A < .8 (A > 1.25: {nearly}), det teacher under a norm budget",
        depends_on=depends_on,
        condition=f"{depends_on}, at any D, V, T, cap: where A > 1.25 the fall is {still} (rule obeyed, |fall| < "
        f"{SMALL:g} and fall > 0, by {number(found['obeyed_inert'], '.0%')} and "
        f"{number(found['obeyed_acting'], '.0%')} of pairs). Explained variance of the fall, {explained('explained')}; "
        "of the transition, .05 < A < 6, "
        f"{explained('explained_of_transition')}. Whether it helps: {rule}",
        counter_evidence=f"with free norms smoothing acts at {free}; in noisy cells with A from 1.3 to 3 confidence "
        f"still falls by up to {number(found['largest_fall_blurred'], '.3f')}; the det pairs of the rule are seeds of "
        f"fewer settings, whose targets are the same for every seed: {counted('inert')} and {counted('acting')}",
        interval_over=SOLVER,
    )


def k5(found: Findings) -> Sentences:
    depends_on, falls = "a norm budget that binds while training", {f.cell["arm"]: f for f in found.at("fall_rise")}
    trunk, both = falls["trunk under the budget"], found.at("gain_of_both")
    parts = []
    for name in dict.fromkeys((f.cell["norm"], f.cell["T"]) for f in found.at("gain_read_at_one")):
        gains = found.at("gain_read_at_one", norm=name[0], T=name[1])
        parts.append(f"{name[0]} T = {name[1]:g} {span(gain.mean for gain in gains)}")
    arms = [
        f"{f.cell['teacher']} V = {f.cell['V']} {f.cell['features']} features {f.cell['optimiser']} {f}" for f in both
    ]
    others = [
        f"{name} {fall}" + (f" ({trunk.seeds} of {found['seeds_run']:.0f} seeds converged)" if fall is trunk else "")
        for name, fall in falls.items()
        if name != "budget"
    ]
    gained = [f"{name} {found('rise', arm=name)}" for name in falls]
    return Sentences(
        headline=falls["budget"],
        effect="fall in confidence from b = .1, trained at T = .25 minus trained at T = 1, norm budget",
        depends_on=depends_on,
        condition=f"{depends_on}: {', '.join(others)}; restores: "
        f"{', '.join(name for name, fall in falls.items() if restores(found, fall)) or 'nowhere'}. The gain in true "
        f"ECE rises by {', '.join(gained)}. Reading T = 1 heads at T = "
        f".25 afterwards, it is {found('gain_read_cold')}. (It restores where the fall rises by more than .01 and "
        "smoothing gains.)",
        counter_evidence=f"cold and smoothed is no better than plain at T = 1 in {sum(f.low <= 0 for f in both)} of "
        f"{len(both)} arms under the budget; true ECE of plain heads at T = 1 minus smoothed ones at T = .25: "
        f"{', '.join(arms)}; trained at T and read at T = 1, the gain is {', '.join(parts) or UNKNOWN}",
    )


def k6(found: Findings) -> Sentences:
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
    return span(rise.mean for rise in rises) + (f" ({', '.join(said)})" if said else "")


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


def restored(column: str, name: str, asked: str = "new questions") -> Callable[[Findings], Sentences]:
    """K5 or K6 of a tuned model; ``column`` is what the cells of its findings are named by."""

    def sentences(found: Findings) -> Sentences:
        strongest, *rest = found.at("fall_rise")
        common = list(dict.fromkeys(f.cell["b"] for f in found.at("error")))
        lowest = {arm: min(f.mean for f in found.at("error", **{column: arm})) for arm in _arms(found, column)}
        errors = ", ".join(
            f"{error:.4f} " + ("without" if arm == "none" else f"at {name} {arm}") for arm, error in lowest.items()
        )
        activity = found("activity")
        return Sentences(
            headline=strongest,
            effect=f"fall in confidence from b = .1 on {asked} at {name} {strongest.cell[column]} minus that without, "
            "read as trained",
            depends_on="whether smoothing acted without",
            condition="; ".join(f"at {name} {rise.cell[column]}: {rise}" for rise in rest)
            + "; the gain in ECE rises by "
            + ", ".join(f"{rise} at {name} {rise.cell[column]}" for rise in found.at("rise"))
            + f"; without, it is {found('gain')} and the activity index of b = 0 on its examples {activity} "
            f"({_acted(activity)})",
            counter_evidence=f"the lowest ECE over b of {', '.join(f'{b:g}' for b in common)} is {errors}"
            * bool(errors),
        )

    return sentences


def _arms(found: Findings, column: str) -> list[str]:
    return list(dict.fromkeys(f.cell[column] for f in found.at("error")))


def _acted(activity: Finding) -> str:
    if activity.low <= 1 <= activity.high:
        return "1 is within: not known whether there was something to restore"
    return "below 1: smoothing acted, nothing to restore" if activity.high < 1 else "above 1: smoothing did not act"


def k7(found: Findings) -> Sentences:
    depends_on, rivals = "the rival", efficient_rivals(found)
    shapes = [f.mean for f in found.at("time_over_fastest_rival")]
    ran = [str(f.cell["implementation"]) for f in found.at("shapes_smoothed")]
    return Sentences(
        headline=found("time_ratio"),
        effect="time of loss and gradients of our kernel, with smoothing over without",
        depends_on=depends_on,
        condition=f"{depends_on}: {' and '.join(rivals) or 'no other efficient loss'} ran with smoothing too. The "
        f"interval is the range over shapes of the head, of each in one run, without softcap; peak memory at most "
        f"{found['memory_ratio']:.2f} times",
        counter_evidence=f"time over that of the fastest rival: {min(shapes):.2f} to {max(shapes):.2f} over shapes; "
        f"all that ran with smoothing: {', '.join(name for name in ran if not name.startswith('torch'))}",
        interval_over="shapes",
    )
