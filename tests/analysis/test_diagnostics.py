"""Scale gap, slope of the smoothed loss, and head geometry against autograd and dense linear algebra."""

import re

import numpy as np
import pytest
import torch

import kernel
from analysis import caps, smoothing
from analysis.diagnostics import HeadGeometry, losses_of, scale_gap, smoothing_slope


@pytest.fixture
def head():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((300, 12)) * np.linspace(0.2, 2, 12) + 1.5
    features = 3 * rng.standard_normal((5, 40, 12))
    targets = rng.integers(0, 300, (5, 40))
    return weight, features, targets


@pytest.mark.parametrize("b", [0.0, 0.1, 0.7])
def test_slopes_are_derivatives_in_log_temperature(b):
    generator = torch.Generator().manual_seed(1)
    z = 4 * torch.randn(30, 11, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 11, (30,), generator=generator)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(z / log_t.exp(), y, label_smoothing=b)
    slope = torch.autograd.grad(loss, log_t)[0].item()
    log_p = z.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
    ce, uniform = torch.nn.functional.cross_entropy(z, y).item(), -log_p.mean().item()
    assert smoothing_slope(entropy, ce, uniform, b) == pytest.approx(slope, abs=1e-12)
    if b == 0:
        assert scale_gap(entropy, ce) == pytest.approx(slope, abs=1e-12)
    else:
        assert (smoothing.activity_index(entropy, ce, uniform, b) - 1) * b * (uniform - ce) == pytest.approx(slope)


@pytest.mark.parametrize(("index", "temperature"), [(0, 1.0), (1, 0.3)])
def test_losses_are_those_of_full_logits_without_the_ignored_tokens(head, index, temperature):
    weight, features, targets = (torch.from_numpy(x) for x in head)
    targets[1, 3:17] = -100
    of = kernel.head_statistics(features, weight, targets, temperatures=(1.0, 0.3))
    log_p = (features @ weight.T / temperature).flatten(0, 1)[targets.flatten() >= 0].log_softmax(-1)
    kept = targets[targets >= 0]
    found = losses_of(of, temperature=temperature, temperature_index=index)
    assert found.entropy == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item(), abs=1e-9)
    assert found.cross_entropy == pytest.approx(torch.nn.functional.nll_loss(log_p, kept).item())
    assert found.uniform_cross_entropy == pytest.approx(-log_p.mean().item())


def test_losses_refuse_what_they_cannot_average():
    hidden, weight = torch.eye(3), torch.eye(3)
    with pytest.raises(ValueError, match="statistics must be made with a target, got some without"):
        losses_of(kernel.head_statistics(hidden, weight))
    with pytest.raises(ValueError, match="statistics must have a token that is not ignored, got none"):
        losses_of(kernel.head_statistics(hidden, weight, torch.full((3,), -100)))
    of = kernel.head_statistics(hidden, weight, torch.arange(3))
    with pytest.raises(ValueError, match=re.escape("temperature_index must be in [0, 1), got 1")):
        losses_of(of, temperature_index=1)
    with pytest.raises(ValueError, match="temperature must be finite and greater than 0, got 0"):
        losses_of(of, temperature=0)


def test_slope_and_index_agree_in_sign():
    rng = np.random.default_rng(0)
    h, ce, uniform = rng.uniform(0, 8, (3, 500))
    uniform += h  # as in every softmax
    b = rng.uniform(0, 1, 500)
    slope, index = smoothing_slope(h, ce, uniform, b), smoothing.activity_index(h, ce, uniform, b)
    assert np.array_equal(np.sign(slope), np.sign(index - 1))


@pytest.mark.parametrize("chunk_size", [7, 64, 100_000])
def test_geometry_against_dense_linear_algebra(head, chunk_size):
    weight, features, targets = head
    flat, labels = features.reshape(-1, 12), targets.reshape(-1)
    centred = weight - weight.mean(0)
    geometry = HeadGeometry.measure(weight, features, targets, chunk_size=chunk_size)
    row_norms, norms = np.linalg.norm(weight, axis=1), np.linalg.norm(flat, axis=1)
    assert (geometry.vocab_size, geometry.hidden_size) == (300, 12)
    assert geometry.row_norm == pytest.approx(row_norms.max())
    assert geometry.row_norm_rms == pytest.approx(np.linalg.norm(weight) / np.sqrt(300))
    assert geometry.centred_row_norm_rms == pytest.approx(np.linalg.norm(centred) / np.sqrt(300))
    assert geometry.singular_values == pytest.approx(np.linalg.svd(weight, compute_uv=False))
    assert geometry.centred_singular_values == pytest.approx(np.linalg.svd(centred, compute_uv=False))
    assert geometry.feature_norm_max == pytest.approx(norms.max())
    assert geometry.feature_norm_rms == pytest.approx(np.sqrt((norms**2).mean()))
    cosine = (flat * weight[labels]).sum(1) / norms / row_norms[labels]
    assert geometry.target_cosine == pytest.approx(cosine.mean())
    assert geometry.logit_std == pytest.approx(np.sqrt((flat @ weight.T).var(axis=1).mean()))
    assert geometry.norm_product == pytest.approx(norms.max() * row_norms.max())
    power = np.linalg.svd(centred, compute_uv=False) ** 2
    assert geometry.participation_ratio == pytest.approx(power.sum() ** 2 / (power**2).sum())


def test_torch_and_batches_give_the_same_geometry(head):
    weight, features, targets = head
    reference = HeadGeometry.measure(weight, features, targets)
    tensors = HeadGeometry.measure(
        torch.tensor(weight, requires_grad=True), torch.tensor(features), torch.tensor(targets)
    )
    batched = HeadGeometry.measure(weight, iter(list(features)), iter(list(targets)))
    for other in (tensors, batched):
        assert other.singular_values == pytest.approx(reference.singular_values)
        assert other.target_cosine == pytest.approx(reference.target_cosine)
        assert other.logit_std == pytest.approx(reference.logit_std)


def test_bfloat16_heads_are_read_in_float64(head):
    weight = torch.tensor(head[0]).bfloat16()
    geometry = HeadGeometry.measure(weight)
    assert geometry.singular_values == pytest.approx(np.linalg.svd(weight.double().numpy(), compute_uv=False))


def test_rho_is_that_of_the_norm_product(head):
    geometry = HeadGeometry.measure(head[0], head[1])
    expected = smoothing.effectiveness_ratio(geometry.norm_product, 300, 0.1, temperature=3.0, softcap=20.0)
    assert geometry.rho(0.1, temperature=3.0, softcap=20.0) == pytest.approx(expected)


def simplex_geometry(norm_product, vocab_size=20):
    rows = np.eye(vocab_size) - 1 / vocab_size
    rows /= np.linalg.norm(rows[0])
    return HeadGeometry.measure(rows, norm_product * rows)


def test_caps_of_a_simplex_head_agree_with_each_other():
    table = {row.name: row for row in simplex_geometry(4.0).cap_table(0.1)}
    exact = caps.max_gap(4.0, 20)
    for name in ("simplex", "rank", "spectral", "frobenius"):
        assert table[name].gap == pytest.approx(exact, rel=1e-6)
        assert table[name].confidence == pytest.approx(caps.simplex_cap(4.0, 20), rel=1e-6)
    assert table["single_token"].gap == pytest.approx(8.0)


def test_a_temperature_of_one_half_doubles_every_gap():
    warm, cool = (simplex_geometry(4.0).cap_table(0.1, temperature=t) for t in (1.0, 0.5))
    doubled = {row.name: 2 * row.gap for row in warm if row.name != "packing"}
    assert {row.name: row.gap for row in cool if row.name != "packing"} == pytest.approx(doubled)


def test_gaps_stay_finite_where_the_confidence_rounds_to_one():
    table = simplex_geometry(500.0).cap_table(0.1)
    assert all(np.isfinite(row.gap) and row.confidence == 1 for row in table)


def test_verdicts_turn_at_the_gap_that_smoothing_asks_for():
    asked = smoothing.optimal_gap(0.1, 20) * 19 / 20
    for factor, verdict in ((0.99, "binds"), (1.01, "vacuous")):
        table = {row.name: row.verdict for row in simplex_geometry(factor * asked).cap_table(0.1)}
        assert table["simplex"] == table["frobenius"] == verdict
        assert table["single_token"] == "vacuous"
        cooler = {row.name: row.verdict for row in simplex_geometry(factor * asked).cap_table(0.1, temperature=0.5)}
        assert cooler["simplex"] == "vacuous"


def test_a_softcap_enters_the_table():
    table = simplex_geometry(50.0).cap_table(0.1, softcap=2.0)
    assert table[0].name == "softcap"
    assert table[0].verdict == "binds"
    assert [row.gap for row in table] == sorted(row.gap for row in table)
    one = next(row for row in table if row.name == "single_token")
    assert one.gap == pytest.approx(2 * 2.0 * np.tanh(50.0 / 2.0))
    cooler = {row.name: row for row in simplex_geometry(3.0).cap_table(0.1, temperature=0.5, softcap=2.0)}
    assert cooler["single_token"].gap == pytest.approx(8 * np.tanh(1.5))
    # a linear cap below 1/2 proves nothing better than 1/2 under a softcap
    low = {row.name: row for row in simplex_geometry(0.1).cap_table(0.1, softcap=2.0)}
    assert low["simplex"].confidence == pytest.approx(0.5)


def test_no_cap_of_the_table_is_violated_by_the_head_itself(head):
    weight, _, _ = head
    best = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    z = 4 * best @ weight.T
    p = np.exp(z - z.max(1, keepdims=True))
    smallest = (p / p.sum(1, keepdims=True)).diagonal().min()
    for row in HeadGeometry.measure(weight, 4 * best).cap_table():
        assert smallest <= row.confidence * (1 + 1e-9), row.name


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([[1.0]],), TypeError, "weight must be a numpy array or a torch tensor, got list."),
        ((np.ones(3),), ValueError, "weight must have shape (vocab_size >= 2, hidden_size >= 1), got the shape (3,)."),
        ((np.full((2, 2), np.nan),), ValueError, "weight must not be NaN"),
        ((np.eye(3), np.ones((4, 2))), ValueError, "features must have shape (..., 3), got the shape (4, 2)."),
        ((np.eye(3), np.ones((0, 3))), ValueError, "features must hold at least one vector, got none."),
        ((np.eye(3), 5), TypeError, "features must be an array, a tensor or an iterable of them, got int."),
        ((np.eye(3), None, np.zeros(2, int)), ValueError, "targets must come with features, got features None."),
        (
            (np.eye(3), np.ones((4, 3)), np.zeros(3, int)),
            ValueError,
            "targets must have the shape (4,) of the features",
        ),
        ((np.eye(3), np.ones((1, 3)), np.array([3])), ValueError, "targets must be in [0, 3), got values from 3 to 3."),
        ((np.eye(3), np.ones((1, 3)), np.array([1.0])), TypeError, "targets must be integers, got the dtype float64."),
    ],
)
def test_errors_of_measure(arguments, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        HeadGeometry.measure(*arguments)


def test_quantities_that_need_features_say_so():
    geometry = HeadGeometry.measure(np.eye(3))
    for call in (lambda: geometry.norm_product, lambda: geometry.rho(0.1), geometry.cap_table):
        with pytest.raises(ValueError, match="features must be given to HeadGeometry"):
            call()
