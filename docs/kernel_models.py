"""The models that the kernel is known to fuse, from its own register."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["models"]


def models(data: Path) -> str:
    """Which models can be fused, by their ``config.model_type``, and which cannot."""
    table: Any = import_module("kernel.huggingface._known")
    known, images = {*table.KNOWN}, {*table.MULTIMODAL}
    experts = {name for name in known if table.KNOWN[name].body.__name__ == "balanced_body"}
    kinds = {
        "language models": known - images - experts,
        "mixtures of experts with an auxiliary loss": experts - images,
        "with images": images,
    }
    for reason in sorted({*table.REFUSED.values()}):
        kinds[f"refused: {reason}"] = {name for name, why in table.REFUSED.items() if why == reason}
    lines = [f"| {len(known)} known, and some that are refused | `config.model_type` |", "|---|---|"]
    return "\n".join([*lines, *(f"| {kind} | {', '.join(sorted(names))} |" for kind, names in kinds.items())])
