"""The summary picture against the theory it draws and the tables it is made of."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from scipy.stats import sem, t

from analysis.lab.tables import read_table
from analysis.smoothing import activity_index, optimal_gap
from paper_figures import activity
from paper_figures.style import THEORY_COLOUR
from paper_figures.tables import DATA

CAPS = pd.read_csv(DATA / "caps.csv")


@pytest.fixture
def quick(drawn):
    """What is drawn of the committed quick table."""
    return drawn("activity", "quick")[1]


@pytest.fixture
def table():
    """Two teachers, two hidden sizes, with an interval in every direction, and two real heads."""
    lines = []
    for teacher, hidden_size, rho, index, share in [
        ("det", 64, 0.5, 5.0, 0.0), ("det", 64, 2.0, 1e-6, 0.999), ("lowrank", 4, 1.2, 0.5, 0.3),
    ]:  # fmt: skip
        line = {"kind": "cell", "name": "", "teacher": teacher, "vocab_size": 64, "hidden_size": hidden_size}
        line |= {"norm_coefficient": rho / 5, "temperature": 1.0, "label_smoothing": 0.1, "seeds": 3}
        for name, value in [("effectiveness_ratio", rho), ("activity_index", index), ("share", share)]:
            line |= {name: value, f"{name}_low": 0.9 * value, f"{name}_high": 1.1 * value}
        lines.append(line)
    lines += [{"kind": "shape", "name": "m = 10", "activity_index": a} for a in (6.0, 8.0)]
    return pd.DataFrame(lines).reindex(columns=activity.COLUMNS)


@pytest.fixture
def tuned():
    """A tuned model's table: one seed of two, and rows that are of no use here."""
    lines = []
    for seed, view, b, confidence, index in [
        (0, "letter", 0.0, 0.99, 0.02), (0, "letter", 0.1, 0.90, 9.0), (1, "letter", 0.0, 0.97, 0.04),
        (1, "letter", 0.1, 0.89, 9.0), (0, "options", 0.0, 0.5, 9.0), (0, "options", 0.1, 0.5, 9.0),
    ]:  # fmt: skip
        line = {"split": "train", "view": view, "reading": "as_trained", "temperature": 1.0, "softcap": np.nan}
        line |= {"epoch": 8, "label_smoothing": b, "data_seed": seed, "confidence": confidence, "activity": index}
        lines += [line, *(line | change | {"confidence": 0.1} for change in (
            {"epoch": 4}, {"split": "test"}, {"temperature": 0.5}, {"softcap": 30.0}, {"reading": "plain"},
        ))]  # fmt: skip
    return pd.DataFrame(lines)


def simplex_loss(gap, vocab_size, smoothing):
    """Smoothed loss of logits (gap, 0, ..., 0)."""
    lse = np.logaddexp(gap, np.log(vocab_size - 1))
    return lse - (1 - smoothing) * gap - smoothing * gap / vocab_size


@pytest.mark.parametrize("rho", [0.3, 0.99, 1.0, 1.05, 1.7])
@pytest.mark.parametrize("vocab_size", [8, 256, 50_000])
def test_the_line_is_what_bounded_gaps_minimise(vocab_size, rho):
    most = rho * optimal_gap(0.1, vocab_size)
    confidence = []
    for smoothing in (0.0, 0.1):
        best = scipy.optimize.minimize_scalar(
            simplex_loss, bounds=(0, most), args=(vocab_size, smoothing), method="bounded", options={"xatol": 1e-9}
        ).x
        confidence.append(1 / (1 + (vocab_size - 1) * np.exp(-best)))
    fall = activity.predicted_fall(np.array([rho]), vocab_size, 0.1)[0]
    assert fall == pytest.approx(confidence[0] - confidence[1], abs=1e-6)


@pytest.mark.parametrize("vocab_size", [8, 256, 50_000])
def test_on_a_simplex_the_fall_is_linear_in_the_activity_index(vocab_size):
    rho, b = np.linspace(0.2, 1.6, 15), 0.1
    gap = rho * optimal_gap(b, vocab_size)
    p = 1 / (1 + (vocab_size - 1) * np.exp(-gap))
    rest = (1 - p) / (vocab_size - 1)
    entropy = -p * np.log(p) - (1 - p) * np.log(rest)
    uniform = -(np.log(p) + (vocab_size - 1) * np.log(rest)) / vocab_size
    index = activity_index(entropy, -np.log(p), uniform, b)
    linear = b * (vocab_size - 1) / vocab_size * np.maximum(0, 1 - index)
    np.testing.assert_allclose(activity.predicted_fall(rho, vocab_size, b), linear, atol=1e-9)


def test_the_cells_are_the_means_of_the_pairs_in_the_table(quick):
    """Recomputed from the rows of one cell, by hand."""
    rows = read_table(DATA / "quick/S3.csv")
    one = rows.query(
        "teacher == 'lowrank' and vocab_size == 64 and hidden_size == 64 and norm_coefficient == .1"
        " and temperature == .25 and softcap.isna() and converged"
    )
    plain, smoothed = (one.loc[one["label_smoothing"] == b].set_index("data_seed") for b in (0.0, 0.2))
    shares = (plain["confidence"] - smoothed["confidence"]) / (0.2 * 63 / 64)
    index = (plain["entropy"] - plain["cross_entropy"]) / (
        0.2 * (plain["uniform_cross_entropy"] - plain["cross_entropy"])
    )
    found = quick.query(
        "kind == 'cell' and teacher == 'lowrank' and vocab_size == 64 and hidden_size == 64 and norm_coefficient == .1"
        " and temperature == .25 and softcap.isna() and label_smoothing == .2"
    )
    assert len(found) == 1
    assert found["seeds"].item() == len(shares) == 3
    assert found["share"].item() == pytest.approx(shares.mean())
    assert found["activity_index"].item() == pytest.approx(index.mean())
    ends = t(2, shares.mean(), sem(shares)).interval(0.95)
    assert [found[f"share_{end}"].item() for end in ("low", "high")] == pytest.approx(ends)
    pairs = rows.loc[rows["label_smoothing"] > 0].drop(columns=["key"])
    settings = ["teacher", "vocab_size", "hidden_size", "norm_coefficient", "temperature", "softcap", "softcap_form"]
    cells = pairs[[*settings, "label_smoothing"]].drop_duplicates()
    assert len(quick.query("kind == 'cell'")) == len(cells)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_no_cell_lies_beyond_the_axes(preset, drawn):
    _, rows, figure = drawn("activity", preset)
    cells = rows.loc[rows["kind"] == "cell"]
    left, right, _ = figure.axes
    for ax, name in ((left, "effectiveness_ratio"), (right, "activity_index")):
        for (low, high), column in ((ax.get_xlim(), name), (ax.get_ylim(), "share")):
            assert cells[[column, f"{column}_high"]].max(axis=None) < high
            if column != "activity_index":  # the least of it are drawn at a mark that says so
                assert cells[[column, f"{column}_low"]].min(axis=None) > low


def test_every_cell_is_a_point_on_both_sides(table, at):
    left, right, _ = activity.make(table, preset="quick").axes
    cells = table.loc[table["kind"] == "cell"]
    for ax, name in ((left, "effectiveness_ratio"), (right, "activity_index")):
        x = cells[name].clip(lower=0.01 if ax is right else None)
        assert at(ax) == sorted(zip(x, cells["share"], strict=True))


def test_a_cell_is_read_from_its_marker(table):
    """Shape for the teacher, fill for the temperature, colour for the hidden size, size for V, bars for intervals."""
    other = table.iloc[[2]].assign(temperature=0.25, vocab_size=256, hidden_size=16, effectiveness_ratio=1.9)
    left = activity.make(pd.concat([table, other], ignore_index=True), preset="quick").axes[0]
    where = {round(float(x), 6): c for c in left.containers for x in c.lines[0].get_xdata()}
    det, small, sharp = (where[x].lines[0] for x in (2.0, 1.2, 1.9))
    assert [line.get_marker() for line in (det, small, sharp)] == ["o", "^", "^"]
    assert mpl.colors.same_color(det.get_markerfacecolor(), det.get_markeredgecolor())
    assert mpl.colors.same_color(sharp.get_markerfacecolor(), "white")
    assert len({mpl.colors.to_hex(line.get_markeredgecolor()) for line in (det, small, sharp)}) == 3
    assert sharp.get_markersize() > small.get_markersize()
    horizontal, vertical = (bars.get_segments()[0] for bars in where[1.2].lines[2])
    np.testing.assert_allclose(horizontal[:, 0], [0.9 * 1.2, 1.1 * 1.2])
    np.testing.assert_allclose(vertical[:, 1], [0.9 * 0.3, 1.1 * 0.3])


def test_the_lines_are_the_theory(table):
    left, right, _ = activity.make(table, preset="quick").axes
    for ax in (left, right):
        (line,) = [line for line in ax.get_lines() if line.get_color() == THEORY_COLOUR]
        x, y = line.get_data()
        exact = activity.predicted_fall(x, 64, 0.1) / (0.1 * 63 / 64) if ax is left else np.maximum(0, 1 - x)
        np.testing.assert_allclose(y, exact)


def test_public_shapes_have_the_index_of_their_norm_product(table, quick):
    shapes = quick.loc[quick["kind"] == "shape"]
    assert len(shapes) == 3 * CAPS[["hidden_size", "vocab_size"]].drop_duplicates().shape[0]
    # Below full rank no closed form is exact, but the gaps that the norms allow bracket where smoothing begins.
    for (_, v), group in shapes.groupby(["hidden_size", "vocab_size"]):
        asked = np.log1p(0.9 * v / 0.1)
        rising = group.assign(m=group["name"].str[4:].astype(float)).sort_values("m")
        assert rising["activity_index"].is_monotonic_decreasing
        assert (rising.loc[rising["m"] < asked * (v - 1) / v, "activity_index"] > 1).all()
    strip = activity.make(table, preset="quick").axes[2]
    assert [text.get_text() for text in strip.texts] == ["public shapes if $m = 10$"]
    assert strip.get_lines()[0].get_xdata().tolist() == [6.0, 8.0]


def test_a_tuned_model_is_a_star(tuned, table, at, check_layout):
    some = read_table(DATA / "quick/S3.csv").query("teacher == 'det' and vocab_size == 64 and hidden_size == 4")
    drawn = activity.prepare({"S3": some, "caps": CAPS, "instruction_full": tuned})
    measured = drawn.loc[drawn["kind"] == "measured"]
    assert measured["name"].tolist() == ["letter"]
    assert measured["activity_index"].item() == pytest.approx(0.03)
    assert measured["share"].item() == pytest.approx(((0.99 - 0.90) + (0.97 - 0.89)) / 2 / 0.1)
    ends = t(1, 0.85, 0.05).interval(0.95)  # of two seeds, .8 and .9
    assert [measured[f"share_{end}"].item() for end in ("low", "high")] == pytest.approx(ends)
    figure = activity.make(pd.concat([table, measured], ignore_index=True), preset="full")
    assert (0.03, 0.85) in at(figure.axes[1])
    beside = figure.axes[1].texts
    assert "letters" in [text.get_text() for text in beside]
    assert "tuned language model" in [text.get_text() for key in figure.legends for text in key.get_texts()]
    check_layout(figure)
    top = figure.axes[1].get_ylim()[1]
    assert ends[1] > top  # two seeds say little
    (arrow,) = [text for text in beside if getattr(text, "arrow_patch", None) is not None]
    assert arrow.xy == (pytest.approx(0.03), top)
    assert f"to {ends[1]:.1f}" in [text.get_text() for text in beside]


def test_an_interval_inside_the_axes_has_no_arrow(table):
    star = {"kind": "measured", "name": "letter", "label_smoothing": 0.1, "activity_index": 0.03, "share": 0.9}
    star |= {"activity_index_low": 0.02, "activity_index_high": 0.04, "share_low": 0.8, "share_high": 1.0}
    right = activity.make(pd.concat([table, pd.DataFrame([star])], ignore_index=True), preset="full").axes[1]
    assert {text.get_text() for text in right.texts} == {"letters", r"theory: $\max(0,\, 1-A)$"}


def test_the_preset_and_the_seeds_are_in_the_figure(table):
    assert "preset full, 3 seeds" in [text.get_text() for text in activity.make(table, preset="full").texts]
