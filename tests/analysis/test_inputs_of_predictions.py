"""Predictions and labels in other forms than a function means: probabilities for logits, one-hot labels, series, tensors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from right_arguments import C, M, P, T, V, Y, Z

import analysis
from analysis.calibration import CalibrationState


def drawn(n: int = 4000, v: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax: the temperature is 1."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((n, v))
    return z, (z + rng.gumbel(size=z.shape)).argmax(-1)


class TestProbabilitiesAreNoLogits:
    def test_temperature(self):
        z, y = drawn()
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        fit = analysis.fit_temperature(z, y)
        assert abs(fit.temperature - 1) < 3 * fit.standard_error
        assert analysis.fit_temperature(np.log(p), y).temperature == pytest.approx(fit.temperature, rel=1e-6)
        kinds = [
            p,
            p.astype(np.float32),
            p.astype(np.float16),
            torch.tensor(p).bfloat16(),
            pd.DataFrame(p),
            np.eye(10)[y],
        ]
        for form in kinds:
            with pytest.raises(ValueError, match=r"logits must be logits, got rows .* that sum to 1: .* allow_prob"):
                analysis.fit_temperature(form, y)
        assert analysis.fit_temperature(p, y, allow_probabilities=True).temperature < 0.5
        with pytest.raises(TypeError, match="allow_probabilities must be True or False, got 'no'"):
            analysis.fit_temperature(p, y, allow_probabilities="no")

    @pytest.mark.parametrize(
        ("change", "total"),
        [
            (lambda p: 100 * p, 100),
            (lambda p: (100 * p).round(), 100),
            (lambda p: p.round(2), 1),
            (lambda p: p.clip(0.01, 0.99), 1),
            (lambda p: np.where(np.arange(len(p))[:, None] == 7, 0, p), 1),
            (lambda p: np.where(np.arange(len(p))[:, None] % 11 == 7, 0, 100 * p), 100),
            (lambda p: p[:3].round(2), 1),
        ],
        ids=["percent", "whole percent", "rounded", "clipped", "a row of zeros", "several", "three rows"],
    )
    def test_whatever_was_done_to_them(self, change, total):
        z, y = drawn(200)
        p = change(np.exp(z) / np.exp(z).sum(-1, keepdims=True))
        fitted = analysis.calibration.fit_vector(z, y)
        for call in (
            lambda: analysis.fit_temperature(p, y[: len(p)]),
            lambda: analysis.calibration.fit_vector(p, y[: len(p)]),
            lambda: fitted(p),
            lambda: analysis.smoothing.smoothing_penalty(p),
        ):
            with pytest.raises(
                ValueError, match=f"got rows without a negative number that sum to {total}: take the log"
            ):
                call()
        with pytest.raises(ValueError, match="confidence must be that of the predicted class, got distributions"):
            analysis.calibration_error((p / total).clip(0, 1), np.eye(10)[y[: len(p)]])

    @pytest.mark.parametrize(
        "change",
        [
            lambda z: z.clip(0),
            lambda z: z - z.min(-1, keepdims=True),
            lambda z: z - z.min(),
            lambda z: np.abs(z) / 4,
            lambda z: z - z.mean(-1, keepdims=True),
            lambda z: np.where(
                np.arange(len(z))[:, None] < len(z) // 2, np.eye(10)[0], z.clip(0)
            ),  # half of them alike
            lambda z: 100 + z,
        ],
        ids=["relu", "from the least", "from the least of all", "small", "centred", "half", "shifted"],
    )
    @pytest.mark.parametrize("rows", [4, 200])
    def test_logits_without_a_negative_number_are_logits(self, change, rows):
        z, y = drawn(rows)
        assert analysis.fit_temperature(change(z), y).n == rows
        assert np.isfinite(analysis.smoothing.smoothing_penalty(change(z)).distance).all()

    def test_a_few_rows_that_look_alike_are_no_reason(self):
        z, y = drawn(100)
        z[:50] = np.eye(10)[y[:50]]
        assert analysis.fit_temperature(z, y).n == 100

    def test_other_functions_of_logits(self):
        fitted = analysis.calibration.fit_vector(Z, T)
        for call in (
            lambda **more: analysis.calibration.fit_vector(P, [0, 1], **more),
            lambda **more: fitted(P, **more),
            lambda **more: analysis.smoothing.smoothing_penalty(P, **more),
        ):
            with pytest.raises(ValueError, match="logits must be logits, got rows"):
                call()
            call(allow_probabilities=True)

    def test_logits_are_no_log_probabilities(self):
        with pytest.raises(ValueError, match=r"options of a probability of 1.11 together: logits need"):
            analysis.calibration.option_confidence([-1.0, -2.0, -0.5])
        with pytest.raises(ValueError, match="must hold log-probabilities, at most 0"):
            analysis.calibration.option_confidence(P)


class TestLabels:
    @pytest.mark.parametrize(
        ("target", "error", "text"),
        [
            (np.eye(2)[T], ValueError, r"target must have shape \(4,\), .*class indices, not one-hot.* got \(4, 2\)"),
            (T[:, None], ValueError, r"target must have shape \(4,\)"),
            (T.astype(float), TypeError, "target must hold class indices, integers, got dtype float64"),
            (T.astype(bool), TypeError, "target must hold class indices, integers, got dtype bool"),
            (T - 1, ValueError, r"target must be in \[0, 2\).*, got -1"),
            (T + 1, ValueError, r"target must be in \[0, 2\).*, got 2"),
            (torch.tensor(T).float(), TypeError, "target must hold class indices, integers"),
        ],
    )
    def test_of_logits(self, target, error, text):
        for fit in (analysis.fit_temperature, analysis.calibration.fit_vector):
            with pytest.raises(error, match=text):
                fit(Z, target)

    def test_ignored_ones_are_named(self):
        padded = np.where(T == 0, -100, T)
        assert analysis.fit_temperature(Z, padded).n == analysis.fit_temperature(Z, padded + 0).n == 3
        assert analysis.fit_temperature(Z, np.where(T == 0, -1, T), ignore_index=-1).n == 3
        assert analysis.fit_temperature(Z, T, ignore_index=0).n == 3

    def test_one_hot_labels_beside_distributions_are_no_outcomes(self):
        z, y = drawn(500)
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        for correct in (np.eye(10)[y], np.eye(10, dtype=int)[y], np.eye(10, dtype=bool)[y]):
            for function in (analysis.calibration_error, analysis.reliability_table, CalibrationState().update):
                with pytest.raises(
                    ValueError, match="confidence must be that of the predicted class, got distributions"
                ):
                    function(p, correct)
        assert analysis.calibration_error(p.reshape(-1), np.eye(10)[y].reshape(-1)) < 0.03
        state = CalibrationState(groups=[str(k) for k in range(10)]).update_classes(p, y, np.arange(10))
        assert state.n == 5000

    @pytest.mark.parametrize(
        ("confidence", "correct", "error", "text"),
        [
            (100 * C, Y, ValueError, r"confidence must be in \[0, 1\], got 90.0 \(divide percentages by 100\)"),
            (
                np.log(C),
                Y,
                ValueError,
                r"confidence must be in \[0, 1\], got -0.51.* \(exponentiate log-probabilities\)",
            ),
            (4 * C - 2, Y, ValueError, r"confidence must be in \[0, 1\], got 1.6"),
            (Y, C, TypeError, "confidence must hold probabilities, floating numbers, got dtype bool"),
            (T, Y, TypeError, "confidence must hold probabilities, floating numbers, got dtype int64"),
            (C, C, ValueError, "correct must hold booleans or 0 and 1, got 0.9"),
            (C, 2 * Y - 1, ValueError, "correct must hold booleans or 0 and 1, got -1"),
            (C, Y[:, None], ValueError, r"correct must have confidence's shape \(4,\), got \(4, 1\)"),
            (C, T + 5, ValueError, "correct must hold booleans or 0 and 1, got 5"),
        ],
    )
    def test_of_confidences(self, confidence, correct, error, text):
        for function in (analysis.calibration_error, analysis.selective_scores, analysis.calibration.fit_platt):
            with pytest.raises(error, match=text):
                function(confidence, correct)

    def test_classes_and_their_labels_are_integers(self):
        state = CalibrationState(groups=["a", "b"])
        with pytest.raises(TypeError, match="label must hold integers, got dtype float64"):
            state.update_classes(P, [0.0, np.nan], [0, 1])
        with pytest.raises(TypeError, match="classes must hold integers"):
            state.update_classes(P, [0, 1], [0.0, 1.0])


class TestPandas:
    def test_series_of_unequal_indexes(self):
        rng = np.random.default_rng(1)
        confidence = pd.Series(rng.uniform(0.3, 1, 1000))
        correct = pd.Series(rng.random(1000) < confidence)
        shuffled = correct.sample(frac=1, random_state=0)
        right = analysis.calibration_error(confidence, correct)
        with pytest.raises(ValueError, match=r"correct must have confidence's index, got another: .*correct.reindex"):
            analysis.calibration_error(confidence, shuffled)
        assert analysis.calibration_error(confidence, shuffled.reindex(confidence.index)) == right
        assert analysis.calibration_error(confidence, shuffled.to_numpy()) > 1.5 * right  # by position, as it says

    def test_every_argument_of_a_state(self):
        c, y = pd.Series(C), pd.Series(Y)
        other = pd.Series([0, 0, 0, 0], index=[3, 2, 1, 0])
        for more in ({"group": other}, {"nll": other.astype(float)}, {"log1m_confidence": other.astype(float)}):
            with pytest.raises(ValueError, match=f"{next(iter(more))} must have confidence's index"):
                CalibrationState().update(c, y, **more)

    def test_missing_values_are_no_numbers(self):
        with pytest.raises(ValueError, match="confidence must not be NaN"):
            analysis.calibration_error(pd.Series([0.5, None], dtype="Float64"), [1, 0])


class TestTensors:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_any_dtype_with_or_without_gradients(self, dtype):
        c = torch.tensor(C).to(dtype).requires_grad_()
        exact = analysis.calibration_error(c.detach().double().numpy(), Y)
        assert analysis.calibration_error(c, torch.tensor(Y)) == pytest.approx(exact, abs=1e-12)
        m = torch.tensor(M).to(dtype).requires_grad_()
        np.testing.assert_allclose(analysis.simplex_cap(m, torch.tensor(V)), analysis.simplex_cap(M, V))
        z = torch.tensor(Z).to(dtype).requires_grad_()
        assert analysis.fit_temperature(z, torch.tensor(T)).n == 4

    def test_one_number(self):
        assert analysis.calibration_error(np.float64(0.75), True) == pytest.approx(0.25)
        assert analysis.simplex_cap(torch.tensor(3.0), torch.tensor(16)) == analysis.simplex_cap(3.0, 16)
