"""S9 judged: predicted falls beside the measured ones, without any fit, and beside the rivals of two numbers.

The command is ``python -m analysis.claims.response``; what was predicted of S9 is judged by :mod:`.law`, in a table
beside this one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..command import csv_file, finish, output_folder, parser_of, shown
from ..lab.provenance import made_here
from ..lab.registry import PRESETS, Preset
from ..lab.running import committed_folder
from ..lab.tables import find_table, read_table, write_table
from .findings import SMALL
from .law import judged
from .law_pairs import CELL, TOLERANCE, distinct, equal, flags, joined
from .statistics import Effect, bootstrap_half_width, resamples

__all__ = ["accuracy", "main", "unfitted_share"]

Array = NDArray[np.float64]
_EXAMPLES = """
examples:
  python -m analysis.claims.response                          the committed table of the full grid
  python -m analysis.claims.response --preset quick           of the quick one
  python -m analysis.claims.response --out paper_figures/out/full   of a run
"""
_TRANSITION = (0.05, 6.0)
_RIVALS = ("predicted_fall", "sphere_fall", "clipped_fall", "rational_fall", "first_order_fall")
_KEPT = ", unsolved kept"  # groups in which a response that was not solved counts with what the solver had
_SURE = 0.05  # plain confidence from which a fall is told as a share of what smoothing may take


def unfitted_share(predicted: Array, measured: Array) -> float:
    """1 - mean (measured - predicted)^2 / variance of measured: R2 of a prediction that nothing was fitted to."""
    return float(_share(measured, predicted))


def _share(measured: Array, predicted: Array) -> Array:
    """As :func:`unfitted_share`, over the last axis."""
    spread = measured.var(axis=-1)
    return 1 - ((measured - predicted) ** 2).mean(axis=-1) / np.where(spread > 0, spread, np.nan)


def _slope(measured: Array, predicted: Array) -> Array:
    """Least-squares slope of measured on predicted, through the origin, over the last axis."""
    square = (predicted**2).sum(axis=-1)
    return (predicted * measured).sum(axis=-1) / np.where(square > 0, square, np.nan)


def accuracy(pairs: pd.DataFrame) -> pd.DataFrame:
    """One line for each group of cells and predictor, with 95 % intervals over seeds; each cell once.

    Only confirmed pairs, but in groups that keep the unsolved ones.

    Args:
        pairs: From :func:`.law_pairs.joined`.

    Returns:
        ``group``, ``predictor``, ``cells``, ``seeds``, ``r2`` (unfitted) with ``r2_low`` and ``r2_high``, ``ahead``, by
        how much P's r2 is above it, paired over the same resamples, with ``ahead_low`` and ``ahead_high``, ``slope``
        of the measured fall on it with ``slope_low`` and ``slope_high``, ``share_r2``, r2 of both over b (p - 1/V)
        where p is above .05, ``missed``, cells where it is off by more than .01, ``overstated``, those where it lies
        above, ``largest_error`` and ``largest_error_cell``.
    """
    pairs = distinct(pairs)
    unsolved = ~flags(pairs["solved"]) if "solved" in pairs else np.zeros(len(pairs), np.bool_)
    off = pairs["confidence_off"].abs() > TOLERANCE if "confidence_off" in pairs else False
    there = pairs["confirmed"] | (unsolved & ~off)
    noisy, inside = pairs["teacher"] != "det", pairs["activity_index"].between(*_TRANSITION)
    own = pairs["arm"].astype(object).where(pairs["arm"].notna(), "")
    grid = own == ""
    softcap = pairs["softcap"].notna() if "softcap" in pairs else grid & False
    kept = {
        "all cells": grid,
        "noisy": grid & noisy,
        "noisy, .05 < A < 6": grid & noisy & inside,
        "noisy, with a softcap": grid & noisy & softcap,
    }
    kept = {f"{name}{_KEPT}": which & there for name, which in kept.items()} if unsolved.any() else {}
    grid, own = grid & pairs["confirmed"], own.where(pairs["confirmed"], "")
    groups: dict[str, pd.Series] = {
        "all cells": grid,
        "det": grid & ~noisy,
        "noisy": grid & noisy,
        "det, .05 < A < 6": grid & ~noisy & inside,
        "noisy, .05 < A < 6": grid & noisy & inside,
    }
    for b in sorted(pairs.loc[grid, "label_smoothing"].round(6).unique()):
        groups[f"b = {b:g}, .05 < A < 6"] = grid & inside & (pairs["label_smoothing"].round(6) == b)
        groups[f"noisy, b = {b:g}, .05 < A < 6"] = groups[f"b = {b:g}, .05 < A < 6"] & noisy
    for name, which, column, label in (
        ("", grid, "source", "{}"),
        ("noisy, ", grid & noisy, "vocab_size", "V = {}"),
        ("noisy, .05 < A < 6, ", grid & noisy & inside, "vocab_size", "V = {}"),
        ("noisy, .05 < A < 6, ", grid & noisy & inside, "hidden_size", "D = {}"),
        ("noisy, ", grid & noisy, "norm", "{} norms"),
        ("noisy, free norms, ", grid & noisy & equal(pairs, "norm", "free"), "weight_decay", "weight decay {:g}"),
        ("arm ", own != "", "arm", "{}"),
        ("arm trunk, ", own == "trunk", "samples_per_context", "{} samples"),
        ("arm contexts, ", own == "contexts", "n_contexts", "{} contexts"),
    ):
        values = sorted(pairs.loc[which, column].unique()) if column in pairs else []
        groups |= {name + label.format(value): which & (pairs[column] == value) for value in values}
    if softcap.any():
        groups["noisy, with a softcap"] = grid & noisy & softcap
    groups |= kept
    if (own != "").any():  # what the figure draws
        ours = grid | (own != "")
        groups |= {"det, arms too": ours & ~noisy, "noisy, arms too": ours & noisy}
    lines = [line for name, which in groups.items() for line in _lines(name, pairs.loc[which])]
    return pd.DataFrame(lines)


def _lines(group: str, pairs: pd.DataFrame) -> list[dict[str, object]]:
    cell = [name for name in CELL if name in pairs]
    if pairs.empty:
        return []
    numbers = pairs.groupby(cell, dropna=False).ngroup().to_numpy()
    if numbers.max() < 1:
        return []
    names, seeds = np.unique(pairs["data_seed"].to_numpy(), return_inverse=True)
    by_cell: Any = pairs["plain_confidence"].groupby(numbers).mean()
    confidence = by_cell.to_numpy()
    may_take: Any = pairs["label_smoothing"] * (pairs["plain_confidence"] - 1 / pairs["vocab_size"])
    amplitude = may_take.groupby(numbers).mean().to_numpy()
    lines: list[dict[str, object]] = []
    for rival in _RIVALS:
        values = np.full((3, numbers.max() + 1, names.size), np.nan)
        known: Any = pairs[["fall", rival, "predicted_fall"]].groupby([numbers, seeds]).mean()  # one of the same head
        index = known.index.to_frame().to_numpy()
        values[:, index[:, 0], index[:, 1]] = known.to_numpy(np.float64).T
        values[:, ~np.isfinite(values).all(0)] = np.nan
        kept = np.flatnonzero(np.isfinite(values[0]).any(axis=1))
        values = values[:, kept]
        if kept.size < 2:
            continue
        share, ahead, slope = _over_seeds(
            values,
            lambda y, x, best: _share(y, x),
            lambda y, x, best: _share(y, best) - _share(y, x),
            lambda y, x, best: _slope(y, x),
        )
        y, x, _ = np.nanmean(values, axis=2)
        sure = np.flatnonzero((confidence[kept] > _SURE) & (amplitude[kept] > 0))
        asked = amplitude[kept][sure]
        worst = int(np.abs(y - x).argmax())
        named = pairs.loc[numbers == kept[worst], cell].iloc[0]
        lines.append({
            "group": group, "predictor": rival, "cells": len(y), "seeds": names.size,
            "r2": share.mean, "r2_low": share.low, "r2_high": share.high,
            "ahead": ahead.mean, "ahead_low": ahead.low, "ahead_high": ahead.high,
            "slope": slope.mean, "slope_low": slope.low, "slope_high": slope.high,
            "share_r2": unfitted_share(x[sure] / asked, y[sure] / asked) if sure.size > 1 else np.nan,
            "missed": int((np.abs(y - x) > SMALL).sum()), "overstated": int((x - y > SMALL).sum()),
            "largest_error": float(np.abs(y - x).max()),
            "largest_error_cell": " ".join(f"{name}={value}" for name, value in named.items()),
        })  # fmt: skip
    return lines


def _over_seeds(values: Array, *statistics: Callable[[Array, Array, Array], Array]) -> list[Effect]:
    """Statistics of means over seeds with bootstrap intervals; a cell without a resample's seeds stays whole."""
    there, known, seeds = np.isfinite(values[0]), np.nan_to_num(values), values.shape[2]
    distinct, inverse = np.unique(resamples(seeds), axis=0, return_inverse=True)
    weight = there * np.concatenate([np.full((1, seeds), 1 / seeds), distinct])[:, None]  # all seeds, then resamples
    weight = np.where(weight.any(axis=2, keepdims=True), weight, there)
    effects, means = [], np.einsum("kcs,rcs->krc", known, weight) / weight.sum(axis=2)
    for statistic in statistics:
        mean, *resampled = statistic(*means)
        half = float(bootstrap_half_width(np.array(resampled)[inverse.reshape(-1)], seeds))
        effects.append(Effect(float(mean), float(mean - half), float(mean + half), seeds, values.shape[1]))
    return effects


def main(arguments: Sequence[str] | None = None) -> int:
    """Join, judge, print and write; returns the exit status."""
    about = "Accuracy of the predicted falls of S9, with intervals over seeds, and what was predicted of them."
    parser = parser_of("analysis.claims.response", about, _EXAMPLES)
    parser.add_argument("--preset", choices=PRESETS, default="full", help="whose tables (default: full)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where S9 is (default: the committed tables)")
    default = output_folder() / "S9_accuracy.csv"
    parser.add_argument("--file", type=csv_file, default=default, help=f"CSV to write (default: {shown(default)})")
    options = parser.parse_args(arguments)
    return finish(lambda: _judge(options.preset, options.out, options.file))


def _judge(preset: Preset, out: Path | None, file: Path) -> int:
    start, folder = time.perf_counter(), out or committed_folder(preset)
    path = find_table(folder, "S9")
    if path is None:
        raise FileNotFoundError(f"there is no S9.csv in {shown(folder)}: python -m analysis.study run S9 makes it.")
    measured = {name: find_table(committed_folder(preset), name) for name in ("S3", "S4", "S5")}
    pairs = joined(read_table(path), {name: read_table(found) for name, found in measured.items() if found is not None})
    table = accuracy(pairs)
    for line in table.to_dict("records"):
        print(
            f"{line['group']:28}{line['predictor']:18}{line['cells']:5}"
            f"  R2 {line['r2']:.4f} [{line['r2_low']:.4f}, {line['r2_high']:.4f}]"
            f"  P ahead {line['ahead']:+.4f} [{line['ahead_low']:+.4f}, {line['ahead_high']:+.4f}]"
            f"  slope {line['slope']:.3f}  largest error {line['largest_error']:.4f}"
        )
    off = int((pairs["confidence_off"].abs() > TOLERANCE).sum())
    unsolved = int((~flags(pairs["solved"])).sum())
    left_out = f"{off} whose head was trained to another confidence, {unsolved} whose response was not solved"
    made = made_here(
        "python -m analysis.claims.response",
        config={"preset": preset, "pairs": len(pairs), "not_confirmed": int((~pairs["confirmed"]).sum())},
        note=f"pairs left out: {left_out}",
        seeds=sorted(pairs["data_seed"].unique().tolist()),
        wall_seconds=round(time.perf_counter() - start, 3),
    )
    write_table(table, file, made, digits=6)
    asked = judged(table, distinct(pairs), read_table(path), CELL)
    beside = file.with_name(f"{file.name.split('.')[0].removesuffix('_accuracy')}_predictions.csv")
    write_table(asked, beside, made, digits=6)
    for part in asked.to_dict("records"):
        interval = "" if pd.isna(part["low"]) else f" [{part['low']:.4f}, {part['high']:.4f}]"
        print(f"{part['prediction']} {part['holds']:8}{part['part']}: {part['found']:.4f}{interval} ({part['cells']})")
    print(f"{len(pairs)} pairs, left out: {left_out} -> {shown(file)} and {shown(beside)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
