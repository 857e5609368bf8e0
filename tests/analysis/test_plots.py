"""What is drawn is what the table says; nothing global changes."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis import plots
from analysis.calibration import CalibrationState, reliability_table, risk_coverage_curve


@pytest.fixture(name="data")
def _data():
    rng = np.random.default_rng(0)
    confidence = 0.3 + 0.7 * rng.random(3000) ** 0.5
    return confidence, rng.random(3000) < confidence**1.5


@pytest.fixture(name="ax")
def _ax():
    return Figure().subplots()


def by_gid(ax, gid):
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def test_reliability_diagram_draws_the_table(data, ax):
    table = reliability_table(*data)
    full = table[table["n"] > 0]
    assert len(full) < len(table)
    assert plots.reliability_diagram(table, ax, ceiling=0.97, smoothing_optimum=0.9, label="model") is ax
    line = next(line for line in ax.lines if line.get_label() == "model")
    np.testing.assert_array_equal(line.get_xydata(), full[["confidence", "accuracy"]])
    (bars,) = by_gid(ax, "intervals")
    assert isinstance(bars, LineCollection)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_array_equal(ends, full[["accuracy_low", "accuracy_high"]])
    band = np.array([bar.get_bbox().extents for bar in by_gid(ax, "noise floor")])
    np.testing.assert_allclose(band, full[["lower", "calibrated_low", "upper", "calibrated_high"]], atol=1e-15)
    heights = [bar.get_height() for bar in by_gid(ax, "density")]
    np.testing.assert_allclose(heights, full["n"] / full["n"].max() / 5)
    assert [by_gid(ax, gid)[0].get_xdata()[0] for gid in ("ceiling", "smoothing optimum")] == [0.97, 0.9]


def test_a_state_and_its_table_draw_the_same_and_parts_can_be_left_out(data, ax):
    state = CalibrationState().update(*data)
    plots.reliability_diagram(state, ax, density=False, intervals=False, noise_floor=False, color="C3")
    for gid in ("density", "intervals", "noise floor", "ceiling", "smoothing optimum"):
        assert not by_gid(ax, gid)
    other = Figure().subplots()
    plots.reliability_diagram(reliability_table(*data), other)
    np.testing.assert_allclose(ax.lines[-1].get_xydata(), other.lines[-1].get_xydata(), atol=1e-12)
    assert ax.lines[-1].get_color() == "C3"


def test_a_legend_names_what_models_share_once(data, ax):
    for name in ("a", "b"):
        plots.reliability_diagram(reliability_table(*data), ax, ceiling=0.97, smoothing_optimum=0.9, label=name)
    assert sorted(ax.get_legend_handles_labels()[1]) == ["a", "b", "ceiling", "if calibrated", "smoothing optimum"]


def test_quantile_tables_can_be_drawn(data, ax):
    plots.reliability_diagram(reliability_table(*data, binning="quantile"), ax)
    widths = [bar.get_width() for bar in by_gid(ax, "density")]
    assert min(widths) > 0
    assert len(widths) == 15


def test_confidence_histogram_adds_up_and_marks_the_means(data, ax):
    confidence, correct = data
    plots.confidence_histogram(CalibrationState().update(*data), ax, ceiling=0.9, log=True)
    values, edges, _ = ax.patches[0].get_data()
    assert values.sum() == pytest.approx(1)
    np.testing.assert_allclose(edges, np.linspace(0, 1, 16))
    assert by_gid(ax, "confidence")[0].get_xdata()[0] == pytest.approx(confidence.mean())
    assert by_gid(ax, "accuracy")[0].get_xdata()[0] == pytest.approx(correct.mean())
    assert by_gid(ax, "ceiling")
    assert ax.get_yscale() == "log"


def test_risk_coverage_keeps_both_ends_and_thins_the_rest(data, ax):
    confidence, correct = data
    curve = risk_coverage_curve(np.tile(confidence, 3), np.tile(correct, 3))
    plots.risk_coverage(curve, ax, label="model")
    x, y = ax.lines[0].get_data()
    assert len(x) == 2000
    assert (x[0], y[0]) == (curve.coverage[0], curve.risk[0])
    assert (x[-1], y[-1]) == (1, pytest.approx(1 - correct.mean()))
    assert by_gid(ax, "answer all")[0].get_ydata()[0] == curve.risk[-1]


def test_no_global_state_changes(data, ax):
    before, figures = dict(mpl.rcParams), plt.get_fignums()
    state = CalibrationState().update(*data)
    plots.reliability_diagram(state, ax)
    plots.confidence_histogram(state, ax)
    plots.risk_coverage(risk_coverage_curve(*data), ax)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures


def test_refusals(data, ax):
    with pytest.raises(
        TypeError, match="source must be a CalibrationState or a reliability table, it lacks the columns"
    ):
        plots.reliability_diagram(data[0], ax)
    with pytest.raises(ValueError, match=r"ceiling must be in \[0, 1\], got 97"):
        plots.reliability_diagram(reliability_table(*data), ax, ceiling=97)
    with pytest.raises(ValueError, match="smoothing_optimum must not be NaN"):
        plots.confidence_histogram(reliability_table(*data), ax, smoothing_optimum=np.nan)
    with pytest.raises(ValueError, match="the state must hold at least one sample"):
        plots.confidence_histogram(CalibrationState(), ax)
    with pytest.raises(ValueError, match="source must have bins of equal width"):
        plots.confidence_histogram(reliability_table(*data, binning="quantile"), ax)
    with pytest.raises(ValueError, match="source must hold at least one sample"):
        plots.reliability_diagram(reliability_table(*data).assign(n=0), ax)
