"""Selective prediction against enumeration of tied orders, scikit-learn, and the AUGRC identity."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from analysis.calibration import risk_at_coverage, risk_coverage_curve, selective_scores

samples = st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.4, 0.9, 1.0]), st.booleans()), min_size=1, max_size=6)


def enumerated(pairs):
    """Mean over all orders that sort by confidence: risks at each coverage, AURC, AUGRC."""
    n, found = len(pairs), []
    for order in set(itertools.permutations(range(n))):
        confidence = [pairs[i][0] for i in order]
        if confidence != sorted(confidence, reverse=True):
            continue
        wrong = np.cumsum([not pairs[i][1] for i in order])
        augrc = trapezoid(np.concatenate([[0], wrong]) / n, np.arange(n + 1) / n)
        found.append([*(wrong / np.arange(1, n + 1)), augrc])
    mean = np.mean(found, axis=0)
    return mean[:-1], mean[:-1].mean(), mean[-1]


@given(samples)
def test_ties_are_the_mean_over_their_orders(pairs):
    confidence, correct = zip(*pairs, strict=True)
    risk, aurc, augrc = enumerated(pairs)
    np.testing.assert_allclose(risk_coverage_curve(confidence, correct).risk, risk, atol=1e-12)
    scores = selective_scores(confidence, correct)
    assert (scores.aurc, scores.augrc) == pytest.approx((aurc, augrc), abs=1e-12)
    if 0 < sum(correct) < len(correct):
        accuracy = sum(correct) / len(correct)
        identity = (1 - scores.auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
        assert scores.augrc == pytest.approx(identity, abs=1e-12)
    else:
        assert np.isnan(scores.auroc)


def test_auroc_equals_scikit_learns():
    oracle = pytest.importorskip("sklearn.metrics", reason="scikit-learn is an optional oracle")
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 300, 20_000) / 300  # many ties
    correct = rng.random(20_000) < confidence
    assert selective_scores(confidence, correct).auroc == pytest.approx(
        oracle.roc_auc_score(correct, confidence), abs=1e-12
    )


def test_perfect_and_worst_rankings():
    correct = np.array([1, 1, 1, 0])
    best = selective_scores([0.9, 0.8, 0.7, 0.1], correct)
    assert best == pytest.approx((1 / 16, 0, 1 / 32, 1))
    worst = selective_scores([0.1, 0.2, 0.3, 0.9], correct)
    assert worst.auroc == 0
    assert worst.aurc == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert worst.excess_aurc == pytest.approx(worst.aurc - best.aurc)


def test_saturated_confidences_are_ranked_by_log1m():
    log1m = np.array([-20.0, -30.0, -40.0, -50.0])
    correct = [0, 0, 1, 1]
    assert selective_scores(np.ones(4), correct).auroc == 0.5
    assert selective_scores(np.ones(4), correct, log1m_confidence=log1m).auroc == 1
    assert risk_at_coverage(np.ones(4), correct, 0.5, log1m_confidence=log1m) == 0


def test_risk_at_coverage_rounds_up_to_whole_samples():
    confidence, correct = np.linspace(1, 0.1, 10), np.arange(10) < 5
    risk = risk_at_coverage(confidence, correct, [1e-9, 0.3, 0.5, 0.51, 1.0])
    assert risk.tolist() == pytest.approx([0, 0, 0, 1 / 6, 0.5])
    # .3 * 10 in floating point is slightly above 3 for some n; it must not become 4
    assert risk_at_coverage(confidence, np.arange(10) < 3, 0.1 * 3) == 0
    with pytest.raises(ValueError, match=r"coverage must be in \(0, 1\], got 0"):
        risk_at_coverage(confidence, correct, 0)


def test_refusals():
    with pytest.raises(ValueError, match=r"log1m_confidence must be log\(1 - confidence\)"):
        risk_coverage_curve([0.5], [1], log1m_confidence=[-5.0])
