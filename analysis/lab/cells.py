"""Which rows of an unfinished grid may be compared: cells that have all their seeds, beside a twin that has them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from .records import config_key
from .registry import Experiment

__all__ = ["Coverage", "coverage"]


class Coverage(NamedTuple):
    """How far a grid is, cell by cell; a cell is everything that was set but the seeds."""

    keys: frozenset[str]  # rows of complete cells
    cells: int  # of the grid
    missing: dict[str, int]  # "lowrank V=256 D=16" -> its cells that are not complete

    @property
    def not_run(self) -> int:
        """Cells that are not complete."""
        return sum(self.missing.values())


def coverage(study: Experiment, configs: Sequence[Any], finished: Collection[str]) -> Coverage:
    """Find the complete cells: every seed is finished, and those of the cell's twin as well.

    A cell that is the twin of others is complete if one of them is.

    Args:
        study: What the configs are of.
        configs: The grid.
        finished: Keys of the rows that are there.
    """
    keys = {config: config_key(config) for config in configs}
    groups = defaultdict[Any, list[Any]](list)
    for config in configs:
        groups[study.cell(config)].append(config)
    there = {cell for cell, group in groups.items() if all(keys[config] in finished for config in group)}
    paired, used = {cell: study.twin(cell) for cell in groups if study.twin(cell) != cell}, set[Any]()
    complete = there - set(paired.values())
    for cell, twin in paired.items():
        if cell in there and twin in there:
            used |= {cell, twin}
        complete.discard(cell)
    complete |= used
    missing = Counter(study.name_of(cell) for cell in groups if cell not in complete)
    kept = frozenset(keys[config] for cell in complete for config in groups[cell])
    return Coverage(kept, len(groups), dict(sorted(missing.items())))
