"""Where the time of missed targets goes, and the least that memory and products allow, from the committed profile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from table_text import wrapped

if TYPE_CHECKING:
    from kernel.benchmark.results import Table

__all__ = ["kernel_profile"]

_PRODUCTS = ("forward", "weight gradient", "input gradient")
_ANEW, _KEPT, _IDLE = "logits anew", "dz of what was kept", "idle between kernels"
_LEFT = ("logits anew, bytes and sums", "slower products", "other kernels and idle time")
_STATES = {"gemma3": "Gemma-3-270M on text"}  # names of files with a real model's hidden states
_MUCH = 0.1  # of the columns: what a phase must compute for its rate to say something
_ROOM = 0.03  # between a floor and what was asked, less than which two runs may differ by
_NEAR = 0.95  # of the memory in which a time was asked: what a budget must take to be the one that is meant


class Asked(NamedTuple):
    """A time that was asked of a budget in the profile, in t_mm."""

    asked_by: str
    asked: float


class Missed(NamedTuple):
    """A time that took longer, its floor and where what is left goes, in t_mm."""

    case: str
    asked_by: str
    asked: float
    measured: float
    parts: tuple[float, ...]  # of the floor
    left: tuple[float, ...]  # as _LEFT has them

    @property
    def floor(self) -> float:
        """The least that memory and products allow."""
        return sum(self.parts)

    def line(self) -> str:
        """A row of the page's table."""
        parts = " + ".join(f"{part:.2f}" for part in self.parts)
        cells = [self.asked_by, f"{self.asked:.2f}", f"{self.measured:.2f}", f"{self.floor:.2f} ({parts})"]
        cells += [f"{sum(self.left):.2f}", *(f"{part:+.2f}" for part in self.left)]
        return f"| {self.case} | {' | '.join(cells)} |"


def kernel_profile(data: Path) -> str:
    """A line a budget with its phases, then one for each time that was asked and is not met; empty without a table."""
    if not (data / "kernel_profile.csv").exists():
        return ""
    from kernel.benchmark.results import Table, read

    rows: Any = pd.read_csv(data / "kernel_profile.csv").replace({"shape": _STATES})
    about = json.loads((data / "kernel_profile.json").read_text(encoding="utf-8"))
    table = Table(read(data / "kernel.csv"))
    cases = [(shape, budget, case) for (shape, budget), case in rows.groupby(["shape", "budget"], sort=False)]
    versions = about["versions"]
    where = (
        f"Device time by phase of one call with smoothing 0.1 (one {about['device']}, torch {versions['torch']}, "
        f"Triton {versions['triton']}, mean of {about['config']['calls']} calls, commit `{about['commit'][:12]}`; the "
        f"sum of kernels and idle time is {_apart(rows)}): ms, and in brackets what a phase takes more than its share "
        "of the library's product of the same run; from "
        "`paper_figures/data/kernel_profile.csv`, made by `python -m kernel.benchmark.profile`:"
    )
    head = "| workspace | ms (t_mm) | forward | logits anew | dz of what was kept | weight gradient | input gradient |"
    lines = [wrapped(where), "", f"{head} other kernels | idle | launches |", "|---|" + "---|" * 9]
    lines += [_phases(shape, budget, case) for shape, budget, case in cases]
    for shape, found in rows.groupby("shape", sort=False):
        lines += _sparse(str(shape), found, about["config"]["tolerance"])
    lines += ["", wrapped(_rates(rows))]
    only_chosen = not _default_in_bytes(rows)
    trusted = [of for of in cases if _difference(of[2].iloc[0]) <= _near()]
    missed = [found for shape, budget, case in trusted for found in _missed(table, shape, budget, case, only_chosen)]
    if not missed:
        return "\n".join([*lines, "", "No time that was asked of these is missed in this run."])
    told = (
        "What was asked of these and is met neither here nor beside rivals, in t_mm of that run. The floor is the "
        "library's three products; the logits of columns that neither the head's gradient nor the workspace can hold, "
        "in two bytes "
        f"{'(in one, too, beyond the default)' if only_chosen else 'or in one'}, cut into whatever number of chunks of "
        "tokens is best; and one pass over what is in bytes and over sums that chunks share. Then where what is left "
        "goes: logits anew, bytes and sums beyond those of the floor (below 0 where its sums between chunks are in the "
        "products' kernels); products that are slower than the library's; all other kernels and idle time, "
        "below 0 where the profiler's sum exceeds the call:"
    )
    head = "| workspace | asked by | asked | measured | floor (products + logits anew + bytes and sums) | left |"
    lines += ["", wrapped(told), "", f"{head} logits anew, bytes, sums | products | other |", "|---|" + "---|" * 8]
    return "\n".join([*lines, *(found.line() for found in missed), "", wrapped(_out_of_reach(missed))])


def _apart(rows: Any) -> str:
    """How near the profile is to the call without it, and the cases in which it is not near enough."""
    calls = rows.groupby(["shape", "budget"], sort=False)[["profiled_ms", "call_ms"]].first()
    apart = _difference(calls)
    told = f"within {100 * apart[apart <= _near()].max():.1f}% of the call's time without the profiler"
    doubts = [
        f"{shape}, {budget} ({profiled:.2f} ms in the profile, {alone:.2f} without)"
        for (shape, budget), profiled, alone in calls[apart > _near()].itertuples()
    ]
    return f"{told}, but for {' and '.join(doubts)}, whose phases are not to be trusted" if doubts else told


def _difference(call: Any) -> Any:
    """How far the profile is from the call without it, relative to the latter."""
    return abs(call["profiled_ms"] / call["call_ms"] - 1)


def _near() -> float:
    from kernel.benchmark.profiled import NEAR

    return NEAR


def _rates(rows: Any) -> str:
    """How fast the products of the narrowest and of the widest head are beside the library's."""
    told = []
    near = _difference(rows) <= _near()  # of the others no phase is to be trusted
    dense = rows[near & ~rows["budget"].str.startswith("sparse") & rows["rate"].notna() & (rows["columns"] >= _MUCH)]
    for width in sorted({dense["hidden_size"].min(), dense["hidden_size"].max()}):
        of_width = dense[dense["hidden_size"] == width]
        each = []
        for phase in (_PRODUCTS[0], _ANEW, *_PRODUCTS[1:]):
            rates = of_width[of_width["phase"] == phase]["rate"]
            if len(rates):
                each.append(
                    f"{phase} {' to '.join(dict.fromkeys(f'{rate:.2f}' for rate in (rates.min(), rates.max())))}"
                )
        told.append(f"at hidden size {width} ({' and '.join(dict.fromkeys(of_width['shape']))}) {', '.join(each)}")
    return f"Of the rate of the library's product the phases reach, {'; '.join(told)}." if told else ""


def _out_of_reach(missed: Sequence[Missed]) -> str:
    """Which times no schedule reaches, and what stands between the others and what was asked."""
    beyond = [each for each in missed if each.floor > (1 - _ROOM) * each.asked]
    within = [each for each in missed if each not in beyond]
    lines = f"these {len(within)} lines"
    told = f"Every floor is more than {_ROOM:.0%} below what was asked."
    if beyond:
        cases = "; ".join(f"{e.case} ({e.asked_by}: asked {e.asked:.2f}, floor {e.floor:.2f})" for e in beyond)
        lines = f"the other lines ({len(within)})"
        told = f"Out of reach, the floor being above what was asked or less than {_ROOM:.0%} below it: {cases}."
    if not within:
        return told
    largest = [_LEFT[each.left.index(max(each.left))] for each in within]
    counts = [f"{name} in {largest.count(name)}" for name in _LEFT if name in largest]
    return f"{told} Most of what is left in {lines}: {', '.join(counts)}."


def _sparse(shape: str, rows: Any, tolerance: float) -> Iterator[str]:
    """A sentence for each loss with a tolerance beside the one that keeps all columns."""
    kept = rows[rows["budget"] == "all kept"]
    for budget, case in rows[rows["budget"].str.startswith("sparse")].groupby("budget", sort=False):
        first, forward, active = case.iloc[0], _sum(case, "ms", "forward"), _sum(case, "columns", _ANEW)
        if abs(first.profiled_ms / first.call_ms - 1) > _near():
            continue  # not to be trusted, as is said above
        all_kept, products = kept["call_ms"].iloc[0], _sum(case, "ms", _ANEW, *_PRODUCTS) - forward
        rest = first.profiled_ms - forward - products
        yield ""
        yield wrapped(
            f"At {shape} a loss within {tolerance:g} ({budget}) takes {first.call_ms:.2f} ms in {first.peak_mib:.0f} "
            f"MiB, {first.call_ms / all_kept:.2f} of all strips kept ({all_kept:.2f} ms). Its forward, which no "
            f"tolerance shortens, takes {forward:.2f} of the {first.profiled_ms:.2f} under the profiler ("
            f"{forward / all_kept:.2f} of all strips kept), the "
            f"products of {100 * active:.1f}% of the tiles {products:.2f}, everything else {rest:.2f}, in which the "
            f"device is idle for {_sum(case, 'ms', _IDLE):.2f}."
        )


def _sum(case: Any, column: str, *phases: str) -> float:
    return float(case[case["phase"].isin(phases)][column].sum())


def _phases(shape: str, budget: str, case: Any) -> str:
    first, known = case.iloc[0], (*_PRODUCTS, _ANEW, _KEPT, _IDLE)
    cells = [f"{first.call_ms:.2f} ({first.call_ms / first.matmul_ms:.2f})"]
    for phase in ("forward", _ANEW, _KEPT, "weight gradient", "input gradient"):
        found = case[case["phase"] == phase]
        if found.empty:
            cells.append("")
            continue
        row = found.iloc[0]
        share = f", {100 * row.columns:.0f}%" if phase in (_ANEW, _KEPT) and pd.notna(row.columns) else ""
        cells.append(f"{row.ms:.2f}{share}" + ("" if phase == _KEPT else f" ({row.excess_ms:+.2f})"))
    cells += [f"{case[~case['phase'].isin(known)]['ms'].sum():.2f}", f"{_sum(case, 'ms', _IDLE):.2f}"]
    return f"| {shape}, {budget} | {' | '.join(cells)} | {case['launches'].sum():.0f} |"


def _default_in_bytes(rows: Any) -> bool:
    """Whether the kernels that were measured keep columns in bytes by default, too."""
    return bool((rows[rows["budget"] == "default"]["in_bytes"] > 0).any())


def _missed(table: Table, shape: str, budget: str, case: Any, only_chosen: bool) -> Iterator[Missed]:
    from kernel.benchmark.phases import least

    first = case.iloc[0]
    unit, size = first.matmul_ms, first.workspace_mib * 2**20
    floor = least(
        *(int(first.tokens), int(first.vocab_size), int(first.hidden_size), size),
        matmul_ms=unit,
        copy_ms=first.copy_ms,
        in_bytes=not only_chosen or budget != "default",
    )
    measured = first.call_ms / unit
    parts = tuple(ms / unit for ms in (first.three_products_ms, floor.anew_ms, floor.moved_ms))
    left = [_sum(case, "ms", _ANEW, _KEPT) / unit - parts[1] - parts[2]]
    left.append(_sum(case, "ms", *_PRODUCTS) / unit - parts[0])
    left.append(measured - sum(parts) - sum(left))
    in_table = table.products(shape, f"triton, {budget}")  # where it may be met
    for asked in _asked(table, shape, budget, first):
        if measured > asked.asked and not (in_table is not None and in_table <= asked.asked):
            yield Missed(f"{shape}, {budget}", *asked, measured, parts, tuple(left))


def _asked(table: Table, shape: str, budget: str, first: Any) -> Iterator[Asked]:
    """Every time that was asked of a budget: by itself, within its memory, by torch.compile and by a rival as lean."""
    from kernel.benchmark.targets import targets

    compiled = table.products(shape, "torch.compile")
    for target in targets(table):
        within = re.fullmatch(r"ours within (\d+) MiB: time", target.line)
        of_budget = target.unit == "t_mm" and target.line.startswith(f"triton, {budget}: time")
        if target.shape != shape or target.at_least:
            continue
        if of_budget or (within and _NEAR * int(within[1]) <= first.peak_mib <= int(within[1])):
            yield Asked(f"within {within[1]} MiB" if within else "itself", target.asked)
        elif target.line == f"triton, {budget}: time / torch.compile's" and compiled is not None:
            share = "" if target.asked == 1 else f"{target.asked:g} of "
            yield Asked(f"{share}torch.compile", target.asked * compiled)
    slack = 512 * first.tokens * 2 / 2**20 + 1  # what a budget for a rival's memory may leave, in whole tiles
    rivals = {
        name: time
        for name, (peak, time) in table.points(shape, 0.1).items()
        if not name.startswith(("triton", "chunked")) and peak <= first.peak_mib + slack
    }
    if rivals:
        name = min(rivals, key=lambda rival: rivals[rival])
        yield Asked(name, rivals[name])
