"""Post-hoc maps and option-restricted confidence against scikit-learn, closed forms and brute force."""

import sys

import numpy as np
import pytest

from analysis.calibration import (
    IsotonicMap,
    PlattMap,
    VectorMap,
    answer_confidence,
    calibration_error,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    fit_vector,
    option_confidence,
    smooth_calibration_error,
    unsmooth_confidence,
)
from analysis.smoothing import smooth, unsmooth


def overconfident(n, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 0.999, n)
    return confidence, rng.random(n) < 1 / (1 + np.exp(-(0.5 * np.log(confidence / (1 - confidence)) - 0.3)))


class TestMaps:
    def test_isotonic_equals_scikit_learn_and_calibrates_new_data(self):
        oracle = pytest.importorskip("sklearn.isotonic", reason="scikit-learn is an optional dependency")
        confidence, correct = overconfident(5000)
        fitted = fit_isotonic(confidence, correct)
        model = oracle.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(confidence, correct)
        new, right = overconfident(50_000, seed=1)
        np.testing.assert_allclose(fitted(new), model.predict(new), atol=1e-12)
        assert calibration_error(new, right) > 0.1
        assert calibration_error(fitted(new), right) < 0.025
        assert fitted([[0.0, 1.0]]).shape == (1, 2)

    def test_platt_recovers_the_logistic_truth(self):
        pytest.importorskip("sklearn", reason="scikit-learn is an optional dependency")
        confidence, correct = overconfident(200_000)
        fitted = fit_platt(confidence, correct)
        assert (fitted.slope, fitted.intercept) == pytest.approx((0.5, -0.3), abs=0.02)
        # the score equations of maximum likelihood
        residual = fitted(confidence) - correct
        x = np.log(confidence / (1 - confidence))
        assert (residual.mean(), (residual * x).mean()) == pytest.approx((0, 0), abs=1e-6)
        assert fitted(np.array([0.0, 1.0])).tolist() == [0, 1]
        with pytest.raises(ValueError, match="correct must hold right and wrong predictions"):
            fit_platt([0.5, 0.6], [1, 1])

    def test_vector_scaling_solves_the_likelihood_equations_and_nests_temperature(self):
        rng = np.random.default_rng(3)
        logits = 3 * rng.standard_normal((4000, 4))
        truth = np.array([0.3, 0.6, 1.0, 0.5]), np.array([0.5, -0.5, 0.2, -0.2])
        p = np.exp(truth[0] * logits + truth[1])
        p /= p.sum(-1, keepdims=True)
        target = (rng.random((4000, 1)) > p.cumsum(-1)).sum(-1)
        fitted = fit_vector(logits, target)
        log_p = fitted(logits)
        residual = np.exp(log_p) - np.eye(4)[target]
        np.testing.assert_allclose((residual * logits).mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(residual.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(fitted.scale, truth[0], atol=0.12)
        assert fitted.bias.sum() == pytest.approx(0, abs=1e-12)
        assert -log_p[np.arange(4000), target].mean() <= fit_temperature(logits, target).nll

    @pytest.mark.parametrize(
        ("logits", "target", "error", "text"),
        [
            (np.zeros(3), [0], ValueError, r"logits must have shape \(N, K\), got \(3,\)"),
            (np.zeros((1, 3)), [-100], ValueError, r"target must be in \[0, 3\), got -100"),
            (np.full((1, 3), np.nan), [0], ValueError, "logits must be finite"),
        ],
    )
    def test_vector_refusals(self, logits, target, error, text):
        with pytest.raises(error, match=text):
            fit_vector(logits, target)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
    def test_unsmoothing_a_confidence_is_the_top_of_unsmoothing_the_distribution(self, label_smoothing):
        p = np.random.default_rng(4).dirichlet(np.ones(6), 50)
        smoothed = smooth(p, label_smoothing)
        expected = unsmooth(smoothed, label_smoothing).max(-1)
        np.testing.assert_allclose(unsmooth_confidence(smoothed.max(-1), label_smoothing, 6), expected, atol=1e-12)
        assert unsmooth_confidence([0.99], 0.1, 6).tolist() == [1.0]
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1"):
            unsmooth_confidence([0.5], 1.0, 6)

    @pytest.mark.parametrize(("fit", "module"), [(fit_isotonic, "sklearn"), (smooth_calibration_error, "relplot")])
    def test_missing_dependencies_are_named(self, fit, module, monkeypatch):
        for name in [module, *(m for m in sys.modules if m.startswith(f"{module}."))]:
            monkeypatch.setitem(sys.modules, name, None)
        name = module.replace("sklearn", "scikit-learn")
        with pytest.raises(ImportError, match=rf"needs {name}: pip install '.\[calibration\]' in a clone"):
            fit([0.5, 0.6], [0, 1])

    @pytest.mark.parametrize("fitted", [IsotonicMap(np.array([0.2, 0.8]), np.array([0.1, 0.9])), PlattMap(1.0, 0.0)])
    def test_maps_refuse_what_is_no_confidence(self, fitted):
        assert fitted(np.full((2, 3), 0.5, np.float16)).tolist() == [[pytest.approx(0.5)] * 3] * 2
        with pytest.raises(ValueError, match="confidence must not be NaN"):
            fitted([0.5, np.nan])
        with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 1.5"):
            fitted(1.5)

    def test_vector_map_refuses_other_shapes_and_nan(self):
        fitted = VectorMap(np.ones(2), np.zeros(2))
        with pytest.raises(ValueError, match=r"logits must have shape \(..., 2\), got \(1, 1\)"):
            fitted([[1.0]])
        with pytest.raises(ValueError, match="logits must be finite"):
            fitted([1.0, np.nan])

    def test_smooth_error_lies_near_the_binned_one(self):
        pytest.importorskip("relplot", reason="relplot is an optional dependency")
        confidence, correct = overconfident(20_000)
        # No theorem: on a smooth gap of one sign both estimate E|gap|.
        assert smooth_calibration_error(confidence, correct) == pytest.approx(
            calibration_error(confidence, correct), abs=0.03
        )


class TestOptions:
    def test_four_letters_of_a_vocabulary(self):
        rng = np.random.default_rng(5)
        logits = 3 * rng.standard_normal((20, 3, 100))
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        letters = [7, 3, 50, 99]
        result = option_confidence(log_p[..., letters])
        e = np.exp(logits[..., letters])
        np.testing.assert_allclose(result.confidence, (e / e.sum(-1, keepdims=True)).max(-1))
        np.testing.assert_array_equal(result.choice, e.argmax(-1))
        np.testing.assert_allclose(result.mass, np.exp(log_p[..., letters]).sum(-1))
        np.testing.assert_allclose(result.full_confidence, result.confidence * result.mass)

    def test_answers_are_compared_by_perplexity(self):
        rng = np.random.default_rng(6)
        length = rng.integers(1, 6, (10, 4))
        mask = np.arange(5) < length[..., None]
        log_p = np.where(mask, -rng.exponential(1, (10, 4, 5)), np.nan)  # padding does not matter
        result = answer_confidence(log_p, mask)
        for q in range(10):
            inverse = np.array([np.exp(np.mean(log_p[q, k, : length[q, k]])) for k in range(4)])
            assert result.choice[q] == inverse.argmax()
            assert result.confidence[q] == pytest.approx(inverse.max() / inverse.sum())
            whole = np.array([np.exp(np.sum(log_p[q, k, : length[q, k]])) for k in range(4)])
            assert result.full_confidence[q] == pytest.approx(whole[inverse.argmax()])
            assert result.mass[q] == pytest.approx(min(whole.sum(), 1))

    def test_an_impossible_option_is_fine_and_only_impossible_ones_are_not(self):
        assert option_confidence([-np.inf, -1.0]).confidence == 1
        with pytest.raises(ValueError, match="log_probability must be above -inf for at least one option"):
            option_confidence([-np.inf, -np.inf])

    @pytest.mark.parametrize(
        ("call", "text"),
        [
            (
                lambda: option_confidence([0.5, 0.2]),
                "log_probability must hold log-probabilities, at most 0 and not NaN",
            ),
            (lambda: option_confidence([np.nan]), "log_probability must hold log-probabilities"),
            (lambda: option_confidence(-1.0), r"log_probability must have shape \(..., K\), got \(\)"),
            (
                lambda: answer_confidence([[-1.0]], [[True, False]]),
                r"mask must have token_log_probability's shape \(1, 1\)",
            ),
            (lambda: answer_confidence([[-1.0]], [[False]]), "mask must mark at least one token of every answer"),
        ],
    )
    def test_refusals(self, call, text):
        with pytest.raises(ValueError, match=text):
            call()
