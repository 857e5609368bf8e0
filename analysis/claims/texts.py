"""Claims K3 and K4, and the law, on transformers trained on real text (S12), where no truth is known.

Bits per byte, over the same bytes at every V, stand in the place of the divergence from the truth. Confidence is not
compared over V: other tokens are predicted there; falls are, over b (confidence - 1/V).
"""

from __future__ import annotations

import pandas as pd

from .arms import elsewhere
from .findings import SMALL, Findings, word
from .foretold import foretold
from .sizes import Grid, all_known, by_size, mean_over_v, over_widths, shares_of_fall, step_between, within

__all__ = ["capped_on_text", "foretells_on_text", "little_effect_on_text"]

_SHARE = 0.2  # difference of the fall over b (confidence - 1/V) that counts


def capped_on_text(table: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """K3: whether pretrained models of small D are less confident on held-out text though they need no more bits."""
    start = _pretrained(table)
    for name, unit in (("confidence", "probability"), ("bits_per_byte", "bits")):
        by_size(start, name, name, unit, found)
    steps = over_widths(start, "confidence", "confidence_step", "probability", grid, found)
    turned = start.assign(fewer=-start["bits_per_byte"])
    worse = over_widths(turned, "fewer", "bits_step", "bits", grid, found)
    return word(
        supported=all(step.low > SMALL and more.high <= SMALL for step, more in zip(steps, worse, strict=True)),
        refuted=all(step.high <= SMALL or more.low > 0 for step, more in zip(steps, worse, strict=True)),
        known=all_known([*steps, *worse]),
    )


def little_effect_on_text(table: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """K4: whether the fall on held-out pairs over b (confidence - 1/V) is less at small D and at large V, and A > 1."""
    pairs, train = _fallen(table, "pairs"), _fallen(table, "train")
    by_size(_pretrained(table), "bits_per_byte", "bits_per_byte", "bits", found)
    by_size(pairs, "fall", "fall", "probability", found)
    for name, rows in (("fall_share", pairs), ("fall_share_on_train", train)):
        by_size(rows, "share", name, "share", found)
    by_size(train, "activity", "activity", "index", found)
    steps = over_widths(pairs, "share", "fall_share_step", "share", grid, found)
    mean_over_v(pairs, "share", "fall_share_step", "share", grid, found)
    elsewhere(table.loc[table["distribution"] == "text"], "estimated_ece", found)
    wide = pairs.loc[pairs["hidden_size"] == grid.widths[-1]]
    least, *others = grid.vocabularies
    over = []
    for v in others:
        step = step_between(wide, "share", "vocab_size", v, least, ["hidden_size"])
        over.append(found.add("fall_share_over_v", step, "share", V=v))
    indices = found.at("activity")
    return word(
        supported=all(step.low > _SHARE for step in steps) and all(step.high < -_SHARE for step in over),
        refuted=all(within(step, _SHARE) for step in over) and not any(index.high > 1 for index in indices),
        known=all_known([*steps, *over]) and all_known(indices),
    )


def foretells_on_text(table: pd.DataFrame, found: Findings, grid: Grid) -> str:
    """The law, on held-out pairs."""
    return foretold(_fallen(table, "pairs"), _fallen(table, "train"), found, grid)


def _pretrained(table: pd.DataFrame) -> pd.DataFrame:
    """Models before tuning, on held-out text."""
    return table.loc[(table["epoch"] == 0) & (table["distribution"] == "text")]


def _fallen(table: pd.DataFrame, distribution: str) -> pd.DataFrame:
    """Plain rows after the last epoch with the fall of b = .1."""
    ended = table.loc[(table["epoch"] == table["epoch"].max()) & (table["distribution"] == distribution)]
    return shares_of_fall(ended)
