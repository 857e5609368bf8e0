"""How time and memory of the loss grow with tokens and vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import listed, wrapped

__all__ = ["scale"]

_LINEAR = 1.1  # the largest slope of log time over log size that is called linear


def scale(data: Path) -> str:
    """Time and memory as tokens and vocabulary grow."""
    rows: Any = pd.read_csv(data / "scale.csv")
    about = json.loads((data / "scale.json").read_text(encoding="utf-8"))
    versions, config = about["versions"], about["config"]
    first, chosen = rows.iloc[0], config["workspace_bytes"]
    workspace = "default workspace" if chosen is None else f"{chosen // 2**20} MiB workspace"
    where = (
        f"On one {about['device']} ({first['dtype']}, hidden size {first['hidden_size']}, smoothing "
        f"{config['label_smoothing']:g}, {workspace}, torch "
        f"{versions['torch']}, Triton {versions['triton']}, commit `{about['commit'][:12]}`), loss and both gradients; "
        "the slope is that of log time over log size since the row before, 1 where time is linear; from "
        "`paper_figures/data/scale.csv`, made by `python -m kernel.benchmark.scale`:"
    )
    head = "| tokens | vocabulary | ms | in t_mm | slope | MiB beyond the gradients |"
    lines = [wrapped(where), "", head, "|---|---|---|---|---|---|"]
    for row in rows.itertuples():
        slope = "" if pd.isna(row.slope) else f"{row.slope:.2f}"
        cells = (f"{row.tokens:,}", f"{row.vocab_size:,}", f"{row.ms:.2f}", f"{row.t_mm:.2f}", slope)
        lines.append(f"| {' | '.join(cells)} | {row.beyond_mib:.0f} |")
    tokens, classes = (rows[rows["grows"] == name] for name in ("tokens", "vocab_size"))
    is_linear = ~(tokens["slope"] > _LINEAR).cummax()  # up to there
    linear, beyond = tokens[is_linear], tokens[~is_linear]
    of_classes, of_tokens, per_product = classes["t_mm"], linear["t_mm"], tokens["ms_per_product"]
    further = f"the slope never above {linear['slope'].max():.2f}"
    if len(beyond):
        further = (
            f"and no further: {listed(beyond['t_mm'], '.1f')} t_mm at {listed(beyond['tokens'], ',')} tokens, with "
            f"slopes up to {beyond['slope'].max():.2f}"
        )
    told = (
        f"Time is linear in the vocabulary: {of_classes.max():.2f} to {of_classes.min():.2f} t_mm up to "
        f"{classes['vocab_size'].max():,} classes, the slope never above {classes['slope'].max():.2f}. In the tokens "
        f"it is up to {linear['tokens'].max():,}, at {of_tokens.min():.2f} to {of_tokens.max():.2f} t_mm, {further}. "
        f"For each 10^12 multiplications of one product (N V D) it takes {per_product.iloc[0]:.0f} ms at "
        f"{tokens['tokens'].min():,} tokens, {per_product.min():.0f} at best and "
        f"{per_product.iloc[-1]:.0f} at {tokens['tokens'].max():,}."
    )
    return "\n".join([*lines, "", wrapped(told)])
