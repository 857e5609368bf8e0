"""Rank, spectral, margin and packing caps (A3, A5, A6) against explicit heads, a convex solver and quadrature."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import linprog, minimize
from scipy.special import log_softmax

from analysis import caps


def smallest_confidence(rows, features):
    return np.exp(log_softmax(features @ rows.T, axis=1).diagonal().min())


def orthoplex(hidden_size):
    return np.r_[np.eye(hidden_size), -np.eye(hidden_size)]


@pytest.mark.parametrize(("m", "p"), [(1, 0.53445), (3, 0.90740), (6, 0.99506)])
def test_values_of_the_note(m, p):
    assert caps.rank_cap(m, 4, 2) == pytest.approx(p, abs=5e-6)


@pytest.mark.parametrize("hidden_size", [2, 3, 8, 64])
@pytest.mark.parametrize("m", [0.1, 2.0, 9.0])
def test_the_orthoplex_attains_the_rank_cap(m, hidden_size):
    rows = orthoplex(hidden_size)
    assert caps.rank_cap(m, 2 * hidden_size, hidden_size) == pytest.approx(
        smallest_confidence(m * rows, rows), rel=1e-9
    )


@pytest.mark.parametrize("vocab_size", [2, 3, 50, 10**6])
@pytest.mark.parametrize("m", [0.0, 1e-3, 5.0, 1e4])
def test_full_rank_gives_the_simplex_cap(m, vocab_size):
    for hidden_size in (vocab_size - 1, 2 * vocab_size):
        assert caps.rank_gap(m, vocab_size, hidden_size) == pytest.approx(caps.max_gap(m, vocab_size), rel=1e-9)


@pytest.mark.parametrize(("vocab_size", "hidden_size", "m"), [(16, 3, 2.0), (100, 8, 5.0), (9, 2, 0.3)])
def test_the_two_atom_law_is_the_worst_case_of_its_moments(vocab_size, hidden_size, m):
    """The Chebyshev step against a linear programme over distributions of X on a grid, minimised over a."""
    x = np.linspace(0, 2 * m * 1.5, 1001)

    def mean_exp(a):
        gap = a * vocab_size / (vocab_size - 1)
        first = 2 * m - gap
        second = 4 * m**2 - 4 * m * gap + a**2 * vocab_size / (vocab_size - 1) * (1 + 1 / hidden_size)
        return linprog(np.exp(x), A_eq=[np.ones_like(x), x, x**2], b_eq=[1, first, second]).fun

    a = np.linspace(0.5 * m, m, 21)
    least = min(value for value in map(mean_exp, a) if value is not None)
    gap = 2 * m - np.log(least)
    assert caps.rank_gap(m, vocab_size, hidden_size) == pytest.approx(gap, rel=2e-3)


@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(8, 7), (20, 30)])
def test_the_simplex_attains_the_spectral_and_frobenius_caps(vocab_size, hidden_size):
    rows = np.eye(vocab_size) - 1 / vocab_size
    rows *= 1.7 / np.linalg.norm(rows[0])
    p = smallest_confidence(rows, 2 * rows / 1.7)
    spectral, frobenius = np.linalg.norm(rows, 2), np.linalg.norm(rows)
    assert caps.spectral_cap(spectral, 2, vocab_size, hidden_size) == pytest.approx(p, rel=1e-12)
    assert caps.frobenius_cap(frobenius, 2, vocab_size) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_no_random_head_beats_its_spectral_caps(seed):
    rng = np.random.default_rng(seed)
    v, d = rng.integers(2, 20, 2)
    rows = rng.standard_normal((v, d)) * rng.exponential(size=d)
    features = rows - rows.mean(0)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    p = smallest_confidence(rows, features)
    assert p <= caps.spectral_cap(np.linalg.norm(rows, 2), 1, v, d) * (1 + 1e-12)
    assert p <= caps.frobenius_cap(np.linalg.norm(rows), 1, v) * (1 + 1e-12)


def hard_margin(rows, features):
    z = features @ rows.T
    return (z.diagonal()[:, None] - np.where(np.eye(len(z), dtype=bool), -np.inf, z)).min()


@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(3, 2), (9, 8), (4, 100)])
def test_margin_of_the_simplex(vocab_size, hidden_size):
    lower, upper = caps.margin_bounds(vocab_size, hidden_size)
    assert lower == upper == pytest.approx(vocab_size / (vocab_size - 1))


@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(4, 2), (6, 4), (8, 4), (200, 100)])
def test_margin_of_the_orthoplex(vocab_size, hidden_size):
    rows = np.eye(hidden_size)[np.arange(vocab_size) // 2] * np.where(np.arange(vocab_size) % 2, -1, 1)[:, None]
    if vocab_size < 2 * hidden_size:  # two antipodal pairs and then half pairs, D + 2 <= V
        rows = orthoplex(hidden_size)[np.r_[0, 1, hidden_size, hidden_size + 1, 2:hidden_size][:vocab_size]]
    assert caps.margin_bounds(vocab_size, hidden_size) == (1, 1)
    assert hard_margin(rows, rows) == pytest.approx(1)


def test_margin_of_the_pentagon_lies_inside_the_bounds():
    angle = 2 * np.pi * np.arange(5) / 5
    rows = np.c_[np.cos(angle), np.sin(angle)]
    lower, upper = caps.margin_bounds(5, 2)
    assert lower <= hard_margin(rows, rows) <= upper < 1


@pytest.mark.parametrize(("hidden_size", "cost"), [(512, 0.20), (640, 0.18)])
def test_geometry_costs_little_at_the_size_of_language_models(hidden_size, cost):
    assert caps.margin_bounds(256_000, hidden_size).lower >= 1 - cost
    assert caps.margin_bounds(32_000, 4096).lower >= 0.93


@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(1000, 3), (50_000, 40), (10**6, 300)])
def test_the_greedy_angle_solves_its_equation(vocab_size, hidden_size):
    cosine = 1 - caps.margin_bounds(vocab_size, hidden_size).lower
    power = (hidden_size - 3) / 2
    whole = quad(lambda t: (1 - t * t) ** power, -1, 1)[0]
    beyond = quad(lambda t: (1 - t * t) ** power, cosine, 1, points=[min(1, cosine + 0.2)], epsabs=0)[0]
    assert vocab_size * beyond / whole == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("m", "v", "d"), [(20.0, 262_144, 4), (0.3, 1000, 1), (1.0, 10**5, 2)])
def test_packing_is_the_best_of_its_family(m, v, d):
    t = np.linspace(1e-3, 2, 200_001)
    mu = v * (t / (2 + t)) ** d
    best = (1 / (1 + np.maximum(mu - 1, 0) * np.exp(-t * m))).min()
    assert caps.packing_cap(m, v, d) == pytest.approx(best, rel=1e-6)


def test_packing_wins_where_many_rows_share_few_dimensions():
    assert caps.packing_cap(20.0, 262_144, 4) < 0.8 < 0.9 < caps.rank_cap(20.0, 262_144, 4)


def test_the_gap_of_a_packing_cap_that_rounds_to_one_is_exact():
    """No detour over the confidence, whose last digits are worth a nat there."""
    v, d, m = 10**6, 2, np.array([1000.0, 20_000.0])
    t = np.exp(np.linspace(np.log(2e-3), np.log(2.0), 400_001))
    mu = v * (t / (2 + t)) ** d
    t, mu = t[mu > 1], mu[mu > 1]
    best = [(x * t - np.log(mu - 1)).min() + np.log(v - 1) for x in m]
    cap = caps.confidence_cap(m, v, d)
    assert cap.confidence.tolist() == [pytest.approx(caps.packing_cap(m[0], v, d)), 1]
    assert cap.name.tolist() == ["packing", "packing"]
    assert cap.gap == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("function", [caps.rank_gap, caps.rank_cap, caps.packing_cap])
def test_bounds_rise_with_norm_and_hidden_size_and_fall_with_the_vocabulary(function):
    m = np.array([0.0, 1e-6, 0.5, 3.0, 20.0, 300.0, 1e4])
    d = np.array([1, 2, 3, 8, 64, 1000])[:, None]
    v = np.array([2, 3, 64, 5000, 10**6])[:, None, None]
    table = function(m, v, d)
    assert table.shape == (5, 6, 7)
    assert np.all(np.diff(table, axis=2) >= -1e-12)
    assert np.all(np.diff(table, axis=1) >= -1e-9 * (1 + table[:, 1:]))
    if function is not caps.rank_gap:
        assert np.all(np.diff(table, axis=0) <= 1e-12)
    assert table[1, 2, 3] == function(3.0, 3, 3)


def test_rank_cap_of_a_line():
    """V = 3, D = 1: the middle token is never ahead of both others, so no bound may be below the head of zeros."""
    best = minimize(
        lambda x: -smallest_confidence(np.array([[1.0], [x[0]], [-1.0]]), np.array([[1.0], [x[1]], [-1.0]])), [0.1, 0]
    )
    assert -best.fun <= caps.rank_cap(1.0, 3, 1)
    assert caps.rank_cap(1.0, 3, 1) >= 1 / 3


def test_margin_of_many_rows_in_few_dimensions_is_the_packing_bound():
    assert caps.margin_bounds(10**6, 3).upper == pytest.approx(2 / 99)
    assert caps.margin_bounds(101, 1).upper == pytest.approx(
        2 / 100
    )  # equally spaced rows on a line have this distance
