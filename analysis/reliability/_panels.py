"""Scores of predictions as panels: a reliability diagram each, risk against coverage, calibration error by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..calibration import risk_coverage_curve
from ..plots import reliability_diagram, risk_coverage
from ._measure import POOLED, ReliabilityScores
from ._read import Predictions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_predictions"]

_COLOURS = ("#00224e", "#c44e00")
_MOST = 24  # lines that can be read in one panel


def draw_predictions(predictions: Sequence[Predictions], found: ReliabilityScores, figure: Figure) -> None:
    """Draw predictions and their scores into an empty figure, two panels a row.

    Args:
        predictions: Of :func:`read_predictions`.
        found: Of :func:`measure_predictions`.
        figure: Its size follows the number of panels and groups.
    """
    groups = found.scores["group"].nunique()
    panels = [*(view.score for view in predictions), "risk", *(["groups"] if groups > 1 else [])]
    mosaic: list[Any] = [[left, right] for left, right in zip(panels[::2], [*panels[1::2], panels[-1]], strict=False)]
    heights = [3.4] * len(mosaic)
    if groups > 1:  # a panel of its own row takes what it needs
        heights[-1] = max(3.4 if len(panels) % 2 == 0 else 0, 1.2 + 0.24 * min(groups, _MOST))
    figure.set_size_inches(8, sum(heights))
    axes = figure.subplot_mosaic(mosaic, height_ratios=heights)
    for view, colour in zip(predictions, _COLOURS, strict=False):
        _reliability(found, view.score, axes[view.score], colour)
        curve = risk_coverage_curve(view.confidence, view.correct, log1m_confidence=view.log1m_confidence)
        risk_coverage(curve, axes["risk"], label=view.score, color=colour)
    axes["risk"].set(xlabel="share answered, most confident first", ylabel="error rate among them")
    if len(predictions) > 1:
        axes["risk"].legend(loc="lower right")
    if groups > 1:
        _groups(found.scores, axes["groups"])


def _reliability(found: ReliabilityScores, score: str, ax: Axes, colour: str) -> None:
    where = f"score == {score!r} and group == {POOLED!r}"
    (pooled,) = found.scores.query(where).itertuples()
    reliability_diagram(found.bins.query(where), ax, color=colour)
    ax.set_xlabel(f"confidence ({score})" if score != "confidence" else score)
    ax.set_title(f"ECE {pooled.ece:.3f}, if calibrated {pooled.ece_if_calibrated:.3f}", fontsize="medium")  # pyright: ignore[reportAttributeAccessIssue]
    ax.legend(loc="upper left")


def _groups(scores: pd.DataFrame, ax: Axes) -> None:
    """ECE of each group with its interval, and what calibration would show (a line across)."""
    largest = scores.drop_duplicates("group").nlargest(_MOST, "n")["group"]  # the pooled one is among them
    names = [POOLED, *sorted(set(largest) - {POOLED})]
    views = list(dict.fromkeys(scores["score"]))
    lines: list[Any] = list(scores[scores["group"].isin(names)].itertuples())
    for i, line in enumerate(lines):
        place = views.index(line.score)
        y, colour = names.index(line.group) + 0.3 * (place - (len(views) - 1) / 2), _COLOURS[place]
        ax.plot([line.ece_low, line.ece_high], [y, y], color=colour, lw=1)
        ax.plot([line.ece], [y], marker="o", ms=4, ls="", color=colour)
        label = None if i else "if calibrated"
        ax.plot([line.ece_if_calibrated], [y], marker="|", ms=9, mew=1.5, ls="", color="0.5", label=label)
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlabel="ECE, with 95 % interval")
    ax.set_xlim(left=0)
    if len(names) < scores["group"].nunique():
        ax.set_title(f"the {len(names) - 1} largest groups", fontsize="medium", loc="left")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, handlelength=1)
