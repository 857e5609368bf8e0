"""Draw the figures from the committed tables, or simulate what they need first: ``python -m paper_figures --help``."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tqdm import tqdm

from analysis.command import above_zero, finish, parser_of, shown, whole
from analysis.lab.files import check_writable, write_together

from . import FIGURES
from .tables import NoTableError, available, is_study, needed_command, read

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.lab.registry import Preset

__all__ = ["main", "pdf_bytes", "png_bytes"]

_HERE = Path(__file__).resolve().parent
_EXAMPLES = """
examples:
  python -m paper_figures                               every figure, from the committed tables, in seconds
  python -m paper_figures --list                        what there is
  python -m paper_figures --only phase --only capping   two of them
  python -m paper_figures --preset quick                from the small grids that two cores compute
  python -m paper_figures --preset quick --simulate     the same, S1, S2, S3, S5 and S11 computed here first (minutes)

Without --preset each figure is drawn from the full tables where they are all there, else from the quick ones, and the
command says which. PDF, PNG and the drawn numbers as CSV go to paper_figures/out/PRESET.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where a figure was not drawn or a fit failed, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    return finish(lambda: _figures(options))


def _figures(options: argparse.Namespace) -> int:
    if options.list:
        for name, module in FIGURES.items():
            print(f"{name:12}{(import_module(module).__doc__ or '').splitlines()[0]}")
        return 0
    status = 0
    modules = {name: import_module(FIGURES[name]) for name in dict.fromkeys(options.only or FIGURES)}
    for folder in [options.out] if options.out else [_folder(preset) for preset in ("quick", "full")]:
        check_writable(folder / f"{next(iter(modules))}.csv")
    if options.simulate:
        from .simulation import simulate

        preset: Preset = options.preset or "quick"
        options.preset = preset
        wanted = {table for module in modules.values() for table in module.TABLES}
        status = simulate(wanted, preset, options.out or _folder(preset), options.workers, options.max_minutes)
    with tqdm(modules.items(), desc="figures", disable=not sys.stderr.isatty(), leave=False) as bar:
        for name, module in bar:
            bar.set_postfix_str(name)
            preset = options.preset or _best(name, module, options.out)
            try:
                written = _draw(name, module, preset, options.out or _folder(preset))
            except (NoTableError, KeyError, ValueError) as error:  # the others may be drawn
                reason = f"a table has no column {error}" if isinstance(error, KeyError) else str(error)
                bar.write(f"error: {name} was not drawn: {' '.join(reason.split())}", file=sys.stderr)
                status = 1
            else:
                bar.write(written, file=sys.stdout)
    return status


def _draw(name: str, module: ModuleType, preset: Preset, out: Path) -> str:
    """Draw and save a figure; what was read and what was written, in words."""
    optional = [table for table in module.OPTIONAL if available(table, preset, out) is not None]
    tables = {table: read(table, preset, out) for table in (*module.TABLES, *optional)}
    drawn = module.prepare(tables)
    sources = ", ".join(shown(path) for table in tables if (path := available(table, preset, out)) is not None)
    lines = [f"{name}, preset {preset}, from {sources}"]
    lines += [f"wrote {shown(path)}" for path in _save(drawn, module.make(drawn, preset=preset), out, name)]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("paper_figures", "Draw the figures of the paper.", _EXAMPLES)
    parser.add_argument("--only", action="append", choices=list(FIGURES), metavar="NAME", help="one figure; repeatable")
    parser.add_argument(
        "--preset", choices=("quick", "full"), help="which grid (default: full where its tables are there, else quick)"
    )
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="first compute the missing rows of S1, S2, S3, S5 and S11, on all cores; may be stopped and started again",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: paper_figures/out/PRESET)")
    parser.add_argument("--workers", type=whole(1), metavar="N", help="processes of --simulate (default: all cores)")
    parser.add_argument(
        "--max-minutes",
        type=above_zero,
        metavar="M",
        help="with --simulate: start no fit after this time, and draw what is not complete from the committed tables",
    )
    parser.add_argument("--list", action="store_true", help="name the figures and stop")
    return parser


def _folder(preset: Preset) -> Path:
    return _HERE / "out" / preset


def _best(name: str, module: ModuleType, out: Path | None) -> Preset:
    """Full where all of the figure's tables are there; else quick, and why."""
    absent = [table for table in module.TABLES if available(table, "full", out or _folder("full")) is None]
    if not any(is_study(table) for table in absent):
        return "full"
    makers = "; ".join(needed_command(table, "full") for table in absent)
    note = f"{name}: no full table {', '.join(absent)} (made by: {makers}); drawn from the quick one"
    tqdm.write(note, file=sys.stdout)  # above the bar
    return "quick"


def pdf_bytes(figure: Figure) -> bytes:
    """The figure as PDF without a date, fonts embedded as TrueType: the same table gives the same bytes."""
    return _bytes(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None})


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG of 200 dots an inch."""
    return _bytes(figure, "png", {"Software": None})


def _bytes(figure: Figure, ending: str, metadata: dict[str, None]) -> bytes:
    from matplotlib import rc_context

    from .style import RC

    file = io.BytesIO()
    with rc_context(RC):
        figure.savefig(file, format=ending, metadata=metadata)
    return file.getvalue()


def _save(drawn: pd.DataFrame, figure: Figure, out: Path, name: str) -> list[Path]:
    """The drawn numbers as CSV, the figure as PDF and PNG."""
    table, pdf, png = (out / f"{name}.{ending}" for ending in ("csv", "pdf", "png"))
    content = drawn.to_csv(index=False, lineterminator="\n")
    write_together({table: content, pdf: pdf_bytes(figure), png: png_bytes(figure)})
    return [table, pdf, png]


if __name__ == "__main__":
    sys.exit(main())
