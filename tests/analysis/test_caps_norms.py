"""Gaps and norm caps (A0, A1, A2, C2) against exact arithmetic, a minimiser and explicit heads."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from analysis import caps

VOCABS = (2, 3, 17, 32_768, 262_144, 10_000_000)


def simplex_rows(vocab_size):
    """Unit vectors (V, V) with pairwise cosine -1/(V - 1)."""
    rows = np.eye(vocab_size) - 1 / vocab_size
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def effective_gap(logits, target):
    """log[(V-1) p / (1-p)] = z_y - logmeanexp of the others."""
    others = np.delete(logits, target)
    return float(logits[target] - logsumexp(others) + np.log(len(others)))


@pytest.mark.parametrize("vocab_size", VOCABS)
@pytest.mark.parametrize("gap", [-1e4, -30.0, 0.0, 1e-3, 14.6, 40.0, 700.0, 1e4])
def test_gap_to_confidence_agrees_with_fifty_digits(gap, vocab_size):
    with mpmath.workdps(50):
        exact = 1 / (1 + (vocab_size - 1) * mpmath.exp(-mpmath.mpf(gap)))
        assert caps.gap_to_confidence(gap, vocab_size) == pytest.approx(float(exact), rel=1e-11, abs=1e-300)


@given(st.floats(-25, 25), st.integers(2, 10**7))
def test_confidence_to_gap_inverts(gap, vocab_size):
    p = caps.gap_to_confidence(gap, vocab_size)
    assert caps.confidence_to_gap(p, vocab_size) == pytest.approx(gap, abs=1e-4 if gap > 12 else 1e-8)


def test_ends_of_the_confidence_scale():
    assert caps.confidence_to_gap([0, 1 / 8, 1], 8).tolist() == [-np.inf, pytest.approx(0, abs=1e-15), np.inf]
    assert caps.gap_to_confidence([-np.inf, np.inf], 8).tolist() == [0, 1]


@pytest.mark.parametrize("vocab_size", [2, 5, 40])
@pytest.mark.parametrize("norm", [0.0, 0.5, 3.0, 12.0])
def test_entropy_floor_is_the_entropy_of_the_extreme_point(norm, vocab_size):
    direction = np.eye(vocab_size)[0] - 1 / vocab_size
    log_p = log_softmax(norm * direction / np.linalg.norm(direction))
    assert caps.entropy_floor(norm, vocab_size) == pytest.approx(-(np.exp(log_p) * log_p).sum(), rel=1e-10)
    assert caps.logit_norm_cap(norm, vocab_size) == pytest.approx(np.exp(log_p[0]), rel=1e-12)


@pytest.mark.parametrize(("vocab_size", "norm"), [(3, 1.0), (6, 2.5), (12, 6.0)])
def test_no_logits_of_that_norm_have_less_entropy(norm, vocab_size):
    def entropy(x):
        log_p = log_softmax(norm * x / np.linalg.norm(x))
        return -(np.exp(log_p) * log_p).sum()

    rng = np.random.default_rng(0)
    found = min(minimize(entropy, rng.standard_normal(vocab_size)).fun for _ in range(8))
    assert found == pytest.approx(caps.entropy_floor(norm, vocab_size), rel=1e-6)


@pytest.mark.parametrize("vocab_size", VOCABS)
def test_entropy_floor_agrees_with_fifty_digits_and_never_underflows_to_nonsense(vocab_size):
    for norm in (1e-6, 1.0, 20.0, 60.0, 1e4):
        with mpmath.workdps(50):
            v = mpmath.mpf(vocab_size)
            e = mpmath.exp(-norm * mpmath.sqrt(v / (v - 1)))
            mass = 1 + (v - 1) * e
            exact = mpmath.log(mass) + norm * mpmath.sqrt(v * (v - 1)) * e / mass
        assert caps.entropy_floor(norm, vocab_size) == pytest.approx(float(exact), rel=1e-10, abs=1e-300)


@pytest.mark.parametrize(("vocab_size", "m"), [(2, 1.0), (5, 3.0), (30, 8.0)])
def test_one_token_attains_the_single_token_cap_in_one_dimension(vocab_size, m):
    rows = np.r_[1.0, -np.ones(vocab_size - 1)]
    assert caps.single_token_cap(m, vocab_size) == pytest.approx(np.exp(log_softmax(m * rows)[0]), rel=1e-12)


@pytest.mark.parametrize(("vocab_size", "m"), [(2, 1.0), (5, 3.0), (30, 8.0)])
def test_the_simplex_attains_the_simplex_cap(vocab_size, m):
    rows = simplex_rows(vocab_size)
    p = np.exp(log_softmax(m * rows @ rows.T, axis=1)).diagonal()
    assert caps.simplex_cap(m, vocab_size) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(("vocab_size", "m", "temperature"), [(3, 2.0, 0.25), (16, 9.0, 4.0)])
def test_the_simplex_attains_max_gap_at_any_temperature(vocab_size, m, temperature):
    rows = simplex_rows(vocab_size)
    gap = effective_gap(m * rows @ rows[0] / temperature, 0)
    assert caps.max_gap(m, vocab_size, temperature=temperature) == pytest.approx(gap, rel=1e-12)


def test_two_tokens_attain_max_gap_under_a_softcap():
    m, c, t = 6.0, 4.0, 0.5  # V = 2: logits +-c tanh(m / c)
    assert caps.max_gap(m, 2, softcap=c, temperature=t) == pytest.approx(2 * c / t * np.tanh(m / c), rel=1e-12)


def test_softcap_bound_of_the_note():
    assert caps.max_gap(12, 32, softcap=5) == pytest.approx(8.451, abs=5e-4)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(2, 12),
    st.integers(1, 6),
    st.floats(0.1, 30),
    st.floats(0.5, 40),
    st.floats(0.1, 4),
    st.integers(0, 2**31),
)
def test_no_head_beats_max_gap(vocab_size, hidden_size, m, softcap, temperature, seed):
    """Simplex heads projected into ``hidden_size`` dimensions obey the bound and its exception."""
    rng = np.random.default_rng(seed)
    rows = simplex_rows(vocab_size) @ rng.standard_normal((vocab_size, hidden_size))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    features = rows + rng.uniform(0, 0.5) * rng.standard_normal(rows.shape)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    raw = m * features @ rows.T
    for logits, cap in ((raw / temperature, None), (softcap * np.tanh(raw / softcap) / temperature, softcap)):
        found = min(effective_gap(row, k) for k, row in enumerate(logits))
        bound = caps.max_gap(m, vocab_size, temperature=temperature, softcap=cap)
        if cap is not None and np.any(logits.diagonal()[:, None] < logits):
            bound = max(bound, np.log(vocab_size - 1))
        assert found <= bound + 1e-9 * (1 + bound)


@pytest.mark.parametrize("softcap", [None, 1e9])
def test_a_cap_far_above_the_logits_changes_nothing(softcap):
    assert caps.max_gap(7, 100, softcap=softcap) == pytest.approx(700 / 99, rel=1e-12)


@pytest.mark.parametrize("vocab_size", VOCABS)
def test_caps_rise_with_the_norm_and_are_ordered(vocab_size):
    m = np.linspace(0, 30, 61)
    one, every = caps.single_token_cap(m, vocab_size), caps.simplex_cap(m, vocab_size)
    assert one[0] == pytest.approx(1 / vocab_size) == every[0]
    assert np.all(np.diff(one) >= 0)
    assert np.all(np.diff(every) >= 0)
    assert np.all(every <= one)
    assert np.all(np.diff(caps.entropy_floor(m, vocab_size)) < 0)
    assert np.all(np.diff(caps.max_gap(m, vocab_size, softcap=10)) > 0)


@pytest.mark.parametrize(
    "function", [caps.gap_to_confidence, caps.entropy_floor, caps.single_token_cap, caps.simplex_cap, caps.max_gap]
)
def test_functions_broadcast(function):
    norm, vocab_size = np.array([[0.1], [0.6]]), np.array([4, 50, 600])
    table = function(norm, vocab_size)
    assert table.shape == (2, 3)
    assert table[1, 2] == function(0.6, 600)
