"""How few tiles any choice could compute on the problems of the sparse tables, and what they would take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from sparse_tables import PROBLEMS
from table_text import wrapped

__all__ = ["floor"]

_TOLERANCE, _ASKED = 0.003, 0.6
_PRODUCTS = 3  # of the active tiles: logits anew and both gradients


def floor(data: Path) -> str:
    """A table of shares and times, and whether any choice of tiles could take as little as was asked."""
    rows, about = pd.read_csv(data / "sparse_floor.csv"), json.loads((data / "sparse_floor.json").read_text("utf-8"))
    rows = rows[rows["label_smoothing"] == 0.1]
    problems = []
    for file, name in PROBLEMS.items():
        measured = pd.read_csv(data / f"{file}.csv")
        own = rows[rows["problem"] == measured["problem"].iloc[0]]
        product = _product_over_kept(measured)
        problems.append((name, own, product))
    where = (
        f"From `paper_figures/data/sparse_floor.csv` (one {about['device']}, float64, smoothing 0.1, commit "
        f"`{about['commit'][:12]}`, `python -m kernel.benchmark.sparse_floor`); in brackets what one product for the "
        "forward and three of those tiles would take at the rate of the library's, over the time of all strips kept:"
    )
    verdict = " ".join(_verdict(*problem) for problem in problems)
    return "\n\n".join([wrapped(where), "\n".join(_table(problems)), wrapped(verdict)])


def _product_over_kept(measured: Any) -> float:
    """The library's product, at the clock that all strips kept found where a table has it, over these, smoothed."""
    rows = measured[(measured["implementation"] == "all kept") & (measured["label_smoothing"] == 0.1)]
    (kept,) = rows.itertuples()
    product = getattr(kept, "product_ms", math.nan)
    return (kept.matmul_ms if math.isnan(product) else product) / kept.ms


def _least(share: float, product: float) -> float:
    """Time of the forward and of so large a share of the tiles over that of all strips kept."""
    return product * (1 + _PRODUCTS * share)


def _table(problems: list[tuple[str, Any, float]]) -> Iterator[str]:
    yield "| | tolerance | any choice, at least | one that knows all errors | certified | pilot and targets |"
    yield "|---|" + "---|" * 5
    for name, rows, product in problems:
        for row in rows.itertuples():
            cells = [name, f"{row.tolerance:g}"]
            shares = (row.floor, row.oracle, row.certified)
            cells += [f"{share:.1%} ({_least(share, product):.2f})" for share in shares]
            yield f"| {' | '.join(cells)} | {row.anyway:.1%} |"


def _verdict(name: str, rows: Any, product: float) -> str:
    (row,) = rows[rows["tolerance"] == _TOLERANCE].itertuples()
    least, certified = _least(row.floor, product), _least(row.certified, product)
    text = f"**{name}**: at {_TOLERANCE:g} no choice computes less than {row.floor:.1%} of the tiles, "
    if least > _ASKED:
        text += f"which take {least:.2f} even at that rate: {_ASKED:g} is out of reach of any choice of tiles."
    elif certified > _ASKED:
        text += (
            f"{least:.2f} at that rate, but to certify takes {row.certified:.1%} and {certified:.2f}: {_ASKED:g} is "
            "out of reach of these bounds, whatever the kernels."
        )
    else:
        text += f"{least:.2f} at that rate, and to certify takes {row.certified:.1%} and {certified:.2f}."
    return text
