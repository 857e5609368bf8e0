"""What several figures draw the same way: points with intervals, labels at ends of lines, panel letters, the stamp."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from .style import RC, Look

__all__ = ["LABEL_SIZE", "check", "end_labels", "panel", "points", "spread", "stamp", "wrapped"]

LABEL_SIZE = 6.5  # points, of labels inside the axes
_POINTS = 72  # to the inch


def check(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that has no row or lacks a column that is drawn.

    Raises:
        ValueError: Naming what is missing.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"table must have the columns {list(columns)}, it lacks {missing}.")
    if table.empty:
        raise ValueError("table must have rows to draw, got none.")


def points(
    ax: Axes, table: pd.DataFrame, x: str, y: str, look: Look, *, size: float = 3.6, filled: bool = True, **more: Any
) -> Any:
    """Means as markers with bars from ``_low`` to ``_high`` in each direction that ``table`` has them for."""
    ends = [f"{name}{end}" for name in (x, y) for end in ("_low", "_high") if f"{name}{end}" in table]
    table = table.sort_values([x, y, *ends], kind="stable")  # so that the order of the rows is not in the file
    bars = {}
    for name, key in ((x, "xerr"), (y, "yerr")):
        if f"{name}_low" in table:
            lengths = table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]
            bars[key] = np.maximum(np.array([length.to_numpy(float) for length in lengths]), 0)
    style = {"color": look.colour, "ecolor": "0.3", "elinewidth": 0.7, "capsize": 1.2, "mew": 0.9, "zorder": 3}
    style |= {"mfc": look.colour if filled else "white", "mec": look.colour}
    return ax.errorbar(
        table[x].to_numpy(float), table[y].to_numpy(float), **bars, ls="", marker=look.marker, ms=size,
        **{**style, **more},
    )  # fmt: skip


def spread(positions: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Positions moved apart to at least ``gap``, in the same order, each as little as neighbours in a row allow.

    Example:
        >>> spread([0.0, 0.1, 5.0], 1.0)
        [-0.45, 0.55, 5.0]
    """
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    blocks: list[tuple[float, list[int]]] = []  # middle, members: a block is a row of labels that touch
    for i in order:
        middle, members = float(positions[i]), [i]
        while blocks:
            other, before = blocks[-1]
            if middle - other >= gap * (len(members) + len(before)) / 2 - 1e-12:
                break
            middle = (other * len(before) + middle * len(members)) / (len(before) + len(members))
            members = before + members
            blocks.pop()
        blocks.append((middle, members))
    placed = [0.0] * len(positions)
    for middle, members in blocks:
        for rank, i in enumerate(members):
            placed[i] = round(middle + gap * (rank - (len(members) - 1) / 2), 12)
    shift = 0.0
    if placed:
        shift = max(low - min(placed), 0.0) or min(high - max(placed), 0.0)
    return [value + shift for value in placed]


def end_labels(
    fig: Figure,
    ax: Axes,
    ends: Iterable[tuple[float, str, str | Look]],
    *,
    x: float = 1.02,
    size: float = LABEL_SIZE,
    title: str = "",
) -> list[Text]:
    """Names beside the axes at the heights where their lines end, moved apart where they would touch.

    Args:
        fig: The figure, with its axes at their final place.
        ax: Axes with their final limits.
        ends: (height in data units, text, colour) of each line; with a look for the colour, its mark goes first.
        x: Where, in widths of the axes.
        size: Of the type, in points.
        title: What the names are values of, written above them.

    Returns:
        The labels.
    """
    listed = sorted(ends, key=lambda end: end[:2])
    height = ax.get_position().height * fig.get_figheight() * _POINTS  # points
    wanted = [ax.transAxes.inverted().transform(ax.transData.transform((1, at)))[1] for at, _, _ in listed]
    places = spread(wanted, 1.12 * size / height, low=0.0, high=1.0 if title else 1.04)
    width = ax.get_position().width * fig.get_figwidth() * _POINTS
    indent = 0.95 * size / width if any(isinstance(end[2], Look) for end in listed) else 0.0
    texts = []
    for place, (_, text, colour) in zip(places, listed, strict=True):
        if isinstance(colour, Look):
            ax.plot(
                x + 0.3 * size / width, place, transform=ax.transAxes, clip_on=False, ls="", marker=colour.marker,
                ms=0.55 * size, color=colour.colour, mew=0.5,
            )  # fmt: skip
            colour = "0.15"
        texts.append(ax.text(x + indent, place, text, transform=ax.transAxes, va="center", fontsize=size, color=colour))
    if title and places:
        top = max(places) + 1.25 * size / height
        texts.append(
            ax.text(x + indent, top, title, transform=ax.transAxes, va="center", fontsize=size, fontweight="bold")
        )
    return texts


def wrapped(text: str, width: float, size: float) -> str:
    r"""The text broken into lines at most ``width`` points wide, measured in the figures' typeface.

    Args:
        text: Words; a word that is wider stays whole.
        width: In points.
        size: Of the type, in points.

    Example:
        >>> wrapped("hidden size and vocabulary", 60, 8)
        'hidden size and\nvocabulary'
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    face = FontProperties(family=RC["font.family"], size=size)
    lines = [""]
    for word in text.split(" "):  # a no-break space is no break
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_to_path.get_text_width_height_descent(longer, face, False)[0] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def panel(ax: Axes, letter: str, title: str, *, offset: float = 0.0) -> None:
    """A letter and a line of title above the axes, from its left edge (``offset`` in widths of the axes)."""
    ax.set_title(f"({letter}) {title}", loc="left", fontsize=8, pad=4, x=offset)


def stamp(fig: Figure, preset: str, seeds: Iterable[int]) -> None:
    """In the lower right corner: which grid this is, and how many seeds its points have."""
    counts = sorted({int(seed) for seed in seeds})
    text = f"preset {preset}"
    if counts:
        ends = "-".join(str(n) for n in sorted({counts[0], counts[-1]}))
        text += f", {ends} seed{'s' if counts[-1] > 1 else ''}"
    fig.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=6, color="0.45")
