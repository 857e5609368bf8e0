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
_CONTEXTS = 256  # of a noisy teacher; a det teacher has one for each token, which is all it can tell apart


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


def _at_norm_product(
    norm_product: float, teachers: Sequence[TeacherKind], hidden_sizes: Sequence[int], seeds: int
) -> list[FitConfig]:
    """Heads of one norm product m at several hidden sizes: what a hidden size does apart from the norms."""
    return [
        head
        for d in hidden_sizes
        for head in _heads(teachers, (64, 256), (d,), (norm_product / d,), (1.0,), (0.0, 0.1), seeds)
    ]


def trained_heads(preset: Preset) -> list[FitConfig]:
    """Heads under a norm budget m = k D, with and without smoothing.

    With k fixed, hidden size acts through the norm by construction; cells of one norm product and several hidden sizes
    tell the two apart.
    """
    if preset == "quick":
        return [
            *_heads(("det", "lowrank"), (64, 256), (4, 16, 64, 256), (0.1,), (1.0, 0.25), (0.0, 0.1), seeds=3),
            *_heads(("det",), (1024,), (16, 64), (0.1,), (1.0, 0.25), (0.0, 0.1), seeds=1),
            # Where smoothing begins to act, rho from .9 to 1.6: norm products of 7, 8 and 10 at two hidden sizes.
            *(head for m in (7, 8, 10) for head in _at_norm_product(m, ("det",), (64, 256), seeds=1)),
            *(head for m in (7, 10) for head in _at_norm_product(m, ("lowrank",), (64,), seeds=3)),
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
        248
    """
    if name not in GRIDS:
        raise ValueError(f"name must be one of {tuple(GRIDS)}, got {name!r}.")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {PRESETS}, got {preset!r}.")
    return GRIDS[name](preset)
