"""The rows of kernel.csv as figures, and a figure beside what was asked."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .problems import SHAPES
from .rounds import NEAR

__all__ = ["PRODUCTS", "Beside", "Table", "Target", "is_ours", "off_clock", "read"]

PRODUCTS = "three products"
_OURS = re.compile(r"triton, (?:default|all kept|[\d.]+ [MG]iB)")


def is_ours(implementation: str) -> bool:
    """Return whether this is one of our workspaces."""
    return _OURS.fullmatch(implementation) is not None


@dataclass(frozen=True)
class Target:
    """One figure that was asked: ``measured`` at most, or with ``at_least`` at least, ``asked``."""

    line: str
    shape: str
    measured: float
    asked: float
    unit: str = ""
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        """True if the measured figure is as good as was asked."""
        return self.measured >= self.asked if self.at_least else self.measured <= self.asked

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        asked, measured = f"{sign} {self.asked:.4g}", f"{self.measured:.4g} {self.unit}".strip()
        line = f"{self.shape:16} {self.line:62} {asked:>9} {measured:>14}  {'met' if self.met else 'NOT MET'}"
        return f"{line}; {self.note}" if self.note else line


class Beside(NamedTuple):
    """A rival's setting, and our fastest workspace of at most its memory, or the leanest if none takes so little."""

    name: str
    smoothing: float  # of both
    mib: float
    time: float  # in t_mm
    own_mib: float
    own_time: float

    @property
    def met(self) -> bool:
        """True if a workspace of ours is as lean and as fast."""
        return self.own_mib <= self.mib and self.own_time <= self.time

    def __str__(self) -> str:
        point, own = (f"{mib:.0f} MiB, {time:.2f}" for mib, time in ((self.mib, self.time), self[-2:]))
        return f"{self.name} ({point}; ours {own})"


def _key(row: Mapping[str, Any]) -> tuple[str | float, ...]:
    """What tells the rows of a table apart."""
    names, case = ("shape", "implementation", "softcap", "mode"), ("label_smoothing", "ignored")
    return (*(row[name] for name in names), *(float(row[name]) for name in case))


class Table:
    """Rows of kernel.csv by shape, implementation and case."""

    def __init__(self, rows: Sequence[dict[str, str]]) -> None:
        self.rows = {_key(row): row for row in rows if not row["skipped"]}
        self.shapes = [s.name for s in SHAPES if any(key[0] == s.name for key in self.rows)]

    def number(
        self,
        shape: str,
        implementation: str,
        column: str,
        *,
        smoothing: float = 0.1,
        ignored: float = 0.0,
        mode: str = "loss and gradients",
    ) -> float | None:
        """Return a number from the column of the case without softcap, or None if it was not measured."""
        case = {"label_smoothing": smoothing, "ignored": ignored, "softcap": "", "mode": mode}
        row = self.rows.get(_key({"shape": shape, "implementation": implementation, **case}))
        return float(row[column]) if row and row.get(column) else None

    def products(self, shape: str, implementation: str, **case: str | float) -> float | None:
        """Return the time of an implementation in t_mm, or None if it was not measured."""
        ms = self.number(shape, implementation, "ms", **case)  # pyright: ignore[reportArgumentType]
        unit = self.number(shape, implementation, "matmul_ms", **case)  # pyright: ignore[reportArgumentType]
        return None if ms is None or unit is None else ms / unit

    def points(self, shape: str, smoothing: float, *, own_clock: bool = False) -> dict[str, tuple[float, float]]:
        """Return MiB over the inputs and t_mm of every implementation that ran without softcap, by its name.

        With ``own_clock`` its time is over that of the product right ahead of it, at the clock that it found; nothing
        where a table has none.
        """
        found = {}
        for of_shape, name, softcap, mode, b, ignored in self.rows:
            case = of_shape, softcap, mode, b, ignored
            if case != (shape, "", "loss and gradients", smoothing, 0.0) or name in ("matmul", PRODUCTS):
                continue
            peak = self.number(shape, str(name), "peak_mib", smoothing=smoothing)
            time = self.products(shape, str(name), smoothing=smoothing)
            if own_clock and time is not None:
                ms, product = (
                    self.number(shape, str(name), column, smoothing=smoothing) for column in ("ms", "product_ms")
                )
                time = ms / product if ms and product else None
            if peak is not None and time is not None:
                found[str(name)] = peak, time
        return found

    def ours(self, shape: str, smoothing: float = 0.1, *, own_clock: bool = False) -> list[tuple[float, float]]:
        """Return MiB and t_mm of our workspaces, the leanest first; of one plan, measured several times, the mean."""
        plans: dict[float, list[float]] = {}
        for name, (peak, time) in self.points(shape, smoothing, own_clock=own_clock).items():
            if is_ours(name):
                plans.setdefault(peak, []).append(time)
        return sorted((peak, sum(times) / len(times)) for peak, times in plans.items())

    def within(self, shape: str, mib: float, smoothing: float = 0.1) -> float | None:
        """Return the time in t_mm of our fastest workspace that takes at most ``mib``, or None if there is none."""
        return min((time for peak, time in self.ours(shape, smoothing) if peak <= mib), default=None)

    def beside(self, shape: str, *, own_clock: bool = False) -> list[Beside]:
        """Return every rival's settings, without smoothing where it has none."""
        smoothed, plain = (self.points(shape, b, own_clock=own_clock) for b in (0.1, 0.0))
        found = []
        for name, smoothing in {**dict.fromkeys(plain, 0.0), **dict.fromkeys(smoothed, 0.1)}.items():
            own = self.ours(shape, smoothing, own_clock=own_clock)
            if name.startswith(("triton", "chunked")) or not own:
                continue
            mib, time = (smoothed if smoothing else plain)[name]
            within = [point for point in own if point[0] <= mib]
            best = min(within, key=lambda point: point[1]) if within else own[0]
            found.append(Beside(name, smoothing, mib, time, *best))
        return found

    def ahead(self, shape: str) -> list[Beside] | None:
        """Return the rivals that are ahead of ours, as the module says, or None if none was measured beside ours."""
        found = self.beside(shape)
        return [beside for beside in found if beside.time < beside.own_time] if found else None

    def beyond(self, shape: str, implementation: str) -> float | None:
        """Return the peak memory in MiB beyond the output gradients, or None if it was not measured."""
        peak, own = (self.number(shape, implementation, column) for column in ("peak_mib", "gradient_mib"))
        return None if peak is None or own is None else peak - own


def off_clock(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float, float]]:
    """Return the rows that found another clock than the others of their rounds, by more than ``NEAR``.

    Args:
        rows: Of calls that share their rounds; those without ``product_ms`` count for nothing.

    Returns:
        Each such row with the milliseconds of the product right ahead of its call, and their median over all rows.
    """
    found = [(row, float(row["product_ms"])) for row in rows if row.get("product_ms")]
    if not found:
        return []
    clock = statistics.median(ms for _, ms in found)
    return [(row, ms, clock) for row, ms in found if abs(ms / clock - 1) > NEAR]


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
