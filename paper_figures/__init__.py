"""The figures of the paper: each a module with ``make(table) -> Figure``, drawn by ``python -m paper_figures``.

A module of this package says which grid its rows come from (``GRID``), what it draws from them (``prepare``), and draws
it (``make``). None of them computes a model, reads a file or writes one.
"""

from __future__ import annotations

__all__ = ["FIGURES"]

# Name of a figure -> its module, imported when drawn.
FIGURES = {"activity": "paper_figures.activity"}
