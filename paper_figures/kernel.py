"""The smoothed loss and its gradients on one GPU: time against memory of every rival, and the error of the gradients.

Caption. One panel a shape (tokens x vocabulary x hidden size): time of loss and gradients with smoothing of .1 against
the peak memory beyond the inputs, both on logarithmic axes; lower left is better. Dashed: the gradients that any loss
returns; dotted: the three matrix products that it takes, at the best rate that the library reached at any shape of the
table. Lines join our kernel over its workspaces, and a rival over its chunks. What takes more than some five times the
dotted line is counted at the upper edge. Open markers: measured without smoothing, which that rival does not have.
Times are medians over rounds with 88 % intervals from order statistics (of 4 rounds, the shortest and the longest),
mostly thinner than the markers; memory does not vary. *Last panel, and the key to the others:* relative error of the
gradients against float64, the larger of input and weight; mark: median over shapes and settings, bar: smallest to
largest. bfloat16; device and versions are in kernel.json, commits in the table. Tables kernel.csv and
kernel_samples.csv.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike
from scipy.stats import binom

from .drawing import LABEL_SIZE, check, panel, points
from .style import RC, TEXT_WIDTH, THEORY_COLOUR, Look

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("kernel", "kernel_samples"), ()
COLUMNS = [
    "shape", "tokens", "vocab_size", "hidden_size", "implementation", "label_smoothing", "ms", "ms_low", "ms_high",
    "least_ms", "peak_mib", "gradient_mib", "gradient_error",
]  # fmt: skip
_SMOOTHING = 0.1
_SLOWEST = 5  # times the three products; what is slower is counted at the upper edge
_NO_LOSS = ("matmul", "three products")  # rows of matrix products alone
_RUN = ["shape", "label_smoothing", "softcap", "ignored", "mode", "implementation"]
_OURS = ("triton, 32 MiB", "triton, default", "triton, all kept")  # by workspace: one kernel, one line
_BETWEEN = "triton, between"  # its other workspaces, told apart by their places alone
_NAMES = {
    "triton, 32 MiB": "ours, 32 MiB workspace", "triton, default": "ours, default workspace",
    _BETWEEN: "ours, other workspaces", "triton, all kept": "ours, all strips kept",
    "chunked": "ours, PyTorch, any device",
    "eager": "PyTorch eager, bfloat16 logits", "eager, float32 logits": "PyTorch eager, float32 logits",
    "torch, chunked": "PyTorch chunked", "Liger-Kernel": "Liger-Kernel, defaults",
    "cut-cross-entropy, filter": "cut-cross-entropy", "cut-cross-entropy, exact": "cut-cross-entropy, exact",
}  # fmt: skip
# Who made it: told by colour; each implementation has a marker of its own.
_FAMILIES = (
    (("triton", "chunked"), "#00224e", "ours"), (("eager", "torch"), "#666970", "PyTorch"),
    (("Liger",), "#8c7a33", "Liger-Kernel"), (("cut",), "#cba700", "cut-cross-entropy"),
    (("quack",), "#a0553f", "quack"),
)  # fmt: skip
_MARKERS = {
    "triton, 32 MiB": "<", "triton, default": "o", _BETWEEN: ".", "triton, all kept": ">",
    "chunked": "p", "eager": "s", "eager, float32 logits": "D",
    "torch.compile": "P", "torch, chunked": "h", "Liger-Kernel": "^", "Liger-Kernel, float32 sums": "v",
    "Liger-Kernel CuTe, bfloat16 sums": "8", "Liger-Kernel CuTe, float32 sums": "*", "Liger-Kernel SM90 CuTe": "P",
    "Liger-Kernel scaled CE": "X", "quack": "s", "quack scaled-exp": "D",
    "cut-cross-entropy, filter": "X", "cut-cross-entropy, exact": "d",
}  # fmt: skip
_FREE_MARKERS = "Hoph<>"  # of implementations that a newer benchmark adds


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Loss and gradients of every implementation that ran: smoothed, or plain where it has no smoothing.

    Returns:
        ``COLUMNS``; ``least_ms`` is the time of three matrix products at the best rate in the table, ``ms_low`` and
        ``ms_high`` are the ends of an interval of the median (:func:`median_interval`).
    """
    rows = tables["kernel"]
    rows = rows.loc[(rows["mode"] == "loss and gradients") & rows["softcap"].isna() & (rows["ignored"] == 0)].copy()
    product = rows["tokens"].astype(float) * rows["vocab_size"] * rows["hidden_size"]
    products = rows["implementation"].map({"three products": 3}).fillna(0)  # a row of its own in newer tables
    rows["least_ms"] = 3 * product / max((product / rows["matmul_ms"]).max(), (products * product / rows["ms"]).max())
    rows["gradient_error"] = rows[["input_gradient_error", "weight_gradient_error"]].max(axis=1)
    ran = rows.loc[~rows["implementation"].isin(_NO_LOSS) & rows["ms"].notna()].drop(columns=["ms_low", "ms_high"])
    times = tables["kernel_samples"].groupby(_RUN, dropna=False)["ms"]
    ends = pd.DataFrame([median_interval(group) for _, group in times], columns=["ms_low", "ms_high"])
    ran = ran.merge(ends.set_index(times.size().index).reset_index(), on=_RUN, how="left", validate="one_to_one")
    smoothed = ran.loc[np.isclose(ran["label_smoothing"], _SMOOTHING)]
    rivals = ~ran["implementation"].isin(smoothed["implementation"]) & ~ran["implementation"].str.startswith("triton")
    plain = ran.loc[(ran["label_smoothing"] == 0) & rivals]  # of ours, which smooths, no other workspaces without it
    return pd.concat([smoothed, plain], ignore_index=True).reindex(columns=COLUMNS)


def median_interval(times: ArrayLike) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with at least 95 %, whatever the distribution.

    Fewer than six times give the smallest and the largest, which hold it less often.

    Example:
        >>> median_interval([3.0, 1.0, 2.0, 7.0, 5.0, 4.0, 6.0])  # 98 %
        (1.0, 7.0)
    """
    ordered = np.sort(np.asarray(times, np.float64))
    beyond = int(binom.ppf(0.025, len(ordered), 0.5))  # P(fewer than this many on one side) < 2.5 %
    rank = max(beyond - 1, 0)
    return float(ordered[rank]), float(ordered[-1 - rank])


def make(table: pd.DataFrame, *, preset: str = "") -> Figure:
    """Time against memory, a panel for each shape, and gradient errors; see the caption above.

    Redraw: ``python -m paper_figures --only kernel``.
    """
    check(table, COLUMNS)
    sizes = table.assign(size=table["vocab_size"] * table["hidden_size"]).sort_values(
        ["size", "shape"], ascending=False
    )
    shapes = list(dict.fromkeys(sizes["shape"]))
    looks = _looks(_series(table["implementation"]))
    with mpl.rc_context(RC):
        lines = -(-(len(shapes) + 1) // 3)
        last_line = max(1.0, len(looks) / 12)  # of many names
        height = 2.03 * (lines - 1 + last_line)
        fig = Figure(figsize=(TEXT_WIDTH, height))
        grid = fig.add_gridspec(
            lines,
            3,
            left=0.07,
            right=0.985,
            bottom=0.42 / height,
            top=1 - 0.3 / height,
            wspace=0.24,
            hspace=0.42,
            height_ratios=[1.0] * (lines - 1) + [last_line],
        )
        for i, shape in enumerate(shapes):
            ax = fig.add_subplot(grid[i // 3, i % 3])
            rows = table.loc[table["shape"] == shape]
            _shape(ax, rows, looks)
            size = rows.iloc[0]
            numbers = r"$\times$".join(f"{size[name]:.0f}" for name in ("tokens", "vocab_size", "hidden_size"))
            # A head of no model is named by its sizes.
            title = numbers if shape.startswith("V ") else f"{shape}, {numbers}"
            panel(ax, ascii_lowercase[i], title, offset=-0.06)
            if i == 0:
                _name_lines(ax, rows)
                _key(ax, rows)
            if i % 3 == 0:
                ax.set_ylabel("time (ms)")
            if i + 3 >= len(shapes):
                ax.set_xlabel("peak memory beyond the inputs (GiB)")
        last = fig.add_subplot(grid[len(shapes) // 3, len(shapes) % 3 :])
        place = last.get_position()
        names = 0.15  # of the figure's width
        last.set_position((place.x0 + names, place.y0, place.width - names, place.height))
        _errors(last, table, looks)
        panel(
            last,
            ascii_lowercase[len(shapes)],
            "error of the gradients",
            offset=-(names + 0.015) / (place.width - names),
        )
    return fig


def _series(implementations: pd.Series) -> pd.Series:
    """What has one look: an implementation with all of its chunks, ours with all workspaces that have no name."""
    joined = implementations.str.replace(r", chunk \d+$", "", regex=True)
    return joined.where(joined.isin(_OURS) | ~joined.str.fullmatch(r"triton, [\d.]+ [GM]iB"), _BETWEEN)


def _looks(implementations: pd.Series) -> dict[str, Look]:
    """A look for each implementation, in the order of the last panel: ours, then the others by family."""
    present = set(implementations)
    others = sorted(present - set(_MARKERS))
    listed = [name for name in _MARKERS if name in present] + others
    spare = dict(zip(others, _FREE_MARKERS, strict=False))
    colour = {
        name: next((c for starts, c, _ in _FAMILIES if name.startswith(starts)), THEORY_COLOUR) for name in listed
    }
    return {name: Look(colour[name], _MARKERS.get(name) or spare.get(name, "o"), "-") for name in listed}


def _shape(ax: Axes, rows: pd.DataFrame, looks: dict[str, Look]) -> None:
    ax.axvline(rows["gradient_mib"].iloc[0] / 1024, color=THEORY_COLOUR, lw=0.8, ls=(0, (4, 2)), zorder=1)
    ax.axhline(rows["least_ms"].iloc[0], color=THEORY_COLOUR, lw=0.8, ls=(0, (1, 1)), zorder=1)
    shown = rows.assign(memory=rows["peak_mib"] / 1024, series=_series(rows["implementation"]))
    ours = shown.loc[shown["series"].isin((*_OURS, _BETWEEN))].sort_values(["memory", "ms", "ms_low", "ms_high"])
    ax.plot(ours["memory"], ours["ms"], color="#00224e", lw=0.8, zorder=2)
    for name, look in looks.items():
        chosen = shown.loc[shown["series"] == name].sort_values(["memory", "ms", "ms_low", "ms_high"])
        if not chosen.empty:
            if name != _BETWEEN:
                ax.plot(chosen["memory"], chosen["ms"], color=look.colour, lw=0.6, zorder=2)
            points(
                ax, chosen, "memory", "ms", look, size=_size(look),
                filled=bool((chosen["label_smoothing"] > 0).all()),
            )  # fmt: skip
    ax.set(xscale="log", yscale="log")
    low = min(float(shown["memory"].min()), float(shown["gradient_mib"].min()) / 1024)
    ax.set_xlim(low / 1.35, 1.35 * float(shown["memory"].max()))
    top = _SLOWEST * float(shown["least_ms"].max())
    upper = _upper(shown["ms"], top)
    ax.set_ylim(min(float(shown["ms"].min()), top / _SLOWEST) / 1.45, upper)
    above = shown.loc[shown["ms"] > upper, "ms"]
    if len(above):
        text = f"{len(above)} above, to {above.max():.0f} ms" if len(above) > 1 else f"1 above, at {above.max():.0f} ms"
        style = {"ha": "right", "va": "top", "fontsize": LABEL_SIZE, "color": "#666970"}
        ax.annotate(text, (1, 1), xycoords="axes fraction", **style)
    for axis in (ax.xaxis, ax.yaxis):
        _plain_ticks(axis)


def _upper(times: pd.Series, most: float) -> float:
    """An end of the axis that cuts no marker: above ``most`` by a third, and above what lies close to that."""
    upper = 1.35 * min(float(times.max()), most)
    for time in sorted(times):
        if upper / 1.12 < time < 1.12 * upper:
            upper = 1.15 * time
    return upper


def _size(look: Look) -> float:
    return 4.2 if look.marker in (*"oPXp.",) else 3.6


def _key(ax: Axes, rows: pd.DataFrame) -> None:
    """Whose the colours are; markers are named in the last panel."""
    names = rows["implementation"]
    handles = [
        Line2D([], [], color=colour, lw=2.2, label=label)
        for starts, colour, label in _FAMILIES
        if names.str.startswith(starts).any()
    ]
    ax.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1, 0.93), fontsize=LABEL_SIZE, handlelength=0.7,
        borderaxespad=0, labelspacing=0.2,
    )  # fmt: skip


def _name_lines(ax: Axes, rows: pd.DataFrame) -> None:
    """What the lines of theory are, in the first panel."""
    least, gradients = rows["least_ms"].iloc[0], rows["gradient_mib"].iloc[0] / 1024
    style = {"fontsize": LABEL_SIZE, "color": THEORY_COLOUR, "textcoords": "offset points"}
    ax.annotate(
        "three matrix products", (1, least), (-1, -2), xycoords=ax.get_yaxis_transform(), va="top", ha="right", **style
    )
    ax.annotate("gradients", (gradients, 1), (3, -1), xycoords=ax.get_xaxis_transform(), va="top", **style)


def _plain_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, at fewer where there are many, written out."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high / low < 60 else (1, 3) if high / low < 200 else (1,)
    ticks = [s * 10.0**p for p in range(-3, 5) for s in steps if low <= s * 10.0**p <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _errors(ax: Axes, table: pd.DataFrame, looks: dict[str, Look]) -> None:
    """Median and range over shapes, one row an implementation with its marker and name."""
    for row, (name, look) in enumerate(looks.items()):
        rows = table.loc[_series(table["implementation"]) == name]
        errors = 1e3 * rows["gradient_error"]
        line = pd.DataFrame(
            {"error": [errors.median()], "error_low": [errors.min()], "error_high": [errors.max()], "row": [-row]}
        )
        filled = bool((rows["label_smoothing"] > 0).all())
        points(ax, line, "error", "row", look, size=_size(look), filled=filled)
        ax.axhline(-row, color="0.92", lw=0.5, zorder=0)
    names = [_NAMES.get(name, name) for name in looks]
    ax.set_yticks([-row for row in range(len(looks))], names, fontsize=LABEL_SIZE)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(xscale="log", ylim=(0.6 - len(looks), 0.6), xlabel=r"relative error $\times$ 1000")
    ax.set_xlim(1e3 * table["gradient_error"].min() / 1.3, 1.3e3 * table["gradient_error"].max())
    _plain_ticks(ax.xaxis)
