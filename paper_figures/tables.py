"""Where the figures' tables are: the one place that reads them, and what to say where one is missing.

Committed tables, each with a sidecar of the same name (``S3.json``), the large ones packed (``S3.csv.gz``):

- ``data/S1.csv`` to ``data/S7.csv``, ``data/verdicts.csv`` and ``data/findings.csv``: the study, preset ``full``
- ``data/quick/``: the same names, preset ``quick``
- ``data/NAME.csv``: what no preset changes, such as ``kernel.csv`` and ``caps.csv``

A table S1 to S7 that a run left in the output folder (``paper_figures/out/PRESET/S3.csv``) goes before the committed
one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from analysis.lab.registry import Preset

__all__ = ["DATA", "NoTableError", "available", "folders", "is_study", "needed_command", "read"]

DATA = Path(__file__).resolve().parent / "data"

# Tables that no preset changes -> the command that makes them; those of the study are S1 to S7 and their verdicts.
_COMMANDS = {
    "caps": "python -m analysis.caps_table paper_figures/data/caps.csv",
    "transition": "python -m analysis.transition_table paper_figures/data/transition.csv",
    "kernel": "python -m kernel.benchmark --output paper_figures/data/kernel.csv (needs a GPU)",
    "kernel_samples": "python -m kernel.benchmark --output paper_figures/data/kernel.csv (needs a GPU)",
    "audit_smollm2": (
        "python -m analysis.audit smollm2 --text python --max-tokens 8192 --out paper_figures/data/audit_smollm2.csv"
    ),
    "audit_gemma": (
        "python -m analysis.audit gemma --text python --max-tokens 2048 --out paper_figures/data/audit_gemma.csv"
    ),
    "real_gemma": "python -m analysis.real_tuning table gemma tokens.npz --short real_gemma.csv",
    "real_gemma_verdicts": "python -m analysis.real_tuning verdicts real_gemma.csv real_gemma_verdicts.csv",
    "real_gemma_findings": "python -m analysis.real_tuning verdicts real_gemma.csv real_gemma_verdicts.csv",
    "real_smollm2": "python -m analysis.real_tuning table smollm2 tokens.npz --short real_smollm2.csv",
    "real_smollm2_verdicts": "python -m analysis.real_tuning verdicts real_smollm2.csv real_smollm2_verdicts.csv",
    "real_smollm2_findings": "python -m analysis.real_tuning verdicts real_smollm2.csv real_smollm2_verdicts.csv",
    "instruction_full": "python -m analysis.instruction run MODEL.gguf questions.json --device cuda",
    "instruction_verdicts": "python -m analysis.instruction verdicts instruction_full.csv instruction_verdicts.csv",
    "instruction_findings": "python -m analysis.instruction verdicts instruction_full.csv instruction_verdicts.csv",
}


class NoTableError(LookupError):
    """A table is neither in the output folder nor among the committed ones."""


def is_study(name: str) -> bool:
    """Whether the table depends on the preset."""
    return name not in _COMMANDS


def needed_command(name: str, preset: Preset) -> str:
    """The command that makes a table.

    Example:
        >>> needed_command("S4", "full")
        'python -m analysis.study run S4 --preset full --device cuda'
    """
    if not is_study(name):
        return _COMMANDS[name]
    if name in ("verdicts", "findings"):
        folder = "paper_figures/data" if preset == "full" else f"paper_figures/data/{preset}"
        return f"python -m analysis.study verdicts --preset {preset} --file {folder}/verdicts.csv"
    from analysis.lab.running import run_command

    return run_command(name, preset)


def folders(name: str, preset: Preset, out: Path) -> list[Path]:
    """Where a table may be, first choice first: what a run left in ``out``, then what is committed."""
    committed = DATA if preset == "full" or not is_study(name) else DATA / preset
    return [out, committed] if name.startswith("S") else [committed]


def available(name: str, preset: Preset, out: Path) -> Path | None:
    """The table's file, None where there is none."""
    from analysis.lab.tables import find_table

    return next((path for folder in folders(name, preset, out) if (path := find_table(folder, name))), None)


def read(name: str, preset: Preset, out: Path) -> pd.DataFrame:
    """The table.

    Raises:
        NoTableError: Naming where it was looked for and the command that makes it.
    """
    from analysis.lab.tables import read_table

    path = available(name, preset, out)
    if path is None:
        looked = " or ".join(str(folder / f"{name}.csv") for folder in folders(name, preset, out))
        raise NoTableError(f"there is no table {looked}; make it with: {needed_command(name, preset)}")
    return read_table(path)
