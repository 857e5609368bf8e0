"""Products of axes over trained heads, what a head costs to train, and the experiments that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ..bottleneck import MERGED_SHARE, FitConfig, merging_is_exact
from ..lab.registry import Experiment
from ..teachers import TeacherConfig, TeacherKind

__all__ = ["AVERAGED_TIES", "CONTEXTS", "fit_queue", "fit_seconds", "head_experiment", "heads", "smoothing_at_gap"]

# Measurement version of experiments whose accuracy is the mean over tokens of equal counts that tie for the prediction,
# where it was that of the first of them. S6 trains on probabilities, no two of which are equal: nothing changed there.
AVERAGED_TIES = 2
CONTEXTS = 256  # of a noisy teacher; a det teacher has one for each token, which is all it can tell apart

# Estimates of fit_seconds. CPU: least squares by hand on cpu_seconds of tables of S3 (x86-64, one thread).
# GPU: eight timed shapes on an H100; a step is about 150 kernels in one graph, float32 without tensor cores.
_ITERATIONS = 400
_FIRST = {"cpu": 0.0, "cuda": 1.0}  # seconds before the first iteration
_OVERHEAD = {"cpu": 1.2e-3, "cuda": 4.5e-4}  # seconds an iteration
_ENTRY = {"cpu": 4.3e-9, "cuda": 8e-11}  # seconds an iteration for each logit: exponentials
_RATE = {"cpu": 5e10, "cuda": 1.9e13}  # floating-point operations a second
_TRAFFIC = {"cpu": 7e9, "cuda": 1e12}  # bytes a second, for the optimiser's memory
_DISTINCT = 0.45  # distinct tokens of a noisy teacher's samples: .6 of them at V = 32768, .4 at V = 4096
_MEASURE = {"cpu": 7.5e-7, "cuda": 5e-8}  # seconds for each logit: conditionals, samples, measurements in float64
# Entries of a teacher from which one process on a GPU computes the fits on it, as its samples take a minute to draw;
# and of a head from which that GPU has no other process: processes take turns, and L-BFGS may hold half the memory.
_LARGE = 2**28


def head_experiment(**fields: Any) -> Experiment:
    """Make an experiment on trained heads: a cell has no seeds, its twin neither smoothing nor penalty."""
    return Experiment(
        seconds=fit_seconds, queue=fit_queue, cell=_cell, twin=_plain, name_of=_name,
        columns=tuple(FitConfig(hidden_size=1).columns()), **fields,
    )  # fmt: skip


def fit_queue(config: FitConfig) -> str:
    """Name the processes on a GPU that may compute a fit: ``queue`` of :class:`~analysis.lab.registry.Experiment`."""
    teacher = config.teacher
    if teacher.n_contexts * teacher.vocab_size < _LARGE:
        return "gpu"
    return "whole" if teacher.vocab_size * config.hidden_size >= _LARGE else "large"


def _cell(config: FitConfig) -> FitConfig:
    return replace(config, teacher=replace(config.teacher, seed=0), seed=0)


def _plain(cell: FitConfig) -> FitConfig:
    return replace(cell, label_smoothing=0.0, confidence_penalty=0.0)


def _name(cell: FitConfig) -> str:
    return f"{cell.teacher.kind} V={cell.teacher.vocab_size} D={cell.hidden_size}"


def heads(
    *,
    teachers: Sequence[TeacherKind],
    vocab_sizes: Sequence[int],
    hidden_sizes: Sequence[int],
    smoothings: Sequence[float] = (0.0, 0.1),
    seeds: int = 3,
    norm_coefficients: Sequence[float] = (0.1,),
    temperatures: Sequence[float] = (1.0,),
    samples: Sequence[int | None] = (8,),
    n_contexts: int = CONTEXTS,
    teacher: dict[str, Any] | None = None,
    **options: Any,
) -> list[FitConfig]:
    """Combine all axes; runs that differ in smoothing alone share teacher, data and first values, so they are pairs.

    Args:
        teachers: Kinds.
        vocab_sizes: V.
        hidden_sizes: D.
        smoothings: b; with 0, so that the others have a twin.
        seeds: How many; seed i is data seed i and model seed 1000 + i.
        norm_coefficients: k of the norm budget m = k D.
        temperatures: Of training.
        samples: Per context, None for the conditionals themselves.
        n_contexts: Of noisy teachers; a det teacher has V.
        teacher: Further fields of :class:`~analysis.teachers.TeacherConfig`.
        options: Further fields of :class:`~analysis.bottleneck.FitConfig`.

    Returns:
        The configs; those of one pair are neighbours.

    Example:
        >>> [head.label_smoothing for head in heads(teachers=["det"], vocab_sizes=[8], hidden_sizes=[4], seeds=1)]
        [0.0, 0.1]
    """
    axes = product(
        teachers, vocab_sizes, hidden_sizes, norm_coefficients, temperatures, samples, range(seeds), smoothings
    )
    return [
        FitConfig(
            teacher=TeacherConfig(
                kind=kind,
                vocab_size=v,
                n_contexts=v if kind == "det" else n_contexts,
                samples_per_context=sample,
                seed=seed,
                **(teacher or {}),
            ),
            hidden_size=d,
            norm_coefficient=k,
            temperature=t,
            label_smoothing=b,
            seed=1000 + seed,
            **options,
        )
        for kind, v, d, k, t, sample, seed, b in axes
    ]


def smoothing_at_gap(gap: float, vocab_size: int) -> float:
    """Return the b whose smoothing-optimal gap log(1 + (1-b) V / b) is ``gap`` nats: V / (V + e^gap - 1).

    Example:
        >>> from analysis.smoothing import optimal_gap
        >>> round(smoothing_at_gap(float(optimal_gap(0.1, 32768)), 262144), 3)
        0.471
    """
    return float(vocab_size / (vocab_size + np.expm1(gap)))


def fit_seconds(config: FitConfig, device: str) -> float:
    """Estimate the seconds of a fit on a CPU core or a GPU: iterations x (overhead + arithmetic + traffic) + measuring.

    Good to a factor of about 2 on average over a grid; single fits differ by more, as the number of iterations does.
    """
    kind = "cuda" if device.startswith("cuda") else "cpu"
    n, v, d = config.teacher.n_contexts, _trained_rows(config, kind), config.hidden_size
    samples = config.teacher.samples_per_context or v
    pairs = 0.0 if config.teacher.kind == "det" else n * max(0.0, 0.6 * min(samples, v) - 1)  # of 8 draws 5 differ
    operations = 1.3 * (6 * n * v * d + 10 * pairs * d)  # evaluations an iteration x (forward, two gradients)
    traffic = 4 * (45 * (n + v) + 6 * pairs) * d  # L-BFGS passes over 10 pairs of vectors; gathered rows
    iteration = _OVERHEAD[kind] + _ENTRY[kind] * n * v + operations / _RATE[kind] + traffic / _TRAFFIC[kind]
    steps = _ITERATIONS * config.overtime * iteration
    if config.optimiser == "adam":  # several step sizes, all steps, on a GPU kernel by kernel
        steps = 4 * config.max_steps * (iteration / 1.3 + (5e-3 if kind == "cuda" else 0.0))
    return _FIRST[kind] + steps + _MEASURE[kind] * n * config.teacher.vocab_size


def _trained_rows(config: FitConfig, kind: str) -> int:
    """Rows of the head that train: on a CPU those of the tokens that were seen, where the others share one."""
    teacher = config.teacher
    if kind == "cpu" and teacher.kind != "det" and teacher.samples_per_context is not None and merging_is_exact(config):
        seen = round(_DISTINCT * teacher.n_contexts * teacher.samples_per_context)
        if seen <= (1 - MERGED_SHARE) * teacher.vocab_size:
            return seen
    return teacher.vocab_size
