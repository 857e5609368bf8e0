"""Temperature fits against an independent minimiser, the truth and scikit-learn, from arrays and streamed."""

import inspect
import math
import time
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

import kernel
from analysis.calibration import _head_temperature, fit_head_temperature, fit_temperature
from analysis.calibration._temperature import Moments

TRUTHS = (0.05, 0.5, 1.7, 20.0)


def head_problem(temperature, n=4000, v=37, d=16, seed=0):
    """Hidden states and a head whose targets are drawn from softmax(z / T)."""
    generator = torch.Generator().manual_seed(seed)
    # Logits as large as T, so that the targets are neither certain nor uniform.
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64) * temperature**0.5
    weight = torch.randn(v, d, generator=generator, dtype=torch.float64) * temperature**0.5 * 2 / d**0.5
    p = torch.softmax(hidden @ weight.T / temperature, -1)
    return hidden, weight, torch.multinomial(p, 1, generator=generator).squeeze(-1)


def maximum_likelihood(logits, target):
    z = torch.as_tensor(logits, dtype=torch.float64)

    def nll(log_t):
        return torch.nn.functional.cross_entropy(z / np.exp(log_t), target).item()

    # From a grid to a golden section: nothing shared with the code under test.
    grid = np.linspace(np.log(0.01), np.log(100), 200)
    best = grid[np.argmin([nll(x) for x in grid])]
    found = minimize_scalar(nll, bracket=(best - 0.1, best, best + 0.1), method="golden", tol=1e-9)
    return float(np.exp(found.x)), found.fun


@pytest.mark.parametrize("truth", TRUTHS)
def test_arrays_and_streams_find_the_maximum_likelihood(truth):
    hidden, weight, target = head_problem(truth)
    logits = hidden @ weight.T
    expected, nll = maximum_likelihood(logits, target)
    batches = [(hidden[i : i + 900], target[i : i + 900]) for i in range(0, len(hidden), 900)]
    fits = [fit_temperature(logits, target), fit_head_temperature(batches, weight)]
    for fit in fits:
        assert fit.temperature == pytest.approx(expected, rel=1e-6)
        assert fit.nll == pytest.approx(nll, abs=1e-9)
        assert fit.nll_before == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), abs=1e-9)
        assert abs(fit.temperature - truth) < 3 * fit.standard_error
        assert not fit.at_bound
        assert fit.n == len(target)
    assert fits[0].standard_error == pytest.approx(fits[1].standard_error, rel=1e-3)


@pytest.mark.parametrize("truth", [0.05, 20.0])
def test_float32_streams_are_within_1e_4(truth):
    hidden, weight, target = head_problem(truth)
    expected, _ = maximum_likelihood(hidden @ weight.T, target)
    fit = fit_head_temperature([(hidden.float(), target)], weight.float())
    assert fit.temperature == pytest.approx(expected, rel=1e-4)


def test_standard_error_is_the_spread_of_the_estimate():
    fits = [fit_temperature(*to_logits(*head_problem(1.7, n=300, v=11, seed=s))) for s in range(200)]
    spread = np.std([fit.temperature for fit in fits])
    assert np.mean([fit.standard_error for fit in fits]) == pytest.approx(spread, rel=0.15)
    assert abs(np.mean([fit.temperature for fit in fits]) - 1.7) < 4 * spread / 200**0.5


def to_logits(hidden, weight, target):
    return hidden @ weight.T, target


def test_streams_with_cap_bias_scale_and_ignored_tokens():
    hidden, weight, target = head_problem(1.7)
    target[::3] = -100
    bias = torch.linspace(-1, 1, len(weight), dtype=torch.float64)
    logits = 4 * torch.tanh((0.5 * hidden @ weight.T + bias) / 4)
    keep = target >= 0
    expected = fit_temperature(logits[keep], target[keep])
    assert fit_temperature(logits, target) == expected
    calls = []

    def batches():
        calls.append(1)
        yield hidden.reshape(2, -1, 16), target.reshape(2, -1)

    fit = fit_head_temperature(batches, weight, linear_bias=bias, softcap=4.0, logit_scale=0.5)
    assert fit.temperature == pytest.approx(expected.temperature, rel=1e-6)
    assert fit.n == expected.n == keep.sum()
    assert len(calls) <= 7


@pytest.mark.parametrize(("bounds", "end"), [((0.9, 1.2), 1.2), ((0.9, 1.0), 1.0), ((1.0, 1.2), 1.2)])
def test_optimum_beyond_the_bounds_is_reported(bounds, end):
    hidden, weight, target = head_problem(1.7)
    for fit in (
        fit_temperature(hidden @ weight.T, target, bounds=bounds),
        fit_head_temperature([(hidden, target)], weight, bounds=bounds),
    ):
        assert fit.at_bound
        assert fit.temperature == end
        assert np.isnan(fit.standard_error)


@pytest.mark.parametrize("scale", [1.0, 1000.0])  # at 1000 every probability but the largest underflows
@pytest.mark.parametrize(("target", "end"), [([0, 1], 0.01), ([1, 0], 100.0)], ids=["separable", "hopeless"])
def test_separable_targets_run_to_the_lower_bound_and_hopeless_ones_to_the_upper(target, end, scale):
    logits = scale * torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    for fit in (fit_temperature(logits, target), fit_head_temperature([(logits, torch.tensor(target))], torch.eye(2))):
        assert (fit.temperature, fit.at_bound) == (end, True)


def test_tied_logits_of_which_one_is_the_target_ask_for_the_lowest_temperature():
    # L falls towards log 2 as T does; in floating point its slope becomes exactly 0.
    logits = torch.tensor([[1.0, 1.0, 0.0]] * 4)
    target = torch.tensor([0, 1, 0, 1])
    for fit in (fit_temperature(logits, target), fit_head_temperature([(logits, target)], torch.eye(3))):
        assert (fit.temperature, fit.at_bound) == (0.01, True)
        assert fit.nll == pytest.approx(np.log(2), abs=1e-6)


def test_standard_error_equals_the_bootstraps_where_the_model_is_wrong():
    # Targets that no temperature explains: the inverse information would be off, the sandwich is not.
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((600, 6))
    target = np.where(rng.random(600) < 0.6, logits.argmax(-1), rng.integers(0, 6, 600))
    fit = fit_temperature(logits, target)
    rows = rng.integers(0, 600, (300, 600))
    spread = np.std([fit_temperature(logits[i], target[i]).temperature for i in rows])
    assert fit.standard_error == pytest.approx(spread, rel=0.15)


def test_huge_logits_do_not_overflow():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((3000, 5))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    target = (rng.random((3000, 1)) > p.cumsum(-1)).sum(-1)
    fit = fit_temperature(50 * z + 1e5, target)
    assert fit.temperature == pytest.approx(50, abs=3 * fit.standard_error)


def test_equals_scikit_learns_and_takes_no_longer():
    oracle = pytest.importorskip("sklearn.calibration", reason="scikit-learn is an optional oracle")
    if not hasattr(oracle, "_TemperatureScaling"):
        pytest.skip("this scikit-learn has no temperature scaling")
    hidden, weight, target = head_problem(1.7, n=20_000, v=100)
    logits = (hidden @ weight.T).numpy()
    arguments = {} if "seed" not in inspect.signature(oracle._TemperatureScaling).parameters else {"seed": 0}

    def seconds(function):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            result = function()
            times.append(time.perf_counter() - start)
        return min(times), result

    theirs, model = seconds(lambda: oracle._TemperatureScaling(**arguments).fit(logits, target.numpy()))
    ours, fit = seconds(lambda: fit_temperature(logits, target))
    assert fit.temperature == pytest.approx(1 / model.beta_, rel=1e-4)
    assert ours <= theirs


X, Y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([0, 0])
H, W, Z = torch.eye(2), torch.eye(2), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fit_temperature(X, [-100, -100]), ValueError, "target must leave at least one sample"),
        (lambda: fit_temperature(X, [-1, 0]), ValueError, r"in \[0, 2\) or equal ignore_index=-100, got -1"),
        (lambda: fit_temperature(X * np.nan, Y), ValueError, "logits must be finite, got nan or infinity"),
        (lambda: fit_temperature(X + np.array([[np.inf, 0], [0, 0]]), Y), ValueError, "logits must be finite"),
        (lambda: fit_temperature(X[:, :1], Y), ValueError, "logits must differ within a row"),
        (lambda: fit_temperature(X * 0, Y), ValueError, "logits must differ within a row"),
        (
            lambda: fit_temperature(X, Y, bounds=(2.0, 3.0)),
            ValueError,
            "bounds must be finite with 0 < low <= 1 <= high",
        ),
        (lambda: fit_temperature(X, Y, bounds=3), TypeError, "bounds must be two numbers, got 3"),
        (lambda: fit_head_temperature(iter([(H, Z)]), W), TypeError, "batches must be a sequence or a function"),
        (lambda: fit_head_temperature([(H, Z - 100)], W), ValueError, "batches must hold at least one token"),
        (lambda: fit_head_temperature([(H * 0, Z)], W), ValueError, "batches must give logits that differ"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def read_of_the_head(monkeypatch):
    """A list of tokens times temperatures, one entry for each call of the head."""
    read, plain = [], kernel.head_statistics

    def watched(hidden, *args, temperatures, **options):
        read.append(hidden.reshape(-1, hidden.shape[-1]).shape[0] * len(temperatures))
        return plain(hidden, *args, temperatures=temperatures, **options)

    monkeypatch.setattr(kernel, "head_statistics", watched)
    return read


@pytest.mark.parametrize("truth", [0.4, 1.0, 1.7])
def test_a_head_is_read_at_few_temperatures(monkeypatch, truth):
    hidden, weight, target = head_problem(truth)
    read = read_of_the_head(monkeypatch)
    fit = fit_head_temperature([(hidden, target)], weight)
    assert math.log(fit.temperature) == pytest.approx(
        math.log(fit_temperature(hidden @ weight.T, target).temperature), abs=1e-6
    )
    assert sum(read) <= 16 * len(target)  # where every pass is one over everything, 43


def test_a_sample_that_misleads_changes_nothing(monkeypatch):
    """Every 16th token, which the sample is made of, asks for another temperature than the rest."""
    hidden, weight, target = head_problem(1.3)
    for factor in (0.05, 30.0):  # hopeless; far too timid
        strange = hidden.clone()
        strange[::16] *= factor
        batches = [(strange[i : i + 1003], target[i : i + 1003]) for i in range(0, len(target), 1003)]
        fit = fit_head_temperature(batches, weight)
        exact = fit_temperature(strange @ weight.T, target)
        assert math.log(fit.temperature) == pytest.approx(math.log(exact.temperature), abs=1e-6)
        assert fit.nll == pytest.approx(exact.nll, rel=1e-9)
        assert fit.standard_error == pytest.approx(exact.standard_error, rel=1e-3)


def test_ignored_tokens_are_not_in_the_sample(monkeypatch):
    hidden, weight, target = head_problem(1.3)
    left_out = target.clone()
    left_out[torch.arange(len(target)) % 3 > 0] = -100
    read = read_of_the_head(monkeypatch)
    fit = fit_head_temperature([(hidden, left_out)], weight)
    kept = left_out >= 0
    exact = fit_temperature(hidden[kept] @ weight.T, target[kept])
    assert fit.n == int(kept.sum())
    assert math.log(fit.temperature) == pytest.approx(math.log(exact.temperature), abs=1e-6)
    assert min(read) <= 300 * 9


def test_a_hundred_streams_are_within_the_stated_accuracy():
    for seed in range(100):  # more tokens than the sample takes, few targets by chance, sharp logits
        generator = torch.Generator().manual_seed(seed)
        hidden = 3 * torch.randn(300, 3, generator=generator, dtype=torch.float64)
        weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        target = torch.randint(5, (300,), generator=generator)
        target = torch.where(torch.rand(300, generator=generator) < 0.5, (hidden @ weight.T).argmax(-1), target)
        exact, fit = fit_temperature(hidden @ weight.T, target), fit_head_temperature([(hidden, target)], weight)
        assert math.log(fit.temperature) == pytest.approx(math.log(exact.temperature), abs=2e-6), seed


def test_the_sample_does_not_keep_batches_alive():
    hidden, _, target = head_problem(1.3)
    batches = [(hidden[i : i + 1000].clone(), target[i : i + 1000].clone()) for i in range(0, 4000, 1000)]
    sizes = []

    def watched(tokens):
        sizes.extend(token.untyped_storage().nbytes() for token in tokens)
        return stack(tokens)

    stack = torch.stack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "stack", watched)
        _head_temperature._sample(batches, -100)
    assert max(sizes, default=0) == 16 * 8  # a hidden state of its own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_that_is_sure_of_every_target_asks_for_the_lowest_temperature(dtype):
    hidden, target = 200 * torch.eye(4, dtype=dtype).repeat(3, 1), torch.arange(4).repeat(3)
    fit = fit_head_temperature([(hidden, target)], torch.eye(4, dtype=dtype), bounds=(0.5, 1))
    assert (fit.temperature, fit.at_bound) == (0.5, True)
    assert fit_temperature(hidden, target, bounds=(0.5, 1))[0] == 0.5
    with pytest.raises(ValueError, match="does not depend on T"):
        fit_head_temperature([(0.3 * torch.ones_like(hidden), target)], torch.eye(4, dtype=dtype))


def test_rounding_alone_makes_no_optimum():
    """Logits so small that the slope's sign is rounding: no standard error below 0, no other bound than the exact."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        logits, target = 1e-3 * torch.randn(5, 7, generator=generator), torch.randint(7, (5,), generator=generator)
        fit = fit_head_temperature([(logits, target)], torch.eye(7), bounds=(0.05, 20))
        exact = fit_temperature(logits, target, bounds=(0.05, 20))
        assert math.isnan(fit.standard_error) or fit.standard_error > 0, seed
        if exact.at_bound:
            assert (fit.temperature, fit.at_bound) == (exact.temperature, True), seed


def test_a_plateau_of_zeros_ends_the_search():
    """Half the tokens' loss falls with T, half rises: but in between every slope is exactly 0."""

    class Plateau:
        n, rounding = 10, 1e-15

        def __init__(self):
            self.at = {}

        def __call__(self, *log_ts):
            for x in log_ts:
                slope = math.copysign(max(0.0, abs(x) - 0.5), x)
                self.at[float(x)] = Moments(slope, slope**2, 1 + slope**2)
            return [self.at[float(x)] for x in log_ts]

        def flat(self):
            return False

        bracket = _head_temperature._Slopes.bracket

    ends = math.log(0.1), math.log(10)
    search, finish = cast(Any, _head_temperature._search), cast(Any, _head_temperature._finish)
    start, reach = search(Plateau(), ends, 1e-3)
    assert abs(start) < 0.6
    fit = finish(Plateau(), start, reach, (0.1, 10))
    assert abs(math.log(fit.temperature)) < 0.6
    assert not fit.standard_error < 0
