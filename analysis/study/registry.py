"""The experiments of the study by name, and the shape that each of them has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import pandas as pd

__all__ = ["EXPERIMENTS", "PRESETS", "Experiment", "Prediction", "Preset", "experiment", "experiments", "tidy"]

Preset = Literal["quick", "full"]
PRESETS: tuple[Preset, ...] = ("quick", "full")
Verdict = Literal["supported", "refuted", "depends on", "not decided"]

# Name -> module, which holds EXPERIMENT; imported when asked for.
EXPERIMENTS = {
    "S1": "ceilings",
    "S2": "random_logits",
    "S3": "collapse",
    "S4": "samples",
    "S5": "capping",
    "S6": "population",
    "S7": "tuning",
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was expected of a claim before the experiment ran; ``verdicts`` sets it beside what came.

    Attributes:
        claim: ``"K1"`` to ``"K9"``.
        verdict: The word expected.
        statement: What exactly, with the numbers that would refute it.
    """

    claim: str
    verdict: Verdict
    statement: str


def _nothing(config: Any) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: configs -> rows -> table.

    Attributes:
        name: ``"S1"`` to ``"S7"``; also the name of its table and of its folder of rows.
        title: One line for people.
        compute: (config, device) -> row of JSON values, importable by name. A row that holds several measurements of
            one training has them as a list of mappings under ``"measurements"``.
        configs: Preset -> frozen configs, all different.
        seconds: (config, device) -> estimated seconds on one core of the CPU, or of one worker's GPU.
        predictions: Written before the first table.
        gpu: Whether a GPU helps its larger configs.
        leftover: Config -> 0, or a number for those cells that come last, lowest first.
    """

    name: str
    title: str
    compute: Callable[..., Mapping[str, Any]]
    configs: Callable[[Preset], list[Any]]
    seconds: Callable[[Any, str], float]
    predictions: tuple[Prediction, ...]
    gpu: bool = True
    leftover: Callable[[Any], int] = _nothing


def experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: If there is none.

    Example:
        >>> experiment("S3").title
        'Collapse: is the effect of smoothing a function of the activity index alone?'
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {tuple(EXPERIMENTS)}, got {name!r}.")
    return import_module(f".{EXPERIMENTS[name]}", __package__).EXPERIMENT


def experiments(names: Sequence[str]) -> list[Experiment]:
    """Experiments of these names, ``"all"`` for every one, each once and in the order of the registry."""
    wanted = set(EXPERIMENTS) if "all" in names else {experiment(name).name for name in names}
    return [experiment(name) for name in EXPERIMENTS if name in wanted]


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each measurement: rows with a list under ``"measurements"`` are spread out.

    A measurement's value wins over a column of the same name; the other columns repeat. Measured numbers keep 6
    significant digits.

    Example:
        >>> rows = pd.DataFrame([{"key": "a", "n": 1, "measurements": [{"t": 0, "x": 5.0}, {"t": 1, "x": 6.0}]}])
        >>> tidy(rows).to_dict("list")
        {'key': ['a', 'a'], 'n': [1, 1], 't': [0, 1], 'x': [5.0, 6.0]}
    """
    if "measurements" not in rows:
        return rows
    lines = [
        {**{k: v for k, v in row.items() if k != "measurements"}, **{k: _short(v) for k, v in measurement.items()}}
        for row in rows.to_dict("records")
        for measurement in row["measurements"]
    ]
    return pd.DataFrame(lines)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
