"""What the audit of the committed table says of SmolLM2-135M, in the forms of three pages."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import output, wrapped

from analysis import audit as audits

__all__ = ["answer", "audit", "recommendation"]


def _table(data: Path) -> Any:
    return pd.read_csv(data / "audit_smollm2.csv", dtype={"group": str})


def answer(data: Path) -> str:
    """Its answer at b = 0.1, as the README's first lines of code print it."""
    table = _table(data)
    asked = table[~table["part"].isin(["smoothing", "cap"]) | (table["group"] == "0.1")]
    return f"```text\n{output(audits.recommendation(asked, evidence=False), 120)}\n```"


def audit(data: Path) -> str:
    """Its first three paragraphs."""
    lines = audits.verdict(_table(data)).splitlines()
    told = [line for line in lines if line.partition(".")[0] in ("Calibration", "Smoothing", "Ceiling")]
    return "```{code-block} text\n:class: output\n\n" + "\n\n".join(map(output, told)) + "\n```"


def recommendation(data: Path) -> str:
    """Its recommendation, each line as a paragraph of a quotation."""
    lines = audits.recommendation(_table(data)).split("\n")
    return "\n>\n".join(textwrap.indent(wrapped(line), "> ") for line in lines)
