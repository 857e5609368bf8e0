"""What the kernel costs beyond its loss on a GPU: statistics of a head, the loss on a CPU, a whole training step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import wrapped

__all__ = ["cpu", "statistics", "training_step"]


def statistics(data: Path) -> str:
    """What the statistics of a head cost beside the loss-only forward."""
    rows: Any = pd.read_csv(data / "statistics.csv")
    rows = rows[rows["softcap"].isna() & (rows["temperatures"] > 0)].set_index("temperatures")
    device = json.loads((data / "statistics.json").read_text(encoding="utf-8"))["device"]
    return wrapped(
        "`kernel.head_statistics` gives confidence, entropy, ranks and more of every token, at up to eight "
        f"temperatures in one sweep, without logits: {rows['peak_mib'].max():.0f} MiB at {rows['shape'].iloc[0]}'s "
        f"shape, at {rows['ratio'].loc[1]:.1f} (one temperature) to {rows['ratio'].loc[8]:.1f} times (eight) the "
        f"loss-only forward's time on one {device} (`paper_figures/data/statistics.csv`)."
    )


def cpu(data: Path) -> str:
    """The chunked loss against eager PyTorch on a CPU."""
    rows: Any = pd.read_csv(data / "chunked.csv")
    about = json.loads((data / "chunked.json").read_text(encoding="utf-8"))
    threads, version = about["config"]["threads"], about["versions"]["torch"]
    where = (
        f"On a CPU ({threads} threads, torch {version}), float32, loss and both gradients, smoothing "
        "0.1, against `cross_entropy(input @ weight.T)`; from `paper_figures/data/chunked.csv`, made by "
        "`python -m kernel.benchmark.cpu`:"
    )
    head = "| tokens x vocabulary x hidden | time, chunked / eager | peak memory, chunked | eager |"
    lines = [wrapped(where), "", head, "|---|---|---|---|"]
    for row in rows[(rows["label_smoothing"] == 0.1) & rows["softcap"].isna()].itertuples():
        shape = f"{row.tokens} x {row.vocab_size} x {row.hidden_size}"
        lines.append(f"| {shape} | {row.time_ratio:.2f} | {row.chunked_peak_mib} MiB | {row.eager_peak_mib} MiB |")
    return "\n".join(lines)


def training_step(data: Path) -> str:
    """A whole model's training step with its own loss and with the fused one."""
    rows: Any = pd.read_csv(data / "training_step.csv")
    about = json.loads((data / "training_step.json").read_text(encoding="utf-8"))
    versions = about["versions"]
    first = rows.iloc[0]
    where = (
        f"A training step of a Llama of SmolLM2-135M's shape ({first.layers} layers, hidden {first.hidden_size}, "
        f"vocabulary {first.vocab_size}) on {first.tokens} tokens, {about['device']}, bfloat16 autocast, torch "
        f"{versions['torch']}, transformers {versions['transformers']}; from `paper_figures/data/training_step.csv`, "
        "made by "
        "`python -m kernel.benchmark.training_step`:"
    )
    lines = [wrapped(where), "", "| loss | smoothing | checkpointing | peak memory | time |", "|---|---|---|---|---|"]
    for row in rows.itertuples():
        checkpointing = "yes" if row.checkpointing else "no"
        cells = (row.loss, f"{row.label_smoothing:g}", checkpointing, f"{row.peak_mib:.0f} MiB", f"{row.ms:.1f} ms")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
