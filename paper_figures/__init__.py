"""The figures of the paper: each a module with ``make(table) -> Figure``, drawn by ``python -m paper_figures``.

A module of this package says which tables it draws (``TABLES``, and ``OPTIONAL`` ones that it can do without), takes
from them what it draws (``prepare``: one table with ``COLUMNS``), and draws it (``make``: the figure, unsaved, with the
preset printed in it where there is a grid; a table that lacks a column or has no row is a ValueError). None of them
trains a model, reads a file or writes one; the lines of theory are computed where they are drawn. The caption stands in
the module's docstring.
"""

from __future__ import annotations

__all__ = ["FIGURES"]

# Name of a figure -> its module, imported when drawn.
FIGURES = {
    "response": "paper_figures.response",
    "activity": "paper_figures.activity",
    "ceilings": "paper_figures.ceilings",
    "phase": "paper_figures.phase",
    "capping": "paper_figures.capping",
    "tuning": "paper_figures.tuning",
    "samples": "paper_figures.samples",
    "sizes": "paper_figures.sizes",
    "kernel": "paper_figures.kernel",
    "audit": "paper_figures.audit",
    "real": "paper_figures.real",
    "verdicts": "paper_figures.verdicts",
}
