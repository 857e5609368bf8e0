"""``python study_jobs.py OUT``: the study's command on a grid of cheap bounds, in a process that a test may kill."""

from __future__ import annotations

import sys
from dataclasses import replace

from analysis.study import s1_ceilings as ceilings
from analysis.study.__main__ import main as command

GRID = [ceilings.CeilingConfig(vocab_size=600 + n, hidden_size=64, model="any") for n in range(5000)]


def with_grid() -> None:
    """Let S1 be the grid in this process; workers find its function by name and the config in their job."""
    ceilings.EXPERIMENT = replace(ceilings.EXPERIMENT, configs=lambda preset: GRID)


if __name__ == "__main__":
    with_grid()
    sys.exit(command(["run", "S1", "--workers", "2", "--out", sys.argv[1]]))
