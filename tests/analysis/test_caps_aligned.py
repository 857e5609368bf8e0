"""Kernel and programme caps for aligned heads and random codes (A4) against explicit codes and high precision."""

import re

import mpmath
import numpy as np
import pytest
from scipy.special import eval_gegenbauer, log_softmax

from analysis import caps
from analysis.caps._aligned import _excess, gegenbauer
from analysis.caps._sphere import log_kernel_mean


@pytest.mark.parametrize("d", [1, 2, 3, 20, 61, 62, 64, 1000, 10**6])
@pytest.mark.parametrize("m", [0.0, 1e-6, 1.0, 99.9, 100.1, 700.0, 1e4])
def test_mean_of_the_kernel_agrees_with_forty_digits(m, d):
    with mpmath.workdps(40):
        nu = mpmath.mpf(d) / 2 - 1
        if m < 2000:
            exact = mpmath.log(mpmath.hyp0f1(nu + 1, mpmath.mpf(m) ** 2 / 4))
        else:
            exact = mpmath.loggamma(nu + 1) + nu * mpmath.log(2 / mpmath.mpf(m)) + mpmath.log(mpmath.besseli(nu, m))
    assert log_kernel_mean(np.float64(m), np.float64(d)) == pytest.approx(float(exact), rel=1e-9, abs=1e-9)


def random_codes(v, d, count, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, v, d))
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def confidences(rows, m):
    z = m * rows @ rows.swapaxes(-1, -2)
    return np.exp(np.diagonal(log_softmax(z, axis=-1), axis1=-2, axis2=-1))


@pytest.mark.parametrize(("v", "d", "m"), [(2, 1, 3), (12, 2, 4), (40, 3, 5), (60, 16, 8), (20, 30, 2)])
@pytest.mark.parametrize("method", ["kernel", "linear_program"])
def test_no_code_beats_the_aligned_caps(v, d, m, method):
    bound = caps.aligned_cap(m, v, d, method=method)
    assert confidences(random_codes(v, d, 200), m).min(axis=-1).max() <= bound * (1 + 1e-12)
    assert caps.attained_gap(m, v, d, restarts=2, steps=200) <= caps.confidence_to_gap(bound, v) + 1e-6


@pytest.mark.parametrize("d", [2, 4, 9])
@pytest.mark.parametrize("m", [1.0, 4.0, 9.0])
def test_the_programme_is_tight_at_the_simplex_and_the_orthoplex(m, d):
    for v in (d + 1, 2 * d):
        assert caps.aligned_cap(m, v, d, method="linear_program") == pytest.approx(caps.rank_cap(m, v, d), abs=1e-5)


def test_a_pentagon_attains_the_programme():
    angle = 2 * np.pi * np.arange(5) / 5
    p = confidences(np.c_[np.cos(angle), np.sin(angle)], 3.0).min()
    assert caps.aligned_cap(3.0, 5, 2, method="linear_program") == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize(("v", "d", "m"), [(32, 4, 6), (256, 8, 8), (64, 8, 7)])
def test_gradient_comes_within_a_few_percent_of_the_programme_below_p_of_nine_tenths(v, d, m):
    bound = caps.aligned_cap(m, v, d, method="linear_program")
    found = caps.best_confidence(v, d, m, restarts=1, steps=200)
    assert bound < 0.9
    assert 0.96 * bound <= found <= bound


@pytest.mark.parametrize(("v", "d", "m"), [(30, 3, 2), (100, 10, 6), (50, 40, 5)])
def test_random_codes_reach_at_least_their_bound(v, d, m):
    log_p = np.log(confidences(random_codes(v, d, 400), m)).mean(axis=-1)
    error = log_p.std() / 20
    bound = np.log(caps.random_code_confidence(m, v, d))
    assert bound <= log_p.mean() + 3 * error
    assert bound >= log_p.mean() - 0.5  # not vacuous


@pytest.mark.parametrize(("v", "d", "m", "c"), [(40, 6, 5.0, 3.0), (100, 10, 9.0, 8.0)])
def test_random_codes_under_a_softcap(v, d, m, c):
    rows = random_codes(v, d, 300)
    z = c * np.tanh(m * rows @ rows.swapaxes(-1, -2) / c)
    log_p = np.diagonal(log_softmax(z, axis=-1), axis1=-2, axis2=-1).mean()
    bound = np.log(caps.random_code_confidence(m, v, d, softcap=c))
    assert log_p - 1.2 < bound < log_p
    assert caps.random_code_confidence(m, v, d, softcap=1e9) == pytest.approx(caps.random_code_confidence(m, v, d))


@pytest.mark.parametrize("d", [3, 4, 30])
def test_gegenbauer_polynomials_are_scipys_normalised(d):
    t = np.linspace(-1, 1, 7)
    table = gegenbauer(t, d)
    for i in (1, 2, 7, 12):
        assert table[i] == pytest.approx(
            eval_gegenbauer(i, d / 2 - 1, t) / eval_gegenbauer(i, d / 2 - 1, 1.0), abs=1e-12
        )


@pytest.mark.parametrize(("d", "m"), [(2, 3.0), (5, 8.0), (40, 2.0)])
def test_the_certificate_bounds_the_excess_of_any_polynomial(d, m):
    rng = np.random.default_rng(1)
    t = np.linspace(-1, 1, 400_001)
    for scale in (0.1, 1.0, 10.0):
        f = scale * np.r_[rng.standard_normal(), rng.exponential(size=12) * (rng.random(12) < 0.3)]
        truth = max((f @ gegenbauer(t, d) - np.exp(m * t)).max(), 0.0)
        assert truth <= _excess(f, m, d) <= truth + 1e-4 * scale * (1 + m * m)


def test_large_norms_are_vacuous_and_finite():
    m = np.array([50.0, 299.0, 1e4])
    for method in ("kernel", "linear_program"):
        cap = caps.aligned_cap(m, 1000, 512, method=method)
        assert np.all((cap > 0.99) & (cap <= 1))


def test_caps_broadcast():
    table = caps.aligned_cap(np.array([[1.0], [4.0]]), 64, np.array([2, 8, 100]), method="linear_program")
    assert table.shape == (2, 3)
    assert table[1, 2] == caps.aligned_cap(4.0, 64, 100, method="linear_program")
    assert caps.random_code_confidence([1.0, 2.0], [[10], [20], [30]], 4).shape == (3, 2)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=re.escape('method must be "kernel" or "linear_program", got \'lp\'.')):
        caps.aligned_cap(1, 4, 2, method="lp")
