"""What smoothing did: each smoothed run beside its twin without, and cells summarised with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..smoothing import activity_index
from .statistics import mean_interval

__all__ = [
    "CELL", "HEAD", "PAIR", "SEEDS", "cell_effects", "difference", "named", "paired_effects", "summarise",
    "without_penalty",
]  # fmt: skip

# A cell: everything that was set but seeds and smoothing.
CELL = [
    "teacher", "vocab_size", "n_contexts", "samples_per_context", "rank", "logit_std", "zipf_exponent", "peak",
    "peak_fraction", "hidden_size", "norm", "norm_coefficient", "temperature", "softcap", "softcap_form",
    "weight_decay", "features", "optimiser",
]  # fmt: skip
SEEDS = ["data_seed", "model_seed"]
# A pair: the same data, the same first values.
PAIR = [*CELL, *SEEDS]
# A head, whatever it is trained or read with.
HEAD = [
    "teacher", "vocab_size", "hidden_size", "norm", "norm_coefficient", "weight_decay", "features", "optimiser",
]  # fmt: skip
# Column -> its name in the cell of a finding.
_NAMES = {
    "teacher": "teacher", "vocab_size": "V", "hidden_size": "D", "norm": "norm", "weight_decay": "decay",
    "features": "features", "optimiser": "optimiser", "temperature": "T",
}  # fmt: skip
_EFFECTS = {
    "confidence_fall": ("confidence", 1),
    "accuracy_gain": ("accuracy", -1),
    "true_ece_gain": ("true_ece", 1),
    "estimated_ece_gain": ("estimated_ece", 1),
    "true_nll_gain": ("true_nll", 1),
    "aurc_gain": ("aurc", 1),
}
_PLAIN = ["confidence", "entropy", "cross_entropy", "uniform_cross_entropy", "converged"]


def named(rows: pd.DataFrame) -> dict[str, Any]:
    """Name the cell that these rows of trained heads are of, as a finding calls it.

    Example:
        >>> named(pd.DataFrame({"vocab_size": [256, 256], "temperature": [1.0, 1.0], "data_seed": [0, 1]}))
        {'V': 256, 'T': 1.0}
    """
    return {name: rows[column].tolist()[0] for column, name in _NAMES.items() if column in rows}


def without_penalty(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out rows of heads trained with a confidence penalty; tables of grids that had none lack its column."""
    return rows.loc[rows["confidence_penalty"] == 0] if "confidence_penalty" in rows else rows


def paired_effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Set each smoothed run beside its twin without smoothing, one line a pair.

    Args:
        rows: Rows of :func:`analysis.bottleneck.fit`; those with a confidence penalty are left out.

    Returns:
        The columns that identify the pair, ``label_smoothing``, ``effectiveness_ratio``, ``activity_index`` of the
        **plain** head at that smoothing, ``plain_confidence``, the effects (``confidence_fall``: plain minus smoothed;
        the ``_gain`` columns are positive where smoothing made it better), and ``converged``, whether both runs are.

    Raises:
        ValueError: If two rows have the same config, or no pair is found.
    """
    keys, rows = [*PAIR, "label_smoothing"], without_penalty(rows)
    if rows.duplicated(keys).any():
        raise ValueError("rows must have different configs, got one twice.")
    plain, smoothed = rows.query("label_smoothing == 0"), rows.query("label_smoothing > 0")
    values = {column for column, _ in _EFFECTS.values()}
    both = smoothed[[*keys, "effectiveness_ratio", *sorted(values), "converged"]].merge(
        plain[[*PAIR, *sorted(values | set(_PLAIN))]], on=PAIR, suffixes=("_smoothed", "_plain")
    )  # pandas matches missing with missing: no softcap is no softcap
    if both.empty:
        raise ValueError("rows must hold a run with and one without smoothing that share all else, got none.")
    # The plain head does not know which smoothing it is compared with.
    both["activity_index"] = activity_index(
        both["entropy"], both["cross_entropy"], both["uniform_cross_entropy"], both["label_smoothing"]
    )
    for effect, (column, sign) in _EFFECTS.items():
        both[effect] = sign * (both[f"{column}_plain"] - both[f"{column}_smoothed"])
    both["plain_confidence"] = both["confidence_plain"]
    both["converged"] = both["converged_smoothed"].astype(bool) & both["converged_plain"].astype(bool)
    kept = [*keys, "effectiveness_ratio", "activity_index", "plain_confidence", *_EFFECTS, "converged"]
    return both[kept]


def summarise(rows: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Average over seeds, with 95 % t intervals: ``by``, ``seeds``, and each value with ``_low`` and ``_high``.

    One seed has no interval: its ends are nan, and no bar is drawn.

    Args:
        rows: One line for each seed of a cell; a missing value of ``by`` is a value like others.
        by: Columns that name a cell.
        values: Columns to average.

    Raises:
        ValueError: If ``rows`` is empty.

    Example:
        >>> rows = pd.DataFrame({"D": [4, 4, 4, 8], "x": [1.0, 2.0, 3.0, 5.0]})
        >>> summarise(rows, ["D"], ["x"]).round(2).to_dict("list")
        {'D': [4, 8], 'seeds': [3, 1], 'x': [2.0, 5.0], 'x_low': [-0.48, nan], 'x_high': [4.48, nan]}
    """
    if rows.empty:
        raise ValueError("rows must hold at least one seed, got none.")
    lines: list[dict[str, Any]] = []
    for _, group in rows.groupby(list(by), dropna=False, sort=True):
        numbers = group.loc[:, list(values)].to_numpy(float)
        low, high = mean_interval(numbers)
        line: dict[str, Any] = {**group[list(by)].head(1).to_dict("records")[0], "seeds": len(group)}
        for name, *ends in zip(values, numbers.mean(axis=0), low, high, strict=True):
            line |= dict(zip((name, f"{name}_low", f"{name}_high"), map(float, ends), strict=True))
        lines.append(line)
    return pd.DataFrame(lines)


def cell_effects(pairs: pd.DataFrame) -> pd.DataFrame:
    """Average paired effects over the seeds of each cell and smoothing (:func:`summarise`).

    Args:
        pairs: From :func:`paired_effects`; pairs that have not converged are left out.

    Returns:
        The cell, ``label_smoothing``, and of ``effectiveness_ratio``, ``activity_index``, ``plain_confidence`` and each
        effect the mean and the ends of its interval.
    """
    values = ["effectiveness_ratio", "activity_index", "plain_confidence", *_EFFECTS]
    return summarise(pairs.loc[pairs["converged"]], [*CELL, "label_smoothing"], values)


def difference(
    table: pd.DataFrame, value: str, *, column: str, first: object, second: object, on: Sequence[str]
) -> pd.DataFrame:
    """Subtract in pairs: ``value`` where ``column`` is ``first`` minus where it is ``second``, all else equal.

    Args:
        table: Rows.
        value: Column to subtract.
        column: What the two rows of a pair differ in.
        first: Its value in the first row.
        second: Its value in the second.
        on: Columns in which they agree; missing agrees with missing.

    Returns:
        ``on`` and ``difference``, one line for each pair that is complete.

    Raises:
        ValueError: If a side has two rows for one pair.

    Example:
        >>> table = pd.DataFrame({"b": [0, 1, 0], "seed": [1, 1, 2], "x": [5.0, 3.0, 4.0]})
        >>> difference(table, "x", column="b", first=0, second=1, on=["seed"]).to_dict("list")
        {'seed': [1], 'difference': [2.0]}
    """
    sides = [table.loc[table[column] == wanted, [*on, value]] for wanted in (first, second)]
    if any(side.duplicated(list(on)).any() for side in sides):
        raise ValueError(f"on must tell the rows of one {column} apart, got {list(on)}.")
    both = sides[0].merge(sides[1], on=list(on), suffixes=("_first", "_second"))
    return both[list(on)].assign(difference=both[f"{value}_first"] - both[f"{value}_second"])
