"""Options, configs and sizes that are none, and losses that no softmax has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from right_arguments import C, P, Q, Y, Z

import analysis
from analysis.calibration import CalibrationState


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
