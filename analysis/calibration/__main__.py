"""Write the coverage table: ``python -m analysis.calibration [--out FILE]``.

Beside it a JSON file of the same name states the command and the versions. Some ten minutes on one processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from ..command import csv_file, finish, output_folder, parser_of, shown, whole
from ..lab.files import check_writable
from ..lab.provenance import made_here
from ..lab.tables import sidecar_of, write_table
from .coverage import simulate

__all__ = ["main"]

_BINS = 15  # of the simulated errors: a data set must fill them

_EXAMPLES = """
examples:
  python -m analysis.calibration --out paper_figures/data/coverage.csv     the committed table, some ten minutes
  python -m analysis.calibration --n-datasets 50 --sizes 500 --out /tmp/table.csv   a trial
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and write; returns the exit status."""
    out = output_folder() / "coverage.csv"
    parser = parser_of(
        "analysis.calibration", "Coverage of the intervals of the binned calibration errors, by simulation.", _EXAMPLES
    )
    parser.add_argument("--out", type=csv_file, default=out, help=f"table to write (default: {shown(out)})")
    parser.add_argument(
        "--n-datasets", type=whole(1), default=2000, help="data sets of each case (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of everything (default: %(default)s)")
    parser.add_argument(
        "--sizes",
        type=whole(_BINS),
        nargs="+",
        default=[2000, 10_000],
        help=f"samples a data set, at least {_BINS} (default: 2000 10000)",
    )
    chosen = parser.parse_args(arguments)
    return finish(lambda: _write(chosen))


def _write(chosen: argparse.Namespace) -> int:
    check_writable(chosen.out, sidecar_of(chosen.out))
    start = time.perf_counter()
    table = simulate(sizes=chosen.sizes, n_datasets=chosen.n_datasets, seed=chosen.seed)
    options = f"--sizes {' '.join(map(str, chosen.sizes))} --n-datasets {chosen.n_datasets} --seed {chosen.seed}"
    made = made_here(
        f"python -m analysis.calibration {options}",
        config={"sizes": chosen.sizes, "n_datasets": chosen.n_datasets},
        seeds=[chosen.seed],
        wall_seconds=round(time.perf_counter() - start, 3),
    )
    write_table(table, chosen.out, made, digits=5)
    print(f"wrote {shown(chosen.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
