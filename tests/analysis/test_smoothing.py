"""What smoothing asks for (C0), rho and T* (C1, C2), the inverse (D2) and the activity index (C4)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from analysis import caps, smoothing


@pytest.mark.parametrize(("vocab_size", "gap"), [(32_000, 12.57), (128_000, 13.96), (256_000, 14.65)])
def test_optimal_gaps_of_the_note(vocab_size, gap):
    assert smoothing.optimal_gap(0.1, vocab_size) == pytest.approx(gap, abs=5e-3)


def test_controls_of_the_note_that_hold_the_gap_or_the_tail_fixed():
    held = smoothing.optimal_gap(0.1, 32_000)
    assert smoothing.optimal_gap(0.471, 256_000) == pytest.approx(held, abs=5e-3)
    assert smoothing.optimal_confidence(0.8, 256_000) - 0.2 == pytest.approx(0.1 / 32_000)


@pytest.mark.parametrize(("label_smoothing", "vocab_size"), [(0.1, 4), (0.5, 7), (0.9, 3)])
def test_the_minimiser_of_torchs_smoothed_loss(label_smoothing, vocab_size):
    target = torch.tensor([0])

    def loss(z):
        x = torch.tensor(z[None], dtype=torch.float64, requires_grad=True)
        value = torch.nn.functional.cross_entropy(x, target, label_smoothing=label_smoothing)
        return value.item(), torch.autograd.grad(value, x)[0][0].numpy()

    best = minimize(loss, np.zeros(vocab_size), jac=True, options={"gtol": 1e-10})
    p = torch.softmax(torch.tensor(best.x), 0)
    assert best.x[0] - best.x[1:] == pytest.approx(smoothing.optimal_gap(label_smoothing, vocab_size), abs=1e-6)
    assert p[0].item() == pytest.approx(smoothing.optimal_confidence(label_smoothing, vocab_size), abs=1e-6)
    assert best.fun == pytest.approx(smoothing.loss_floor(label_smoothing, vocab_size), abs=1e-10)


@given(st.floats(1e-6, 1), st.integers(2, 10**7))
def test_gap_and_confidence_are_the_same_optimum(label_smoothing, vocab_size):
    p = smoothing.optimal_confidence(label_smoothing, vocab_size)
    assert caps.gap_to_confidence(smoothing.optimal_gap(label_smoothing, vocab_size), vocab_size) == pytest.approx(p)


@pytest.mark.parametrize("label_smoothing", [0.0, 1e-15, 1e-6, 0.3, 0.49, 0.51, 0.999, 1.0])
@pytest.mark.parametrize("vocab_size", [2, 10, 1_000])
def test_loss_floor_is_the_entropy_of_the_target(label_smoothing, vocab_size):
    q = smoothing.smooth(np.eye(vocab_size)[0], label_smoothing)
    entropy = -(q[1:] * np.log(np.maximum(q[1:], 1e-300))).sum() - q[0] * np.log1p(-q[1:].sum())
    assert smoothing.loss_floor(label_smoothing, vocab_size) == pytest.approx(entropy, rel=1e-9, abs=1e-18)


def test_ends_of_the_smoothing_range():
    assert smoothing.optimal_gap(1, 50) == 0
    assert smoothing.loss_floor([0, 1], 50).tolist() == pytest.approx([0, np.log(50)])
    assert smoothing.optimal_confidence([0, 1], 50).tolist() == [1, 1 / 50]


def test_rho_of_the_note_says_active_where_the_rank_says_inert():
    assert smoothing.effectiveness_ratio(6, 32, 0.1) == pytest.approx(1.09, abs=5e-3)


@pytest.mark.parametrize(("softcap", "acts"), [(7.3, False), (7.35, True), (30, True), (128, True)])
def test_a_contraction_binds_at_256k_only_below_seven(softcap, acts):
    """Logits at +-c, any norm: 2c against G_LS = 14.65."""
    assert (smoothing.effectiveness_ratio(1e6, 256_000, 0.1, softcap=softcap) > 1) == acts


def test_rho_at_its_corners():
    assert smoothing.effectiveness_ratio([0, 1, 0], 10, [0.1, 1, 1]).tolist() == [0, np.inf, 0]


@given(st.floats(0.01, 100), st.integers(2, 10**6), st.floats(0.01, 0.99), st.one_of(st.none(), st.floats(1, 100)))
def test_rho_is_one_at_the_restoring_temperature(m, vocab_size, label_smoothing, softcap):
    t = smoothing.restoring_temperature(m, vocab_size, label_smoothing, softcap=softcap)
    rho = smoothing.effectiveness_ratio(m, vocab_size, label_smoothing, temperature=t, softcap=softcap)
    assert rho == pytest.approx(1)


@given(st.integers(2, 30), st.floats(0, 0.99), st.integers(0, 2**31))
def test_unsmooth_inverts_smooth(vocab_size, label_smoothing, seed):
    p = np.random.default_rng(seed).dirichlet(np.full(vocab_size, 0.3), size=4)
    q = smoothing.smooth(p, label_smoothing)
    assert q.sum(-1) == pytest.approx(1)
    assert smoothing.unsmooth(q, label_smoothing) == pytest.approx(p, abs=1e-12)


def test_unsmooth_clips_and_renormalises_off_the_optimum():
    # 0.02 < b/V = 0.05 would become negative
    assert smoothing.unsmooth([0.9, 0.08, 0.02, 0.0], 0.2).tolist() == pytest.approx([0.85 / 0.88, 0.03 / 0.88, 0, 0])


def test_smoothing_broadcasts_over_rows():
    q = smoothing.smooth(np.full((3, 5), 0.2), [[0.0], [0.5]])
    assert q.shape == (2, 3, 5)
    assert q == pytest.approx(0.2)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 20), st.floats(0, 1))
def test_the_index_has_the_sign_of_the_derivative_for_every_input(entropy, cross_entropy, above, label_smoothing):
    uniform = entropy + above  # as in every softmax
    slope = (entropy - cross_entropy) - label_smoothing * (uniform - cross_entropy)
    index = smoothing.activity_index(entropy, cross_entropy, uniform, label_smoothing)
    assert not np.isnan(index)
    if abs(slope) > 1e-9:
        assert np.sign(index - 1) == np.sign(slope)


@pytest.mark.parametrize(
    ("arguments", "index"),
    [
        ((2.0, 1.0, 11.0, 0.1), 1.0),
        ((2.0, 1.0, 3.0, 0.0), np.inf),  # b = 0 and the scale still rising
        ((1.0, 2.0, 3.0, 0.0), -np.inf),  # b = 0 and over-confident
        ((1.0, 1.0, 3.0, 0.0), 1.0),  # b = 0 and stationary
        ((3.0, 4.0, 3.5, 0.5), -np.inf),  # worse on its targets than on uniform ones
        ((1.0, 2.0, 1.5, 0.5), -np.inf),
        ((2.0, 2.0, 2.0, 0.1), 1.0),  # a head of zeros
        ((np.log(10), np.nextafter(np.log(10), 0), np.nextafter(np.log(10), 0), 0.1), 1.0),  # one in rounding
        ((np.log(10), np.nextafter(np.log(10), 9), np.log(10), 0.1), 1.0),
        ((np.nextafter(1, 2), 1.0, 3.0, 0.0), 1.0),
        ((np.float32(2.3025851), np.float32(2.302585), np.float32(2.3025847), 0.1), 1.0),
        ((torch.tensor(2.3026), torch.tensor(2.3025998), torch.tensor(2.3025996), 0.1), 1.0),
        ((2.3027, 2.3026, 2.3025, 0.1), 1.0),  # H above CE_u tells how much was rounded
        ((1e-9, 2e-9, 11.0, 0.1), -1e-9 / 1.1),
        ((2.0 + 1e-9, 2.0, 2.0 + 2e-9, 0.1), 5.0),  # small and no rounding
        ((2.0 - 2e-9, 2.0, 2.0 - 1e-9, 0.1), -np.inf),
    ],
)
def test_index_where_its_denominator_vanishes_or_turns_negative(arguments, index):
    assert smoothing.activity_index(*arguments) == pytest.approx(index)
