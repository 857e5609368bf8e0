"""Named grids: lists of configs, ``quick`` for two CPU cores and ``full`` for hours of many, by the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

from ..bottleneck import FitConfig
from ..teachers import TeacherConfig, TeacherKind

__all__ = ["GRIDS", "PRESETS", "Preset", "grid"]

Preset = Literal["quick", "full"]
PRESETS: tuple[Preset, ...] = ("quick", "full")
_CONTEXTS = 256  # of a noisy teacher; a det teacher has one for each token, which is all it can tell


def _heads(
    teachers: Sequence[TeacherKind],
    vocab_sizes: Sequence[int],
    hidden_sizes: Sequence[int],
    norm_coefficients: Sequence[float],
    temperatures: Sequence[float],
    smoothings: Sequence[float],
    seeds: int,
) -> list[FitConfig]:
    """All combinations; runs that differ in smoothing alone share teacher, data and first values, so they are pairs."""
    axes = product(teachers, vocab_sizes, hidden_sizes, norm_coefficients, temperatures, range(seeds), smoothings)
    return [
        FitConfig(
            teacher=TeacherConfig(
                kind=kind, vocab_size=vocab_size, n_contexts=vocab_size if kind == "det" else _CONTEXTS, seed=seed
            ),
            hidden_size=hidden_size,
            norm_coefficient=norm_coefficient,
            temperature=temperature,
            label_smoothing=smoothing,
            seed=1000 + seed,
        )
        for kind, vocab_size, hidden_size, norm_coefficient, temperature, seed, smoothing in axes
    ]


def trained_heads(preset: Preset) -> list[FitConfig]:
    """Heads under a norm budget m = k D, with and without smoothing.

    Hidden size acts through the norm in ``quick``, where k is fixed; ``full`` varies k as well, so that hidden sizes of
    one norm product can be compared.
    """
    if preset == "quick":
        return [
            *_heads(("det", "lowrank"), (64, 256), (4, 16, 64, 256), (0.1,), (1.0, 0.25), (0.0, 0.1), seeds=3),
            *_heads(("det",), (1024,), (16, 64), (0.1,), (1.0, 0.25), (0.0, 0.1), seeds=1),
        ]
    return [
        *_heads(
            ("det", "lowrank"),
            (64, 256, 1024),
            (4, 16, 64, 256),
            (0.05, 0.1, 0.2),
            (1.0, 0.5, 0.25),
            (0.0, 0.1, 0.2),
            5,
        )
    ]


GRIDS: dict[str, Callable[[Preset], list[FitConfig]]] = {"trained_heads": trained_heads}


def grid(name: str, preset: Preset) -> list[FitConfig]:
    """Configs of a named grid.

    Args:
        name: A key of ``GRIDS``.
        preset: ``"quick"`` or ``"full"``.

    Returns:
        The configs, all different.

    Raises:
        ValueError: If there is no such grid or preset.

    Example:
        >>> len(grid("trained_heads", "quick"))
        200
    """
    if name not in GRIDS:
        raise ValueError(f"name must be one of {tuple(GRIDS)}, got {name!r}.")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {PRESETS}, got {preset!r}.")
    return GRIDS[name](preset)
