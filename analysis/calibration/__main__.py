"""Write the coverage table: ``python -m analysis.calibration [--out paper_figures/data/coverage.csv]``.

Beside it a JSON file of the same name states the command and the versions. Some ten minutes on one processor.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy
import scipy

from .coverage import simulate

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.calibration                                             the committed table, some ten minutes
  python -m analysis.calibration --n-datasets 50 --sizes 500 --out /tmp/table.csv   a trial
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.calibration",
        description="Coverage of the intervals of the binned calibration errors, by simulation.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out = Path("paper_figures") / "data" / "coverage.csv"
    parser.add_argument("--out", type=Path, default=out, help="table to write (default: %(default)s)")
    parser.add_argument("--n-datasets", type=int, default=2000, help="data sets of each case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[2000, 10_000], help="samples a data set (default: 2000 10000)"
    )
    chosen = parser.parse_args(arguments)
    table = simulate(sizes=chosen.sizes, n_datasets=chosen.n_datasets, seed=chosen.seed)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out, index=False, float_format="%.5g", lineterminator="\n")
    options = f"--sizes {' '.join(map(str, chosen.sizes))} --n-datasets {chosen.n_datasets} --seed {chosen.seed}"
    made = {
        "command": f"python -m analysis.calibration {options}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
    }
    chosen.out.with_suffix(".json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
