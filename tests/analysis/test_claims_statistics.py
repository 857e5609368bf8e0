"""Intervals, paired effects over seeds and explained variance against brute force and known answers."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import sem, t

from analysis.claims.statistics import (
    bootstrap_half_width,
    explained_effect,
    explained_variance,
    half_width,
    mean_effect,
    mean_interval,
    resamples,
)

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


@given(st.lists(NUMBERS, min_size=2, max_size=5))
@settings(deadline=None, max_examples=40)
def test_the_interval_of_a_mean_is_the_t_interval(values):
    error = sem(values)
    low, high = mean_interval(values)
    expected = t(len(values) - 1, np.mean(values), error).interval(0.95) if error > 1e-9 else (np.mean(values),) * 2
    np.testing.assert_allclose((low, high), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seeds", [3, 5])
def test_it_covers_95_percent_of_normal_seeds_and_nearly_as_many_of_skewed_ones(seeds):
    """4,000 studies of three or five seeds each; percentiles of their resamples cover 74 % and 83 %."""
    rng, studies = np.random.default_rng(7), 4000
    for draw, mean, least in (
        (rng.normal(3.0, 2.0, (seeds, studies)), 3.0, 0.95 - 3 * (0.95 * 0.05 / studies) ** 0.5),
        (rng.gamma(4.0, 1.0, (seeds, studies)), 4.0, 0.92),  # of skewness 1
    ):
        low, high = mean_interval(draw)
        covered = float(((low < mean) & (mean < high)).mean())
        assert least <= covered <= 0.96


def test_one_seed_says_nothing_of_its_spread():
    assert np.isnan(mean_interval([[1.0, 2.0]])).all()
    with pytest.raises(ValueError, match=r"^values must hold at least one seed, got none\.$"):
        half_width([])


def test_a_statistic_that_is_no_mean_has_the_error_of_its_resamples():
    """The logarithm of a mean, whose error is that of the mean over the mean as far as that is small."""
    values = np.array([10.0, 10.1, 10.3, 9.9, 10.2])
    half = bootstrap_half_width(np.log(resamples(5) @ values), 5)
    assert half == pytest.approx(half_width(values) / values.mean(), rel=1e-3)


def test_cells_of_one_seed_move_together():
    """Two cells, three seeds, noise of the seed alone: the interval is that of the seeds, not of six numbers."""
    noise = np.array([-0.3, 0.0, 0.3])
    frame = pd.DataFrame([{"cell": c, "data_seed": s, "x": 10.0 * c + noise[s]} for c, s in product((0, 1), range(3))])
    effect = mean_effect(frame, "x", cell=["cell"])
    half = t(2).ppf(0.975) * 0.3 / 3**0.5
    assert effect[:3] == pytest.approx((5.0, 5.0 - half, 5.0 + half))
    assert effect[3:] == (3, 2)


def test_the_interval_lies_around_the_mean_where_rows_are_missing():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        [{"cell": c, "data_seed": s, "x": 10.0 * c + rng.normal()} for c, s in product(range(4), range(5))]
    )
    effect = mean_effect(frame.drop(index=[0, 7, 8]), "x", cell=["cell"])
    assert effect.mean - effect.low == pytest.approx(effect.high - effect.mean)
    assert effect.low < effect.mean


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


def test_copies_of_one_thing_are_not_predicted_from_each_other():
    """Noise in pairs: each cell foretells its copy, and nothing once copies stay together."""
    rng = np.random.default_rng(3)
    x, y = np.repeat(rng.uniform(size=60), 2), np.repeat(rng.normal(size=60), 2)
    labels = np.repeat(np.arange(60), 2)
    alone = explained_variance(x[::2], y[::2])
    assert explained_variance(x, y, same=labels) == pytest.approx(alone)
    assert explained_variance(x, np.repeat(np.arange(60.0), 2)[rng.permutation(120)], same=labels) < 0.2
    steps = np.repeat(np.sort(rng.normal(size=60)), 2)
    order = np.sort(x)
    assert explained_variance(order, steps) > explained_variance(order, steps, same=labels)  # what leaked
    with pytest.raises(ValueError, match="at least 20 cells that differ, got 10"):
        explained_variance(x, y, same=labels % 10)


def test_the_paired_difference_is_that_of_the_shares_over_the_same_resamples():
    frame = seeds_of_a_law(0.2)
    frame["z"] = frame["x"] + np.random.default_rng(4).normal(scale=0.5, size=40)[frame["cell"]]
    gap = explained_effect(frame, "x", "y", cell="cell", minus="z")
    first, second = (explained_effect(frame, name, "y", cell="cell") for name in "xz")
    assert gap.mean == pytest.approx(first.mean - second.mean)
    assert gap.high - gap.low < (first.high - first.low) + (second.high - second.low)
    same = explained_effect(frame, "x", "y", cell="cell", minus="x")
    assert same[:3] == (0, 0, 0)


def test_few_cells_are_refused():
    with pytest.raises(ValueError, match=r"^predictor must have at least 20 cells that differ, got 3\.$"):
        explained_variance([1, 2, 3], [1, 2, 3])


def seeds_of_a_law(noise, seeds=3):
    rng = np.random.default_rng(2)
    x = np.linspace(0.1, 3, 40)
    lines = [
        {"cell": c, "data_seed": s, "x": x[c], "y": max(0.0, 1 - x[c]) + noise * rng.normal()}
        for c, s in product(range(40), range(seeds))
    ]
    return pd.DataFrame(lines)


def test_the_interval_of_explained_variance_by_hand_and_never_above_1():
    frame = seeds_of_a_law(0.2)
    found = explained_effect(frame, "x", "y", cell="cell")
    y = frame.pivot_table(index="cell", columns="data_seed", values="y").to_numpy()
    shares = [
        explained_variance(np.linspace(0.1, 3, 40), y[:, draw].mean(axis=1)) for draw in product(range(3), repeat=3)
    ]
    half = t(2).ppf(0.975) * np.std(shares) * (3 / 2) ** 0.5
    assert found.mean == pytest.approx(explained_variance(np.linspace(0.1, 3, 40), y.mean(axis=1)))
    assert found.low == pytest.approx(found.mean - half)
    assert found.high == pytest.approx(min(1.0, found.mean + half))
    assert found[3:] == (3, 40)
    assert explained_effect(seeds_of_a_law(0.1), "x", "y", cell="cell").high == 1.0


def test_cells_without_a_resamples_seeds_stay_as_they_are():
    """One seed only in some cells: the others' spread alone makes the interval."""
    frame = seeds_of_a_law(0.0)
    assert explained_effect(frame, "x", "y", cell="cell")[1] == pytest.approx(
        explained_variance(*frame[["x", "y"]].groupby(frame["cell"]).mean().to_numpy().T)
    )
    part = explained_effect(frame.drop(index=[1, 2]), "x", "y", cell="cell")
    assert part.low == pytest.approx(part.mean)
    assert np.isnan(explained_effect(frame[frame["data_seed"] == 0], "x", "y", cell="cell").low)


@pytest.mark.parametrize("seeds", [(5, 5, 5), (5, 5, 2), (5, 2, 2), (5, 5, 5, 1)], ids=str)
def test_intervals_of_cells_with_different_seeds_hold_the_mean(seeds):
    """Independent cells; with a correction by the union of the seeds, (5, 2, 2) covers 89 % and (5, 1) 67 %."""
    generator, studies, held = np.random.default_rng(1), 2000, 0
    cell = np.repeat(np.arange(len(seeds)), seeds)
    seed = np.concatenate([np.arange(count) for count in seeds])
    truth = 10.0 * np.mean(np.arange(len(seeds))[np.array(seeds) > 1])
    for noise in generator.normal(size=(studies, cell.size)):
        frame = pd.DataFrame({"cell": cell, "data_seed": seed, "value": 10.0 * cell + noise})
        effect = mean_effect(frame, "value", cell=["cell"])
        held += effect.low <= truth <= effect.high
    assert held / studies == pytest.approx(0.95, abs=0.025)


def test_cells_of_one_seed_have_a_mean_and_no_interval():
    frame = pd.DataFrame({"cell": [0, 1, 2], "data_seed": [0, 1, 2], "value": [1.0, 2.0, 6.0]})
    effect = mean_effect(frame, "value", cell=["cell"])
    assert effect.mean == 3
    assert effect.cells == 3
    assert np.isnan(effect.low)
