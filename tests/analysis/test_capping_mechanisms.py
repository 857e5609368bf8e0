"""The four ways in which a softcap might restore smoothing: checks of docs/theory_notes.md, section 3."""

import numpy as np
import pytest
from scipy.special import softmax

from analysis import caps, smoothing
from analysis.norm_ball import fit_norm_ball


@pytest.mark.parametrize(("m", "c"), [(0.5, 4.0), (2.0, 3.0)])
def test_gain_form_is_the_contraction_of_a_larger_norm_product(m, c):
    """(i) c tanh(z) = c tanh((c z) / c): the gain multiplies the norm product by c, and can lift the gap past G_LS."""
    z = np.linspace(-m, m, 9)
    assert c * np.tanh(z) == pytest.approx(c * np.tanh((c * z) / c))
    assert caps.softcap_gap(c * m, 8, c) > caps.softcap_gap(m, 8, c)


def test_gain_form_restores_smoothing_where_the_contraction_does_not():
    m, v, c = 2.0, 12, 5.0
    falls = {}
    for name, norm in (("plain", m), ("contraction", m), ("gain", c * m)):
        cap = None if name == "plain" else c
        plain, smoothed = (fit_norm_ball(v, v, norm, label_smoothing=b, softcap=cap) for b in (0.0, 0.1))
        falls[name] = plain.confidence - smoothed.confidence
    assert abs(falls["plain"]) < 1e-3
    assert abs(falls["contraction"]) < 1e-3
    assert falls["gain"] > 0.05


@pytest.mark.parametrize("seed", range(20))
def test_removing_the_cap_widens_every_difference_at_least_to_the_inverse(seed):
    """(ii) capped difference delta >= 0 => raw difference >= 2 c artanh(delta / 2c) >= delta."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(1, 20)
    high = rng.uniform(-3 * c, 3 * c, 1000)
    low = high - rng.exponential(2 * c, 1000)
    delta = c * np.tanh(high / c) - c * np.tanh(low / c)
    bound = 2 * c * np.arctanh(np.minimum(delta / (2 * c), 1 - 1e-15))
    assert np.all(high - low >= bound - 1e-9 * (1 + bound))
    assert np.all(bound >= delta - 1e-12)


def test_where_smoothing_is_inert_under_the_cap_evaluation_without_it_sees_no_effect():
    """(ii) below the asked gap both losses have the same minimisers (V = 8, D = 8: the symmetric head)."""
    v, m, c = 8, 6.0, 3.0
    assert smoothing.effectiveness_ratio(m, v, 0.02, softcap=c) < 1
    plain, smoothed = (fit_norm_ball(v, v, m, label_smoothing=b, softcap=c, steps=1500) for b in (0.0, 0.02))
    assert plain.confidence == pytest.approx(smoothed.confidence, abs=1e-5)
    family = caps.attained_gap(m, v, v, softcap=c, steps=1, restarts=1)
    assert caps.confidence_to_gap(plain.confidence, v) == pytest.approx(family, abs=1e-3)


def test_a_softcap_breaks_the_rank_limit():
    """(iii) the capped logits of a width-2 head have full rank ..."""
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 30))
    assert np.linalg.matrix_rank(raw) == 2
    assert np.linalg.matrix_rank(np.tanh(raw)) > 25


@pytest.mark.parametrize(("v", "d"), [(12, 2), (20, 3), (30, 5)])
def test_full_rank_does_not_lift_the_cap_on_confidence_in_every_token(v, d):
    """(iii) ... and yet no capped head passes max(rank cap, 1/2)."""
    m = np.array([3.0, 8.0, 20.0, 60.0])
    for c in (2.0, 6.0, 20.0):
        found = caps.attained_gap(m, v, d, softcap=c, restarts=2, steps=200)
        assert np.all(found <= np.maximum(caps.rank_gap(m, v, d), np.log(v - 1)) + 1e-9)


def test_the_pull_on_the_norm_for_given_residuals_is_bounded():
    """(iv) x f'(x) = x sech^2(x / c) <= min(.448 c, |x|) ..."""
    c = 7.0
    x = np.linspace(-100, 100, 200_001)
    pull = x / np.cosh(x / c) ** 2
    assert np.abs(pull).max() / c == pytest.approx(0.4477, abs=1e-4)
    assert np.all(np.abs(pull) <= np.abs(x))


def squared_norm_after(steps, softcap, size=8, rate=0.05):
    """Gradient descent on free rows and features for one-hot targets."""
    rows = 0.3 * np.random.default_rng(0).standard_normal((size, size))
    features = rows.copy()
    for _ in range(steps):
        squashed = np.tanh(features @ rows.T / softcap)
        residual = (softmax(softcap * squashed, axis=1) - np.eye(size)) * (1 - squashed**2)
        rows, features = rows - rate * residual.T @ features, features - rate * residual @ rows
    return (rows**2).sum()


def test_free_norms_can_grow_larger_under_a_cap():
    """(iv) ... but the residuals of a capped head are larger, and so are its norms in the end."""
    plain, capped = squared_norm_after(4000, 1e9), squared_norm_after(4000, 3.0)
    assert capped > 2 * plain


@pytest.mark.parametrize("v", [2, 100, 256_000])
def test_no_norm_reaches_a_gap_beyond_twice_the_cap(v):
    """(iv) what free norms can reach under a cap; without one they reach anything."""
    gap = caps.softcap_gap([10.0, 1e3, 1e9], v, 7.0, temperature=2.0)
    assert np.all(gap <= 7.0 * (1 + 1e-12))
    assert gap[2] == pytest.approx(7.0, rel=1e-6)
