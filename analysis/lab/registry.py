"""The experiments by name, and the shape that each of them has. Nothing here knows what an experiment trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import pandas as pd

__all__ = ["EXPERIMENTS", "PRESETS", "Experiment", "Prediction", "Preset", "experiment", "experiments", "tidy"]

Preset = Literal["quick", "full"]
PRESETS: tuple[Preset, ...] = ("quick", "full")
VerdictWord = Literal["supported", "refuted", "depends on", "not decided"]

# Name -> module, which holds EXPERIMENT; imported when asked for.
EXPERIMENTS = {
    "S1": "analysis.study.s1_ceilings",
    "S2": "analysis.study.s2_random_logits",
    "S3": "analysis.study.s3_collapse",
    "S4": "analysis.study.s4_samples",
    "S5": "analysis.study.s5_capping",
    "S6": "analysis.study.s6_population",
    "S7": "analysis.study.s7_tuning",
    "S9": "analysis.study.s9_response",
    "S10": "analysis.study.s10_vocabulary",
    "S11": "analysis.study.s11_transformers",
    "S12": "analysis.study.s12_text",
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was expected of a claim before the experiment ran; ``verdicts`` sets it beside what came.

    Attributes:
        claim: ``"K1"`` to ``"K9"``; ``"law"`` for the response of S9, which is no claim of the paper.
        verdict: The word expected.
        statement: What exactly, with the numbers that would refute it.
    """

    claim: str
    verdict: VerdictWord
    statement: str


def _sizes(cell: Any) -> str:
    width = f" D={cell.hidden_size}" if hasattr(cell, "hidden_size") else ""
    return f"V={cell.vocab_size}{width}"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: configs -> rows -> table.

    Attributes:
        name: ``"S1"`` to ``"S12"``; also the name of its table and of its folder of rows.
        title: One line for people.
        compute: (config, device) -> row of JSON values, importable by name. A row that holds several measurements of
            one training has them as a list of mappings under ``"measurements"``.
        configs: Preset -> frozen configs, all different.
        seconds: (config, device) -> estimated seconds on one core of the CPU, or of one worker's GPU.
        predictions: Written before the first table.
        gpu: Whether a GPU helps its larger configs.
        leftover: Config -> 0, or a number for those cells that come last, lowest first.
        queue: Config -> which processes may compute it on a GPU: ``"gpu"`` any, ``"large"`` one on each GPU,
            ``"whole"`` one that has its GPU to itself.
        cell: Config -> the same without its seeds.
        twin: Cell -> the cell that it is compared with, itself where there is none.
        name_of: Cell -> its name for people.
        columns: Columns of a row that say what was set and not what was measured.
        measurement_version: To be raised when ``compute`` measures a trained model otherwise: rows of an earlier one
            count as none, and keep their keys.
        shares: Whether ``compute`` takes ``shared`` too, a folder for what several rows need (:mod:`.shared`), or None.
    """

    name: str
    title: str
    compute: Callable[..., Mapping[str, Any]]
    configs: Callable[[Preset], list[Any]]
    seconds: Callable[[Any, str], float]
    predictions: tuple[Prediction, ...]
    gpu: bool = True
    leftover: Callable[[Any], int] = lambda config: 0
    queue: Callable[[Any], str] = lambda config: "gpu"
    cell: Callable[[Any], Any] = lambda config: replace(config, seed=0)
    twin: Callable[[Any], Any] = lambda cell: cell
    name_of: Callable[[Any], str] = _sizes
    columns: tuple[str, ...] = ("vocab_size", "hidden_size", "data_seed")
    measurement_version: int = 1
    shares: bool = False


def experiment(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        ValueError: If there is none.

    Example:
        >>> experiment("S3").title
        'Collapse: is the effect of smoothing a function of the activity index alone?'
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {tuple(EXPERIMENTS)}, got {name!r}.")
    return import_module(EXPERIMENTS[name]).EXPERIMENT


def experiments(names: Sequence[str]) -> list[Experiment]:
    """Return the experiments of these names, ``"all"`` for every one, each once and in the order of the registry."""
    wanted = set(EXPERIMENTS) if "all" in names else {experiment(name).name for name in names}
    return [experiment(name) for name in EXPERIMENTS if name in wanted]


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """Spread rows out that have a list under ``"measurements"``: one line for each measurement.

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
