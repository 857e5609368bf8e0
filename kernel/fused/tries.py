"""Which losses are worth another try to leave tiles out, where the last one found nothing to gain."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["PAUSE", "Tries"]

PAUSE = 31  # losses after a failed try that make none, as :mod:`kernel.tiled_products` has it for blocks of tokens
_MOST_DOUBLINGS = 5
_MOST_KINDS = 256  # of losses that are remembered


@dataclass
class _Record:
    wait: int = 0
    failed: int = 0


class Tries:
    """Counts losses by kind: after a failed try the next 31 make none, after another one 62, at most 992.

    A kind that has not been seen for long may be forgotten: its next loss then is a try.
    """

    def __init__(self) -> None:
        self._records: dict[Hashable, _Record] = {}

    def due(self, kind: Hashable) -> bool:
        """Whether the next loss of a kind, which this call counts, is to be a try."""
        record = self._records.get(kind)
        if record is None or record.wait <= 0:
            return True
        record.wait -= 1
        return False

    def note(self, kind: Hashable, failed: bool) -> None:
        """Say what became of a try."""
        record = self._records.pop(kind, _Record())
        if not failed:
            return
        if record.wait > 0:  # one of several losses before the first backward of them: they are one try
            self._records[kind] = record
            return
        while len(self._records) >= _MOST_KINDS:
            self._records.pop(next(iter(self._records)), None)
        again = min(record.failed, _MOST_DOUBLINGS)
        self._records[kind] = _Record(PAUSE << again, record.failed + 1)
