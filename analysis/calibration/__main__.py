"""Write the coverage table: ``python -m analysis.calibration [--out paper_figures/data/coverage.csv]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .coverage import simulate


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("paper_figures/data/coverage.csv"))
    parser.add_argument("--n-datasets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = simulate(n_datasets=arguments.n_datasets, seed=arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False, float_format="%.5g", lineterminator="\n")


if __name__ == "__main__":
    main()
