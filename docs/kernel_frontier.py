"""Ours against every rival's setting within that setting's memory, from the table of the kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kernel_tables import SHAPES as FIRST
from table_text import wrapped

if TYPE_CHECKING:
    from kernel.benchmark.results import Table

__all__ = ["CLOSE", "frontier", "settings"]

CLOSE = 0.03  # of the time: rounds of one setting lie as far apart


class Setting(NamedTuple):
    """One setting of a rival at one head, and what ours takes within its memory."""

    shape: str
    name: str
    smooths: bool
    mib: float
    ratio: float  # time of our fastest workspace of at most that memory over its own; above 1 the rival is ahead
    leaner: bool  # than any of ours: compared with our leanest workspace


def settings(table: Table, *, own_clock: bool = False) -> list[Setting]:
    """Every rival's settings, without smoothing where it has none; at the clock that each call found, or as timed."""
    return [
        Setting(shape, b.name, b.smoothing > 0, b.mib, b.own_time / b.time, b.own_mib > b.mib)
        for shape in table.shapes
        for b in table.beside(shape, own_clock=own_clock)
    ]


def frontier(data: Path) -> str:
    """A line for each setting that is on the front of its rivals at some head, a column a head."""
    from kernel.benchmark.results import Table, read

    table = Table(read(data / "kernel.csv"))
    found = settings(table)
    by = {(s.name, s.shape): s for s in found}
    names = sorted({name for smooths in (True, False) for name in _front(table, found, smooths)}, key=_place(found))
    lines = [
        f"| time of ours over | {' | '.join(table.shapes)} | its error |",
        "|---|" + "---|" * (len(table.shapes) + 1),
    ]
    for name in names:
        cells = [_cell(by[name, shape]) if (name, shape) in by else "" for shape in table.shapes]
        plain = "" if any(s.smooths for s in found if s.name == name) else ", no smoothing"
        lines.append(f"| {name}{plain} | {' | '.join(cells)} | {_error(table, name):.4f} |")
    about = json.loads((data / "kernel.json").read_text(encoding="utf-8"))
    versions = about["versions"]
    where = (
        f"From the same table (quack {versions['quack_kernels']}, CuTe DSL {versions['nvidia_cutlass_dsl']}): the time "
        "of our fastest workspace of at most a rival's memory over that rival's time (in brackets its MiB over the "
        f"inputs). Bold: ours is behind, by more than {CLOSE:.0%}. *: it takes less than any of ours, and meets our "
        "leanest. Left out are settings that another rival beats in time and memory at every head; the last column has "
        f"the largest error of a gradient, of ours {_own_error(table):.4f} with smoothing. A rival's chunk is a "
        "setting of its own: Liger-Kernel's `chunk_mem_const` and quack's tokens of a chunk. Tokens x vocabulary x "
        f"hidden size of the heads that are not in the first table: {_sizes(table)}:"
    )
    shown = [s for s in found if s.name in names and not s.leaner]
    smooth, others = ([s for s in shown if s.smooths is kind] for kind in (True, False))
    told = (
        f"Of the settings that smooth, without those with *, {_counted(smooth)}; of those that do not, "
        f"{_counted(others)}. {_fastest(table)}"
    )
    parts = [wrapped(text) for text in (told, _by_own_clock(table, names), _doubted(table)) if text]
    return "\n\n".join([wrapped(where), "\n".join(lines), *parts])


def _by_own_clock(table: Table, names: list[str]) -> str:
    """The same at the clock that each call found, and whom that puts ahead; empty where the table does not have it."""
    found = [s for s in settings(table, own_clock=True) if s.name in names and not s.leaner]
    if not found:
        return ""
    smooth, others = ([s for s in found if s.smooths is kind] for kind in (True, False))
    ahead = [f"{s.name} at {s.shape} {s.ratio:.3f} ({s.mib:.0f})" for s in found if s.ratio > 1]
    without = [shape for shape in table.shapes if shape not in {s.shape for s in found}]
    return (
        "Not all calls found the same clock. If each time is divided by that of the product right ahead of the call "
        f"(`product_ms`; {' and '.join(without) or 'no head'} have none): of those that smooth {_counted(smooth)}, of "
        f"the others {_counted(others)}. Above 1 are then {'; '.join(ahead) or 'none'}."
    )


def _doubted(table: Table) -> str:
    """Rows that found another clock than those of their rounds by more than the command allows; empty without any."""
    from kernel.benchmark.results import off_clock
    from kernel.benchmark.rounds import NEAR

    rounds: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in table.rows.values():  # rows of all tokens and of few share theirs, and so do caps of the loss alone
        cap = row["softcap"] if row["mode"] != "loss" else ""
        rounds.setdefault((row["shape"], row["mode"], row["label_smoothing"], cap), []).append(row)
    told: dict[str, list[str]] = {}
    for row, ms, clock in (each for rows in rounds.values() for each in off_clock(rows)):
        kind = [row["shape"], *[row["mode"]] * (row["mode"] == "loss")]
        kind += ["no smoothing"] * (not float(row["label_smoothing"])) + ["softcap"] * bool(row["softcap"])
        kind += [f"{float(row['ignored']):.0%} ignored"] * bool(float(row["ignored"]))
        told.setdefault(", ".join(kind), []).append(f"{row['implementation']} {ms / clock - 1:+.1%}")
    if not told:
        return ""
    listed = "; ".join(f"{case}: {', '.join(names)}" for case, names in told.items())
    return f"At another clock than the others by more than {NEAR:.0%}, and not to be trusted: {listed}."


def _sizes(table: Table) -> str:
    from kernel.benchmark.problems import SHAPES

    others = [s for s in SHAPES if s.name in table.shapes and s.name not in FIRST]
    return ", ".join(f"{s.name} {s.n} x {s.vocab_size} x {s.hidden_size}" for s in others)


def _front(table: Table, found: list[Setting], smooths: bool) -> set[str]:
    """Settings that at some head no other of their kind beats in both time and memory."""
    kept = set()
    for shape in table.shapes:
        points = table.points(shape, 0.1 if smooths else 0.0)
        least = float("inf")
        for setting in sorted((s for s in found if s.shape == shape and s.smooths is smooths), key=lambda s: s.mib):
            if points[setting.name][1] < least:
                least = points[setting.name][1]
                kept.add(setting.name)
    return kept


def _place(found: list[Setting]) -> Callable[[str], tuple[bool, str, int]]:
    """Sorts names: what smooths first, chunks by their number."""
    smooths = {s.name: s.smooths for s in found}

    def key(name: str) -> tuple[bool, str, int]:
        begin, _, chunk = name.partition(", chunk ")
        return (not smooths[name], begin, int(chunk or 0))

    return key


def _cell(setting: Setting) -> str:
    text = f"{setting.ratio:.2f} ({setting.mib:.0f}{'*' if setting.leaner else ''})"
    return f"**{text}**" if setting.ratio > 1 + CLOSE else text


def _error(table: Table, name: str) -> float:
    """The larger of its gradients' errors at any head."""
    for smoothing in (0.1, 0.0):
        errors = [
            table.number(shape, name, f"{side}_gradient_error", smoothing=smoothing)
            for shape in table.shapes
            for side in ("input", "weight")
        ]
        known = [error for error in errors if error is not None]
        if known:
            return max(known)
    raise ValueError(f"kernel.csv must hold errors of {name!r}, got none.")


def _own_error(table: Table) -> float:
    """The largest error of a gradient over all of our workspaces and heads."""
    from kernel.benchmark.results import is_ours

    names = {(shape, name) for shape in table.shapes for name in table.points(shape, 0.1) if is_ours(name)}
    errors = [table.number(*key, f"{side}_gradient_error") for key in names for side in ("input", "weight")]
    return max(error for error in errors if error is not None)


def _counted(found: list[Setting]) -> str:
    """How many of the settings are behind ours, ahead, and level within the rounds' spread."""
    level = [s for s in found if abs(s.ratio - 1) <= CLOSE]
    ahead = [s for s in found if s.ratio > 1 + CLOSE]
    behind = len(found) - len(level) - len(ahead)
    return (
        f"ours is ahead in {behind} of {len(found)} cases, level (within {CLOSE:.0%}) in {len(level)} and behind in "
        f"{len(ahead)}"
    )


def _fastest(table: Table) -> str:
    """Our fastest workspace against the fastest setting of any rival that smooths, whatever they take."""
    ratios = []
    for shape in table.shapes:
        others = [t for n, (_, t) in table.points(shape, 0.1).items() if not n.startswith(("triton", "chunked"))]
        ratios.append(min(time for _, time in table.ours(shape)) / min(others))
    return (
        "With memory to spare our fastest workspace takes "
        f"{min(ratios):.2f} to {max(ratios):.2f} times the time of the fastest rival that smooths."
    )
