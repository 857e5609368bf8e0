"""No function guesses what an argument means: bad input of every kind, through every public function of numbers."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import analysis
from analysis.calibration import CalibrationState

C, Y = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
Z, T = np.array([[2.0, 0.0], [0.5, 1.5], [1.0, -1.0], [0.0, 3.0]]), np.array([0, 1, 1, 1])
P, Q = np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([[0.6, 0.4], [0.5, 0.5]])
M, V, D, B = np.array([3.0, 6.0]), np.array([16, 32]), np.array([4, 8]), np.array([0.1, 0.2])
S = np.array([1.0, 3.0])
N = 4

# Every public function of numbers, with arguments that are right: floating ones as floats, whole ones as integers.
CALLS: dict[str, dict[str, Any]] = {
    "aligned_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "attained_gap": {"norm_product": M, "vocab_size": 4, "hidden_size": 2, "steps": 1},
    "best_confidence": {"norm_product": M, "vocab_size": 4, "hidden_size": 2, "steps": 1},
    "confidence_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D, "temperature": S, "softcap": M},
    "confidence_to_gap": {"confidence": C[:2], "vocab_size": V},
    "entropy_floor": {"logit_norm": M, "vocab_size": V},
    "frobenius_cap": {"frobenius_norm": M, "feature_norm_max": S, "vocab_size": V},
    "gap_to_confidence": {"gap": M, "vocab_size": V},
    "logit_norm_cap": {"logit_norm": M, "vocab_size": V},
    "margin_bounds": {"vocab_size": V, "hidden_size": D},
    "max_gap": {"norm_product": M, "vocab_size": V, "temperature": S, "softcap": M},
    "packing_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "random_code_confidence": {"norm_product": M, "vocab_size": V, "hidden_size": D, "softcap": M},
    "rank_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "rank_gap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "simplex_cap": {"norm_product": M, "vocab_size": V},
    "single_token_cap": {"norm_product": M, "vocab_size": V},
    "softcap_gap": {"norm_product": M, "vocab_size": V, "softcap": M, "temperature": S},
    "spectral_cap": {"spectral_norm": M, "feature_norm_max": S, "vocab_size": V, "hidden_size": D},
    "activity_index": {"entropy": S, "cross_entropy": S, "uniform_cross_entropy": M + 4, "label_smoothing": B},
    "dirichlet_concentration": {"label_smoothing": B, "vocab_size": V, "count": D},
    "effectiveness_ratio": {"norm_product": M, "vocab_size": V, "label_smoothing": B, "temperature": S, "softcap": M},
    "loss_floor": {"label_smoothing": B, "vocab_size": V},
    "match_moments": {"weight": Z, "probabilities": np.full((2, 4), 0.25)},
    "optimal_confidence": {"label_smoothing": B, "vocab_size": V},
    "optimal_gap": {"label_smoothing": B, "vocab_size": V},
    "optimal_gap_under_cap": {"norm_product": M, "vocab_size": V, "label_smoothing": B, "temperature": S},
    "predicted_activity": {"norm_product": M, "vocab_size": V, "hidden_size": D, "label_smoothing": B},
    "restoring_temperature": {"norm_product": M, "vocab_size": V, "label_smoothing": B, "softcap": M},
    "smooth": {"probabilities": P, "label_smoothing": B},
    "smoothed_calibration_error": {"probabilities": P, "label_smoothing": 0.1, "weights": S},
    "smoothing_penalty": {"logits": Z},
    "unsmooth": {"probabilities": P, "label_smoothing": B},
    "weighted_svd_head": {"probabilities": P, "hidden_size": 1},
    "clipped_fall": {"confidence": C[:2], "activity_index": S, "vocab_size": V, "label_smoothing": B},
    "exceeds_smoothed_target": {"confidence": C[:2], "vocab_size": V, "label_smoothing": B},
    "rational_fall": {"confidence": C[:2], "activity_index": S, "vocab_size": V, "label_smoothing": B},
    "scale_gap": {"entropy": S, "cross_entropy": S},
    "smoothing_slope": {"entropy": S, "cross_entropy": S, "uniform_cross_entropy": M + 4, "label_smoothing": B},
    "fit_norm_ball": {"vocab_size": 4, "hidden_size": 4, "norm_product": M, "label_smoothing": B, "steps": 1},
    "asymptotic_confidence": {"logit_std": S, "vocab_size": V},
    "asymptotic_entropy": {"logit_std": S, "vocab_size": V},
    "asymptotic_log_partition": {"logit_std": S, "vocab_size": V},
    "asymptotic_participation": {"logit_std": S, "vocab_size": V},
    "critical_hidden_size": {"vocab_size": V, "gain": S, "row_std": S},
    "critical_logit_std": {"vocab_size": V},
    "expected_confidence": {"logit_std": S, "vocab_size": V},
    "expected_entropy": {"logit_std": S, "vocab_size": V},
    "expected_log_partition": {"logit_std": S, "vocab_size": V},
    "freezing_temperature": {"logit_std": S, "vocab_size": V},
    "participation": {"logit_std": S, "vocab_size": V},
    "planted_confidence": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "planted_norm_product": {"vocab_size": V, "hidden_size": D, "confidence": C[:2]},
    "spherical_log_partition": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "answer_confidence": {"token_log_probability": -Z[:, None] - 3, "mask": np.ones((N, 1, 2), bool)},
    "calibration_error": {"confidence": C, "correct": Y},
    "fit_isotonic": {"confidence": C, "correct": Y},
    "fit_platt": {"confidence": C, "correct": Y},
    "fit_temperature": {"logits": Z, "target": T},
    "fit_vector": {"logits": Z, "target": T},
    "frequency_groups": {"counts": np.array([3, 1, 5])},
    "option_confidence": {"log_probability": np.log(P / 2)},
    "reliability_table": {"confidence": C, "correct": Y},
    "risk_at_coverage": {"confidence": C, "correct": Y, "coverage": C[:2]},
    "risk_coverage_curve": {"confidence": C, "correct": Y},
    "selective_scores": {"confidence": C, "correct": Y},
    "smooth_calibration_error": {"confidence": C, "correct": Y},
    "sorted_rms_error": {"confidence": C, "correct": Y},
    "true_calibration_error": {"p_model": P, "p_true": Q, "weight": S},
    "true_decomposition": {"p_model": P, "p_true": Q, "weight": S},
    "unsmooth_confidence": {"confidence": C[:2], "label_smoothing": B, "vocab_size": V},
    "frobenius_gap": {"frobenius_norm": M, "feature_norm_max": S, "vocab_size": V},
    "packing_gap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "score_predictions": {"confidence": C, "correct": Y},
    "spectral_gap": {"spectral_norm": M, "feature_norm_max": S, "vocab_size": V, "hidden_size": D},
    "wilson_interval": {"correct": np.array([3.5, 4.0]), "samples": np.array([5, 8])},
}
# What takes no bare numbers, or only those of another function: models, files, tables, statistics of a head, blocks;
# tested with its module.
ELSEWHERE = {
    "audit_model", "binned_true_error", "course", "draw_audit", "fit", "fit_head_temperature",
    "from_statistics", "frozen_head_response", "head_of", "hidden_states", "load_model", "losses_of", "make_teacher",
    "measure", "packaged_gemma", "packaged_smollm2", "programme_gap", "python_text", "random_streams", "read_text",
    "recommendation",
    "score_against_truth", "score_tokens", "stationarity", "susceptibility", "tied_accuracy", "train", "uniform_index",
    "verdict", "describe", "draw_predictions", "measure_predictions", "read_predictions",
}  # fmt: skip


FUNCTIONS = {
    name: value
    for module in map(analysis.__getattr__, analysis._PUBLIC)
    for name in module.__all__
    if inspect.isfunction(value := getattr(module, name))
}


def test_every_public_function_is_here():
    assert set(FUNCTIONS) == set(CALLS) | ELSEWHERE


# Arguments that may be as large or as small as they like.
UNBOUNDED = {
    ("gap_to_confidence", "gap"), ("match_moments", "weight"), ("smoothing_penalty", "logits"),
    ("fit_vector", "logits"), ("answer_confidence", "token_log_probability"), ("option_confidence", "log_probability"),
    ("clipped_fall", "activity_index"), ("rational_fall", "activity_index"),
}  # fmt: skip
FRACTIONAL = {"count", "counts", "samples"}  # occurrences may be weighted
# Values just outside of a range; a head of weighted_svd_head may have no feature at all.
TOO_SMALL = {"vocab_size": 1, "hidden_size": 0, "temperature": 0, "softcap": 0, "gain": 0, "row_std": 0}


def _spoiled(value: Any, unbounded: bool) -> list[Any]:
    """What looks like the value and is not."""
    array = np.asarray(value)
    floating = array.astype(float)
    bad: list[Any] = [
        "0.5", object(), [[1.0], [1.0, 2.0]], array.astype(str), array.astype(object) if array.ndim else {"a": 1},
        floating + 1j, np.ma.masked_array(array, np.zeros(array.shape, bool)), np.full(array.shape, np.nan),
        np.full(array.shape, "2020-01-01", "datetime64[D]"), torch.tensor(floating).to_sparse(),
    ]  # fmt: skip
    if array.dtype.kind != "b":
        bad += [np.full(array.shape, True)]
        bad += [] if unbounded else [np.full(array.shape, -1e9), np.full(array.shape, np.inf)]
    if array.dtype.kind == "i":
        bad += [array + 0.5, np.full(array.shape, -1)]
    return bad


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_number_of_the_kind_is_refused_by_name(name):
    function, arguments = FUNCTIONS[name], CALLS[name]
    names = "|".join(inspect.signature(function).parameters)
    for argument, value in arguments.items():
        known = argument in TOO_SMALL and name != "weighted_svd_head"
        edge = [np.full(np.shape(value), TOO_SMALL[argument])] if known else []
        for bad in (*_spoiled(value, (name, argument) in UNBOUNDED), *edge):
            if argument in FRACTIONAL and isinstance(bad, np.ndarray) and np.array_equal(bad, value + 0.5):
                continue
            with pytest.raises((TypeError, ValueError), match=rf"\b({names})\b.* must "):
                function(**{**arguments, argument: bad})


def _labelled(value: Any, index: list[int]) -> Any:
    if np.ndim(value) == 0:
        return value
    return pd.Series(value, index) if np.ndim(value) == 1 else pd.DataFrame(value, index)


@pytest.mark.parametrize("name", [n for n in CALLS if sum(np.ndim(x) in (1, 2) for x in CALLS[n].values()) > 1])
def test_pandas_objects_are_paired_by_label_or_not_at_all(name):
    if name in ("match_moments", "risk_at_coverage", "smooth_calibration_error"):  # not paired; relplot is optional
        return
    function, arguments = FUNCTIONS[name], CALLS[name]
    labels = list(range(max(len(x) for x in arguments.values() if np.ndim(x))))
    series = {argument: _labelled(x, labels[: len(np.atleast_1d(x))]) for argument, x in arguments.items()}
    assert repr(function(**series)) == repr(function(**arguments))
    *_, last = (argument for argument, x in arguments.items() if np.ndim(x))
    series[last] = _labelled(arguments[last], labels[: len(arguments[last])][::-1])
    with pytest.raises(ValueError, match=rf"{last} must have \w+'s index, got another: .*reindex"):
        function(**series)


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


class TestOptions:
    @pytest.mark.parametrize("value", ["no", 1, 0, None, np.array([True])])
    @pytest.mark.parametrize(
        ("name", "call"),
        [
            ("debiased", lambda x: analysis.calibration_error(C, Y, debiased=x)),
            ("debiased", lambda x: CalibrationState().update(C, Y).calibration_error(debiased=x)),
            ("debiased", lambda x: CalibrationState().update(C, Y).classwise_error(debiased=x)),
            ("aligned", lambda x: analysis.confidence_cap(3.0, 16, 8, aligned=x)),
            ("allow_probabilities", lambda x: analysis.smoothing.smoothing_penalty(Z, allow_probabilities=x)),
        ],
    )
    def test_a_text_is_no_truth(self, name, call, value):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got"):
            call(value)

    def test_of_pictures(self):
        from matplotlib.figure import Figure

        ax, state = Figure().subplots(), CalibrationState().update(C, Y)
        for name in ("density", "intervals", "noise_floor"):
            with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
                analysis.plots.reliability_diagram(state, ax, **{name: "no"})
        with pytest.raises(TypeError, match="log must be True or False, got 'no'"):
            analysis.plots.confidence_histogram(state, ax, log="no")
        with pytest.raises(ValueError, match=r"ceiling must be in \[0, 1\], got 97"):
            analysis.plots.reliability_diagram(state, ax, ceiling=97)

    @pytest.mark.parametrize("bins", [5, 15])
    def test_more_equal_mass_bins_than_samples(self, bins):
        text = f"n_bins must be at most the number of samples, 4, with binning='quantile', got {bins}"
        state = CalibrationState().update(C, Y)
        for call in (
            lambda: analysis.calibration_error(C, Y, n_bins=bins, binning="quantile"),
            lambda: analysis.reliability_table(C, Y, n_bins=bins, binning="quantile"),
            lambda: state.calibration_error(binning="quantile", n_bins=bins),
            lambda: state.reliability_table(binning="quantile", n_bins=bins),
            lambda: state.equal_mass_bound(bins),
        ):
            with pytest.raises(ValueError, match=text):
                call()
        with pytest.raises(ValueError, match="n_bins must be at most the number of samples, 4"):
            state.interval(binning="quantile")
        for n_bins in (1, 4):
            assert analysis.calibration_error(C, Y, n_bins=n_bins, binning="quantile") > 0

    def test_weights_have_the_contexts_shape(self):
        p = np.broadcast_to(P, (3, 2, 2))
        with pytest.raises(ValueError, match=r"weight must have one entry a context, the shape \(3, 2\), got \(2, 3\)"):
            analysis.true_calibration_error(p, p, weight=np.ones((2, 3)))

    def test_a_mask_is_a_mask(self):
        with pytest.raises(ValueError, match="mask must hold booleans or 0 and 1, got 5"):
            analysis.calibration.answer_confidence([[[-1.0, -2.0]]], [[[5, -100]]])

    def test_chunks_of_a_negative_size(self):
        for size in (-1, 0):
            with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {size}"):
                analysis.HeadGeometry.measure(np.eye(4), chunk_size=size)


class TestImpossibleLosses:
    @pytest.mark.parametrize(
        ("losses", "text"),
        [
            ((100, 1, 2), "entropy must be at most uniform_cross_entropy, as in every softmax, got 100 and 2"),
            ((-1, 1, 2), "entropy must be at least 0, got -1"),
            ((1, -1, 2), "cross_entropy must be at least 0, got -1"),
            (
                ([1, 3], 1, [2, 2.9]),
                "entropy must be at most uniform_cross_entropy, as in every softmax, got 3 and 2.9",
            ),
        ],
    )
    def test_no_softmax_has_them(self, losses, text):
        for function in (analysis.activity_index, analysis.smoothing_slope):
            with pytest.raises(ValueError, match=text):
                function(*losses, 0.1)

    def test_rounding_is_forgiven(self):
        flat = np.log(50_000)  # of a uniform softmax all three are log V
        assert analysis.activity_index(flat + 1e-4, flat, flat - 1e-4, 0.1) == 1  # 0 over 0
        assert analysis.scale_gap(-1e-7, -1e-7) == 0
        with pytest.raises(ValueError, match="cross_entropy must be at least 0, got -2"):
            analysis.scale_gap(1.0, -2.0)


class TestTeachers:
    def test_tokens_of_the_vocabulary(self):
        with pytest.raises(ValueError, match=r"tokens must be in \[0, 5\), got 7"):
            analysis.teachers.DeterministicTeacher(torch.tensor([0, 7]), 5)
        with pytest.raises(ValueError, match=r"tokens must be in \[0, 5\), got -1"):
            analysis.teachers.DeterministicTeacher(torch.tensor([0, -1]), 5)
        for tokens in ([0, 1], torch.tensor([0.0, 1.0]), torch.tensor([True, False])):
            with pytest.raises(TypeError, match="tokens must be an int64 tensor"):
                analysis.teachers.DeterministicTeacher(tokens, 5)
        with pytest.raises(ValueError, match=r"tokens must have shape \(contexts,\), at least one"):
            analysis.teachers.DeterministicTeacher(torch.tensor([[0]]), 5)
        with pytest.raises(ValueError, match="samples_per_context must be at least 1, got -3"):
            analysis.teachers.DeterministicTeacher(torch.tensor([0]), 5).sample(-3, torch.Generator())

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"context_factors": torch.zeros(3, 2)}, TypeError, "context_factors must be a float64 tensor"),
            ({"context_factors": torch.full((3, 2), torch.nan).double()}, ValueError, "context_factors must be finite"),
            ({"prior": torch.zeros(4).double()}, ValueError, r"prior \(5,\), got \(5, 2\) and \(4,\)"),
            ({"token_factors": torch.zeros(5, 3).double()}, ValueError, r"token_factors must have shape \(5, 2\)"),
            ({"peak_tokens": torch.tensor([0, 1, 5])}, ValueError, r"peak_tokens must be in \[-1, 5\), got 5"),
            ({"peak_tokens": torch.tensor([0, 1])}, ValueError, r"peak_tokens must have shape \(3,\), got \(2,\)"),
            ({"peak": float("nan")}, ValueError, "peak must not be NaN"),
        ],
    )
    def test_of_factors(self, change, error, text):
        right = {
            "context_factors": torch.zeros(3, 2).double(), "token_factors": torch.zeros(5, 2).double(),
            "prior": torch.zeros(5).double(), "peak_tokens": torch.tensor([-1, 0, 4]), "peak": 1.0,
        }  # fmt: skip
        analysis.teachers.LogLinearTeacher(**right)
        with pytest.raises(error, match=text):
            analysis.teachers.LogLinearTeacher(**{**right, **change})


def _configs() -> dict[str, Any]:
    from analysis.bottleneck import FitConfig
    from analysis.study.real_tuning.tuning import InstructionConfig
    from analysis.study.s1_ceilings import CeilingConfig
    from analysis.study.s2_random_logits import RandomLogitConfig
    from analysis.study.s7_tuning import TuningConfig
    from analysis.teachers import TeacherConfig

    return {
        "fit": FitConfig(hidden_size=4), "teacher": TeacherConfig(),
        "instruction": InstructionConfig(model="m", questions="q"),
        "ceiling": CeilingConfig(vocab_size=4, hidden_size=2), "random_logits": RandomLogitConfig(vocab_size=4),
        "tuning": TuningConfig(vocab_size=16, hidden_size=4),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fit", "teacher", "instruction", "ceiling", "random_logits", "tuning"])
def test_fields_of_configs_are_python_numbers(name):
    from dataclasses import fields, replace

    config = _configs()[name]
    tested = 0
    for field in fields(config):
        value = getattr(config, field.name)
        value = 1.0 if field.name == "softcap" else value
        if isinstance(value, bool) or not isinstance(value, (int, float, tuple)):
            continue
        bad: list[Any] = ["0.1", float("nan"), -1, True]
        bad += (
            [np.float32(0.1), np.int64(3), np.array(1.0)]
            if not isinstance(value, tuple)
            else [[0.1], (np.float32(0.1),)]
        )
        for wrong in bad:
            with pytest.raises((TypeError, ValueError), match=rf"\b{field.name} must "):
                replace(config, **{field.name: wrong})
        tested += 1
    assert tested >= 2


class TestMemory:
    def test_bins(self):
        for call in (
            lambda: analysis.calibration_error(C, Y, n_bins=10**9),
            lambda: analysis.reliability_table(C, Y, n_bins=10**9),
            lambda: analysis.true_calibration_error(P, Q, n_bins=10**9),
            lambda: CalibrationState(10**9),
        ):
            with pytest.raises(ValueError, match="n_bins must be at most 1048576, got 1000000000"):
                call()

    def test_groups_and_resamples(self):
        with pytest.raises(ValueError, match=r"groups must be at most \d+ with n_bins=15, .*, got 100000"):
            CalibrationState(groups=[str(k) for k in range(100_000)])
        state = CalibrationState().update(C, Y)
        for method in (state.interval, state.noise_floor):
            with pytest.raises(ValueError, match=r"n_resamples times the number of bins must be at most \d+, got"):
                method(n_resamples=10**9)

    def test_wide_spreads_of_logits(self):
        for function in (
            analysis.random_energy.expected_entropy, analysis.random_energy.expected_confidence, analysis.random_energy.expected_log_partition,
            analysis.random_energy.participation,
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"logit_std must be at most 100000 .*, got 1e\+06"):
                function(1e6, 1000)
        # frozen: E log Z is s times the mean of the largest of V Gaussians, of variance below 1
        assert analysis.random_energy.expected_log_partition(5e3, 1000) == pytest.approx(5e3 * 3.2414, rel=1e-3)
        assert analysis.random_energy.expected_entropy(5e3, 1000) < 2e-3

    def test_many_frozen_confidences_come_in_blocks(self):
        s = np.linspace(0.1, 20, 10_000)
        found = analysis.random_energy.asymptotic_confidence(s, 1000)
        assert (
            found[[5000, 9999]].tolist() == analysis.random_energy.asymptotic_confidence(s[[5000, 9999]], 1000).tolist()
        )
        assert analysis.random_energy.asymptotic_confidence(np.zeros((0, 2)), 1000).shape == (0, 2)

    def test_heads_that_do_not_fit(self):
        for call in (
            lambda: analysis.attained_gap(3.0, 100_000, 64),
            lambda: analysis.best_confidence(100_000, 64, 3.0),
            lambda: analysis.fit_norm_ball(100_000, 64, 3.0),
            lambda: analysis.fit_norm_ball(4, 4, 3.0, restarts=10**9),
        ):
            with pytest.raises(ValueError, match=r"vocab_size must be smaller: .* heads"):
                call()

    def test_moments_are_matched_in_blocks(self, monkeypatch):
        rng = np.random.default_rng(0)
        weight, q = rng.standard_normal((6, 3)), rng.dirichlet(np.ones(6), (2, 5))
        whole = analysis.smoothing.match_moments(weight, q)
        monkeypatch.setattr("analysis.smoothing._low_rank._BLOCK", 40)
        for a, b in zip(analysis.smoothing.match_moments(weight, q), whole, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-8)
