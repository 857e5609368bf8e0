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


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("paper_figures/data/coverage.csv"))
    parser.add_argument("--n-datasets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 10_000], help="samples a data set")
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
