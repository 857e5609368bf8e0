"""The response against scipy's minimisers, finite differences, closed forms and heads that were trained again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

import analysis
from analysis.bottleneck import FitConfig, train
from analysis.response import (
    clipped_fall,
    exceeds_smoothed_target,
    frozen_head_response,
    rational_fall,
    stationarity,
    susceptibility,
)
from analysis.response._frozen import _fitted
from analysis.response._inputs import head_of
from analysis.response._loss import ContextLoss, forward
from analysis.teachers import TeacherConfig


def simplex(vocab_size: int, width: int, norm_product: float) -> np.ndarray:
    """Rows (and features) of the optimum of C1."""
    axes = np.linalg.svd(np.eye(vocab_size) - 1 / vocab_size)[0][:, : vocab_size - 1]
    rows = np.zeros((vocab_size, width))
    rows[:, : vocab_size - 1] = axes
    return rows * np.sqrt(norm_product) / np.linalg.norm(rows[0])


def small_head(seed: int = 0, vocab_size: int = 7, width: int = 3, contexts: int = 5, radius: float = 2.0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((vocab_size, width))
    h = rng.standard_normal((contexts, width))
    h *= radius / np.linalg.norm(h, axis=1, keepdims=True)
    q = rng.multinomial(4, softmax(h @ w.T, axis=1)) / 4
    return w, h, q


def loss(h, w, q, b, temperature=1.0, softcap=None, decay=0.0):
    a = w @ h
    z = (a if softcap is None else softcap * np.tanh(a / softcap)) / temperature
    return -((1 - b) * q + b / len(w)) @ log_softmax(z) + 0.5 * decay * h @ h


def confidence(h, w, temperature=1.0, softcap=None):
    a = w @ h
    return softmax((a if softcap is None else softcap * np.tanh(a / softcap)) / temperature).max()


def scipy_minimum(h, w, q, b, kind, radius, **options):
    """An independent minimiser: SLSQP with the norm as a constraint, or BFGS without."""
    objective = lambda x: loss(x, w, q, b, **options)  # noqa: E731
    if kind == "free":
        return minimize(objective, h, method="BFGS", options={"gtol": 1e-9}).x
    limit = {"type": "ineq" if kind == "ball" else "eq", "fun": lambda x: radius**2 - x @ x}
    return minimize(objective, h, method="SLSQP", constraints=[limit], options={"ftol": 1e-15, "maxiter": 500}).x


@pytest.mark.parametrize("width", [7, 8, 11])
@pytest.mark.parametrize(("norm_product", "b"), [(2.0, 0.1), (4.0, 0.1), (4.0, 0.3), (6.0, 0.05), (9.0, 0.2)])
def test_deterministic_heads_fall_by_the_clipped_index(width, norm_product, b):
    v = 8
    rows = simplex(v, width, norm_product)
    plain = softmax(rows @ rows.T, axis=1).max(axis=1)
    index = (1 - plain.mean()) * v / ((v - 1) * b)
    assert np.allclose(stationarity(rows, rows, np.arange(v), b).activity_index, index, atol=1e-9)
    found = frozen_head_response(rows, rows, np.arange(v), b, true_conditionals=np.eye(v))
    assert found.converged
    assert found.fall == pytest.approx(b * (v - 1) / v * max(0.0, 1 - index), abs=1e-5)
    # D >= V - 1: A < 1 is the same statement as a confidence above the smoothed target
    assert bool(index < 1) == bool(exceeds_smoothed_target(plain.mean(), v, b))
    assert found.true_ece == pytest.approx(1 - found.confidence, abs=1e-9)  # the truth is certain
    assert found.true_ece_gain == pytest.approx(-found.fall, abs=1e-9)


@pytest.mark.parametrize("width", [8, 11])
def test_a_sphere_with_room_beside_the_rows_is_a_ball(width):
    rows = simplex(8, width, 6.0)
    ball, sphere = (
        frozen_head_response(rows, rows, np.arange(8), [0.1, 0.3], features=kind) for kind in ("ball", "sphere")
    )
    assert sphere.converged.all()
    assert sphere.fall == pytest.approx(ball.fall, abs=1e-6)


@pytest.mark.parametrize("kind", ["ball", "sphere", "free"])
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_scipys(kind, seed):
    w, h, q = small_head(seed)
    b, radius, decay = 0.15, 2.0, 0.05 if kind == "free" else 0.0
    options = {"temperature": 0.7, "decay": decay}
    expected = []
    for n in range(len(h)):
        plain = scipy_minimum(h[n], w, q[n], 0.0, kind, radius, **options)
        smoothed = scipy_minimum(plain, w, q[n], b, kind, radius, **options)
        expected.append([of(softmax(w @ x / 0.7)) for of in (max, entropy) for x in (plain, smoothed)])
    plain, smoothed, plain_entropy, smoothed_entropy = np.array(expected).T
    norms = {"weight_decay": decay} if kind == "free" else {"features": kind, "feature_norm": radius}
    found = frozen_head_response(w, h, q, b, temperature=0.7, **norms)
    assert found.converged
    assert found.plain_confidence == pytest.approx(plain, abs=2e-4)
    assert found.confidence_per_context == pytest.approx(smoothed, abs=2e-4)
    assert found.fall_per_context == pytest.approx(plain - smoothed, abs=2e-4)
    assert found.plain_entropy == pytest.approx(plain_entropy.mean(), abs=2e-4)
    assert found.entropy == pytest.approx(smoothed_entropy.mean(), abs=2e-4)


def test_a_softcapped_minimum_is_scipys():
    w, h, q = small_head(4)
    found = frozen_head_response(w, h, q, 0.1, softcap=3.0, feature_norm=2.0)
    assert found.converged
    for n in range(len(h)):
        plain = scipy_minimum(h[n], w, q[n], 0.0, "ball", 2.0, softcap=3.0)
        smoothed = scipy_minimum(plain, w, q[n], 0.1, "ball", 2.0, softcap=3.0)
        assert found.plain_confidence[n] == pytest.approx(confidence(plain, w, softcap=3.0), abs=2e-4)
        assert found.confidence_per_context[n] == pytest.approx(confidence(smoothed, w, softcap=3.0), abs=2e-4)


def test_the_slope_of_a_saturated_cap_keeps_its_digits():
    """1 - tanh(25)^2 is 0 in float64; the slope is not, as at every other softcap of the project."""
    head = head_of(np.array([[1.0], [-1.0]]), 1.0, 2.0, None)
    z, slope = forward(head, torch.tensor([[50.0]], dtype=torch.float64))
    assert z.tolist() == [[2.0, -2.0]]
    assert slope is not None
    assert slope[0, 0].item() == pytest.approx(4 * np.exp(-50), rel=1e-9)


def test_the_gain_form_is_a_scaled_weight():
    w, h, q = small_head(1)
    c = 4.0
    cap = frozen_head_response(c * w, h, q, 0.1, softcap=c)  # c tanh(c z / c)
    z = c * np.tanh(h @ w.T)
    assert np.isfinite(cap.fall)
    assert stationarity(c * w, h, q, softcap=c).sin_squared == pytest.approx(_sin_squared(w, h, z, c), abs=1e-9)


def _sin_squared(w, h, z, c):
    """By finite differences of the uniform cross-entropy less the entropy's frozen part: pull = J^T (p - u)."""
    pull = np.zeros_like(h)
    p, step = softmax(z, axis=1), 1e-6
    for i in range(h.shape[1]):
        up, down = h.copy(), h.copy()
        up[:, i] += step
        down[:, i] -= step
        slope = (c * np.tanh(up @ w.T) - c * np.tanh(down @ w.T)) / (2 * step)
        pull[:, i] = ((p - 1 / len(w)) * slope).sum(axis=1)
    along = (pull * h).sum(axis=1) ** 2 / (h * h).sum(axis=1)
    return 1 - along / (pull * pull).sum(axis=1)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("decay", [None, 0.1])
def test_chi_is_the_slope_of_the_response(softcap, decay):
    w, h, q = small_head(3)
    norms = {"weight_decay": decay} if decay else {"feature_norm": 2.0, "features": "sphere"}
    optimum = np.stack(
        [scipy_minimum(x, w, y, 0.0, "free" if decay else "sphere", 2.0, softcap=softcap, decay=decay or 0.0)
         for x, y in zip(h, q, strict=True)]
    )  # fmt: skip
    multiplier = stationarity(w, optimum, q, softcap=softcap).multiplier
    b = 1e-4
    slope = frozen_head_response(w, optimum, q, b, softcap=softcap, **norms).fall_per_context / b
    chi = susceptibility(w, optimum, q, softcap=softcap, weight_decay=decay)
    binding = multiplier > 1e-2  # elsewhere smoothing leaves the sphere's branch at once
    assert binding.sum() >= 3
    assert chi.chi_per_context[binding] == pytest.approx(slope[binding], rel=0.02, abs=2e-3)
    assert chi.chi == pytest.approx(chi.chi_per_context.mean())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_index_of_a_context_is_c4(temperature):
    w, h, q = small_head(2)
    log_p = log_softmax(h @ w.T / temperature, axis=1)
    entropy, cross = -(np.exp(log_p) * log_p).sum(axis=1), -(q * log_p).sum(axis=1)
    uniform = -log_p.mean(axis=1)
    found = stationarity(w, h, q, [0.1, 0.2], temperature=temperature)
    expected = [analysis.activity_index(entropy, cross, uniform, b) for b in (0.1, 0.2)]
    assert found.activity_index == pytest.approx(np.stack(expected), rel=1e-9)
    assert found.multiplier == pytest.approx((entropy - cross) / 4.0, rel=1e-9)  # mu R^2 = H - CE


def test_the_condition_decides_stationarity():
    """A plain optimum stays one iff the pull is along h and A >= 1; by the gradient of the smoothed loss."""
    v, b = 6, 0.1
    for norm_product, along in ((2.0, True), (8.0, False)):  # A > 1, A < 1
        rows = simplex(v, v, norm_product)
        p = softmax(rows @ rows.T, axis=1)
        gradient = (p - (1 - b) * np.eye(v) - b / v) @ rows
        outward = -(gradient * rows).sum(axis=1)
        found = stationarity(rows, rows, np.arange(v), b)
        assert np.allclose(found.sin_squared, 0, atol=1e-12)
        assert bool((outward > 0).all()) == along == bool((found.activity_index > 1).all())
        assert np.abs(gradient + rows * (outward / (rows**2).sum(axis=1))[:, None]).max() < 1e-12
    # noise gives p more levels and the pull a part across h: smoothing acts although A > 1
    w, h, q = small_head(0, vocab_size=12, width=4, radius=1.0)
    plain = np.stack([scipy_minimum(x, w, y, 0.0, "sphere", 1.0) for x, y in zip(h, q, strict=True)])
    found = stationarity(w, plain, q, 0.05)
    assert (found.sin_squared > 1e-3).all()
    response = frozen_head_response(w, plain, q, 0.05)
    acting = found.activity_index > 1.5
    assert acting.any()
    assert (np.abs(response.fall_per_context[acting]) > 1e-5).all()


@pytest.mark.parametrize("kind", ["lowrank", "sparse", "det"])
def test_heads_that_are_trained_again_fall_as_predicted(kind):
    config = FitConfig(
        teacher=TeacherConfig(kind=kind, vocab_size=32, n_contexts=64, rank=16, seed=3), hidden_size=8,
        norm_coefficient=0.5, temperature=0.4, seed=5, dtype="float64", tolerance=1e-7,
    )  # fmt: skip
    plain = train(config)
    b = [0.05, 0.2]
    response = frozen_head_response(
        plain.head.weight(), plain.head.hidden(), plain.training, b, temperature=0.4,
        true_conditionals=plain.teacher.conditionals,
    )  # fmt: skip
    assert response.converged.all()
    truth = torch.cat([q for _, q in plain.teacher.blocks()])
    before = plain.head.logits().softmax(-1)
    assert response.plain_confidence.mean() == pytest.approx(before.amax(-1).mean().item(), abs=1e-3)
    for i, smoothing in enumerate(b):
        after = train(replace(config, label_smoothing=smoothing)).head.logits().softmax(-1)
        fall = (before.amax(-1) - after.amax(-1)).mean().item()
        assert fall > 0.005
        assert response.fall[i] == pytest.approx(fall, rel=0.15, abs=2e-3)
        gain = [analysis.true_calibration_error(p, truth, n_bins=15, tie_tolerance=0.01) for p in (before, after)]
        assert response.true_ece_gain[i] == pytest.approx(gain[0] - gain[1], abs=0.015)


def test_under_a_contraction_smoothing_still_acts_on_noisy_targets():
    """The scope of C2: that a contraction cannot make smoothing act is proved for balanced deterministic targets."""
    w, h, q = small_head(0, vocab_size=12, width=4, radius=1.0)
    for c in (0.5, 2.0):
        plain = np.stack([scipy_minimum(x, w, y, 0.0, "sphere", 1.0, softcap=c) for x, y in zip(h, q, strict=True)])
        index = stationarity(w, plain, q, 0.05, softcap=c).activity_index
        response = frozen_head_response(w, plain, q, 0.05, softcap=c)
        assert response.converged
        assert (index > 1).any()
        assert (np.abs(response.fall_per_context[index > 1]) > 1e-6).any()


def test_targets_in_any_form_and_any_block_give_the_same():
    config = TeacherConfig(kind="lowrank", vocab_size=20, n_contexts=16, rank=4)
    plain = train(FitConfig(teacher=config, hidden_size=6, max_steps=300))
    w, h, pairs = plain.head.weight(), plain.head.hidden(), plain.training
    q = torch.zeros(16, 20, dtype=torch.float64).index_put_((pairs.context, pairs.token), pairs.weight) / 8
    reference = frozen_head_response(w, h, q.numpy(), 0.1)
    shuffled = torch.randperm(len(pairs.context), generator=torch.Generator().manual_seed(1))
    for targets in (q, pairs, type(pairs)(*(x[shuffled] for x in pairs)), lambda part: q[part]):
        found = frozen_head_response(w, h, targets, [0.1], block_entries=61)
        assert found.fall_per_context[0] == pytest.approx(reference.fall_per_context, abs=1e-6)
    assert reference.fall.shape == ()
    assert reference.fall_per_context.shape == (16,)
    assert found.fall_per_context.shape == (1, 16)
    tokens = q.argmax(-1)
    one_hot = torch.nn.functional.one_hot(tokens, 20).double()
    first, second = (frozen_head_response(w, h, x, 0.1).fall for x in (tokens, one_hot))
    assert first == pytest.approx(second, abs=1e-9)


def test_without_a_minimum_nothing_converges():
    rows = simplex(5, 5, 1.0)
    found = frozen_head_response(rows, rows, np.arange(5), 0.1, feature_norm=float("inf"))
    assert found.confidence == pytest.approx(1 - 0.1 + 0.1 / 5, abs=1e-6)  # smoothed targets are within reach
    assert found.plain_confidence.min() > 0.999  # plain ones only at infinity


@pytest.mark.parametrize(
    ("kind", "width", "k", "temperature", "most"),  # found 81, 156 and 25; from worse starts 353 and 111 at D = 256
    [("lowrank", 64, 0.1, 0.5, 160), ("lowrank", 256, 0.2, 1.0, 250), ("det", 256, 0.1, 1.0, 60)],
)
def test_saturated_heads_are_solved_in_few_products_with_the_hessian(monkeypatch, kind, width, k, temperature, most):
    """What keeps a response within the cost of its head; of D = 256 one context in a thousand used not to finish."""
    products, curvature = [], ContextLoss.curvature
    monkeypatch.setattr(
        ContextLoss, "curvature", lambda loss, point, v: (products.append(len(v)), curvature(loss, point, v))[1]
    )
    plain = train(
        FitConfig(hidden_size=width, norm_coefficient=k, temperature=temperature, teacher=TeacherConfig(kind=kind))
    )
    hidden = plain.head.hidden()
    found = frozen_head_response(plain.head.weight(), hidden, plain.training, 0.1, temperature=temperature)
    assert found.converged
    assert sum(products) < most * len(hidden)


def test_the_start_in_the_ball_is_the_best_fit_of_its_length():
    """Least squares with a ridge, where the free fit is too long: shorter than scaling it down leaves the logits off."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.tensor([1e-4, 1e-2, 1.0, 9.0], dtype=torch.float64)
    products = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    radius = torch.tensor([0.01, 0.3, 2.0, 9.0, 50.0, 1e6], dtype=torch.float64)
    found = _fitted(products, squares, radius)
    for fit, product, r in zip(found.numpy(), products.numpy(), radius.tolist(), strict=True):
        free = product / squares.numpy()
        if np.linalg.norm(free) <= r:
            assert fit == pytest.approx(free, rel=1e-12)
            continue

        def too_long(log_ridge, product=product, r=r):
            return np.linalg.norm(product / (squares.numpy() + np.exp(log_ridge))) - r

        ridge = np.exp(brentq(too_long, -40, 20))
        assert fit == pytest.approx(product / (squares.numpy() + ridge), rel=1e-6)


def test_the_plain_optimum_is_where_the_search_with_smoothing_began():
    w, h, q = small_head(2)
    found = frozen_head_response(w, h, q, [0.2, 0.1], feature_norm=2.0)
    assert found.plain_hidden.shape == h.shape
    assert softmax(found.plain_hidden @ w.T, axis=1).max(axis=1) == pytest.approx(found.plain_confidence, abs=1e-9)
    again = frozen_head_response(w, found.plain_hidden, q, [0.2, 0.1], feature_norm=2.0)
    assert again.fall_per_context == pytest.approx(found.fall_per_context, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"weight": np.ones(3)}, ValueError, r"weight must have shape \(V, D\), got the shape \(3,\)"),
        ({"weight": np.ones((1, 3))}, ValueError, "weight must have at least 2 rows"),
        ({"weight": np.full((4, 3), np.nan)}, ValueError, "weight must not be NaN"),
        ({"weight": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "weight must have a floating dtype"),
        ({"weight": torch.full((4, 3), torch.inf)}, ValueError, "weight must be finite"),
        ({"hidden": np.ones((2, 4))}, ValueError, r"hidden must have shape \(N, D\) with D = 3, got the shape \(2, 4\)"),
        ({"target_distribution": np.ones((3, 4)) / 4}, ValueError, r"target_distribution must have shape \(2, 4\)"),
        ({"target_distribution": np.ones((2, 4))}, ValueError, "target_distribution must sum to 1 over its last axis"),
        ({"target_distribution": [[1.5, -0.5, 0, 0]] * 2}, ValueError, "target_distribution must be at least 0"),
        ({"target_distribution": np.array([0, 4])}, ValueError, r"target_distribution must be in \[0, 4\)"),
        ({"target_distribution": np.array([0, 1, 2])}, ValueError, "target_distribution must hold 2 tokens"),
        ({"target_distribution": np.array([True, False])}, TypeError, "target_distribution must be probabilities"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"label_smoothing": [[0.1]]}, ValueError, r"label_smoothing must have shape \(\) or \(B,\)"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0"),
        ({"softcap": -1.0}, ValueError, "softcap must be finite and greater than 0"),
        ({"weight": torch.eye(4, 3).to_sparse()}, TypeError, "weight must be a dense tensor"),
        ({"weight": np.ma.masked_array(np.ones((4, 3)), False)}, TypeError, "weight must not be a masked array"),
        ({"target_distribution": np.ma.masked_array([0, 1], False)}, TypeError, "must not be a masked array"),
        ({"features": "cube"}, ValueError, "features must be 'sphere' or 'ball', got 'cube'"),
        ({"feature_norm": 0.0}, ValueError, "feature_norm must be greater than 0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be finite and at least 0"),
        ({"block_entries": 0}, ValueError, "block_entries must be None or a whole number of at least 1, got 0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(change, error, text):
    given = {
        "weight": np.ones((4, 3)) * np.arange(4)[:, None], "hidden": np.ones((2, 3)),
        "target_distribution": np.full((2, 4), 0.25), "label_smoothing": 0.1,
    } | change  # fmt: skip
    with pytest.raises(error, match=text):
        frozen_head_response(**given)


def test_a_context_without_pairs_is_refused():
    pairs = analysis.teachers.Observations(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="target_distribution must have a pair in every context, got none in 1"):
        frozen_head_response(np.ones((4, 3)), np.ones((2, 3)), pairs, 0.1)


def test_scalars():
    assert rational_fall(0.6, 2.0, 10, 0.1) == pytest.approx(0.1 * 0.5 / 3)
    assert clipped_fall(0.6, 0.25, 10, 0.1) == pytest.approx(0.1 * 0.5 * 0.75)
    assert clipped_fall(0.6, [1.0, 7.0, np.inf], 10, 0.1).tolist() == [0, 0, 0]
    assert clipped_fall(0.6, [-1.0, -7.0, -np.inf], 10, 0.1) == pytest.approx(2 * 0.1 * 0.5)  # no further than A = -1
    assert rational_fall(0.6, np.inf, 10, 0.1) == 0
    assert np.isnan(rational_fall(0.6, -1.5, 10, 0.1))
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 1.2"):
        clipped_fall(1.2, 1.0, 10, 0.1)
    with pytest.raises(ValueError, match="activity_index must not be NaN"):
        rational_fall(0.5, np.nan, 10, 0.1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees():
    w, h, q = small_head(0, vocab_size=300, width=16, contexts=40)
    here, there = (frozen_head_response(w, h, q, [0.1, 0.3], device=device) for device in ("cpu", "cuda"))
    assert there.fall_per_context == pytest.approx(here.fall_per_context, abs=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_vocabulary_of_262144_takes_memory_for_a_block_of_its_logits():
    """And for three arrays of the head's size; all N x V logits would take 12 such blocks. Falls are the CPU's."""
    generator = torch.Generator().manual_seed(0)
    v, d, n = 262_144, 64, 96
    w = (torch.randn(v, d, generator=generator) / d**0.5).cuda()
    tokens = torch.randint(v, (n,), generator=generator).cuda()
    h = 8 * w[tokens] + torch.randn(n, d, generator=generator).cuda()
    entries, longest = 8 * v, float(h.norm(dim=1).max())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    options = {"feature_norm": longest, "block_entries": entries}
    there = frozen_head_response(w, h, tokens, 0.1, device="cuda", **options)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 8 * (3 * v * d + 6 * entries + 8 * v), "in float64; eight numbers for each class beside these"
    here = frozen_head_response(w.cpu(), h[:2].cpu(), tokens[:2].cpu(), 0.1, **options)
    assert there.fall_per_context.shape[-1] == n
    assert there.fall_per_context[..., :2] == pytest.approx(here.fall_per_context, abs=1e-5)
