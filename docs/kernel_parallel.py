"""What a head split over the processes of a group takes, and how near it is to one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from kernel_tables import OURS
from table_text import wrapped

__all__ = ["parallel"]


def parallel(data: Path) -> str:
    """A head split over the processes of a group against one process."""
    rows: Any = pd.read_csv(data / "parallel.csv")
    about = json.loads((data / "parallel.json").read_text(encoding="utf-8"))
    one, even, *others = rows["implementation"].unique()
    rival = others[-1]
    labels = [name.removeprefix("process_group, ") for name in (one, even, *others)]
    head = f"| tokens x vocabulary x hidden | softcap | {' | '.join(labels)} |".replace(rival, f"`{rival}`")
    lines = [head.replace(", no smoothing`", "`, no smoothing"), "|---|---|" + "---|" * len(labels)]
    sizes = ["tokens", "vocab_size", "hidden_size", "softcap"]
    for (*size, cap), case in rows.groupby(sizes, sort=False, dropna=False):
        found: Any = case.set_index("implementation").to_dict("index")
        cells = [" x ".join(map(str, size)), "off" if pd.isna(cap) else f"{cap:g}"]
        for name in (one, even, *others):
            row = found.get(name)
            cells.append(f"{row['ms']:.1f}, {row['peak_mib']:.0f}" if row else "")
            if name not in (one, rival):
                cells[-1] += f" ({found[one]['ms'] / row['ms']:.2f} x)"
        lines.append(f"| {' | '.join(cells)} |")
    memory = {name: rows[rows["implementation"] == name]["head_gradient_mib"].to_numpy() for name in (one, even)}
    off = rows[~rows["implementation"].isin([one, rival])][["input_gradient_difference", "weight_gradient_difference"]]
    near = _least_error(data, rows["shape"].iloc[0])
    if off.max().max() >= near:
        raise ValueError(
            f"parallel.csv differs from one process by more than {near:.4f}: write docs/kernel_parallel.py anew."
        )
    where = (
        f"On {rows['processes'].max()} {about['device']} joined by NVLink, {rows['dtype'].iloc[0]}, smoothing 0.1, "
        "loss and both gradients: ms, MiB beyond the gradients, and how many times as fast as one process; uneven "
        "slices have a third and two thirds of the rows; from `paper_figures/data/parallel.csv`, made by "
        f"`{about['command'].removesuffix(' --processes 2')}`:"
    )
    told = (
        f"With even slices a process holds {(memory[even] / memory[one]).max():g} of the head's gradient. Calls repeat "
        f"{'bit for bit' if rows['repeats_bitwise'].all() else 'NOT bit for bit'}, mean losses are one process's "
        f"{'to the last bit' if rows['loss_difference'].max() == 0 else 'but for rounding'}. Gradients differ from its "
        f"own by at most {off.max().max():.4f}, both being rounded to bfloat16, which is less than the {near:.4f} or "
        f"more by which those of the default at {rows['shape'].iloc[0]} differ from float64. The exchange of "
        f"log-partitions takes up to {rows['gather_ms'].max():.3f} ms, the sum of the hidden states' gradients, beside "
        f"the last products, up to {rows['sum_ms'].max():.2f} ms."
    )
    return "\n".join([wrapped(where), "", *lines, "", wrapped(told)])


def _least_error(data: Path, shape: str) -> float:
    """The smaller error against float64 of the default's two gradients."""
    from kernel.benchmark.results import Table, read

    table = Table(read(data / "kernel.csv"))
    errors = [table.number(shape, OURS, f"{side}_gradient_error") for side in ("input", "weight")]
    return min(error for error in errors if error is not None)
