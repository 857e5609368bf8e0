"""An audit's table as four panels, each on axes given: reliability, gaps and caps, activity index, over-confidence.

Nothing here computes a statistic, reads a file or changes a global setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..plots import reliability_diagram
from ._measure import BINS, GROUPS
from ._verdict import Lookup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DARK, _MIDDLE, _LIGHT, _THEORY = "#00224e", "#666970", "#a69d75", "#c44e00"
_MARKERS = ("o", "^", "s", "D", "v")
_CAPS = {
    "single_token": "one token", "simplex": "every token", "rank": "every token, rank", "packing": "packing",
    "spectral": "spectral norm", "frobenius": "Frobenius norm", "softcap": "softcap",
}  # fmt: skip


def draw_audit(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Draw an audit in four panels: reliability, gaps and caps, activity index, over-confidence.

    Args:
        table: The table that :func:`analysis.audit.audit_model` returns.
        axes: The four axes to draw on.

    Raises:
        ValueError: If the table is no such table or there are not four axes.
    """
    if len(axes) != 4:
        raise ValueError(f"axes must be four, got {len(axes)}.")
    draw_reliability(table, axes[0])
    draw_gaps(table, axes[1])
    draw_activity(table, axes[2])
    draw_groups(table, axes[3])


def reliability_of(table: pd.DataFrame) -> pd.DataFrame:
    """The reliability table, as :func:`analysis.calibration.reliability_table` gives it."""
    get = Lookup(table)
    lines = []
    for place in map(str, range(1, BINS + 1)):
        accuracy, calibrated = (get("reliability", name, place) for name in ("accuracy", "calibrated"))
        plain = {name: get("reliability", name, place).value for name in ("lower", "upper", "n", "confidence")}
        lines.append(
            {
                **plain,
                "accuracy": accuracy.value,
                "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
                "calibrated_low": calibrated.low,
                "calibrated_high": calibrated.high,
            }
        )
    return pd.DataFrame(lines).astype({"n": int})


def draw_reliability(table: pd.DataFrame, ax: Axes) -> None:
    """Accuracy against confidence of the most probable token, and the confidence that smoothing asks for."""
    get = Lookup(table)
    b = _middle(get.groups("smoothing", "asked_confidence"))
    asked = get("smoothing", "asked_confidence", b).value
    reliability_diagram(reliability_of(table), ax, smoothing_optimum=asked, color=_DARK)
    ax.legend(loc="upper left", handlelength=1.2)


def draw_gaps(table: pd.DataFrame, ax: Axes) -> None:
    """Confidence gaps of the tokens, what smoothing asks for (band: all b), and the caps, on one logarithmic scale."""
    get = Lookup(table)
    names = [*dict.fromkeys(name for _, name, _, _ in get.caps)]
    caps = sorted(((get("cap", name, get.caps[0][0]).value, name) for name in names), reverse=True)
    lowest, quarter, median, upper, largest = (
        get("gap", name).value for name in ("lowest", "quarter", "median", "three_quarters", "largest")
    )
    ax.plot([max(lowest, 0.1 * quarter), largest], [0, 0], color=_DARK, lw=0.8)
    ax.plot([quarter, upper], [0, 0], color=_DARK, lw=4, solid_capstyle="butt")
    ax.plot([median], [0], marker="|", ms=7, mew=0.8, color="white")
    asked = {group: get("smoothing", "asked_gap", group).value for group in get.groups("smoothing", "asked_gap")}
    ax.axvspan(min(asked.values()), max(asked.values()), color=_THEORY, alpha=0.15, lw=0, zorder=0)
    for place, (gap, marker) in enumerate(zip(asked.values(), _MARKERS * len(asked), strict=False), start=1):
        ax.plot([gap], [place], marker=marker, ms=4, ls="", color=_THEORY)  # a line each: they are close to each other
    for place, (gap, _) in enumerate(caps, start=1 + len(asked)):
        ax.plot([gap], [place], marker="<", ms=4, ls="", color=_MIDDLE)
        ax.axhline(place, color="0.92", lw=0.5, zorder=0)
    labels = ["tokens", *(f"asked, b = {group}" for group in asked), *(_CAPS.get(name, name) for _, name in caps)]
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    ax.set(xscale="log", xlabel="confidence gap (nats)", ylim=(len(labels) - 0.4, -0.6))


def draw_activity(table: pd.DataFrame, ax: Axes) -> None:
    """Activity index with its interval for each b; below 1 smoothing acts."""
    get = Lookup(table)
    found = {b: get("smoothing", "activity", b) for b in get.groups("smoothing", "activity")}
    for (b, index), marker in zip(found.items(), _MARKERS * len(found), strict=False):
        _bar(ax, float(b), index, marker, _DARK)
    ax.axhline(1, color=_THEORY, lw=1, ls=(0, (4, 2)))
    ax.axhline(0, color="0.85", lw=0.6, zorder=0)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.1), max(high, 1.3))
    for text, above in (("does not act", True), ("acts", False)):
        ax.annotate(
            text, (1, 1), (-2, 2 if above else -2), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
            ha="right", va="bottom" if above else "top", color=_THEORY,
        )  # fmt: skip
    ax.set(xlim=(0, 1.25 * max(map(float, found))), xlabel="label smoothing b", ylabel="activity index A")


def draw_groups(table: pd.DataFrame, ax: Axes) -> None:
    """Confidence minus accuracy in fifths of the tokens, by entropy and frequency of the prediction."""
    get = Lookup(table)
    ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    for part, shift, marker, colour, label in (
        ("entropy", -0.17, "o", _DARK, "by entropy, lowest first"),
        ("frequency", 0.17, "s", _LIGHT, "by frequency, rarest first"),
    ):
        for place, group in enumerate(get.groups(part, "over_confidence")):
            _bar(ax, int(group) + shift, get(part, "over_confidence", group), marker, colour, None if place else label)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.35 * (high - low))
    ax.set_xticks(range(1, GROUPS + 1))
    ax.set(xlim=(0.5, GROUPS + 0.5), xlabel="fifth of the tokens", ylabel="confidence minus accuracy")
    ax.legend(loc="upper left", handlelength=0.8)


def _bar(ax: Axes, x: float, estimate: Any, marker: str, colour: str, label: str | None = None) -> None:
    """A value with its interval, if it has one."""
    value, low, high = estimate
    if low == low:
        ax.plot([x, x], [low, high], color=colour, lw=0.9)
    ax.plot([x], [value], marker=marker, ms=4, ls="", color=colour, label=label)


def _middle(groups: Sequence[str]) -> str:
    """B = .1 where it is among them, else the first."""
    return next((b for b in groups if float(b) == 0.1), groups[0])
