"""Binned errors of arrays against other libraries, and the traps found in those libraries."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.calibration import calibration_error, sorted_rms_error
from analysis.calibration._binning import uniform_index


def sample(n, seed=0, power=1.3, low=0.2, high=0.999):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(low, high, n)
    return confidence, rng.random(n) < confidence**power


def written_out(confidence, correct, n_bins, norm):
    """The definition, one bin and one sample at a time."""
    edges = np.linspace(0, 1, n_bins + 1)
    shares, gaps = [], []
    for b in range(n_bins):
        inside = [i for i, c in enumerate(confidence) if edges[b] < c <= edges[b + 1] or (b == 0 and c == 0)]
        if inside:
            shares.append(len(inside) / len(confidence))
            gaps.append(abs(sum(confidence[i] for i in inside) - sum(correct[i] for i in inside)) / len(inside))
    if norm == "max":
        return max(gaps)
    power = 1 if norm == "l1" else 2
    return sum(s * g**power for s, g in zip(shares, gaps, strict=True)) ** (1 / power)


edge_confidences = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 1.0, 1 / 3, 0.2, 0.6, 0.8]), st.integers(0, 15).map(lambda k: k / 15)
)
samples = st.lists(st.tuples(edge_confidences, st.booleans()), min_size=1, max_size=60)


@given(samples, st.integers(1, 20), st.sampled_from(["l1", "l2", "max"]))
def test_equals_the_definition(pairs, n_bins, norm):
    confidence, correct = map(list, zip(*pairs, strict=True))
    value = calibration_error(confidence, correct, n_bins=n_bins, norm=norm)
    assert value == pytest.approx(written_out(confidence, correct, n_bins, norm), abs=1e-12)


@pytest.mark.parametrize("n_bins", [*range(1, 60), 100, 997, 1000, 2048])
def test_bins_are_open_below_and_closed_above_to_the_last_bit(n_bins):
    edges = np.linspace(0, 1, n_bins + 1)
    near = [edges, np.arange(n_bins + 1) / n_bins]
    points = np.concatenate([*near, *(np.nextafter(x, s) for x, s in itertools.product(near, (-1, 2)))])
    points = np.clip(np.append(points, 5e-324), 0, 1)
    np.testing.assert_array_equal(uniform_index(points, n_bins), np.searchsorted(edges[1:-1], points, side="left"))


@given(samples, st.integers(1, 20), st.randoms(use_true_random=False), st.sampled_from(["uniform", "quantile"]))
def test_the_order_of_samples_does_not_matter(pairs, n_bins, random, binning):
    def value():
        confidence, correct = zip(*pairs, strict=True)
        bins = n_bins if binning == "uniform" else min(n_bins, len(pairs))
        return calibration_error(confidence, correct, n_bins=bins, binning=binning)

    before = value()
    random.shuffle(pairs)
    assert value() == pytest.approx(before, abs=1e-12)


def test_tied_samples_are_shared_as_the_average_over_their_orders():
    confidence, correct = np.array([0.3, 0.6, 0.6, 0.6, 0.9, 0.9]), np.array([0, 1, 0, 1, 1, 0])
    sums = np.zeros((3, 2))
    orders = list(itertools.permutations([1, 2, 3]))
    for order, last in itertools.product(orders, [(4, 5), (5, 4)]):
        bins = np.array([0, *order, *last]).reshape(3, 2)  # three bins of two
        sums += np.stack([confidence[bins].sum(-1), correct[bins].sum(-1)], -1) / (len(orders) * 2)
    expected = np.abs(sums[:, 0] - sums[:, 1]).sum() / 6
    assert calibration_error(confidence, correct, n_bins=3, binning="quantile") == pytest.approx(expected, abs=1e-15)


def test_quantile_bins_differ_by_one_sample_and_never_outnumber_samples():
    # One sample a bin: each error is that of a single sample.
    assert calibration_error([0.5, 0.7], [1, 0], n_bins=2, binning="quantile") == pytest.approx((0.5 + 0.7) / 2)
    # 7 samples in 3 bins: 3, 2, 2
    confidence, correct = np.linspace(0.1, 0.7, 7), np.array([0, 0, 1, 1, 0, 1, 1])
    expected = (abs(0.6 - 1) + abs(0.9 - 1) + abs(1.3 - 2)) / 7
    assert calibration_error(confidence, correct, n_bins=3, binning="quantile") == pytest.approx(expected)


class TestAgainstTorchmetrics:
    @pytest.mark.parametrize("n", [1, 17, 1_000_000])
    @pytest.mark.parametrize("norm", ["l1", "l2", "max"])
    def test_float64_below_one(self, n, norm):
        oracle = pytest.importorskip(
            "torchmetrics.functional.classification", reason="torchmetrics is an optional oracle"
        )
        confidence, correct = sample(n)
        theirs = oracle.binary_calibration_error(
            torch.from_numpy(confidence), torch.from_numpy(correct).long(), n_bins=15, norm=norm
        )
        assert calibration_error(confidence, correct, norm=norm) == pytest.approx(theirs.item(), abs=1e-10)


class TestAgainstScikitLearn:
    @pytest.mark.parametrize("n", [3, 1_000_000])
    def test_gaps_of_its_curve_with_the_counts_it_does_not_return(self, n):
        oracle = pytest.importorskip("sklearn.calibration", reason="scikit-learn is an optional oracle")
        confidence, correct = sample(n, low=0.45)  # leaves empty bins, which its curve drops
        accuracy, mean = oracle.calibration_curve(correct, confidence, n_bins=15)
        counts = np.bincount(np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence))
        expected = counts[counts > 0] @ np.abs(accuracy - mean) / n
        assert calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-10)


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("calibration.utils", reason="uncertainty-calibration is an optional oracle")


class TestAgainstUncertaintyCalibration:
    @staticmethod
    def binned(oracle, confidence, correct, edges):
        return [b for b in oracle.bin(list(zip(confidence, correct, strict=True)), list(edges)) if len(b)]

    @pytest.mark.parametrize("n", [40, 20_000])
    def test_equal_mass(self, oracle, n):
        confidence, correct = sample(n)
        data = self.binned(oracle, confidence, correct, oracle.get_equal_bins(list(confidence), 15))
        for norm, power in (("l1", 1), ("l2", 2)):
            value = calibration_error(confidence, correct, norm=norm, binning="quantile")
            assert value == pytest.approx(oracle.plugin_ce(data, power), abs=1e-10)
        value = calibration_error(confidence, correct, norm="l2", binning="quantile", debiased=True)
        assert value == pytest.approx(oracle.unbiased_l2_ce(data), abs=1e-10)

    @pytest.mark.parametrize("n", [40, 20_000])
    def test_debiased_l2_with_equal_width(self, oracle, n):
        confidence, correct = sample(n, power=3)
        data = self.binned(oracle, confidence, correct, np.linspace(0, 1, 16)[1:])
        value = calibration_error(confidence, correct, norm="l2", debiased=True)
        assert value == pytest.approx(oracle.unbiased_l2_ce(data), abs=1e-10)

    def test_debiased_l1_is_the_limit_of_its_resampling(self, oracle):
        confidence, correct = sample(2000, power=1.05)
        data = self.binned(oracle, confidence, correct, np.linspace(0, 1, 16)[1:])
        np.random.seed(0)  # noqa: NPY002  the oracle draws from the global state
        theirs = oracle.normal_debiased_ce(data, 1, resamples=20_000)
        assert calibration_error(confidence, correct, debiased=True) == pytest.approx(theirs, abs=3e-4)


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_debiased_squares_are_unbiased_and_plug_in_values_are_not(binning):
    # Calibrated at one confidence a bin: the true error is 0.
    rng = np.random.default_rng(4)
    confidence = np.repeat((np.arange(5) + 0.5) / 5, 20)
    plug_in, debiased, folded = [], [], []
    for _ in range(2000):
        correct = rng.random(100) < confidence
        options = {"n_bins": 5, "binning": binning}
        plug_in.append(calibration_error(confidence, correct, norm="l2", **options))
        debiased.append(calibration_error(confidence, correct, norm="l2", debiased=True, **options))
        folded.append(
            calibration_error(confidence, correct, **options)
            - calibration_error(confidence, correct, debiased=True, **options)
        )
    assert np.mean(plug_in) > 0.08
    # The mean of positive parts only: half the plug-in value or less, and 0 in a good share of the samples.
    assert np.mean(debiased) < 0.5 * np.mean(plug_in)
    assert np.mean(np.equal(debiased, 0)) > 0.4
    assert np.mean(folded) > 0


def test_single_samples_cannot_be_debiased_and_count_nothing():
    assert calibration_error([0.9, 0.3], [0, 1], norm="l2", debiased=True) == 0
    assert calibration_error([0.9, 0.3], [0, 1], debiased=True) == 0


class TestTraps:
    def test_confidence_of_one_belongs_to_the_last_bin(self):
        # A bin of its own would give .5 * .04 + .5 * .02; together the gaps of opposite sign cancel.
        confidence, correct = np.repeat([0.96, 1.0], 50), np.concatenate([np.ones(50), np.arange(50) > 0])
        assert calibration_error(confidence, correct) == pytest.approx(0.5 * 0.04 - 0.5 * 0.02)

    def test_confidence_zero_belongs_to_the_first_bin(self):
        assert calibration_error([0.0, 0.02], [1, 0]) == pytest.approx((1 - 0.02) / 2)

    def test_rounding_above_one_is_one_and_changes_nothing_else(self):
        # Taken for logits, the whole batch would pass through a sigmoid.
        confidence, correct = sample(100)
        confidence[3], correct[3] = 1.0, True
        above = confidence.copy()
        above[3] += 1e-7
        assert calibration_error(above, correct) == calibration_error(confidence, correct)

    def test_values_that_are_no_probabilities_are_refused_not_guessed(self):
        with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 2.5"):
            calibration_error([0.3, 2.5], [1, 0])
        # Logits that happen to lie in [0, 1] are taken at their word: there is no mode to guess.
        assert calibration_error([0.25, 0.25], [0, 0]) == 0.25

    def test_float16_is_summed_in_float64(self):
        rng = np.random.default_rng(5)
        confidence = rng.uniform(0.5, 1, 200_000).astype(np.float16)
        correct = rng.random(200_000) < 0.4
        expected = calibration_error(confidence.astype(np.float64), correct)
        assert expected > 0.3
        for half in (confidence, torch.from_numpy(confidence)):
            assert calibration_error(half, correct) == expected

    def test_more_samples_than_float32_can_count(self):
        # More than 2^24 samples in one bin: a float32 sum of ones stops there, and one of blocks loses the odd sample.
        n = 2**24 + 2**22 + 1
        confidence = np.broadcast_to(np.float32(0.97), (n,))
        assert calibration_error(confidence, np.zeros(n, bool)) == pytest.approx(float(np.float32(0.97)), abs=1e-9)

    def test_the_order_of_quantile_bins_ignores_which_saturated_sample_comes_first(self):
        confidence = np.concatenate([np.linspace(0.5, 0.9, 60), np.ones(40)])
        correct = np.concatenate([np.ones(60), np.arange(40) % 2])
        reversed_ties = np.concatenate([np.ones(60), 1 - np.arange(40) % 2])
        sorted_ties = np.concatenate([np.ones(60), np.arange(40) < 20])
        values = [calibration_error(confidence, y, binning="quantile") for y in (correct, reversed_ties, sorted_ties)]
        assert values == pytest.approx([values[0]] * 3, abs=1e-15)


class TestSortedRms:
    def test_last_bin_takes_the_remainder(self):
        confidence, correct = sample(250, power=2)
        order = np.argsort(confidence)
        c, y = confidence[order], correct[order]
        parts = [slice(0, 100), slice(100, 250)]
        squares = [((c[p].mean() - y[p].mean()) ** 2) * len(c[p]) / 250 for p in parts]
        floors = [(c[p] * (1 - c[p])).mean() / 250 for p in parts]
        result = sorted_rms_error(confidence, correct)
        assert result.error == pytest.approx(sum(squares) ** 0.5, abs=1e-14)
        assert result.noise_floor == pytest.approx(sum(floors) ** 0.5, abs=1e-14)

    def test_a_perfectly_calibrated_model_shows_the_floor_at_any_n(self):
        rng = np.random.default_rng(6)
        for n in (20_000, 200_000):
            confidence = rng.uniform(0.5, 1, n)
            result = sorted_rms_error(confidence, rng.random(n) < confidence)
            assert result.noise_floor == pytest.approx(0.0408, abs=2e-4)  # sqrt(E c(1-c) / 100) = sqrt(1/600)
            assert result.error == pytest.approx(result.noise_floor, rel=0.1)

    def test_fewer_samples_than_a_bin(self):
        assert sorted_rms_error([0.8], [1]).error == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("confidence", "correct", "options", "error", "text"),
    [
        ([], [], {}, ValueError, "confidence must not be empty"),
        ([0.5, np.nan], [1, 0], {}, ValueError, "confidence must not be NaN, got 1 NaN of 2 values"),
        ([np.inf], [1], {}, ValueError, r"confidence must be in \[0, 1\], got inf"),
        ([1.00001], [1], {}, ValueError, r"confidence must be in \[0, 1\], got 1.00001"),
        ([0.5], [np.nan], {}, ValueError, "correct must hold booleans or 0 and 1, got nan"),
        ([0.5], [1], {"n_bins": 0}, ValueError, "n_bins must be at least 1, got 0"),
        ([0.5], [1], {"n_bins": True}, TypeError, "n_bins must be an int, got bool"),
        ([0.5], [1], {"norm": "l3"}, ValueError, r"norm must be one of \('l1', 'l2', 'max'\), got 'l3'"),
        ([0.5], [1], {"binning": "mass"}, ValueError, r"binning must be one of \('uniform', 'quantile'\), got 'mass'"),
        ([0.5], [1], {"norm": "max", "debiased": True}, ValueError, "debiased must be False for norm='max'"),
    ],
)
def test_refusals(confidence, correct, options, error, text):
    with pytest.raises(error, match=text):
        calibration_error(confidence, correct, **options)
