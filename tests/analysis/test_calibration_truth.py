"""True calibration error: closed form (D2), brute-force definition, sampled labels, proper-score splits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.calibration import (
    binned_true_error,
    calibration_error,
    tied_accuracy,
    true_calibration_error,
    true_decomposition,
)


def distributions(rng, contexts, vocab_size, sharpness=2.0):
    logits = sharpness * rng.standard_normal((contexts, vocab_size))
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True)


@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(0, 0.99))
def test_smoothing_a_right_model_costs_b_times_excess_confidence(seed, vocab_size, smoothing):
    true = distributions(np.random.default_rng(seed), 30, vocab_size)
    model = (1 - smoothing) * true + smoothing / vocab_size
    expected = smoothing * (true.max(-1).mean() - 1 / vocab_size)  # equation D2
    assert true_calibration_error(model, true) == pytest.approx(expected, abs=1e-12)
    assert true_calibration_error(model, true, n_bins=15) == pytest.approx(expected, abs=1e-12)  # gaps of one sign


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("kind", ["top_label", "canonical"])
def test_equals_the_definition_written_out(norm, kind):
    rng = np.random.default_rng(1)
    true = distributions(rng, 12, 4)
    model = distributions(rng, 4, 4)[rng.integers(0, 4, 12)]  # few predictions: contexts merge
    weight = rng.random(12)
    weight[3] = 0
    groups = {}
    for p, q, w in zip(model, true, weight, strict=True):
        top = int(p.argmax())
        key = p[top] if kind == "top_label" else tuple(p)
        gap = p[top] - q[top] if kind == "top_label" else p - q
        groups.setdefault(key, []).append((w, gap))
    shares = np.array([sum(w for w, _ in g) for g in groups.values()]) / weight.sum()
    gaps = [np.atleast_1d(sum(w * x for w, x in g) / sum(w for w, _ in g)) for g in groups.values()]
    if norm == "max":
        expected = max(np.abs(g).max() for g in gaps)
    else:
        power = 1 if norm == "l1" else 2
        expected = sum(s * (np.abs(g) ** power).sum() for s, g in zip(shares, gaps, strict=True)) ** (1 / power)
    value = true_calibration_error(model, true, weight=7 * weight, kind=kind, norm=norm)
    assert value == pytest.approx(expected, abs=1e-14)


def test_context_is_an_upper_bound_that_a_coarse_model_does_not_pass():
    true = [[0.9, 0.1], [0.5, 0.5]]
    coarse = [[0.7, 0.3]] * 2
    assert true_calibration_error(coarse, true) == pytest.approx(0, abs=1e-15)
    assert true_calibration_error(coarse, true, kind="canonical") == pytest.approx(0, abs=1e-15)
    assert true_calibration_error(coarse, true, given="context") == pytest.approx(0.2)
    assert true_calibration_error(coarse, true, given="context", kind="canonical") == pytest.approx(0.4)


def test_binned_truth_is_the_limit_of_the_estimate():
    rng = np.random.default_rng(2)
    true, model = distributions(rng, 200, 5), distributions(rng, 200, 5)
    context = rng.integers(0, 200, 400_000)
    label = (rng.random((context.size, 1)) > true.cumsum(-1)[context]).sum(-1)
    estimate = calibration_error(model.max(-1)[context], label == model.argmax(-1)[context])
    weight = np.bincount(context, minlength=200)
    assert estimate == pytest.approx(true_calibration_error(model, true, weight=weight, n_bins=15), abs=4e-3)


def test_tensors_and_leading_axes():
    p = torch.softmax(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)), -1).requires_grad_()
    assert true_calibration_error(p, p, kind="canonical") == 0
    uniform = torch.full((3, 4, 6), 1 / 6)
    # All classes tie and share their accuracies, 1/6 in every context, as says the confidence.
    assert true_calibration_error(uniform, p) == pytest.approx(0, abs=1e-7)
    # Two classes tie: their mean; the confidence is always 1/4, so all contexts merge.
    two = torch.tensor([0.25, 0.25, 0.125, 0.125, 0.125, 0.125]).expand(3, 4, 6)
    expected = abs(1 / 4 - p[..., :2].mean().item())
    assert true_calibration_error(two, p) == pytest.approx(expected, abs=1e-7)


def test_decomposition_adds_up_to_the_expected_scores():
    rng = np.random.default_rng(3)
    true = distributions(rng, 40, 6)
    model = distributions(rng, 8, 6)[rng.integers(0, 8, 40)]
    weight = rng.random(40)
    split = true_decomposition(model, true, weight=weight)
    share = weight / weight.sum()
    assert split.nll == pytest.approx(share @ -(true * np.log(model)).sum(-1), abs=1e-12)
    brier = sum(share @ (true[:, y] * ((model - np.eye(6)[y]) ** 2).sum(-1)) for y in range(6))
    assert split.brier == pytest.approx(brier, abs=1e-12)
    assert split.nll_irreducible == pytest.approx(share @ -(true * np.log(true)).sum(-1), abs=1e-12)
    assert split.brier_irreducible == pytest.approx(share @ (true * (1 - true)).sum(-1), abs=1e-12)
    assert 0 < split.nll_irreducible < split.nll_refinement < split.nll
    assert 0 < split.brier_irreducible < split.brier_refinement < split.brier
    right = true_decomposition(true, true)
    assert right.nll_calibration == right.brier_calibration == 0
    assert right.nll_refinement == right.nll_irreducible


def test_an_excluded_label_costs_infinity_unless_its_context_never_occurs():
    model, true = [[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]
    assert true_decomposition(model, true).nll == np.inf
    assert true_decomposition(model, true, weight=[0, 1]).nll == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"p_true": [[0.5, 0.5, 0.0]]}, ValueError, r"p_true must have p_model's shape \(1, 2\), got \(1, 3\)"),
        ({"p_model": [[0.5, np.nan]]}, ValueError, "p_model must not be NaN"),
        ({"p_model": [[0.5, 0.6]]}, ValueError, "p_model must sum to 1"),
        ({"weight": [-1.0]}, ValueError, "weight must be finite, at least 0 and not all 0"),
        ({"weight": [1.0, 1.0]}, ValueError, r"weight must have one entry a context, the shape \(1,\), got \(2,\)"),
        ({"kind": "class"}, ValueError, r"kind must be one of \('top_label', 'canonical'\), got 'class'"),
        ({"given": "x"}, ValueError, "given must be one of"),
        ({"norm": "l3"}, ValueError, "norm must be one of"),
        ({"n_bins": 0}, ValueError, "n_bins must be at least 1, got 0"),
        ({"n_bins": 2.0}, TypeError, "n_bins must be an int, got float"),
        ({"n_bins": 5, "kind": "canonical"}, ValueError, "n_bins must be None with kind='canonical'"),
    ],
)
def test_refusals(arguments, error, text):
    with pytest.raises(error, match=text):
        true_calibration_error(**{"p_model": [[0.5, 0.5]], "p_true": [[0.5, 0.5]], **arguments})


def test_tied_predictions_have_their_mean_accuracy():
    """A head that repeats counts of 3, 3, 2: which of the first two tokens comes first says nothing of it."""
    true = np.array([[0.5, 0.1, 0.4]])
    for noise in (1e-3, -1e-3):
        model = np.array([[3 + noise, 3 - noise, 2]]) / 8
        expected = abs(model.max() - 0.3)
        assert true_calibration_error(model, true, n_bins=15, tie_tolerance=0.01) == pytest.approx(expected)
        assert tied_accuracy(model, true, 0.01) == pytest.approx([0.3])
        assert tied_accuracy(torch.from_numpy(model), torch.from_numpy(true), 0.01).tolist() == pytest.approx([0.3])
    exact = np.array([[3, 3, 2]]) / 8
    assert true_calibration_error(exact, true) == pytest.approx(abs(3 / 8 - 0.3))
    assert tied_accuracy(np.array([[3.2, 2.8, 2.0]]) / 8, true, 0.01) == pytest.approx([0.5])  # no tie


def test_close_probabilities_of_other_counts_are_no_ties():
    """A cap leaves counts of 4, 3 and 1 nearly one probability: the head still tells them apart."""
    true, counts = np.array([[0.5, 0.1, 0.4, 0.0]]), np.array([[4.0, 3.0, 1.0, 0.0]])
    model = np.array([[0.334, 0.333, 0.332, 0.001]])
    assert tied_accuracy(model, true, counts=counts) == pytest.approx([0.5])
    assert tied_accuracy(model, true, counts=np.array([[4.0, 4.0, 1.0, 0.0]])) == pytest.approx([0.3])
    exact = np.array([[0.333, 0.333, 0.333, 0.001]])  # here it does not
    for convert in (np.asarray, torch.from_numpy):
        found = tied_accuracy(convert(exact), convert(true), counts=convert(counts))
        assert found.tolist() == pytest.approx([1 / 3])


def test_the_order_of_tokens_changes_no_error():
    rng = np.random.default_rng(5)
    counts = rng.multinomial(4, distributions(rng, 50, 6)).astype(float) / 4
    true, order = distributions(rng, 50, 6), rng.permutation(6)
    one, two = (true_calibration_error(counts[:, x], true[:, x], n_bins=15) for x in (np.arange(6), order))
    assert one == pytest.approx(two, abs=1e-12)


def test_the_binned_error_of_confidences_is_that_of_distributions():
    rng = np.random.default_rng(6)
    model, true = distributions(rng, 80, 5), distributions(rng, 80, 5)
    found = binned_true_error(model.max(-1), tied_accuracy(model, true, 0.0))
    assert found == pytest.approx(true_calibration_error(model, true, n_bins=15), abs=1e-12)


def test_a_wrong_tie_tolerance_is_named():
    with pytest.raises(ValueError, match=r"tie_tolerance must be in \[0, 1\), got 1.5"):
        true_calibration_error([[0.5, 0.5]], [[0.5, 0.5]], tie_tolerance=1.5)
