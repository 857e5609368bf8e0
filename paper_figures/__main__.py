"""Simulate what the figures need, or read it, and draw them: ``python -m paper_figures --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paper_figures import FIGURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["main"]

_HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, module in FIGURES.items():
            print(f"{name:12}{(import_module(module).__doc__ or '').splitlines()[0]}")
        return 0
    out: Path = options.out or _HERE / "out" / options.preset
    status, written = 0, list[Path]()
    tables: dict[str, pd.DataFrame] = {}
    for name in options.only or FIGURES:
        module = import_module(FIGURES[name])
        if module.GRID not in tables:
            if options.simulate:
                tables[module.GRID], failed = _simulate(module.GRID, options.preset, out, options.workers)
                status = status or int(failed > 0)
            else:
                tables[module.GRID] = _read(module.GRID, options.preset, out)
        drawn = module.prepare(tables[module.GRID])
        written += _save(drawn, module.make(drawn, preset=options.preset), out, name)
    for path in written:
        print(f"wrote {_shown(path)}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m paper_figures", description="Draw the figures of the paper.")
    parser.add_argument("--only", action="append", choices=list(FIGURES), metavar="NAME", help="one figure; repeatable")
    parser.add_argument("--preset", choices=("quick", "full"), default="quick", help="which grid (default: quick)")
    parser.add_argument(
        "--simulate", action="store_true", help="train what is missing, on all cores; may be stopped and started again"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: paper_figures/out/PRESET)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes of --simulate (default: all cores)")
    parser.add_argument("--list", action="store_true", help="name the figures and stop")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _simulate(name: str, preset: Any, out: Path, workers: int | None) -> tuple[pd.DataFrame, int]:
    """Train the experiment's missing rows, write its table with a sidecar; the table and how many configs failed."""
    from analysis.study.registry import experiment
    from analysis.study.running import row_folder, simulate
    from analysis.sweep import available_cores

    study, folder = experiment(name), row_folder(out, name)
    configs = len(study.configs(preset))
    print(
        f"{name}, preset {preset}: {configs} configs on {workers or available_cores()} cores; "
        f"finished rows are kept in {_shown(folder)}",
        flush=True,
    )
    result = simulate(study, preset, out, workers=workers)
    there = result.rows["key"].nunique() if not result.rows.empty else 0
    print(f"{name}: {result.computed} computed now, {there} of {configs} there")
    for key, error in result.failures.items():
        print(f"failed {key}: {error.strip().splitlines()[-1]}", file=sys.stderr)
    if result.rows.empty:
        raise SystemExit(f"error: no row of {name} could be computed; the reasons are in {_shown(folder / 'failed')}")
    return result.rows, len(result.failures)


def _read(grid_name: str, preset: str, out: Path) -> pd.DataFrame:
    """The table that an earlier simulation left in ``out``, or else the committed one."""
    from analysis.records import read_table

    candidates = [out / f"{grid_name}.csv", _HERE / "data" / preset / f"{grid_name}.csv"]
    for path in candidates:
        if path.exists():
            print(f"read {_shown(path)}")
            return read_table(path)
    looked = " or ".join(_shown(path) for path in candidates)
    raise SystemExit(f"error: there is no table {looked}; make it with --simulate")


def _save(drawn: pd.DataFrame, figure: Figure, out: Path, name: str) -> list[Path]:
    """The drawn numbers as CSV, the figure as PDF and PNG; the same table gives the same bytes."""
    from matplotlib import rc_context

    from analysis.records import write_atomically
    from paper_figures.style import RC

    table, pdf, png = (out / f"{name}.{ending}" for ending in ("csv", "pdf", "png"))
    write_atomically(table, drawn.to_csv(index=False))
    with rc_context(RC):
        figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(png, metadata={"Software": None})
    return [table, pdf, png]


def _shown(path: Path) -> str:
    """The path as a reader of this terminal would type it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
