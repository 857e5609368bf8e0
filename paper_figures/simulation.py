"""``--simulate``: the part of the study that a reader's machine computes in minutes, before the figures are drawn."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.lab.registry import Preset


__all__ = ["SIMULATED", "simulate"]

SIMULATED = ("S1", "S2", "S3", "S5", "S11")  # S4 and S7 take as long again; they are drawn from the committed tables


def simulate(
    wanted: Collection[str], preset: Preset, out: Path, workers: int | None = None, max_minutes: float | None = None
) -> int:
    """Compute the missing rows of the wanted experiments that are among ``SIMULATED``, and write their tables.

    A table that is not complete in time is left out, with its rows kept: the committed one is drawn, and the next call
    goes on. In ``quick`` the arm of S5 that is trained by Adam, a third of its cost, is left to the committed table.

    Args:
        wanted: Names of tables.
        preset: Which grid.
        out: Where rows and tables go.
        workers: Processes; None for one on each core.
        max_minutes: Start no fit after this time.

    Returns:
        1 where a fit failed, else 0.
    """
    from analysis.command import shown
    from analysis.lab.bundles import row_folder
    from analysis.lab.records import RowStore
    from analysis.lab.registry import experiment
    from analysis.lab.running import simulate as compute
    from analysis.lab.running import table_path
    from analysis.lab.workers import available_cores

    start, status = time.monotonic(), 0
    not_here = sorted(name for name in wanted if name.startswith("S") and name not in SIMULATED)
    if not_here:
        print(f"{', '.join(not_here)}: not simulated here, drawn from the committed {preset} tables")
    for name in (name for name in SIMULATED if name in wanted):
        study = experiment(name)

        def leave_out(config: Any) -> bool:
            return preset == "quick" and getattr(config, "optimiser", "") == "adam"

        configs, store = [c for c in study.configs(preset) if not leave_out(c)], RowStore(row_folder(out, name))
        print(
            f"{name}, preset {preset}: {len(configs)} configs on {workers or available_cores()} cores; "
            f"finished rows are kept in {shown(row_folder(out, name))}",
            flush=True,
        )
        left = None if max_minutes is None else max(60 * max_minutes - (time.monotonic() - start), 1e-9)
        result = compute(study, preset, out, workers=workers, max_seconds=left, leave_out=leave_out)
        there = sum(store.read(config) is not None for config in configs)
        print(f"{name}: {result.computed} computed now, {there} of {len(configs)} there", flush=True)
        for key, error in result.failures.items():
            print(f"failed {key}: {error.strip().splitlines()[-1]}", file=sys.stderr)
        status = status or int(bool(result.failures))
        if there < len(configs):
            table_path(out, name).unlink(missing_ok=True)
            why = "some fits failed" if result.failures else "time is up"
            if result.elsewhere and not result.failures:
                why = f"another run in {shown(out)} computes {result.elsewhere} rows"
            print(f"{name}: {why}; the committed {preset} table is drawn, run again to go on")
    return status
