"""Words that the sentences on several claims share: numbers, cells and ranges, and what is said of a claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..findings import Finding

UNKNOWN = "not known (no rows)"
SOLVER = "first values of the solver"  # deterministic targets are the same for every seed


class Sentences(NamedTuple):
    """What is said of one claim.

    Attributes:
        headline: The finding that the verdict is about.
        effect: What it is, in words.
        depends_on: On what the claim depends, should the verdict say so.
        condition: Under which conditions it was found.
        counter_evidence: What speaks against the verdict.
        interval_over: What varies within the interval of the headline.
    """

    headline: Finding
    effect: str
    depends_on: str
    condition: str
    counter_evidence: str
    interval_over: str = "seeds"


def number(value: float, form: str) -> str:
    """A number in a sentence; what no row tells is not known.

    Example:
        >>> number(0.25, ".0%"), number(float("nan"), ".0%")
        ('25%', 'not known')
    """
    return format(value, form) if value == value else "not known"


def at_sizes(found: Sequence[Finding]) -> str:
    """Effects with the (V, D) that each was found at."""
    return ", ".join(f"{effect} at ({effect.cell['V']}, {effect.cell['D']})" for effect in found)


def by_kind(found: Sequence[Finding]) -> str:
    """Effects with the kind of question that each was found at."""
    return ", ".join(f"{effect.cell['kind']} {effect}" for effect in found)


def span(means: Iterable[float]) -> str:
    """The least and the largest number, or the one where both are shown alike."""
    ends = [f"{end(means):.4f}" for end in (min, max)] if (means := list(means)) else []
    return " to ".join(dict.fromkeys(ends)) or UNKNOWN
