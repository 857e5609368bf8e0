"""Every proven cap against what gradient descent finds, over more than a thousand random heads; the softcap; the tightest."""

import re

import numpy as np
import pytest

from analysis import caps, projected
from analysis.caps._softcap import symmetric_gap
from analysis.norm_ball import fit_norm_ball

SHAPES = [(v, d) for v in (2, 3, 4, 6, 9, 16, 28) for d in (1, 2, 3, 5, 8, 16, 28)]
PER_SHAPE = 24  # random (m, T, c): 1,176 configurations


@pytest.fixture(scope="module")
def searched():
    """Columns V, D, m, T, c and the gap found."""
    rng = np.random.default_rng(2)
    table = []
    for v, d in SHAPES:
        m, t = 10 ** rng.uniform(-1.5, 2.3, PER_SHAPE), 10 ** rng.uniform(-0.7, 0.7, PER_SHAPE)
        c = np.where(np.arange(PER_SHAPE) % 2, 10 ** rng.uniform(-0.5, 2.0, PER_SHAPE), 1e12)
        found = caps.attained_gap(m, v, d, temperature=t, softcap=c, restarts=2, steps=120)
        table.append(np.stack([np.full(PER_SHAPE, v), np.full(PER_SHAPE, d), m, t, c, found]))
    return np.concatenate(table, axis=1)


def violations(found, bound):
    return int((found > bound + 1e-9 * (1 + np.abs(bound))).sum())


def test_more_than_a_thousand_configurations(searched):
    assert searched.shape[1] > 1000


def test_no_softcap_bound_is_violated(searched):
    v, _, m, t, c, found = searched
    assert violations(found, caps.softcap_gap(m, v, c, temperature=t)) == 0
    assert violations(found, caps.max_gap(m, v, softcap=c, temperature=t)) == 0
    assert violations(found, 2 * m / t) == 0


def test_no_linear_bound_is_violated(searched):
    v, d, m, t, _, found = searched[:, searched[4] > 1e11]
    assert violations(found, caps.rank_gap(m / t, v, d)) == 0
    assert violations(found, caps.max_gap(m, v, temperature=t)) == 0
    assert violations(found, caps.confidence_to_gap(caps.packing_cap(m / t, v, d), v)) == 0
    margin = caps.margin_bounds(v, d).upper * m / t
    assert violations(found, margin + np.log(v - 1)) == 0


def test_the_tightest_cap_is_never_violated(searched):
    v, d, m, t, c, found = searched
    assert violations(found, caps.confidence_cap(m, v, d, temperature=t, softcap=c).gap) == 0


def test_no_trained_head_beats_the_tightest_cap():
    rng = np.random.default_rng(7)
    for v, d in SHAPES[::2]:
        m, t, b = 10 ** rng.uniform(-1, 2, 8), 10 ** rng.uniform(-0.5, 0.5, 8), np.repeat([0.0, 0.2], 4)
        c = np.tile([1e12, 4.0], 4)
        head = fit_norm_ball(v, d, m, temperature=t, softcap=c, label_smoothing=b, restarts=1, steps=150)
        cap = caps.confidence_cap(m, v, d, temperature=t, softcap=c).confidence
        assert np.all(head.smallest_confidence <= cap * (1 + 1e-9)), (v, d)
        assert np.all(head.smallest_confidence <= head.confidence)


def test_the_conjecture_that_free_features_never_beat_the_kernel_cap(searched):
    v, d, m, t, _, found = searched[:, searched[4] > 1e11]
    with np.errstate(divide="ignore"):
        assert violations(found, caps.confidence_to_gap(caps.aligned_cap(m / t, v, d), v)) == 0


@pytest.mark.parametrize(("v", "d"), [(3, 2), (4, 2), (6, 3), (8, 4), (8, 7), (8, 12)])
@pytest.mark.parametrize("m", [0.5, 3.0, 8.0])
def test_gradient_attains_the_tight_caps(v, d, m):
    found = caps.best_confidence(v, d, m, restarts=16, steps=1000)
    assert found == pytest.approx(caps.rank_cap(m, v, d), abs=1e-4)


def test_the_gap_of_the_note_under_a_softcap():
    assert caps.attained_gap(12, 32, 32, softcap=5) == pytest.approx(7.055, abs=5e-4)


@pytest.mark.parametrize(("m", "c"), [(0.5, 0.5), (3, 2), (12, 5), (12, 2), (40, 15)])
def test_gradient_alone_finds_the_symmetric_heads_and_no_better(m, c):
    v = np.asarray(8.0)
    family = symmetric_gap(np.asarray(float(m)), v, np.asarray(float(c)))
    problem = projected.Problem(*(np.full(6, float(x)) for x in (m, 1, c)))
    rows, features = projected.start(6, 8, 8, np.random.default_rng(0))

    def slope(z, progress):
        gaps, rivals = projected.gaps(z)
        weight = np.exp(-0.05 * 6000**progress * (gaps - gaps.min(-1, keepdims=True)))
        return (weight / weight.sum(-1, keepdims=True))[..., None] * (rivals - np.eye(8))

    projected.descend(rows, features, problem, slope, steps=600)
    found = projected.gaps(projected.logits(rows, features, problem)[0])[0].min(-1).max()
    assert found == pytest.approx(family, rel=1e-4)


@pytest.mark.parametrize(("m", "c", "exact"), [(12, 2, True), (100, 15, True), (3, 0.5, True), (12, 15, False)])
def test_where_the_softcap_bound_is_exact(m, c, exact):
    bound, found = caps.softcap_gap(m, 8, c), caps.attained_gap(m, 8, 8, softcap=c, restarts=1, steps=1)
    assert bool(bound - found < 1e-8) == exact
    assert bound <= 1.05 * found


def test_softcap_bound_against_the_simple_one():
    rng = np.random.default_rng(0)
    v, m, c = (
        np.round(10 ** rng.uniform(0.31, 7, 4000)),
        10 ** rng.uniform(-3, 4, 4000),
        10 ** rng.uniform(-1, 3.5, 4000),
    )
    ratio = caps.softcap_gap(m, v, c) / caps.max_gap(m, v, softcap=c)
    assert ratio.max() <= 1 + 1e-9
    assert 0.8 < ratio.min() < 0.85
    assert caps.softcap_gap(m, v, None) == pytest.approx(caps.max_gap(m, v))


def test_a_softcap_never_raises_the_gap_of_a_head():
    m = np.array([1.0, 10.0, 100.0])
    none = caps.attained_gap(m, 12, 5)
    for c in (2.0, 10.0, 50.0):
        assert np.all(caps.attained_gap(m, 12, 5, softcap=c) <= none + 1e-3)


def test_results_repeat_and_follow_the_generator():
    assert caps.attained_gap(5, 20, 3, steps=20) == caps.attained_gap(5, 20, 3, steps=20)
    other = caps.attained_gap(5, 20, 3, steps=20, generator=np.random.default_rng(1))
    assert other != caps.attained_gap(5, 20, 3, steps=20)


def test_search_broadcasts_over_norm_temperature_and_softcap():
    table = caps.best_confidence(6, 2, np.array([1.0, 4.0]), temperature=np.array([[1.0], [0.5], [2.0]]), steps=200)
    assert table.shape == (3, 2)
    assert table[0, 1] == pytest.approx(caps.best_confidence(6, 2, 2.0, temperature=0.5, steps=200), abs=2e-3)


def test_names_of_the_tightest_cap():
    name = caps.confidence_cap([5.0, 5.0, 20.0, 5.0], [100, 100, 262_144, 100], [99, 10, 4, 10]).name
    assert name.tolist() == ["simplex", "rank", "packing", "rank"]
    assert caps.confidence_cap(12, 32_000, 64, softcap=5).name == "softcap"
    assert caps.confidence_cap(1, 4096, 4, aligned=True).name == "kernel"
    assert caps.confidence_cap(8, 256, 8, aligned=True).name == "linear_program"


def test_under_a_softcap_the_linear_bounds_prove_one_half_at_best():
    m, v, d = 20.0, 10**5, 1
    assert caps.confidence_cap(m, v, d).confidence < 0.01
    assert caps.confidence_cap(m, v, d, softcap=100.0).confidence == pytest.approx(0.5)
    assert caps.confidence_cap(m, v, d, softcap=0.5).name == "softcap"


def test_the_tightest_cap_is_the_least_of_its_parts():
    m, v, d = np.array([1.0, 10.0, 40.0]), 300, np.array([[2], [40], [400]])
    cap = caps.confidence_cap(m, v, d, temperature=2.0)
    parts = np.minimum(caps.rank_cap(m / 2, v, d), caps.packing_cap(m / 2, v, d))
    assert cap.confidence == pytest.approx(parts)
    assert cap.gap == pytest.approx(np.minimum(caps.rank_gap(m / 2, v, d), caps.confidence_to_gap(parts, v)), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: caps.attained_gap(1, [4, 5], 2), "vocab_size must be one number here, got the shape (2,)."),
        (lambda: fit_norm_ball([4, 5], 2, 1.0), "vocab_size must be one number here, got the shape (2,)."),
        (lambda: caps.attained_gap(1, 4, 2, restarts=0), "restarts must be finite and at least 1, got 0."),
        (lambda: caps.confidence_cap(1, 4, 2, softcap=5, aligned=True), "aligned=True must come without a softcap"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("vocab_size", "m", "c"), [(4, 3.0, 2.0), (32, 12.0, 5.0), (256, 20.0, 8.0)])
def test_of_the_constraints_of_the_softcap_bound_one_binds(vocab_size, m, c):
    """Notes, section 1 (4): E(p) + E(-q) over p <= m, -q <= m, p - mu q <= (mu - 1) m is largest on the last one."""
    x = np.linspace(-m, m, 4001)
    f = c * np.tanh(x / c)
    slopes = (f[None, 2000:] - f[0]) / (x[None, 2000:] - x[0])  # the envelope: a chord from -m, then f
    touch = 2000 + int(slopes.argmax())
    envelope = np.where(np.arange(x.size) < touch, f[0] + slopes.max() * (x - x[0]), f)
    mu = 2 * (vocab_size - 1) / (vocab_size - 2)
    p, r = x[:, None], x[None, :]  # r = -q
    inside = p + mu * r <= (mu - 1) * m * (1 + 1e-12)
    total = np.where(inside[::4, ::4], (envelope[:, None] + envelope[None, :])[::4, ::4], -np.inf)
    best = np.unravel_index(total.argmax(), total.shape)
    top, rest = x[::4][best[0]], x[::4][best[1]]
    assert total.max() == pytest.approx(float(caps.softcap_gap(m, vocab_size, c)), rel=5e-3)
    assert top + mu * rest == pytest.approx((mu - 1) * m, abs=2e-2 * m)
    assert top < m * 0.999  # p <= m does not bind here
