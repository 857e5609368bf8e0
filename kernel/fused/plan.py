"""Records of a plan: which columns are kept where, strips alike, and what ranks one plan before another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .launch import blocks

__all__ = ["ALIGN", "PEAK_COLUMNS", "PEAK_ROWS", "KeptColumns", "Plan", "Series", "peaks_of"]

ALIGN = 64  # elements: 128 bytes or more, what the copy engine and the caches like
PEAK_COLUMNS = 64  # in bytes, that share a peak
PEAK_ROWS = 2  # float32 that the peaks of a tile take of each token: the largest, and a byte for each


def peaks_of(tile: int) -> int:
    """Peaks of a tile of columns in bytes; of four a byte for each fills 32 bits (:mod:`.byte_peaks`)."""
    return max(min(tile // PEAK_COLUMNS, 4), 1)


@dataclass(frozen=True)
class KeptColumns:
    """Columns that the forward keeps: ``number`` strips of ``width`` columns, whole tiles, one below the other."""

    start: int
    width: int
    number: int
    in_gradient: bool  # they lie in the weight gradient's memory; else in the workspace
    in_bytes: bool = False  # of one byte for each token and column; else in the two or four of the inputs
    offset: int = 0  # first element of that memory, of the inputs' size

    @property
    def columns(self) -> int:
        """How many columns they are."""
        return self.width * self.number

    def rows(self, n: int, block: int) -> int:
        """Rows of ``width`` columns that they take in memory; of several strips each takes whole tiles of ``block``."""
        return n if self.number == 1 else self.number * blocks(n, block) * block

    def elements(self, n: int, itemsize: int) -> int:
        """Elements of the inputs' size that a strip takes in the workspace."""
        return blocks(n * self.width, itemsize) if self.in_bytes else n * self.width


class Series(NamedTuple):
    """``number`` strips of one padded width that follow each other, their dz at one place."""

    start: int
    padded: int
    number: int
    kept: bool
    offset: int | None
    last_first: bool = False

    def starts(self) -> Sequence[int]:
        """The first column of each strip, in the order in which they are done."""
        found = range(self.start, self.start + self.number * self.padded, self.padded)
        return found[::-1] if self.last_first else found


class Plan(NamedTuple):
    """A candidate: what ranks it, and what a schedule is built from if it is chosen."""

    time: float  # microseconds
    memory: int
    workspace: int
    held: int  # elements of the workspace that the forward writes
    kept: tuple[KeptColumns, ...]
    scaled_in_gradient: bool
    series: list[Series]

    @property
    def columns(self) -> int:
        """How many columns are kept."""
        return sum(kept.columns for kept in self.kept)

    @property
    def in_bytes(self) -> bool:
        """Whether some are kept in bytes."""
        return any(kept.in_bytes for kept in self.kept)
