"""Theory, simulation and measurement of confidence ceilings and of what label smoothing does below them.

Public functions are importable from here and loaded with their module at first use, so that ``import analysis`` costs
nothing and theory never loads torch:

>>> import analysis
>>> round(float(analysis.simplex_cap(5.0, 256)), 3)
0.372
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Module -> its public names. __init__.pyi tells editors and type checkers the same; a test compares both with each
# module's __all__.
_PUBLIC = {
    "caps": """entropy_floor confidence_to_gap gap_to_confidence max_gap simplex_cap single_token_cap""",
    "smoothing": """activity_index effectiveness_ratio loss_floor optimal_confidence optimal_gap restoring_temperature
        smooth unsmooth""",
}
# Modules that are commands only: python -m analysis.NAME.
_COMMANDS: tuple[str, ...] = ()
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [*_PUBLIC, *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
