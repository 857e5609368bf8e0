"""The state: exact where it says so, independent of order and splitting, mergeable, storable, summable over processes."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import in_processes
from torch import distributed

from analysis.calibration import CalibrationState, calibration_error, reliability_table

ROOT = Path(__file__).parents[2]
FIELDS = ("counts", "confidence_sums", "variance_sums", "nll_counts", "nll_sums")


def sample(n, seed=0, power=1.5):
    rng = np.random.default_rng(seed)
    confidence = rng.random(n) ** 0.3
    return confidence, rng.random(n) < confidence**power


def assert_same(a, b):
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_array_equal(a.nll_counts, b.nll_counts)
    for name in ("confidence_sums", "variance_sums", "nll_sums"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-15)


confidences = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 1 / 3]), st.integers(0, 15).map(lambda k: k / 15)
)
samples = st.lists(st.tuples(confidences, st.booleans(), st.integers(0, 2), st.floats(0, 50)), min_size=1, max_size=40)


@given(samples, st.randoms(use_true_random=False), st.integers(1, 5), st.sampled_from([1, 2, 10, 15]))
def test_invariant_to_order_splitting_and_merging(rows, random, pieces, n_bins):
    def state(part):
        result = CalibrationState(n_bins, groups=["a", "b", "c"])
        if part:
            confidence, correct, group, nll = (np.array(x) for x in zip(*part, strict=True))
            result.update(confidence, correct, group, nll=nll)
        return result

    whole = state(rows)
    random.shuffle(rows)
    parts = [state(rows[i::pieces]) for i in range(pieces)]
    random.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        assert merged.merge(part) is merged
    assert_same(merged, whole)
    assert merged.n == len(rows)
    confidence, correct = zip(*(row[:2] for row in rows), strict=True)
    for norm in ("l1", "l2", "max"):
        expected = calibration_error(confidence, correct, n_bins=n_bins, norm=norm)
        assert whole.calibration_error(norm=norm) == pytest.approx(expected, abs=1e-12)
    bins = min(n_bins, len(rows))
    exact = calibration_error(confidence, correct, n_bins=bins, binning="quantile")
    found = whole.calibration_error(binning="quantile", n_bins=bins)
    assert abs(found - exact) <= whole.equal_mass_bound(bins) + 1e-12


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 100, 1000])
@pytest.mark.parametrize("debiased", [False, True])
def test_uniform_bins_equal_those_of_the_arrays(n_bins, debiased):
    confidence, correct = sample(20_000)
    confidence[:300] = np.arange(300) % (n_bins + 1) / n_bins  # on the edges
    confidence[300:600] = np.nextafter(confidence[:300], 0.3)
    state = CalibrationState(n_bins).update(confidence, correct)
    for norm in ("l1", "l2"):
        expected = calibration_error(confidence, correct, n_bins=n_bins, norm=norm, debiased=debiased)
        assert state.calibration_error(norm=norm, debiased=debiased) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", ["broad", "saturated"])
def test_equal_mass_error_is_close_and_within_its_bound(shape):
    rng = np.random.default_rng(7)
    n = 100_000
    if shape == "broad":
        confidence, correct = sample(n)
    else:  # four in ten above .999
        confidence = 1 / (1 + np.exp(-rng.normal(6, 3, n)))
        correct = rng.random(n) < 0.7
    state = CalibrationState().update(confidence, correct)
    exact = calibration_error(confidence, correct, binning="quantile")
    assert abs(state.calibration_error(binning="quantile") - exact) < 5e-4
    assert abs(state.calibration_error(binning="quantile") - exact) <= state.equal_mass_bound() < 0.02
    finer = calibration_error(confidence, correct, binning="quantile", n_bins=40)
    assert state.calibration_error(binning="quantile", n_bins=40) == pytest.approx(finer, abs=2e-3)


def test_the_bound_is_reached_by_the_worst_arrangement():
    # One cell, cut in the middle: all wrong ones below, all right ones above.
    confidence = np.array([0.7000, 0.7001, 0.7002, 0.7003])
    state = CalibrationState(2).update(confidence, [0, 0, 1, 1])
    assert np.count_nonzero(state.counts.sum((0, 1))) == 1
    exact = calibration_error(confidence, [0, 0, 1, 1], n_bins=2, binning="quantile")
    distance = abs(state.calibration_error(binning="quantile") - exact)
    assert 0.2 < distance <= state.equal_mass_bound() <= 0.6


def test_log1m_orders_what_rounding_made_one():
    # In float32 both halves read 1.0; only log(1 - confidence) tells the right half from the wrong one.
    log1m = np.repeat([-18.0, -40.0], 500)
    confidence = np.ones(1000, np.float32)
    state = CalibrationState(2).update(confidence, np.repeat([False, True], 500), log1m_confidence=log1m)
    assert state.calibration_error(binning="quantile") == pytest.approx(0.5)
    table = state.reliability_table(binning="quantile")
    assert table["accuracy"].tolist() == [0, 1]
    assert state.calibration_error() == pytest.approx(0.5)  # all in the last bin, as their confidence says
    # sum c (1 - c) keeps the 1e-8 that 1 - confidence lost
    assert state.variance_sums.sum() == pytest.approx(500 * np.exp(-18) + 500 * np.exp(-40), rel=1e-6)


def test_the_confidence_decides_about_its_bin_where_log1m_rounds_otherwise():
    # The logit's step ends where a bin does, at 0; log(1 - c) as a float32 kernel may round it lies just below.
    confidence, log1m = np.array([0.5 + 1e-9, 0.9]), np.array([np.log(0.5) + 1e-8, np.log(0.1)])
    state = CalibrationState(2).update(confidence, [0, 1], log1m_confidence=log1m)
    assert state.outcome_sums().samples.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_lower_precision_is_widened_before_anything_is_computed(dtype):
    confidence, correct = sample(5000)
    low = np.append(confidence, [0, 1]).astype(dtype)
    correct = np.append(correct, [False, True])
    expected = CalibrationState().update(low.astype(np.float64), correct)
    for same in (low, torch.from_numpy(low), low.reshape(2, -1)):
        assert_same(CalibrationState().update(same, correct.reshape(np.shape(same))), expected)


def test_size_does_not_depend_on_the_samples():
    small, large = CalibrationState().update([0.5], [1]), CalibrationState().update(*sample(100_000))
    sizes = [sum(getattr(s, name).nbytes for name in FIELDS) for s in (small, large)]
    assert sizes[0] == sizes[1] < 250_000


def test_fifty_million_updates_lose_no_count():
    n, repeats = 500_000, 100
    rng = np.random.default_rng(8)
    confidence, correct = rng.uniform(0.93, 1, n).astype(np.float32), np.arange(n) % 2 == 0
    state = CalibrationState()
    for _ in range(repeats):
        state.update(confidence, correct)
    assert state.n == n * repeats
    assert state.counts[:, 1].sum() == n * repeats // 2
    assert state.counts.dtype == np.int64
    assert state.calibration_error() == pytest.approx(calibration_error(confidence, correct), abs=1e-12)
    assert state.mean_confidence == pytest.approx(confidence.astype(np.float64).mean(), abs=1e-12)


def test_cost_of_a_million_samples_is_at_most_twice_a_plain_bincount():
    confidence, correct = sample(1_000_000)

    def plain():
        index = np.digitize(confidence, np.linspace(0, 1, 16)[1:-1], right=True)
        total = np.bincount(index, confidence, minlength=15) - np.bincount(index, correct, minlength=15)
        return np.abs(total).sum() / np.bincount(index, minlength=15).sum()

    def fastest(function):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            value = function()
            times.append(time.perf_counter() - start)
        return min(times), value

    baseline, expected = fastest(plain)
    for ours in (
        lambda: calibration_error(confidence, correct),
        lambda: CalibrationState().update(confidence, correct).calibration_error(),
    ):
        for _ in range(3):  # a shared machine may be busy elsewhere for a moment
            seconds, value = fastest(ours)
            if seconds <= 2 * baseline:
                break
            baseline = fastest(plain)[0]
        assert value == pytest.approx(expected, abs=1e-12)
        assert seconds <= 2 * baseline


def test_groups_are_states_of_their_own():
    confidence, correct = sample(5000)
    group = np.random.default_rng(1).integers(0, 3, 5000)
    state = CalibrationState(groups=["a", "b", "c"]).update(confidence, correct, group, nll=-np.log(confidence))
    for i, name in enumerate(state.groups):
        part = state.select(name)
        inside = group == i
        assert part.groups == (name,)
        assert part.n == inside.sum()
        assert part.accuracy == pytest.approx(correct[inside].mean(), abs=1e-14)
        assert part.mean_confidence == pytest.approx(confidence[inside].mean(), abs=1e-14)
        assert part.nll == pytest.approx(-np.log(confidence[inside]).mean(), abs=1e-13)
        assert part.top_label_brier == pytest.approx(((confidence - correct)[inside] ** 2).mean(), abs=1e-13)
        expected = calibration_error(confidence[inside], correct[inside])
        assert part.calibration_error() == pytest.approx(expected, abs=1e-13)
    assert state.nll == pytest.approx(-np.log(confidence).mean(), abs=1e-13)
    state.select("a").update([0.5], [1])
    assert state.n == 5000, "a selected group shares no memory with its state"


def test_many_groups_take_the_large_block_path():
    confidence, correct = sample(3000)
    group = np.arange(3000) % 200
    state = CalibrationState(groups=[str(i) for i in range(200)]).update(confidence, correct, group)
    assert state.select("17").calibration_error() == pytest.approx(
        calibration_error(confidence[17::200], correct[17::200])
    )


def test_signed_errors_add_up_and_keep_their_signs():
    confidence = np.repeat([0.95, 0.55], 100)
    correct = np.concatenate([np.arange(100) < 75, np.arange(100) < 65])
    over, under = CalibrationState().update(confidence, correct).signed_error()
    assert (over, under) == pytest.approx((0.1, 0.05))


def test_classwise_error_is_the_mean_over_named_classes():
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.ones(5), 4000)
    label = rng.integers(0, 5, 4000)
    state = CalibrationState(groups=["yes", "no"]).update_classes(p[:, [3, 1]], label, [3, 1])
    expected = np.mean([calibration_error(p[:, k], label == k) for k in (3, 1)])
    assert state.classwise_error() == pytest.approx(expected, abs=1e-13)
    with pytest.raises(ValueError, match=r"probability must have shape \(4000, 2\) and classes \(2,\)"):
        state.update_classes(p, label, [3, 1])


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_reliability_table(binning):
    confidence, correct = sample(30_000)
    confidence = 0.4 + 0.6 * confidence  # equal-width bins below .4 stay empty
    table = reliability_table(confidence, correct, binning=binning)
    assert table["n"].sum() == 30_000
    assert len(table) == 15
    empty = table["n"] == 0
    assert empty.sum() == (6 if binning == "uniform" else 0)
    assert table.loc[empty, ["confidence", "accuracy", "accuracy_low", "calibrated_low"]].isna().all(axis=None)
    full = table[~empty]
    error = (full["n"] * (full["confidence"] - full["accuracy"]).abs()).sum() / 30_000
    assert error == pytest.approx(calibration_error(confidence, correct, binning=binning), abs=1e-12)
    assert (full["lower"] <= full["confidence"]).all()
    assert (full["confidence"] <= full["upper"]).all()
    assert (full["accuracy_low"] < full["accuracy"]).all()
    assert (full["accuracy"] < full["accuracy_high"]).all()
    assert (full["calibrated_low"] <= full["confidence"]).all()
    assert (full["confidence"] <= full["calibrated_high"]).all()
    from_state = CalibrationState().update(confidence, correct).reliability_table(binning=binning)
    if binning == "uniform":
        np.testing.assert_allclose(from_state, table, atol=1e-12)
    else:
        assert from_state["n"].tolist() == table["n"].tolist()
        np.testing.assert_allclose(from_state["accuracy"], table["accuracy"], atol=0.02)
        np.testing.assert_allclose(from_state["lower"], table["lower"], atol=0.005)
        np.testing.assert_allclose(from_state["upper"], table["upper"], atol=0.005)


def test_save_and_load_without_pickle(tmp_path):
    confidence, correct = sample(1000)
    state = CalibrationState(7, groups=["häufig", "selten"]).update(
        confidence, correct, np.arange(1000) % 2, nll=confidence
    )
    state.save(tmp_path / "state")  # exactly this name, no suffix added
    loaded = CalibrationState.load(tmp_path / "state")
    assert (loaded.n_bins, loaded.groups) == (7, ("häufig", "selten"))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(state, name))
    with np.load(tmp_path / "state", allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "iuUf" for name in file.files)
    np.savez(tmp_path / "other.npz", format=99)
    with pytest.raises(ValueError, match="path must name a calibration state of format 1"):
        CalibrationState.load(tmp_path / "other.npz")
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        CalibrationState.load(tmp_path / "pickled.npy")


WORKER = """
import numpy as np
from analysis.calibration import CalibrationState

rng = np.random.default_rng(rank)
state = CalibrationState(groups=["a", "b"])
state.update(rng.random(500 + rank), rng.random(500 + rank) < 0.5, rng.integers(0, 2, 500 + rank)).all_reduce()
state.save(f"{folder}/{rank}.npz")
try:
    CalibrationState(15 + rank).all_reduce()
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_sum_over_two_processes(tmp_path):
    outputs = in_processes(WORKER, 2, tmp_path)
    expected = CalibrationState(groups=["a", "b"])
    for rank in range(2):
        rng = np.random.default_rng(rank)
        n = 500 + rank
        expected.update(rng.random(n), rng.random(n) < 0.5, rng.integers(0, 2, n))
    for rank in range(2):
        assert_same(CalibrationState.load(tmp_path / f"{rank}.npz"), expected)
        assert f"n_bins and groups must be the same in every process, got {15 + rank} and 1 here" in outputs[rank]


@pytest.mark.parametrize("given", [True, False])
def test_a_group_without_a_cpu_backend_sums_on_its_own_device(given, monkeypatch):
    """Not on the current one, which is the first GPU in every process that has set none."""
    group, used = SimpleNamespace(bound_device_id=torch.device("meta")), []
    monkeypatch.setattr(distributed, "get_backend", lambda group=None: "nccl")
    monkeypatch.setattr(distributed, "get_backend_config", lambda group=None: "meta:nccl")
    monkeypatch.setattr(distributed, "group", SimpleNamespace(WORLD=group))
    monkeypatch.setattr(distributed, "all_reduce", lambda x, op, group: used.append((x.device.type, group)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        CalibrationState().all_reduce(group if given else None)
    assert used == [("meta", group)]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: CalibrationState(0), ValueError, "n_bins must be at least 1, got 0"),
        (lambda: CalibrationState(groups="ab"), TypeError, "groups must be a sequence of names, got 'ab'"),
        (lambda: CalibrationState(groups=["a", "a"]), ValueError, "groups must be different names, at least one"),
        (lambda: CalibrationState(groups=[]), ValueError, "groups must be different names, at least one"),
        (lambda: CalibrationState().calibration_error(), ValueError, "the state must hold at least one sample"),
        (lambda: CalibrationState().accuracy, ValueError, "the state must hold at least one sample"),
        (lambda: CalibrationState(groups=["a", "b"]).update([0.5], [1]), ValueError, "group must be given"),
        (lambda: CalibrationState().update([0.5], [1], [1]), ValueError, r"group must be in \[0, 1\), got 1"),
        (
            lambda: CalibrationState().update([0.5], [1], [0.0]),
            TypeError,
            "group must hold integers, got dtype float64",
        ),
        (
            lambda: CalibrationState().update([0.5], [1], [0, 0]),
            ValueError,
            r"group must have confidence's shape \(1,\), got \(2,\)",
        ),
        (lambda: CalibrationState().update([0.5], [1], nll=[np.nan]), ValueError, "nll must be at least 0 and not NaN"),
        (
            lambda: CalibrationState().update([0.5], [1], nll=[1, 2]),
            ValueError,
            r"nll must have confidence's shape \(1,\)",
        ),
        (
            # Of the same size, but transposed: other samples' groups.
            lambda: CalibrationState(groups=["a", "b"]).update(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 2), int)),
            ValueError,
            r"group must have confidence's shape \(2, 3\), got \(3, 2\)",
        ),
        (
            lambda: CalibrationState().update([[0.5]], [[1]], log1m_confidence=[np.log(0.5)]),
            ValueError,
            r"log1m_confidence must have confidence's shape \(1, 1\), got \(1,\)",
        ),
        (
            lambda: CalibrationState().update([0.5], [1], log1m_confidence=[0.5]),
            ValueError,
            r"log1m_confidence must be log\(1 - confidence\), got 0.5 at a confidence of 0.5",
        ),
        (
            lambda: CalibrationState().update([0.5], [1], log1m_confidence=[np.nan]),
            ValueError,
            r"log1m_confidence must be log\(1 - confidence\), got nan",
        ),
        (lambda: CalibrationState().merge(3), TypeError, "other must be a CalibrationState, got int"),
        (lambda: CalibrationState().merge(CalibrationState(3)), ValueError, "other must have n_bins=15"),
        (lambda: CalibrationState().select("x"), ValueError, r"group must be one of \('all',\), got 'x'"),
        (
            lambda: CalibrationState().update([0.5], [1]).calibration_error(n_bins=3),
            ValueError,
            "n_bins must be the state's 15 with binning='uniform', got 3",
        ),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_refused_update_leaves_the_state_unchanged():
    state = CalibrationState().update([0.5], [1])
    with pytest.raises(ValueError, match="nll"):
        state.update([0.9, 0.9], [1, 1], nll=[0.1, np.nan])
    assert state.n == 1
