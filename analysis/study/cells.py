"""Which rows of an unfinished grid may be compared: cells that have all their seeds, beside a twin that has them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..bottleneck import FitConfig
from ..records import config_key

__all__ = ["Coverage", "cell_of", "coverage", "family_of"]


class Coverage(NamedTuple):
    """How far a grid is, cell by cell; a cell is everything that was set but the seeds."""

    keys: frozenset[str]  # rows of complete cells
    cells: int  # of the grid
    missing: dict[str, int]  # "lowrank V=256 D=16" -> its cells that are not complete

    @property
    def not_run(self) -> int:
        """Cells that are not complete."""
        return sum(self.missing.values())


def cell_of(config: Any) -> Any:
    """A config without its seeds.

    Example:
        >>> from analysis.teachers import TeacherConfig
        >>> cell_of(FitConfig(hidden_size=4, seed=7, teacher=TeacherConfig(seed=3))) == FitConfig(hidden_size=4)
        True
    """
    if isinstance(config, FitConfig):
        config = replace(config, teacher=replace(config.teacher, seed=0))
    return replace(config, seed=0)


def family_of(config: Any) -> Any:
    """A cell together with its twins: what is needed to make one of its cells complete is all in it.

    Example:
        >>> family_of(FitConfig(hidden_size=4, label_smoothing=0.1, seed=2)) == FitConfig(hidden_size=4)
        True
    """
    return _plain(cell_of(config))


def coverage(configs: Sequence[Any], finished: Collection[str]) -> Coverage:
    """Complete cells: every seed is finished, and for heads those of the twin without smoothing as well.

    A plain cell with smoothed twins is complete if one of them is.

    Args:
        configs: The grid.
        finished: Keys of the rows that are there.
    """
    keys = {config: config_key(config) for config in configs}
    groups = defaultdict[Any, list[Any]](list)
    for config in configs:
        groups[cell_of(config)].append(config)
    there = {cell for cell, group in groups.items() if all(keys[config] in finished for config in group)}
    smoothed, used = {cell: _plain(cell) for cell in groups if _plain(cell) != cell}, set[Any]()
    complete = there - set(smoothed.values())
    for cell, plain in smoothed.items():
        if cell in there and plain in there:
            used |= {cell, plain}
        complete.discard(cell)
    complete |= used
    missing = Counter(_name(cell) for cell in groups if cell not in complete)
    kept = frozenset(keys[config] for cell in complete for config in groups[cell])
    return Coverage(kept, len(groups), dict(sorted(missing.items())))


def _plain(cell: Any) -> Any:
    return replace(cell, label_smoothing=0.0) if isinstance(cell, FitConfig) else cell


def _name(cell: Any) -> str:
    sizes = cell.teacher if isinstance(cell, FitConfig) else cell
    kind = f"{sizes.kind} " if isinstance(cell, FitConfig) else ""
    width = f" D={cell.hidden_size}" if hasattr(cell, "hidden_size") else ""
    return f"{kind}V={sizes.vocab_size}{width}"
