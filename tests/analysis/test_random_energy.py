"""Random logits: exact quadrature against Monte Carlo and closed forms, the limits, spherical rows, the planted token."""

import re
import time

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit, logsumexp

from analysis import random_energy as rem
from analysis.random_energy import _quadrature

GRID = [(v, s) for v in (16, 100, 1024, 8192, 65_536, 262_144) for s in (0.3, 1.2, 2.5, 4.5, 9.0)]  # 30 points
QUANTITIES = {
    "log_partition": rem.expected_log_partition,
    "participation": rem.participation,
    "entropy": rem.expected_entropy,
    "confidence": rem.expected_confidence,
}


def monte_carlo(v, s, rng):
    """Mean and standard error of the four quantities, from about 2 million Gaussians."""
    z = s * rng.standard_normal((max(2_000_000 // v, 24), v), dtype=np.float32).astype(np.float64)
    log_z = logsumexp(z, axis=1)
    p = np.exp(z - log_z[:, None])
    samples = {
        "log_partition": log_z,
        "participation": (p * p).sum(1),
        "entropy": log_z - (p * z).sum(1),
        "confidence": p.max(1),
    }
    return {name: (x.mean(), x.std(ddof=1) / np.sqrt(len(x))) for name, x in samples.items()}


@pytest.fixture(scope="module")
def z_scores():
    rng = np.random.default_rng(6)
    table = {name: [] for name in QUANTITIES}
    for v, s in GRID:
        for name, (mean, error) in monte_carlo(v, s, rng).items():
            table[name].append((QUANTITIES[name](s, v) - mean) / error)
    return {name: np.array(scores) for name, scores in table.items()}


@pytest.mark.parametrize("name", QUANTITIES)
def test_quadrature_agrees_with_monte_carlo_at_thirty_points(z_scores, name):
    scores = z_scores[name]
    assert len(scores) == 30
    assert np.abs(scores).max() < 3  # one seed in three would have one of the 120 scores beyond
    assert np.mean(scores**2) < 2.0


def test_values_of_the_note():
    s = 4.079
    assert rem.expected_log_partition(s, 4096) == pytest.approx(15.966, abs=2e-3)
    assert rem.participation(s, 4096) == pytest.approx(0.2139, abs=1e-4)
    assert rem.expected_entropy(s, 4096) == pytest.approx(2.889, abs=1e-3)
    s = 0.8 * rem.critical_logit_std(32_768)
    assert rem.expected_entropy(s, 32_768) == pytest.approx(4.72, abs=5e-3)
    assert rem.asymptotic_entropy(s, 32_768) == pytest.approx(3.74, abs=5e-3)
    s = 1.25 * rem.critical_logit_std(262_144)
    assert rem.expected_entropy(s, 262_144) == pytest.approx(2.41, abs=5e-3)
    assert rem.asymptotic_entropy(s, 262_144) == pytest.approx(4.71, abs=5e-3)


@pytest.mark.parametrize("s", [0.0, 0.05, 0.49, 0.51, 3.0, 25.0])
def test_two_logits_against_one_dimensional_quadrature(s):
    """V = 2: p depends on the difference x ~ N(0, 2 s^2) alone."""

    def mean(f):
        density = lambda g: np.exp(-g * g / 2) / np.sqrt(2 * np.pi)  # noqa: E731
        return 2 * quad(lambda g: density(g) * f(np.sqrt(2) * s * g), 0, 12, epsabs=1e-13, limit=400)[0]

    assert rem.expected_confidence(s, 2) == pytest.approx(mean(expit), rel=1e-9)
    assert rem.participation(s, 2) == pytest.approx(mean(lambda x: expit(x) ** 2 + expit(-x) ** 2), rel=1e-9)
    assert rem.expected_log_partition(s, 2) == pytest.approx(mean(lambda x: np.logaddexp(x / 2, -x / 2)), rel=1e-9)


@pytest.mark.parametrize(("v", "s"), [(300, 1.0), (4096, 4.0), (262_144, 6.0)])
def test_participation_is_a_derivative_of_the_log_partition(v, s):
    """d E log Z / ds = s (1 - Y_2): Gaussian integration by parts, checked by differences."""
    h = 1e-3
    slope = (rem.expected_log_partition(s + h, v) - rem.expected_log_partition(s - h, v)) / (2 * h)
    assert slope == pytest.approx(s * (1 - rem.participation(s, v)), rel=1e-6)


@pytest.mark.parametrize("name", QUANTITIES)
def test_refining_the_quadrature_changes_nothing(name, monkeypatch):
    points = [(0.7, 50.0), (4.0, 4096.0), (5.0, 1e6), (12.0, 3000.0), (20.0, 2.0), (40.0, 16.0), (0.01, 1e7)]
    coarse = [QUANTITIES[name](s, v) for s, v in points]
    _quadrature._transforms.cache_clear()
    monkeypatch.setattr(_quadrature, "_STEP", 0.1)
    fine = [QUANTITIES[name](s, v) for s, v in points]
    _quadrature._transforms.cache_clear()
    assert coarse == pytest.approx(fine, rel=2e-8 if name == "confidence" else 1e-11, abs=1e-10)


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_point_costs_less_than_fifty_milliseconds(name):
    """Also at the extremes, by a wide margin: processor time, the best of three."""
    for s, v in [(0.001, 2), (2.0, 2), (20.0, 2), (40.0, 16), (100.0, 4096), (4.0, 10**6)]:
        seconds = []
        for _ in range(3):
            _quadrature._transforms.cache_clear()
            begin = time.process_time()
            QUANTITIES[name](s, v)
            seconds.append(time.process_time() - begin)
        assert min(seconds) < 0.05, (s, v)


def test_no_spread_is_uniform():
    assert rem.expected_log_partition(0, 1000) == pytest.approx(np.log(1000), rel=1e-13)
    assert rem.expected_entropy(0, 1000) == pytest.approx(np.log(1000), rel=1e-13)
    assert rem.participation(0, 1000) == pytest.approx(1e-3, rel=1e-11)
    assert rem.expected_confidence(0, 1000) == pytest.approx(1e-3, rel=1e-11)


@pytest.mark.parametrize("v", [2, 50, 10**4, 10**6])
def test_order_and_monotonicity(v):
    s = np.array([0.0, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    confidence, pairs, entropy = rem.expected_confidence(s, v), rem.participation(s, v), rem.expected_entropy(s, v)
    assert np.all(np.diff(confidence) > 0)
    assert np.all(np.diff(pairs) > 0)
    assert np.all(np.diff(entropy) < 0)
    assert np.all(pairs <= confidence)
    assert np.all(confidence**2 <= pairs)  # max p^2 <= sum p^2, and Jensen
    assert np.all(entropy > 0)
    assert np.all(entropy <= np.log(v) + 1e-12)


def test_largest_vocabulary_and_spread_are_finite():
    for function in QUANTITIES.values():
        assert np.all(np.isfinite(function([0.1, 50.0], [[2], [10**7]])))


@pytest.mark.parametrize("ratio", [2.0, 3.0, 5.0])
def test_frozen_limit_against_poisson_dirichlet_samples(ratio):
    """Poisson points e_1 < e_2 < ... mapped to e^(-1/a) are the unnormalised weights of PD(a, 0)."""
    rng = np.random.default_rng(0)
    v = 1000
    s = ratio * rem.critical_logit_std(v)
    points = np.cumsum(rng.exponential(size=(4000, 4000)), axis=1)
    log_w = -np.log(points) * ratio
    p = np.exp(log_w - logsumexp(log_w, axis=1, keepdims=True))
    for function, x in (
        (rem.asymptotic_confidence, p[:, 0]),
        (rem.asymptotic_participation, (p * p).sum(1)),
        (rem.asymptotic_entropy, -(p * np.log(np.maximum(p, 1e-300))).sum(1)),
    ):
        # 5e-3: the tail beyond 4,000 points
        assert function(s, v) == pytest.approx(x.mean(), abs=3.5 * x.std() / np.sqrt(4000) + 5e-3)


@pytest.mark.parametrize("ratio", [1.05, 2.0, 20.0])
def test_frozen_confidence_against_the_laplace_transform_of_its_docstring(ratio):
    a = 1 / ratio

    def psi(t):
        return quad(lambda x: -np.expm1(-t * x) * a * x ** (-a - 1), 0, 1, epsabs=0, epsrel=1e-8, limit=200)[0]

    exact = quad(lambda t: np.exp(-t) / (1 + psi(t)), 0, 40, epsrel=1e-7, limit=200)[0]
    assert rem.asymptotic_confidence(ratio * rem.critical_logit_std(50), 50) == pytest.approx(exact, rel=1e-5)


def test_limits_below_and_above_freezing():
    v, critical = 4096, rem.critical_logit_std(4096)
    below, above = 0.5 * critical, 100 * critical
    assert rem.asymptotic_entropy(below, v) == pytest.approx(np.log(v) - below**2 / 2)
    assert rem.asymptotic_confidence([below, above], v).tolist() == pytest.approx([0, 1], abs=0.02)
    assert rem.asymptotic_participation([below, above], v).tolist() == pytest.approx([0, 0.99])
    assert rem.asymptotic_log_partition(critical, v) == pytest.approx(2 * np.log(v))


@pytest.mark.parametrize("s", [0.5, 1.5])
def test_the_exact_forms_approach_the_limit_from_small_to_large_v(s):
    error = [abs(rem.expected_entropy(s, v) - rem.asymptotic_entropy(s, v)) for v in (10**2, 10**4, 10**6)]
    assert error[0] > error[1] > error[2]


def test_phase_boundary():
    assert rem.critical_logit_std(4096) == pytest.approx(4.079, abs=5e-4)
    assert rem.freezing_temperature(rem.critical_logit_std(77), 77) == pytest.approx(1)
    d = rem.critical_hidden_size(32_000, 1.5, 0.1)
    assert 1.5 * 0.1 * np.sqrt(d) == pytest.approx(rem.critical_logit_std(32_000))


@pytest.mark.parametrize(("v", "d", "m"), [(50_000, 24, 5.0), (50_000, 24, 30.0), (20_000, 100, 12.0)])
def test_spherical_log_partition_is_the_leading_order(v, d, m):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((v, d))
    z = m * rows[:, 0] / np.linalg.norm(rows, axis=1)
    assert rem.spherical_log_partition(m, v, d) == pytest.approx(logsumexp(z), abs=0.08 * logsumexp(z))


@pytest.mark.parametrize(("m", "v", "d"), [(7.0, 500, 3), (0.0, 10, 4), (40.0, 10**5, 64), (3.0, 10**5, 2000)])
def test_spherical_log_partition_is_the_maximum_it_claims(m, v, d):
    t = np.linspace(0, np.sqrt(1 - v ** (-2 / d)), 400_001)
    best = (np.log(v) + d / 2 * np.log1p(-t * t) + m * t).max()
    assert rem.spherical_log_partition(m, v, d) == pytest.approx(best, rel=1e-9)


def test_planted_norm_product_of_the_note():
    log_v = np.log(50_000)
    assert rem.planted_norm_product(50_000, 128) / log_v == pytest.approx(1.046, abs=5e-4)
    assert rem.planted_norm_product(50_000, int(51 * log_v)) / log_v == pytest.approx(1.01, abs=1e-3)


def test_expansion_of_the_planted_norm_product():
    v, d = 50_000, np.array([500, 1000, 4000])
    log_v = np.log(v)
    rest = rem.planted_norm_product(v, d) - log_v - log_v**2 / (2 * d)
    assert rest == pytest.approx(log_v**3 / (2 * d**2), rel=0.15)


@pytest.mark.parametrize("confidence", [0.01, 0.5, 0.999])
def test_planted_norm_product_inverts_planted_confidence(confidence):
    v, d = np.array([10**3, 10**6]), np.array([[1], [4], [64], [5000]])
    m = rem.planted_norm_product(v, d, confidence)
    assert m.shape == (4, 2)
    reached = rem.planted_confidence(m[1:], v, d[1:])
    assert reached == pytest.approx(np.full((3, 2), confidence), rel=1e-6)


def test_functions_broadcast():
    s, v = np.array([[0.5], [3.0]]), np.array([10, 1000, 10**5])
    for function in (*QUANTITIES.values(), rem.asymptotic_confidence, rem.asymptotic_log_partition):
        table = function(s, v)
        assert table.shape == (2, 3)
        assert table[1, 2] == pytest.approx(function(3.0, 10**5), rel=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rem.planted_norm_product(4, 2, 1.0), "confidence must be in (0, 1), got 1.0."),
        (lambda: rem.planted_norm_product(4, 2, 0.1), "confidence must be at least 1 / (1 + vocab_size), got 0.1."),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
