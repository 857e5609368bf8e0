"""Time, memory and error of the loss and its rivals on one GPU, from the table of the kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import listed, wrapped

__all__ = ["KEPT", "OURS", "RIVAL", "SHAPES", "kernel", "kernel_floors", "kernel_host"]

SHAPES = ("Gemma-2-2B", "Llama-3-8B", "Qwen2.5-0.5B")
OURS, KEPT, RIVAL = "triton, default", "triton, all kept", "Liger-Kernel, float32 sums"
# Name in kernel.csv -> name in the table, in its order.
_IMPLEMENTATIONS = {
    OURS: "`triton`, default workspace",
    KEPT: "`triton`, all strips kept",
    "chunked": "`chunked`",
    "eager": "eager, bfloat16 logits",
    "torch.compile": "torch.compile",
    "Liger-Kernel": "Liger-Kernel",
    RIVAL: "Liger-Kernel, float32 sums, its best chunk",
}


def measured_apart(data: Path) -> str:
    """Say which heads of the table are of another commit than its last ones, and how they were timed."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    about = json.loads((data / "kernel.json").read_text(encoding="utf-8"))
    own = rows.loc[rows["commit"] == about["commit"], "ahead_ms"].max()
    others = rows[rows["commit"] != about["commit"]].groupby(["commit", "ahead_ms"], sort=False)["shape"]
    return "".join(
        f"; {' and '.join(dict.fromkeys(heads))}: commit `{commit[:12]}`, "
        f"behind {ahead:.0f} ms of products in place of {own:.0f}"
        for (commit, ahead), heads in others
    )


def kernel(data: Path) -> str:
    """Time, memory and error of the loss and its rivals on one GPU."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[(rows["mode"] == "loss and gradients") & rows["softcap"].isna() & (rows["ignored"] == 0)]
    smooth = rows[rows["label_smoothing"] == 0.1].set_index(["implementation", "shape"])
    plain = rows[(rows["label_smoothing"] == 0) & (rows["shape"] == SHAPES[0])].set_index("implementation")["ms"]
    found = {name: smooth.loc[name].loc[list(SHAPES)] for name in _IMPLEMENTATIONS}
    error = {n: f[["input_gradient_error", "weight_gradient_error"]].max().max() for n, f in found.items()}
    ours, kept, rival = found[OURS], found[KEPT], found[RIVAL]
    sizes = ours[["tokens", "vocab_size", "hidden_size"]].astype(int)
    shapes = ", ".join(f"{name} {' x '.join(map(str, size))}" for name, *size in sizes.itertuples())
    about = json.loads((data / "kernel.json").read_text(encoding="utf-8"))
    versions = about["versions"]
    where = (
        f"On one {about['device']} (bfloat16, torch {versions['torch']}, Triton {versions['triton']}, Liger-Kernel "
        f"{versions['liger_kernel']}; peaked logits; tokens x vocabulary x hidden: {shapes}), MiB over the inputs, of "
        f"which the gradients are {listed(ours['gradient_mib'], '.0f')}; error against float64; from "
        "`paper_figures/data/kernel.csv`, made by `python -m kernel.benchmark`:"
    )
    head = f"| loss and gradients, smoothing 0.1 | {': ms, MiB | '.join(SHAPES)}: ms, MiB | worst gradient error |"
    lines = [wrapped(where), "", head, "|---|" + "---|" * (len(SHAPES) + 1)]
    for name, label in _IMPLEMENTATIONS.items():
        cells = [f"{ms:.1f}, {mib:.0f}" for ms, mib in zip(found[name]["ms"], found[name]["peak_mib"], strict=True)]
        lines.append(f"| {label} | {' | '.join(cells)} | {error[name]:.4f} |")
    comparison = (
        "Recomputing the logits takes four matrix products, keeping them three: the default takes "
        f"{listed(ours['ms'] / ours['matmul_ms'])} times `input @ weight.T` at the three shapes, all strips kept "
        f"{listed(kept['ms'] / kept['matmul_ms'])} times. Against Liger-Kernel with float32 sums the default takes "
        f"{listed(ours['ms'] / rival['ms'])} times the time, {listed(ours['peak_mib'] / rival['peak_mib'])} times the "
        f"memory and has {error[OURS] / error[RIVAL]:.2f} times the gradient error; all strips kept take "
        f"{listed(kept['ms'] / rival['ms'])} times the time. cut-cross-entropy has no label smoothing; without it, it "
        f"takes {plain['cut-cross-entropy, filter']:.1f} ms (filtered) or {plain['cut-cross-entropy, exact']:.1f} ms "
        f"at {SHAPES[0]}, the default {plain[OURS]:.1f} ms."
    )
    return "\n".join([*lines, "", wrapped(comparison)])


def kernel_floors(data: Path) -> str:
    """The part of a loss that keeps its logits that nothing avoids, beside what ours takes."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[
        (rows["mode"] == "loss and gradients")
        & rows["softcap"].isna()
        & (rows["ignored"] == 0)
        & (rows["label_smoothing"] == 0.1)
    ].set_index(["shape", "implementation"])
    ratio = rows["ms"] / rows["matmul_ms"]
    lines = [
        "| in t_mm | three products by the library | all strips kept | of it beyond the products |",
        "|---|---|---|---|",
    ]
    for shape in dict.fromkeys(rows.index.get_level_values("shape")):
        least, kept = ratio[shape, "three products"], ratio[shape, KEPT]
        lines.append(f"| {shape} | {least:.2f} | {kept:.2f} | {kept - least:+.2f} |")
    return "\n".join(lines)


def kernel_host(data: Path) -> str:
    """What the host takes to enqueue a call, beside what the device takes to compute it."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[rows["softcap"].isna() & (rows["label_smoothing"] == 0.1) & rows["ms"].notna()]
    shapes = list(dict.fromkeys(rows["shape"]))
    lines = [f"| host, device: ms | {' | '.join(shapes)} |", "|---|" + "---|" * len(shapes)]
    for name, ignored, mode in (
        *((n, 0.0, "loss and gradients") for n in (OURS, "triton, 32 MiB", KEPT)),
        (OURS, 0.8, "loss and gradients"),
        (OURS, 0.0, "loss"),
        *((n, 0.0, "loss and gradients") for n in ("eager", "torch.compile", "Liger-Kernel")),
    ):
        of_line = rows[(rows["implementation"] == name) & (rows["ignored"] == ignored) & (rows["mode"] == mode)]
        times = of_line.set_index("shape")[["host_ms", "ms"]].to_dict(
            "index"
        )  # of some heads not every line is measured
        cells = [f"{times[s]['host_ms']:.1f}, {times[s]['ms']:.1f}" if s in times else "" for s in shapes]
        label = name + (", 80 % ignored" if ignored else "") + (", loss only" if mode == "loss" else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)
