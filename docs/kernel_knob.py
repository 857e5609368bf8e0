"""What a budget buys: time and memory of the loss by its workspace, from the table of the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from kernel_tables import KEPT, OURS, SHAPES
from table_text import wrapped

__all__ = ["BUDGETS", "knob"]

# Implementation in kernel.csv -> budget, and what it changes; words that hold at every head.
BUDGETS = {
    "triton, 32 MiB": ("32 MiB", "narrow strips; kept is little but what the head's gradient has room for"),
    OURS: ("default", "wider strips; kept is what the head's gradient has room for, and little beside it"),
    "triton, 0.25 GiB": ("256 MiB", "as many columns kept, or more"),
    "triton, 0.5 GiB": ("512 MiB", "as many or more; of many tokens all, one chunk of tokens after another"),
    "triton, 1 GiB": ("1 GiB", "nearly all columns kept, or all"),
    "triton, 2 GiB": ("2 GiB", "all columns kept, if need be in chunks of tokens"),
    "triton, 3 GiB": ("3 GiB", "the same, in as many chunks or fewer"),
    KEPT: ("no limit", "all columns kept in one go: three products"),
}


def knob(data: Path) -> str:
    """A line for each budget that was measured at the three heads, from little memory to all of it."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[(rows["mode"] == "loss and gradients") & rows["softcap"].isna() & (rows["ignored"] == 0)]
    rows = rows[rows["label_smoothing"] == 0.1].set_index(["implementation", "shape"])
    where = (
        "Milliseconds, in brackets times the product `input @ weight.T` (t_mm); then MiB over the inputs; from "
        "`paper_figures/data/kernel.csv`, measured [as below](#what-it-costs):"
    )
    head = f"| budget | what happens | {' | '.join(SHAPES)} |"
    lines = [wrapped(where), "", head, "|---|---|" + "---|" * len(SHAPES)]
    for name, (budget, words) in BUDGETS.items():
        of = [rows.loc[name, shape] for shape in SHAPES]
        cells = [f"{row['ms']:.1f} ({row['ms'] / row['matmul_ms']:.2f}), {row['peak_mib']:.0f}" for row in of]
        lines.append(f"| {budget} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)
