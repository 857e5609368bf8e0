"""Tables and the files beside them that say what made them."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["machine", "write"]


def write(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a table, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def machine(device: torch.device, rounds: int) -> dict[str, Any]:
    """Device, versions and commit, for the file beside the table.

    Outside a repository the commit is that of the variable CONFIDENCE_CEILING_COMMIT, for a tree that travels without
    its history.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    installed = {d.name.lower().replace("-", "_"): d.version for d in importlib.metadata.distributions()}
    versions |= {n: installed.get(n, "not installed") for n in ("triton", "liger_kernel", "cut_cross_entropy")}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = os.environ.get("CONFIDENCE_CEILING_COMMIT", "unknown")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "versions": versions, "cuda": torch.version.cuda, "commit": commit, "rounds": rounds}
