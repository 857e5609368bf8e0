"""Intervals, paired effects over seeds and explained variance against brute force and known answers."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.study.statistics import explained_variance, mean_effect, mean_interval, resamples

NUMBERS = st.floats(-100, 100, allow_nan=False)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_resamples_are_all_of_them(seeds):
    weights = resamples(seeds)
    assert weights.shape == (seeds**seeds, seeds)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    values = np.arange(seeds) ** 2.0
    brute = sorted(np.mean(draw) for draw in product(values, repeat=seeds))
    np.testing.assert_allclose(sorted(weights @ values), brute)


def test_many_seeds_are_drawn_repeatably():
    assert resamples(9).shape == (10_000, 9)
    np.testing.assert_array_equal(resamples(9), resamples(9))


@given(st.lists(NUMBERS, min_size=1, max_size=5))
@settings(deadline=None, max_examples=40)
def test_the_interval_holds_the_mean_and_lies_in_the_range(values):
    low, high = mean_interval(values)
    assert min(values) - 1e-9 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= max(values) + 1e-9


def test_five_seeds_against_quantiles_of_all_3125_means():
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    means = np.sort([np.mean(draw) for draw in product(values, repeat=5)])
    low, high = mean_interval(values)
    assert low == pytest.approx(means[int(np.ceil(0.025 * means.size)) - 1])
    assert high == pytest.approx(means[int(np.ceil(0.975 * means.size)) - 1])


def test_cells_of_one_seed_move_together():
    """Two cells, three seeds, noise of the seed alone: the interval is that of the seeds, not of six numbers."""
    noise = np.array([-0.3, 0.0, 0.3])
    frame = pd.DataFrame([{"cell": c, "data_seed": s, "x": 10.0 * c + noise[s]} for c, s in product((0, 1), range(3))])
    effect = mean_effect(frame, "x", cell=["cell"])
    assert effect[:3] == pytest.approx((5.0, 4.7, 5.3))
    assert effect[3:] == (3, 2)


def test_a_missing_row_shifts_nothing():
    frame = pd.DataFrame([{"cell": c, "data_seed": s, "x": 10.0 * c} for c, s in product((0, 1), range(3))])
    whole, part = mean_effect(frame, "x", cell=["cell"]), mean_effect(frame.drop(index=0), "x", cell=["cell"])
    assert whole[:3] == part[:3] == (5.0, 5.0, 5.0)


def test_one_seed_has_no_interval_and_none_is_not_known():
    frame = pd.DataFrame({"cell": [1, 2], "data_seed": [0, 0], "x": [1.0, 2.0]})
    assert np.isnan(mean_effect(frame, "x", cell=["cell"])[1:3]).all()
    nothing = mean_effect(frame.head(0), "x", cell=["cell"])
    assert np.isnan(nothing[:3]).all()
    assert nothing[3:] == (0, 0)
    assert str(nothing) == "not known (no rows)"


def test_a_monotone_function_is_explained_and_noise_is_not():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.01, 10, 300)
    assert explained_variance(x, np.maximum(0, 1 - x)) > 0.99
    assert explained_variance(x, -np.maximum(0, 1 - x)) > 0.99  # rising as well as falling
    assert explained_variance(x, rng.normal(size=300)) < 0.1
    half = np.maximum(0, 1 - x) + rng.normal(scale=np.maximum(0, 1 - x).std(), size=300)
    assert explained_variance(x, half) == pytest.approx(0.5, abs=0.12)


def test_tied_predictors_get_one_value():
    x = np.repeat([1.0, 2.0], 50)
    y = np.concatenate([np.tile([0.0, 1.0], 25), np.tile([4.0, 5.0], 25)])
    between = 1 - 0.25 / y.var()
    assert explained_variance(x, y) == pytest.approx(between, abs=0.02)


def test_few_cells_are_refused():
    with pytest.raises(ValueError, match=r"^predictor must have at least 20 cells, got 3\.$"):
        explained_variance([1, 2, 3], [1, 2, 3])
