"""What gradients within a tolerance take and save on a GPU, and where the rest of their time goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from table_text import wrapped

__all__ = ["PROBLEMS", "PRODUCTS", "sparse"]

# Table -> the name of its problem on the page, in its order.
PROBLEMS = {
    "sparse_gemma": "Gemma-3-270M on text",
    "sparse_smollm2": "SmolLM2-135M-Instruct on text",
    "sparse_synthetic": "Gemma-2-2B, synthetic",
}
_TOLERANCE, _LARGER, _FILTER = 0.003, "sparse, 384 MiB", "cut-cross-entropy, filter"
_TRY, _OWN_ORDER = "sparse, as they are, each a try", "default, as they are"
_OWN_ORDER_KEPT, _SORTING = "all kept, as they are", "sparse, sorting in each call"
PRODUCTS = ("forward", "logits anew", "weight gradient", "input gradient")  # phases of the profile
_ASKED, _ASKED_MIB = 0.6, 700  # of the time of all strips kept, within that memory over the inputs
# Implementation -> what the page calls it, in its order; the tolerance goes in front of what has one.
_CALLS = {
    "default": "exact, default workspace",
    "all kept": "exact, all strips kept",
    "sparse": "",
    _LARGER: ", 384 MiB workspace",
    "sparse, as they are": ", vocabulary in its own order",
    _TRY: ", the same, each call a try",
    _OWN_ORDER_KEPT: "exact, the same, all strips kept",
    _SORTING: ", the same, sorting in each call",
    _FILTER: "cut-cross-entropy's filter, no smoothing",
}


class Problem(NamedTuple):
    """The rows of one table, and what made them."""

    name: str
    rows: Any
    about: dict[str, Any]

    def row(self, implementation: str, *, tolerance: float = 0.0, smoothing: float = 0.1) -> Any:
        """The one row of a call; an error unless there is exactly one."""
        rows = self.rows[(self.rows["tolerance"] == tolerance) & (self.rows["label_smoothing"] == smoothing)]
        (found,) = rows[rows["implementation"] == implementation].itertuples()
        return found

    def of_kept(self, row: Any) -> float:
        """A call's time over that of all strips kept, with the same smoothing."""
        return row.ms / self.row("all kept", smoothing=row.label_smoothing).ms

    @property
    def gradients_mib(self) -> float:
        """What both gradients take in half precision."""
        first = self.rows.iloc[0]
        return 2 * (first["tokens"] + first["vocab_size"]) * first["hidden_size"] / 2**20


def sparse(data: Path) -> str:
    """A table a problem, what they say, what was asked, and where a call's time goes."""
    problems = [Problem(name, pd.read_csv(data / f"{file}.csv"), _about(data, file)) for file, name in PROBLEMS.items()]
    about = problems[0].about
    versions, files = about["versions"], ", ".join(f"`{file}.csv`" for file in PROBLEMS)
    commits = list(dict.fromkeys(f"`{problem.about['commit'][:12]}`" for problem in problems))
    where = (
        f"On an {about['device']} each ({about['config']['dtype']}, torch {versions['torch']}, Triton "
        f"{versions['triton']}, commit{'s' * (len(commits) > 1)} {' and '.join(commits)}), loss and both gradients, "
        "smoothing 0.1 except for the filter, "
        "which has none; tokens x vocabulary x hidden size; MiB beyond inputs and gradients. Errors are relative, of "
        "the input's gradient, of the head's and of its rows that no token names, against float64: they hold "
        f"bfloat16's rounding, which bounds leave aside. From `paper_figures/data/` ({files}), each made by `python -m "
        "kernel.benchmark.sparse`:"
    )
    parts = [wrapped(where)]
    parts += ["\n".join(_table(problem)) for problem in problems]
    texts = _saved(problems[0]), _sorted_anew(problems), _not_saved(problems), _missed(problems)
    parts += [wrapped(text) for text in texts if text]
    profile = data / "kernel_profile.csv"
    if profile.exists() and _about(data, "kernel_profile")["commit"] == about["commit"]:  # of the same kernels
        parts.append(wrapped(_spent(pd.read_csv(profile), met=_meets(problems[0]))))
    return "\n\n".join(parts)


def _about(data: Path, file: str) -> dict[str, Any]:
    return json.loads((data / f"{file}.json").read_text(encoding="utf-8"))


def _table(problem: Problem) -> Iterator[str]:
    first = problem.rows.iloc[0]
    sizes = " x ".join(str(first[size]) for size in ("tokens", "vocab_size", "hidden_size"))
    yield f"| {problem.name}, {sizes} | ms | of all kept | MiB | active tiles | bounds | errors | rows without target |"
    yield "|---|" + "---|" * 7
    for implementation, name in _CALLS.items():
        smoothing = 0.0 if implementation == _FILTER else 0.1
        chosen = (problem.rows["implementation"] == implementation) & (problem.rows["label_smoothing"] == smoothing)
        for row in problem.rows[chosen].itertuples():
            cells = [f"tolerance {row.tolerance:g}{name}" if row.tolerance else name, f"{row.ms:.2f}"]
            cells += [f"{problem.of_kept(row):.2f}", f"{row.peak_mib:.0f}", *_certified(row)]
            cells += [f"{row.input_gradient_error:.5f}, {row.weight_gradient_error:.5f}"]
            yield f"| {' | '.join(cells)} | {row.rows_without_target_error:.5f} |"


def _certified(row: Any) -> tuple[str, str]:
    if pd.isna(row.active):
        return "", ""
    return ("all", "") if row.active == 1 else (f"{row.active:.1%}", f"{row.input_bound:.5f}, {row.weight_bound:.5f}")


def _saved(problem: Problem) -> str:
    """What the first problem gains, and the filter beside it."""
    exact, kept = (problem.row(name) for name in ("default", "all kept"))
    small = problem.row("sparse", tolerance=_TOLERANCE)
    ours, rival = problem.row("sparse", tolerance=_TOLERANCE, smoothing=0.0), problem.row(_FILTER, smoothing=0.0)
    loose = problem.row("sparse", tolerance=0.01)
    errors = ("input_gradient_error", "weight_gradient_error")
    added = [(getattr(loose, error) ** 2 - getattr(exact, error) ** 2) ** 0.5 for error in errors]
    times = [getattr(rival, error) / getattr(ours, error) for error in errors]
    return (
        f"**{problem.name}** at a tolerance of {_TOLERANCE:g} takes {small.ms:.1f} ms by default, "
        f"{small.ms / exact.ms:.2f} of the exact call's {exact.ms:.1f} and {problem.of_kept(small):.2f} of the "
        f"{kept.ms:.1f} of all strips kept, in {small.peak_mib:.0f} MiB instead of {kept.peak_mib:.0f}. Rounding is "
        f"most of its errors; at 0.01 what is left out adds {added[0]:.4f} and "
        f"{added[1]:.4f} (root of the difference of squares) within bounds of {loose.input_bound:.4f} and "
        f"{loose.weight_bound:.4f}. Rows without a target lose more: {small.rows_without_target_error:.4f} and "
        f"{loose.rows_without_target_error:.4f} at the two tolerances, {exact.rows_without_target_error:.4f} exact. "
        f"Without smoothing {_TOLERANCE:g} takes {ours.ms:.1f} ms in {ours.peak_mib:.0f} MiB, cut-cross-entropy's "
        f"filter {rival.ms:.1f} in {rival.peak_mib:.0f}, with {times[0]:.1f} and {times[1]:.1f} times the errors."
    )


def _sorted_anew(problems: list[Problem]) -> str:
    """What a call takes that also sorts the head, beside exact ones that need no order; nothing of older tables."""
    told = []
    for problem in problems:
        if _SORTING not in set(problem.rows["implementation"]):
            continue
        ours, stored = (problem.row(name, tolerance=_TOLERANCE) for name in (_SORTING, "sparse"))
        exact, kept = problem.row(_OWN_ORDER), problem.row(_OWN_ORDER_KEPT)
        told.append(
            f"{problem.name} takes {ours.ms:.1f} ms in {ours.peak_mib:.0f} MiB instead of {stored.ms:.1f} in "
            f"{stored.peak_mib:.0f}, {ours.ms / exact.ms:.2f} of the {exact.ms:.1f} of an exact call in its own order "
            f"(in {exact.peak_mib:.0f}) and {ours.ms / kept.ms:.2f} of the {kept.ms:.1f} of all strips kept"
        )
    return f"**With the sorting in each call**, where the head is not stored sorted, {'; '.join(told)}." if told else ""


def _not_saved(problems: list[Problem]) -> str:
    """What calls cost that leave nothing out, that try in vain, and that leave tiles out and gain nothing."""
    dense, tried, slower = [], [], []
    for problem in problems:
        for row in problem.rows[problem.rows["implementation"].isin(["sparse", "sparse, as they are"])].itertuples():
            own_order = row.implementation != "sparse"
            exact = problem.row(_OWN_ORDER if own_order else "default", smoothing=row.label_smoothing)
            if row.active == 1:
                dense.append(row.ms / exact.ms)
            elif row.ms > exact.ms and row.label_smoothing:
                told = f"at a tolerance of {row.tolerance:g} {row.ms:.1f} ms in place of {exact.ms:.1f}"
                slower.append(f"{problem.name} takes {told}, with {row.active:.0%} of the tiles")
        found = problem.rows[problem.rows["implementation"] == _TRY].itertuples()
        tried += [f"{row.ms / problem.row(_OWN_ORDER).ms:.2f} ({problem.name})" for row in found]
    at_tolerance = [p.name for p in problems if p.row("sparse", tolerance=_TOLERANCE).active == 1]
    text = (
        f"**Nothing is saved** at {_TOLERANCE:g} for {' and '.join(at_tolerance)}: too many tiles "
        "remained or none could be certified, and calls after such a try are exact. They, and those of a vocabulary in "
        f"its own order, take {min(dense):.2f} to {max(dense):.2f} times the exact one's time. Where a call tries and "
        f"fails, in a vocabulary in its own order, it takes {' and '.join(tried)} times as long as an exact one in "
        "that order: one call in 32, or fewer."
    )
    return text + (f" Leaving tiles out may still lose time: {'; '.join(slower)}." if slower else "")


def _counted(problem: Problem) -> list[tuple[float, float]]:
    """Time over that of all strips kept and MiB over the inputs, with the larger workspace and by default."""
    rows = [problem.row(name, tolerance=_TOLERANCE) for name in (_LARGER, "sparse")]
    return [(problem.of_kept(row), row.peak_mib + problem.gradients_mib) for row in rows]


def _meets(problem: Problem) -> bool:
    return any(of_kept <= _ASKED and mib <= _ASKED_MIB for of_kept, mib in _counted(problem))


def _missed(problems: list[Problem]) -> str:
    """What was asked for, beside what came, in the memory of the other tables."""
    told, met = [], []
    for problem in problems:
        counted = ", ".join(f"{of_kept:.2f} in {mib:.0f} MiB" for of_kept, mib in _counted(problem))
        told.append(f"{problem.name} {counted}")
        if _meets(problem):
            met.append(problem.name)
    found = "met" if len(met) == len(problems) else f"met for {' and '.join(met)} alone" if met else "not met"
    return (
        f"**Asked** were {_ASKED:g} of the time of all strips kept at {_TOLERANCE:g}, within {_ASKED_MIB} MiB. That is "
        f"{found}; counted over the inputs, as on the [kernel's page](kernel.md), so with both gradients, 384 MiB of "
        f"workspace and the default take: {'; '.join(told)}."
    )


def _spent(rows: Any, *, met: bool) -> str:
    """Where a call of the first problem spends its time, and how much of it is in the way of what was asked.

    Args:
        rows: The profile, of another run than the tables.
        met: Whether what was asked is met in the tables.
    """
    sparse_rows = rows[rows["budget"].str.startswith("sparse, ")]
    budget = sparse_rows.loc[sparse_rows["call_ms"].idxmin(), "budget"]  # the quickest
    case = rows[rows["budget"] == budget].set_index("phase")
    of_kept = rows[(rows["shape"] == case["shape"].iloc[0]) & (rows["budget"] == "all kept")]
    call, kept = case["call_ms"].iloc[0], of_kept["call_ms"].iloc[0]
    active = case.loc[list(PRODUCTS[1:])]
    forward, choice, idle = (case.loc[phase] for phase in ("forward", "choice of tiles", "idle between kernels"))
    products, phases = active["ms"].sum(), case["ms"].sum()
    other = phases - products - sum(phase["ms"] for phase in (forward, choice, idle))
    least = forward["product_ms"] + (active["product_ms"] * active["columns"]).sum()
    over = call - _ASKED * kept
    name, of_call = next(iter(PROBLEMS.values())), f"{call / kept:.2f}"
    head = f"**What stands between** {of_call} and {_ASKED:g} on {name} tells its profile"
    asked = (
        f"For {_ASKED:g} the call would have to take {_ASKED * kept:.2f} ms, {over:.2f} less, and so the choice of "
        f"tiles {choice['ms'] - over:.2f} with all else as it is. "
    )
    if met or over <= 0:
        head = f"**Where {of_call} goes** on {name} tells its profile"
    if over <= 0:
        asked = ""
    workspace = "by default" if budget == "sparse, default" else f"with {budget.removeprefix('sparse, ')}"
    return (
        f"{head} (`kernel_profile.csv`, another run: {call:.2f} ms {workspace}, {kept:.2f} "
        f"with all strips kept; under the profiler {phases:.2f}): the forward, which no tolerance shortens, takes "
        f"{forward['ms']:.2f} ms ({forward['ms'] / kept:.2f} of all strips kept), the products of the active tiles "
        f"{products:.2f}, the choice of tiles with the mean field of the others {choice['ms']:.2f}, other kernels "
        f"{other:.2f}, and the device is idle for {idle['ms']:.2f}. {asked}At the rate of the library's product the "
        f"forward and the active tiles alone would take {least:.2f} ms ({least / kept:.2f} of all strips kept), which "
        "is the floor of these tiles."
    )
