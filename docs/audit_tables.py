"""What the audit of the committed table says of SmolLM2-135M, in the forms of three pages."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import wrapped

from analysis import audit as audits

__all__ = ["answer", "audit", "recommendation"]


def _table(data: Path) -> Any:
    return pd.read_csv(data / "audit_smollm2.csv", dtype={"group": str})


def answer(data: Path) -> str:
    """Its answer at b = 0.1, as the README's first lines of code print it; a quotation, as its lines are long."""
    table = _table(data)
    asked = table[~table["part"].isin(["smoothing", "cap"]) | (table["group"] == "0.1")]
    return _quoted(audits.recommendation(asked, evidence=False))


def audit(data: Path) -> str:
    """Its first three paragraphs."""
    lines = audits.verdict(_table(data)).splitlines()
    told = [line for line in lines if line.partition(".")[0] in ("Calibration", "Smoothing", "Ceiling")]
    return "```{code-block} text\n:class: output\n\n" + "\n\n".join(map(_filled, told)) + "\n```"


def _filled(line: str) -> str:
    return textwrap.fill(line, 88, break_long_words=False, break_on_hyphens=False)


def recommendation(data: Path) -> str:
    """Its recommendation, with the evidence."""
    return _quoted(audits.recommendation(_table(data)))


def _quoted(text: str) -> str:
    """Each line as a paragraph of a quotation."""
    return "\n>\n".join(textwrap.indent(wrapped(line), "> ") for line in text.split("\n"))
