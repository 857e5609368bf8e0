"""What a byte for each kept entry of the softmax does to the gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import wrapped

__all__ = ["byte_codes"]

# Kind of storage in byte_codes.csv -> its name in the table, in its order.
_STORAGES = {
    "none, dz anew": "nothing kept",
    "softmax in bfloat16": "two bytes",
    "bytes": "one byte",
    "bytes, root 4, peaks of 64 columns": "one byte, of even steps (not ours)",
    "logits in bfloat16": "logits in bfloat16 (not ours)",
}


def byte_codes(data: Path) -> str:
    """Errors of the gradients by what is kept of the softmax."""
    rows: Any = pd.read_csv(data / "byte_codes.csv").set_index(["storage", "data"])
    config = json.loads((data / "byte_codes.json").read_text(encoding="utf-8"))["config"]
    kinds = list(dict.fromkeys(rows.index.get_level_values("data")))
    size = " x ".join(f"{config[name]:,}" for name in ("tokens", "vocab_size", "hidden_size"))
    where = (
        f"A simulation ({size}, smoothing {config['label_smoothing']:g}): errors against float64 of the input's "
        "gradient, the head's, and the head's rows that no token names, all rounded to bfloat16; from "
        "`paper_figures/data/byte_codes.csv`, made by `python -m kernel.benchmark.byte_codes`, which also compares "
        "other codes. At an *optimum* $p_y = 0.9$ and the other logits differ by that many nats:"
    )
    lines = [wrapped(where), "", f"| kept | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    errors = ("input_gradient_error", "weight_gradient_error", "rows_without_target_error")
    for storage, name in _STORAGES.items():
        cells = [", ".join(f"{rows.loc[storage, kind][error]:.2g}" for error in errors) for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
