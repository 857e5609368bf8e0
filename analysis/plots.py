"""Drawing of calibration: reliability diagram, histogram of confidence, risk-coverage curve, each on axes given.

Nothing here computes a statistic, reads a file or changes a global setting; colours come from the arguments or from the
axes' own property cycle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import check_flag, interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from .calibration import CalibrationState, RiskCoverage

__all__ = ["confidence_histogram", "reliability_diagram", "risk_coverage"]

_TABLE_COLUMNS = (
    *("lower", "upper", "n", "confidence", "accuracy"),
    *("accuracy_low", "accuracy_high", "calibrated_low", "calibrated_high"),
)
_CEILING = {"color": "0.2", "linestyle": "--", "linewidth": 1.0}
_OPTIMUM = {"color": "0.2", "linestyle": ":", "linewidth": 1.2}


def _table(source: CalibrationState | pd.DataFrame) -> pd.DataFrame:
    """The reliability table itself, or that of a state."""
    table: Any = source.reliability_table() if hasattr(source, "reliability_table") else source
    missing = [name for name in _TABLE_COLUMNS if name not in getattr(table, "columns", ())]
    if missing:
        raise TypeError(f"source must be a CalibrationState or a reliability table, it lacks the columns {missing}.")
    if not table["n"].sum():
        raise ValueError("source must hold at least one sample.")
    return table


def _check_confidence(name: str, value: float | None) -> None:
    if value is not None:
        array = interval(name, value, 0, 1)
        if array.ndim:
            raise ValueError(f"{name} must be one confidence, got the shape {array.shape}.")


def _once(ax: Axes, label: str) -> str | None:
    """The label, or none where the axes' legend has it already."""
    return None if label in ax.get_legend_handles_labels()[1] else label


def _references(ax: Axes, ceiling: float | None, smoothing_optimum: float | None) -> None:
    _check_confidence("ceiling", ceiling)
    _check_confidence("smoothing_optimum", smoothing_optimum)
    if ceiling is not None:
        ax.axvline(ceiling, label=_once(ax, "ceiling"), gid="ceiling", **_CEILING)
    if smoothing_optimum is not None:
        ax.axvline(smoothing_optimum, label=_once(ax, "smoothing optimum"), gid="smoothing optimum", **_OPTIMUM)


def _bars(ax: Axes, table: pd.DataFrame, height: Any, gid: str, **style: Any) -> None:
    """A bar over the width of each bin, with white lines between."""
    width = table["upper"] - table["lower"]
    for bar in ax.bar(table["lower"], height, width, align="edge", edgecolor="white", linewidth=0.3, **style):
        bar.set_gid(gid)


def reliability_diagram(
    source: CalibrationState | pd.DataFrame,
    ax: Axes,
    *,
    ceiling: float | None = None,
    smoothing_optimum: float | None = None,
    density: bool = True,
    intervals: bool = True,
    noise_floor: bool = True,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """Draw accuracy against confidence, one point a bin, with what sampling noise and theory allow.

    Args:
        source: A :class:`analysis.calibration.CalibrationState` or a table of
            :func:`analysis.calibration.reliability_table`.
        ax: Axes to draw on.
        ceiling: Largest confidence that the norms of the head allow, from :mod:`analysis.caps`: a dashed line.
        smoothing_optimum: Confidence that label smoothing asks for,
            :func:`analysis.smoothing.optimal_confidence`: a dotted line.
        density: Draw the share of samples of each bin along the bottom, the largest share a fifth of the height. Of
            equal-mass bins this shows the widths alone.
        intervals: Draw the Wilson interval of each accuracy.
        noise_floor: Shade, bin by bin, where the accuracies of a perfectly calibrated model of these confidences would
            lie.
        label: Name in the legend.
        color: Colour of points and bars; None takes the next of the axes' cycle.

    Returns:
        The axes.

    Raises:
        TypeError: If ``source`` is neither a state nor such a table.
        ValueError: If it holds no sample, or a reference confidence is outside [0, 1].

    Example:
        >>> from matplotlib.figure import Figure
        >>> from analysis.calibration import CalibrationState
        >>> state = CalibrationState().update([0.9, 0.8, 0.6], [1, 1, 0])
        >>> ax = reliability_diagram(state, Figure().subplots(), ceiling=0.97, smoothing_optimum=0.9)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('confidence', 'accuracy')
    """
    for name, value in (("density", density), ("intervals", intervals), ("noise_floor", noise_floor)):
        check_flag(name, value)
    table = _table(source)
    _references(ax, ceiling, smoothing_optimum)
    full = table.loc[table["n"] > 0]
    x, y = np.asarray(full["confidence"]), np.asarray(full["accuracy"])
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, zorder=0)
    (line,) = ax.plot(x, y, marker="o", markersize=3.5, linewidth=1.0, label=label, color=color)
    color = line.get_color()
    if intervals:
        ax.vlines(
            x, full["accuracy_low"], full["accuracy_high"], color=color, linewidth=1.0, alpha=0.7, gid="intervals"
        )
    if noise_floor:
        _bars(
            ax, full, full["calibrated_high"] - full["calibrated_low"], "noise floor",
            bottom=full["calibrated_low"], color="0.6", alpha=0.25, zorder=0, label=_once(ax, "if calibrated"),
        )  # fmt: skip
    if density:
        _bars(ax, full, full["n"] / full["n"].max() / 5, "density", color=color, alpha=0.2)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    return ax


def confidence_histogram(
    source: CalibrationState | pd.DataFrame,
    ax: Axes,
    *,
    ceiling: float | None = None,
    smoothing_optimum: float | None = None,
    log: bool = False,
    label: str | None = None,
    color: Any = None,
) -> Axes:
    """Draw the share of samples in each bin of confidence, with mean confidence and accuracy.

    Args:
        source: A state or a reliability table of equal-width bins.
        ax: Axes to draw on.
        ceiling: As in :func:`reliability_diagram`.
        smoothing_optimum: As in :func:`reliability_diagram`.
        log: Logarithmic shares.
        label: Name in the legend.
        color: Colour; None takes the next of the axes' cycle.

    Returns:
        The axes.

    Raises:
        TypeError: If ``source`` is neither a state nor such a table.
        ValueError: If it holds no sample, its bins are not of equal width, or a reference confidence is outside [0, 1].
    """
    check_flag("log", log)
    table = _table(source)
    share = (table["n"] / table["n"].sum()).to_numpy()
    edges = np.append(table["lower"].to_numpy(), table["upper"].iloc[-1])
    if not np.allclose(edges, np.linspace(0, 1, edges.size)):
        raise ValueError("source must have bins of equal width: shares of other bins are no histogram.")
    _references(ax, ceiling, smoothing_optimum)
    patch = ax.stairs(share, edges, fill=True, alpha=0.4, label=label, color=color)
    full = table["n"] > 0
    for name, style in (("confidence", "-"), ("accuracy", "--")):
        mean = float(np.average(table.loc[full, name], weights=table.loc[full, "n"]))
        ax.axvline(
            mean, color=patch.get_facecolor()[:3], linestyle=style, linewidth=1.2, label=f"mean {name}", gid=name
        )
    if log:
        ax.set_yscale("log")
    ax.set(xlim=(0, 1), xlabel="confidence", ylabel="share of samples")
    return ax


def risk_coverage(curve: RiskCoverage, ax: Axes, *, label: str | None = None, color: Any = None) -> Axes:
    """Draw the error rate among the most confident samples against their share, and the rate of answering everything.

    Args:
        curve: From :func:`analysis.calibration.risk_coverage_curve`.
        ax: Axes to draw on.
        label: Name in the legend.
        color: Colour; None takes the next of the axes' cycle.

    Returns:
        The axes.

    Raises:
        ValueError: If the curve is empty.
    """
    if not len(curve.coverage):
        raise ValueError("curve must hold at least one point.")
    # Thousands of points draw the same line as millions.
    index = np.unique(np.linspace(0, len(curve.coverage) - 1, 2000).round().astype(int))
    (line,) = ax.plot(curve.coverage[index], curve.risk[index], label=label, color=color)
    ax.axhline(curve.risk[-1], color=line.get_color(), linewidth=0.8, linestyle=":", gid="answer all")
    ax.set(xlim=(0, 1), xlabel="coverage", ylabel="risk")
    ax.set_ylim(bottom=0)
    return ax
