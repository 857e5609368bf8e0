"""What was asked of the kernel, beside what its table has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernel_tables import measured_apart
from table_text import wrapped

__all__ = ["kernel_targets"]


def kernel_targets(data: Path) -> str:
    """What was asked of the kernel and what the table has, a line a requirement, a column a shape."""
    from kernel.benchmark.targets import Table, read, targets

    found = list(targets(Table(read(data / "kernel.csv")), read(data / "first_call.csv")))
    shapes = list(dict.fromkeys(t.shape for t in found))
    lines = [f"| | asked | {' | '.join(shapes)} |", "|---|---|" + "---|" * len(shapes)]
    for name in dict.fromkeys(t.line for t in found):
        of_line = [t for t in found if t.line == name]
        cells = []
        for shape in shapes:
            measured = [t for t in of_line if t.shape == shape]
            cells.append(", ".join(_figure(t.measured) if t.met else f"**{_missed(t)}**" for t in measured))
        asked = " or ".join(dict.fromkeys(_figure(t.asked) for t in of_line))
        sign = "at least" if of_line[0].at_least else "at most"
        asked = f"{asked} {of_line[0].unit}".strip()
        lines.append(f"| {name} | {sign} {asked} | {' | '.join(cells)} |")
    about = json.loads((data / "kernel.json").read_text(encoding="utf-8"))
    first = json.loads((data / "first_call.json").read_text(encoding="utf-8"))
    where = (
        f"{about['device']}, {about['config']['rounds']} rounds, commit `{about['commit'][:12]}`"
        f"{measured_apart(data)}; the first call: commit `{first['commit'][:12]}`. Bold: not met. "
        f"{sum(t.met for t in found)} of {len(found)} figures met: `python -m kernel.benchmark.targets` prints each."
    )
    return "\n".join([*lines, "", wrapped(where)])


def _figure(value: float) -> str:
    """Three digits, or all of a number of hundreds and more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _missed(target: Any) -> str:
    """A figure with the digits that tell it from what was asked."""
    texts = (_figure(target.measured), *(f"{target.measured:.{digits}g}" for digits in (4, 5, 6)))
    return next((text for text in texts if float(text) != target.asked), texts[-1])
