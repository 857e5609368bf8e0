"""What the audit of the committed table says of SmolLM2-135M-Instruct, in the forms of three pages."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import wrapped

from analysis import audit as audits

__all__ = ["answer", "audit", "recommendation"]


def _table(data: Path) -> Any:
    """At b = 0.1 alone: one number where the table has three."""
    table: Any = pd.read_csv(data / "audit_smollm2.csv", dtype={"group": str})
    return table[~table["part"].isin(["smoothing", "cap"]) | (table["group"] == "0.1")]


def answer(data: Path) -> str:
    """Its answer, as the README's first lines of code print it, but for the ends of lines."""
    lines = audits.recommendation(_table(data), evidence=False).split("\n")
    return "\n".join(["```text", *map(_filled, lines), "```"])


def audit(data: Path) -> str:
    """Its first three paragraphs."""
    lines = audits.verdict(_table(data)).splitlines()
    told = [line for line in lines if line.partition(".")[0] in ("Calibration", "Smoothing", "Ceiling")]
    return "```{code-block} text\n:class: output\n\n" + "\n\n".join(map(_filled, told)) + "\n```"


def _filled(line: str) -> str:
    return textwrap.fill(line, 88, break_long_words=False, break_on_hyphens=False)


def recommendation(data: Path) -> str:
    """Its recommendation: each line, then its evidence, a point for each sentence that ends in a table."""
    table = _table(data)
    short, whole = (audits.recommendation(table, evidence=e).split("\n") for e in (False, True))
    paragraphs: list[str] = []
    for line, full in zip(short, whole, strict=True):
        points = re.split(r"(?<=\.csv\]\.) ", full.removeprefix(line).strip())
        paragraphs += [line, "\n".join(map(_point, points))]
    return _quoted(paragraphs)


def _point(text: str) -> str:
    """A line of a list."""
    return textwrap.fill(text, 116, initial_indent="- ", subsequent_indent="  ", break_long_words=False)


def _quoted(paragraphs: list[str]) -> str:
    """Paragraphs and lists of a quotation."""
    filled = (text if text.startswith("- ") else wrapped(text) for text in paragraphs)
    return "\n>\n".join(textwrap.indent(text, "> ") for text in filled)
