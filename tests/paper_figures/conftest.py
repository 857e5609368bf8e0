"""Figures drawn once for all tests, and the rules of layout: nothing cut off, no text over text or over a point."""

from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from paper_figures import FIGURES
from paper_figures.tables import available, read

NOWHERE = Path("/no/such/folder")  # so that the committed tables are read
SLACK = 0.75  # pixels at 200 dots an inch that two boxes may share: boxes have air around the ink


def texts(figure):
    """Texts that are drawn, with their boxes in pixels."""
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    undrawn = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.majorTicks + axis.minorTicks:  # those beyond the limits exist and are not drawn
            if not low * (1 - 1e-9) - 1e-9 <= tick.get_loc() <= high * (1 + 1e-9) + 1e-9:
                undrawn |= {id(tick.label1), id(tick.label2)}
    return [
        (text, Text.get_window_extent(text, renderer))  # of the text alone, without an arrow
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and id(text) not in undrawn
    ]


def markers(figure):
    """Middles and radii in pixels of all points inside their axes."""
    found = []
    for axes in figure.axes:
        frame = axes.get_window_extent()
        for line in axes.get_lines():
            radius = line.get_markersize() / 2 * figure.dpi / 72
            if line.get_marker() in ("None", None, "", " ", "|", "_", 0, 1, 2, 3) or not line.get_visible():
                continue
            for x, y in line.get_transform().transform(np.column_stack(line.get_data()).astype(float)):
                if frame.x0 - 1 <= x <= frame.x1 + 1 and frame.y0 - 1 <= y <= frame.y1 + 1:
                    found.append((x, y, radius))
    return found


def check_layout(figure, *, over_points=True):
    """Raise AssertionError naming the texts that overlap, are cut off, too small, or lie on a point."""
    boxes = texts(figure)
    assert boxes, "a figure without text"
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        inside = box.x0 >= -SLACK and box.y0 >= -SLACK and box.x1 <= width + SLACK and box.y1 <= height + SLACK
        assert inside, f"{text.get_text()!r} is cut off at {box} of {width} x {height}"
        assert text.get_fontsize() >= 6, f"{text.get_text()!r} has {text.get_fontsize()} pt"
    for (first, a), (second, b) in combinations(boxes, 2):
        across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, up) <= 2 * SLACK, f"{first.get_text()!r} overlaps {second.get_text()!r} by {across}, {up}"
    if over_points:
        for x, y, radius in markers(figure):
            r = 0.85 * radius  # letters do not fill their box
            for text, box in boxes:
                covered = box.x0 - r < x < box.x1 + r and box.y0 - r < y < box.y1 + r
                assert not covered, f"{text.get_text()!r} lies on the point at {x:.0f}, {y:.0f}"


@pytest.fixture(name="check_layout")
def _check_layout():
    return check_layout


@cache
def _drawn(name, preset):
    module = import_module(FIGURES[name])
    there = [table for table in module.OPTIONAL if available(table, preset, NOWHERE)]
    rows = module.prepare({table: read(table, preset, NOWHERE) for table in (*module.TABLES, *there)})
    return module, rows, module.make(rows, preset=preset)


@pytest.fixture(scope="session")
def drawn():
    """(name, preset) -> the module, what it draws from the committed tables, and the figure; made once."""
    return _drawn


@pytest.fixture
def at():
    """(x, y) of all points of axes in data units, without those of a key, rounded to 6 significant digits, sorted."""

    def points(axes):
        found = [
            (float(f"{x:.6g}"), float(f"{y:.6g}"))
            for line in axes.get_lines()
            if line.get_marker() not in ("None", None, "", " ", "|", "_", 0, 1, 2, 3)
            and line.get_transform() is not axes.transAxes
            for x, y in zip(*line.get_data(), strict=True)
        ]
        return sorted(found)

    return points
