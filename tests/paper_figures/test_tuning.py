"""The figure on tuning: bins, courses and methods are those of the table, the references those of theory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import sem, t

from paper_figures import tables, tuning
from paper_figures.style import THEORY_COLOUR

# By seed; the bin around .5 holds few contexts, that around .7 is missing from one seed.
BINS = {0: "40:0.1:0.1;9:0.5:0.9;30:0.7:0.6;10:0.9:0.7", 1: "60:0.12:0.08;9:0.5:0.8;20:0.88:0.8"}


@pytest.fixture(scope="module")
def rows():
    return tables.read("S7", "quick", tables.DATA / "nowhere")


@pytest.fixture(scope="module")
def binned():
    """A small table with bins: two seeds, one setting, b = 0 and .1, two epochs."""
    lines = []
    for seed in (0, 1):
        for distribution in ("train", "broad", "shifted"):
            for method, b in (("b=0", 0.0), ("b=0.1", 0.1)):
                for epoch in (0, 1, 4):
                    line = {"method": method, "label_smoothing": b, "epoch": epoch, "distribution": distribution}
                    line |= {"vocab_size": 8, "hidden_size": 4, "data_seed": seed, "converged": True}
                    line |= {"reading": "as_trained", "confidence": 0.5 + 0.1 * seed, "accuracy": 0.4, "true_ece": 0.1}
                    line |= {"head_norm": 2.0 + seed, "feature_norm_max": 3.0, "validation_nll": float(epoch)}
                    line["true_ece"] += 0.01 * epoch + 0.001 * seed - b / 10
                    lines.append(line | {"reliability": BINS[seed] if epoch in (0, 4) else np.nan})
    return tuning.prepare({"S7": pd.DataFrame(lines)})


def test_bins_are_means_over_seeds_without_those_that_hold_few_contexts_or_miss_a_seed(binned):
    found = binned.query("kind == 'bin' and name == 'after' and distribution == 'broad'").sort_values("bin")
    assert found["bin"].tolist() == [1, 13]  # of 15
    assert found["confidence"].tolist() == pytest.approx([0.11, 0.89])
    assert found["accuracy"].tolist() == pytest.approx([0.09, 0.75])
    ends = t(1, [0.09, 0.75], [0.01, 0.05]).interval(0.95)  # two seeds: their error is half their distance
    assert [found[f"accuracy_{end}"].tolist() for end in ("low", "high")] == [pytest.approx(end) for end in ends]
    assert found["seeds"].tolist() == [2, 2]


def test_reliability_is_drawn_against_what_smoothing_asks_for_and_the_norms_allow(binned, at, check_layout):
    figure = tuning.make(binned, preset="full")
    for ax in figure.axes[:2]:
        # Three stages of equal rows: their bins, and their means.
        assert at(ax) == sorted(3 * [(0.11, 0.09), (0.89, 0.75), (0.55, 0.4)])
        asked, ceiling = sorted(
            float(line.get_xdata()[0]) for line in ax.get_lines() if line.get_color() == THEORY_COLOUR
        )
        assert asked == pytest.approx(0.9 + 0.1 / 8)
        # m = 7.5 in 4 dimensions: V = 2 D, where the ceiling is an orthoplex, +-m e_i.
        assert ceiling == pytest.approx(1 / (1 + 6 * np.exp(-7.5) + np.exp(-15)), abs=1e-9)
    written = [text.get_text() for text in figure.axes[1].texts]
    assert any(text.endswith("0.912") for text in written)
    check_layout(figure, over_points=False)  # of a table this small the points lie anywhere


def test_early_stopping_is_the_epoch_of_least_validation_loss(binned):
    found = binned.query("kind == 'final' and distribution == 'shifted'").set_index("name")["true_ece"]
    assert found["early stopping"] == pytest.approx(
        0.11 + 0.0005
    )  # epoch 1: epoch 0, whose loss is least, is no tuning
    assert found["b=0"] == pytest.approx(0.14 + 0.0005)
    assert found["b=0.1"] == pytest.approx(0.13 + 0.0005)


def test_courses_are_those_of_the_setting_of_the_committed_table(rows, drawn, at):
    _, shown, figure = drawn("tuning", "quick")
    assert "one setting, $V = 512$, $D = 64$" in [text.get_text() for text in figure.texts]
    one = rows.query("vocab_size == 512 and hidden_size == 64 and reading == 'as_trained'")
    epochs = sorted(one["epoch"].unique())
    for ax, distribution in zip(figure.axes[2:4], ("shifted", "broad"), strict=True):
        means = one.loc[one["distribution"] == distribution].groupby(["method", "epoch"])["true_ece"].mean()
        wanted = sorted((epochs.index(epoch), value) for (_, epoch), value in means.items())
        np.testing.assert_allclose(at(ax), wanted, rtol=2e-5)
        assert [text.get_text() for text in ax.get_xticklabels()] == [str(epoch) for epoch in epochs]
    names = [text.get_text() for text in figure.axes[3].texts]
    assert sorted(names) == sorted(tuning._METHODS[name] for name in one["method"].unique())
    assert shown.query("kind == 'course'")["seeds"].unique().tolist() == [3]


@pytest.mark.parametrize(
    ("name", "method", "reading"),
    [
        ("b=0", "b=0", "as_trained"), ("b=0.1", "b=0.1", "as_trained"), ("dropout", "dropout", "as_trained"),
        ("b=0 post_hoc", "b=0", "post_hoc"), ("b=0.1 inverted", "b=0.1", "inverted"),
    ],
)  # fmt: skip
def test_methods_are_means_over_all_settings(rows, drawn, name, method, reading):
    last = rows.query("epoch == 32 and distribution == 'shifted' and method == @method and reading == @reading")
    by_seed = last.groupby("data_seed")["true_ece"].mean()
    found = drawn("tuning", "quick")[1].query("kind == 'final' and name == @name and distribution == 'shifted'")
    ends = [by_seed.mean(), *t(2, by_seed.mean(), sem(by_seed)).interval(0.95)]
    assert found[["true_ece", "true_ece_low", "true_ece_high"]].iloc[0].tolist() == pytest.approx(ends)


def test_every_method_and_reading_is_a_row(drawn, at):
    _, rows, figure = drawn("tuning", "quick")
    ax, final = figure.axes[4], rows.loc[rows["kind"] == "final"]
    names = {**tuning._METHODS, **tuning._READINGS}
    labels = {round(y): text.get_text() for y, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    for row in final.itertuples():
        assert any(abs(x - row.true_ece) < 1e-6 and labels[round(y)] == names[row.name] for x, y in at(ax)), row
    assert len(at(ax)) == len(final)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_bars_end_inside_the_axes(preset, drawn):
    """Student's interval of three seeds may ask for an accuracy below 0, which no model has."""
    _, rows, figure = drawn("tuning", preset)
    assert preset == "full" or rows["accuracy_low"].min() < 0
    for ax in figure.axes:
        bars = np.concatenate([seg for c in ax.containers for line in c.lines[2] for seg in line.get_segments()])
        for axis, (low, high) in enumerate((ax.get_xlim(), ax.get_ylim())):
            assert low <= bars[:, axis].min()
            assert bars[:, axis].max() <= high
