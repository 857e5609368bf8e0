"""Intervals, noise floor and the committed table of their measured coverage."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from analysis.calibration import CalibrationState, wilson_interval
from analysis.calibration.__main__ import main as coverage_command
from analysis.calibration.coverage import ACCURACIES, CONFIDENCES, simulate

TABLE = Path(__file__).parents[2] / "paper_figures" / "data" / "coverage.csv"


def state(n, accuracy, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(1.2, 0.6, n)
    return CalibrationState().update(confidence, rng.random(n) < accuracy(confidence))


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 10), (99, 100), (0, 50), (500, 1234)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_equals_scipys(successes, n, level):
    low, high = wilson_interval(np.array([successes]), np.array([n]), level)
    expected = binomtest(successes, n).proportion_ci(level, "wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(11, 10), (-1, 10), (np.nan, 10), (1, np.inf), (0, np.nan)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match=r"(correct|samples) must (be (in|finite)|not be NaN)"):
        wilson_interval(successes, n)
    assert np.isnan(wilson_interval(0, 0)).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_noise_floor_equals_drawing_every_sample(norm, binning):
    rng = np.random.default_rng(3)
    confidence = rng.beta(1.2, 0.6, 1500)
    errors = [
        CalibrationState()
        .update(confidence, rng.random(1500) < confidence)
        .calibration_error(norm=norm, binning=binning)
        for _ in range(1000)
    ]
    measured = CalibrationState().update(confidence, rng.random(1500) < confidence)
    floor = measured.noise_floor(norm=norm, binning=binning, n_resamples=4000)
    assert floor.mean == pytest.approx(np.mean(errors), rel=0.03)
    assert floor.high == pytest.approx(np.quantile(errors, 0.95), rel=0.05)
    rank = np.mean(errors >= np.float64(measured.calibration_error(norm=norm, binning=binning)))
    assert floor.p_value == pytest.approx(rank, abs=0.06)


def test_noise_floor_knows_that_confidences_differ_within_a_bin():
    # One bin, half at .02 and half at .98: the variance is .0196 a sample, not the .25 of their mean.
    measured = CalibrationState(1).update(np.repeat([0.02, 0.98], 500), np.repeat([0, 1], 500))
    expected = np.sqrt(2 / np.pi * 0.0196 / 1000)  # mean of |N(0, v / n)|
    assert measured.noise_floor(n_resamples=20_000).mean == pytest.approx(expected, rel=0.03)


def test_width_in_one_bin_is_that_of_the_mean_gap():
    # Confidences vary within the bin as much as outcomes do; left out, the interval would be a third too short.
    rng = np.random.default_rng(9)
    confidence, correct = rng.random(4000), rng.random(4000) < 0.9
    interval = CalibrationState(1).update(confidence, correct).interval(n_resamples=4000)
    expected = 2 * 1.96 * np.std(confidence - correct) / 4000**0.5
    assert interval.high - interval.low == pytest.approx(expected, rel=0.05)


def test_nothing_is_random_about_certain_confidences():
    certain = CalibrationState().update([0.0, 1.0, 1.0], [0, 1, 1])
    assert certain.noise_floor() == (0.0, 0.0, 1.0)
    assert certain.interval()[:3] == (0.0, 0.0, 0.0)
    wrong = CalibrationState().update([1.0] * 5, [0] * 5)
    assert wrong.noise_floor().p_value < 0.01


def test_intervals_depend_on_the_seed_alone_and_shrink_with_n():
    small, large = state(2000, ACCURACIES["over"]), state(200_000, ACCURACIES["over"])
    assert small.interval(seed=1) == small.interval(seed=1) != small.interval(seed=2)
    widths = [s.interval().high - s.interval().low for s in (small, large)]
    assert widths[0] == pytest.approx(10 * widths[1], rel=0.1)
    wide = small.interval(level=0.99)
    assert wide.low < small.interval().low < small.interval().high < wide.high
    assert small.interval().error == pytest.approx(small.calibration_error(), abs=1e-15)


def test_order_of_samples_changes_no_interval():
    rng = np.random.default_rng(5)
    confidence = rng.random(500)
    correct = rng.random(500) < confidence**2
    order = rng.permutation(500)
    a = CalibrationState().update(confidence, correct).interval()
    b = CalibrationState().update(confidence[order], correct[order]).interval()
    assert a == pytest.approx(b, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s: s.interval(level=1.0), ValueError, r"level must be in \(0, 1\), got 1.0"),
        (lambda s: s.interval(level="a"), TypeError, "level must be a number, got str"),
        (lambda s: s.interval(norm="max"), ValueError, r"norm must be one of \('l1', 'l2'\), got 'max'"),
        (lambda s: s.noise_floor(n_resamples=10), ValueError, "n_resamples must be at least 100, got 10"),
        (lambda s: CalibrationState().interval(), ValueError, "the state must hold at least one sample"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call(state(50, ACCURACIES["over"]))


def test_coverage_of_a_small_simulation():
    table = simulate(
        confidences=["peaked"], accuracies=["over", "calibrated"], sizes=[2000], n_datasets=200, n_resamples=300
    )
    assert len(table) == 8
    # 200 data sets: three standard errors of .95 are .046.
    assert table["coverage"].between(0.9, 0.997).all()
    assert (table.query("accuracy == 'over'")["rejected"] == 1).all()
    assert table.query("accuracy == 'calibrated'")["rejected"].between(0.005, 0.1).all()


def test_truth_of_the_simulation_is_the_limit_of_the_estimate():
    rng = np.random.default_rng(6)
    table = simulate(sizes=[100], n_datasets=2, n_resamples=100)
    for (name, accuracy, binning, norm), rows in table.groupby(["confidences", "accuracy", "binning", "norm"]):
        confidence = rng.beta(*CONFIDENCES[name], 400_000)
        large = CalibrationState().update(confidence, rng.random(400_000) < ACCURACIES[accuracy](confidence))
        estimate = large.calibration_error(norm=norm, binning=binning)
        assert estimate == pytest.approx(rows["true_error"].item(), abs=4e-3)


def test_the_command_writes_the_table_and_how_it_was_made(tmp_path):
    out = tmp_path / "new" / "coverage.csv"
    coverage_command(["--out", str(out), "--n-datasets", "2", "--sizes", "50", "--seed", "3"])
    written = pd.read_csv(out)
    assert len(written) == len(CONFIDENCES) * len(ACCURACIES) * 4
    assert (written["seed"] == 3).all()
    made = json.loads(out.with_suffix(".json").read_text())
    assert made["command"] == "python -m analysis.calibration --sizes 50 --n-datasets 2 --seed 3"
    assert made["versions"]["numpy"] == np.__version__


class TestCommittedTable:
    @pytest.fixture(scope="class")
    @staticmethod
    def table():
        return pd.read_csv(TABLE)

    def test_is_complete(self, table):
        assert len(table) == len(CONFIDENCES) * len(ACCURACIES) * 2 * 2 * 2
        assert set(table["n"]) == {2000, 10_000}
        assert (table["n_datasets"] == 2000).all()
        assert not table.isna().any(axis=None)

    def test_says_how_it_was_made(self, table):
        made = json.loads(TABLE.with_suffix(".json").read_text())
        assert made["command"] == "python -m analysis.calibration --sizes 2000 10000 --n-datasets 2000 --seed 0"
        assert (table["seed"] == 0).all()

    def test_docstring_of_the_interval_states_its_figures(self, table):
        large, none = table["true_error"] >= 0.08, table["true_error"] < 1e-9
        text = " ".join((CalibrationState.interval.__doc__ or "").split())
        for rows, column, digits, words in (
            (large, "true_error", 2, "where the true error is {low:.2f}-{high:.2f}"),
            (large, "coverage", 3, "{low:.1%}-{high:.1%} where the true error"),
            (~large & ~none, "coverage", 3, "{low:.1%}-{high:.1%} near .01"),
            (none, "coverage", 3, "{low:.1%}-{high:.1%} for calibrated models"),
            (none, "rejected", 3, "rejects {low:.1%}-{high:.1%}"),
        ):
            low, high = (round(x + 1e-9, digits) for x in (table[column][rows].min(), table[column][rows].max()))
            figures = words.format(low=low, high=high).replace("%-", "-").replace("%", " %")
            assert re.sub(r"\b0\.(?=\d\d\b)", ".", figures) in text

    def test_coverage_where_the_error_is_large(self, table):
        large = table[table["true_error"] >= 0.08]
        assert len(large) >= 32
        assert large["coverage"].between(0.93, 0.97).all(), large.loc[~large["coverage"].between(0.93, 0.97)]

    def test_size_of_the_noise_floor_test(self, table):
        calibrated = table[table["true_error"] < 1e-9]
        assert len(calibrated) == 16
        assert calibrated["rejected"].between(0.03, 0.07).all()
        assert calibrated["coverage"].min() >= 0.93

    def test_debiased_estimates_are_nearer_the_truth(self, table):
        small = table[table["true_error"].between(1e-9, 0.05)]
        plug_in, debiased = (abs(small[x] - small["true_error"]) for x in ("mean_plug_in", "mean_debiased"))
        assert (debiased < plug_in).all()
