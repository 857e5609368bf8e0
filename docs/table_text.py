"""How the generated parts of README and docs write lines, lists, numbers and paths."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

__all__ = ["DATA", "ROOT", "listed", "numbers_in_full", "shown", "signed", "wrapped"]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "paper_figures" / "data"


def wrapped(text: str) -> str:
    """Lines of at most 120, none broken inside code."""
    whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    return textwrap.fill(whole, width=120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def listed(values: Any, form: str = ".2f") -> str:
    """Numbers with commas, and an "and" in front of the last."""
    *first, last = (format(value, form) for value in values)
    return f"{', '.join(first)} and {last}"


def signed(value: float) -> str:
    """Three digits, with a minus sign and not a hyphen, and none before zero."""
    return f"{value:.3f}".replace("-0.000", "0.000").replace("-", "\N{MINUS SIGN}")


def shown(path: Path) -> str:
    """A path as from the root of the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


_NO_PROSE = re.compile(r"(^```.*?^```$|`[^`]*`|\]\([^)]*\)|<[a-zA-Z/!][^>]*>)", re.DOTALL | re.MULTILINE)


def numbers_in_full(text: str) -> str:
    """A page whose prose writes 0.05 and 95% where it had .05 and 95 %, but for code, addresses and tags."""
    parts = _NO_PROSE.split(text)  # prose and the rest, in turn
    parts[::2] = [re.sub(r"(?<=\d) %", "%", re.sub(r"(?<![\w./\\])\.(?=\d)", "0.", part)) for part in parts[::2]]
    return "".join(parts)
