"""Penalty and prior readings (D1), population optima (D2), moment matching (D3), the SVD prediction (E2), C1 by training."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from analysis import caps, smoothing
from analysis.norm_ball import fit_norm_ball


def random_logits(seed, shape, scale=3.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0, 1))
def test_smoothed_loss_is_cross_entropy_plus_the_penalty(seed, vocab_size, b):
    z = random_logits(seed, vocab_size)
    log_p = log_softmax(z)
    target = smoothing.smooth(np.eye(vocab_size)[0], b)
    divergence, distance = smoothing.smoothing_penalty(z)
    assert -(target * log_p).sum() == pytest.approx(
        (1 - b) * -log_p[0] + b * (np.log(vocab_size) + divergence), abs=1e-9
    )
    assert divergence - 1e-12 <= distance <= divergence + np.log(vocab_size) + 1e-12


def test_distance_bounds_are_attained():
    one_high, flat = np.r_[50.0, np.zeros(9)], np.zeros(10)
    assert smoothing.smoothing_penalty(flat) == (0, 0)
    high = smoothing.smoothing_penalty(one_high)
    assert high.distance == pytest.approx(high.divergence + np.log(10), abs=1e-9)


@given(st.floats(0, 0.95), st.integers(2, 30), st.integers(1, 500), st.integers(0, 2**31))
def test_posterior_mode_under_the_prior_is_smoothing(b, vocab_size, count, seed):
    counts = np.random.default_rng(seed).multinomial(count, np.full(vocab_size, 1 / vocab_size))
    alpha = smoothing.dirichlet_concentration(b, vocab_size, count)
    mode = (counts + alpha - 1) / (count + vocab_size * (alpha - 1))
    assert smoothing.smooth(counts / count, b) == pytest.approx(mode, abs=1e-12)


@pytest.mark.parametrize("b", [0.0, 0.1, 0.5])
def test_calibration_error_of_a_smoothed_population(b):
    """From the definition: |mean correctness - confidence| by context, confidences all different."""
    p = np.random.default_rng(0).dirichlet(np.full(12, 0.4), size=200)
    weights = np.random.default_rng(1).exponential(size=200)
    q = smoothing.smooth(p, b)
    top = q.argmax(1)
    right = p[np.arange(200), top]
    error = (weights * np.abs(right - q.max(1))).sum() / weights.sum()
    assert smoothing.smoothed_calibration_error(p, b, weights=weights) == pytest.approx(error, abs=1e-14)
    assert np.all(q.max(1) <= right + 1e-12)  # under-confident everywhere


def test_calibration_error_broadcasts():
    p = np.full((3, 5, 4), 0.25)
    assert smoothing.smoothed_calibration_error(p, [[0.1], [0.2]]).shape == (2, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 25), st.integers(1, 6), st.floats(0.1, 3), st.integers(0, 2**31))
def test_moment_matching_identities(vocab_size, hidden_size, scale, seed):
    rng = np.random.default_rng(seed)
    weight = scale * rng.standard_normal((vocab_size, hidden_size))
    q = rng.dirichlet(np.full(vocab_size, 1.0), size=4) * 0.98 + 0.02 / vocab_size
    matched = smoothing.match_moments(weight, q)
    p = np.exp(matched.log_probabilities)
    assert p @ weight == pytest.approx(q @ weight, abs=1e-8)
    entropy, cross_entropy = -(p * matched.log_probabilities).sum(1), -(q * matched.log_probabilities).sum(1)
    assert entropy == pytest.approx(cross_entropy, abs=1e-7)
    assert entropy == pytest.approx(-(q * np.log(q)).sum(1) + matched.divergence, abs=1e-7)


def test_moment_matching_is_the_minimiser():
    rng = np.random.default_rng(3)
    weight, bias, q = rng.standard_normal((9, 3)), rng.standard_normal(9), rng.dirichlet(np.ones(9))
    found = minimize(lambda h: -(q * log_softmax(weight @ h + bias)).sum(), np.zeros(3), options={"gtol": 1e-9})
    matched = smoothing.match_moments(weight, q, bias=bias)
    assert matched.features == pytest.approx(found.x, abs=1e-5)
    assert matched.divergence == pytest.approx(found.fun + (q * np.log(q)).sum(), abs=1e-10)


def test_moment_matching_survives_targets_at_the_boundary():
    weight = np.random.default_rng(0).standard_normal((5, 3))
    assert smoothing.match_moments(weight, np.eye(5)[0]).divergence < 1e-6


def lowrank_teacher(logit_std, rank=16, contexts=150, vocab_size=48):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((contexts, rank)) @ rng.standard_normal((rank, vocab_size)) * logit_std / np.sqrt(rank)
    return softmax(z - np.log(np.arange(1, vocab_size + 1)), axis=1)


def best_divergence(p, head):
    """L-BFGS over rows, features and bias from the SVD head."""
    (n, v), d = p.shape, head.weight.shape[1]

    def loss(x):
        w, h, b = x[: v * d].reshape(v, d), x[v * d : (v + n) * d].reshape(n, d), x[(v + n) * d :]
        log_q = log_softmax(h @ w.T + b, axis=1)
        g = (np.exp(log_q) - p) / n
        return (p * (np.log(p) - log_q)).sum() / n, np.r_[(g.T @ h).ravel(), (g @ w).ravel(), g.sum(0)]

    start = np.r_[head.weight.ravel(), head.features.ravel(), head.bias]
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 600, "maxfun": 800}).fun


@pytest.mark.parametrize(("hidden_size", "logit_std"), [(4, 1.0), (8, 1.0), (4, 0.3)])
def test_svd_prediction_for_flat_conditionals(hidden_size, logit_std):
    p = lowrank_teacher(logit_std)
    head = smoothing.weighted_svd_head(p, hidden_size)
    refined = smoothing.match_moments(head.weight, p, bias=head.bias).divergence.mean()
    best = best_divergence(p, head)
    assert head.predicted == pytest.approx(head.divergence, rel=0.07)
    assert best <= refined <= head.divergence <= 1.35 * best


def test_svd_prediction_fails_for_peaked_conditionals():
    """The limit that the docstring states."""
    p = lowrank_teacher(3.0)
    head = smoothing.weighted_svd_head(p, 4)
    assert head.predicted > 1.3 * head.divergence
    assert head.divergence > 1.7 * best_divergence(p, head)


def test_svd_head_is_the_one_it_describes():
    p = lowrank_teacher(1.0)
    head = smoothing.weighted_svd_head(p, 5)
    log_q = log_softmax(head.features @ head.weight.T + head.bias, axis=1)
    assert (p * (np.log(p) - log_q)).sum(1).mean() == pytest.approx(head.divergence, rel=1e-9)
    assert smoothing.weighted_svd_head(p, 17).divergence < 1e-12
    assert [smoothing.weighted_svd_head(p, d).predicted for d in (0, 3, 9)] == sorted(
        (smoothing.weighted_svd_head(p, d).predicted for d in (0, 3, 9)), reverse=True
    )


@pytest.mark.parametrize(("v", "d", "m", "t", "gap"), [(8, 8, 6.0, 1.0, 4.290), (16, 15, 4.0, 0.5, 4.977)])
def test_minimisers_of_the_note(v, d, m, t, gap):
    assert smoothing.optimal_gap_under_cap(m, v, 0.1, temperature=t) == pytest.approx(gap, abs=5e-4)
    head = fit_norm_ball(v, d, m, label_smoothing=0.1, temperature=t)
    assert caps.confidence_to_gap(head.confidence, v) == pytest.approx(gap, abs=2e-3)


@pytest.mark.parametrize("b", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("m", [1.0, 5.0, 11.0])
def test_trained_heads_reach_the_optimal_gap_at_full_width(m, b):
    gap = smoothing.optimal_gap_under_cap(m, 10, b)
    head = fit_norm_ball(10, 9, m, label_smoothing=b)
    assert caps.confidence_to_gap(head.confidence, 10) == pytest.approx(gap, abs=3e-3)


def test_optimal_gap_under_cap_at_its_ends():
    assert smoothing.optimal_gap_under_cap(3, 4, 0) == pytest.approx(4)
    assert smoothing.optimal_gap_under_cap(3, 4, 1) == 0
    assert smoothing.optimal_gap_under_cap([[1.0], [9.0]], 4, [0.1, 0.2, 0.3]).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smoothing.smoothing_penalty(1.0), "logits must have shape (..., vocab_size), got the shape ()."),
        (
            lambda: smoothing.smoothed_calibration_error([0.5, 0.5], 0.1),
            "shape (..., contexts, vocab_size), got the shape (2,)",
        ),
        (
            lambda: smoothing.smoothed_calibration_error([[1.0]], 0.1, weights=[0]),
            "weights must have shape (1,) and a positive",
        ),
        (
            lambda: smoothing.match_moments([[1.0]], [0.5, 0.5]),
            "weight must have shape (2, hidden_size), got the shape (1, 1).",
        ),
        (lambda: smoothing.weighted_svd_head([[1.0, 0.0]], 0), "probabilities must be positive, of shape"),
        (
            lambda: smoothing.weighted_svd_head([[0.5, 0.5]], 1),
            "hidden_size must be below min(contexts, vocab_size) = 1, got 1.",
        ),
        (lambda: smoothing.optimal_gap_under_cap(-1, 4, 0.1), "norm_product must be finite and at least 0, got -1."),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def index_of(head, b):
    return smoothing.activity_index(head.entropy, head.cross_entropy, head.uniform_cross_entropy, b)


def test_index_of_the_note_where_rho_is_wrong():
    """(V, D, m) = (32, 4, 6): rho = 1.09 says active, the index says inert, and inert it is; at m = 12 it acts."""
    plain, smoothed = (fit_norm_ball(32, 4, [6.0, 12.0], label_smoothing=b) for b in (0.0, 0.1))
    index = index_of(plain, 0.1)
    assert index[0] == pytest.approx(1.9, abs=0.1)
    assert plain.confidence[0] == pytest.approx(0.575, abs=2e-3)
    assert smoothed.confidence[0] == pytest.approx(plain.confidence[0], abs=2e-3)
    assert index[1] < 0.4
    assert 0.14 < plain.confidence[1] - smoothed.confidence[1] < 0.19


@pytest.mark.parametrize("v", [4, 12])
def test_at_full_width_the_index_crosses_one_with_rho(v):
    m = smoothing.optimal_gap(0.1, v) * (v - 1) / v * np.array([0.9, 0.99, 1.01, 1.1])
    plain = fit_norm_ball(v, v, m, steps=1500)
    assert (index_of(plain, 0.1) < 1).tolist() == (smoothing.effectiveness_ratio(m, v, 0.1) > 1).tolist()


def test_of_several_restarts_the_best_is_reported():
    """The first restart is the same head whatever their number."""
    losses = [fit_norm_ball(16, 3, 25.0, restarts=n, steps=60).loss for n in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
