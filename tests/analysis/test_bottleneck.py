"""Trained heads: the budget holds, the loss is the stated one, the optimum is the true one, the record says what is so."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.bottleneck import FitConfig, SoftmaxBottleneck, fit, measure, train
from analysis.bottleneck._dense import DenseLoss
from analysis.bottleneck._training import _converged, _converged_at, _data
from analysis.calibration import binned_true_error
from analysis.caps import gap_to_confidence, max_gap, simplex_cap
from analysis.smoothing import effectiveness_ratio, optimal_gap
from analysis.teachers import Observations, TeacherConfig


def det(vocab_size, hidden_size, norm_product, **options):
    """A det config in the order (V, D, m) of the theory."""
    teacher = TeacherConfig(kind="det", vocab_size=vocab_size, n_contexts=vocab_size)
    return FitConfig(
        teacher=teacher,
        hidden_size=hidden_size,
        norm_coefficient=norm_product / hidden_size,
        dtype="float64",
        **options,
    )


def lowrank(vocab_size=16, n_contexts=24, samples=8, seed=0):
    return TeacherConfig(
        kind="lowrank", vocab_size=vocab_size, n_contexts=n_contexts, samples_per_context=samples, seed=seed
    )


@pytest.fixture(scope="module")
def noisy():
    return train(FitConfig(teacher=lowrank(), hidden_size=6, norm_coefficient=0.7, temperature=0.5, dtype="float64"))


class TestModel:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(0.01, 10), st.integers(1, 9))
    def test_the_budget_holds_for_any_parameters(self, seed, scale, coefficient, hidden_size):
        config = FitConfig(
            teacher=lowrank(5, 7), hidden_size=hidden_size, norm_coefficient=coefficient, seed=seed, dtype="float64"
        )
        head = SoftmaxBottleneck(config)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(scale).add_(torch.randn_like(parameter))
        root = hidden_size**0.5
        assert head.weight().norm(dim=-1).max() <= coefficient * root * (1 + 1e-12)
        torch.testing.assert_close(head.hidden().norm(dim=-1), torch.full((7,), root, dtype=torch.float64))
        assert head.norm_product() <= config.norm_budget * (1 + 1e-12)

    def test_free_norms_are_the_parameters(self):
        head = SoftmaxBottleneck(FitConfig(teacher=lowrank(), hidden_size=4, norm="free"))
        assert head.hidden() is head.raw_features
        assert head.weight() is head.raw_weight
        assert head.config.norm_budget is None

    def test_a_population_is_a_soft_target(self):
        config = FitConfig(teacher=lowrank(samples=None), hidden_size=4, label_smoothing=0.2, dtype="float64")
        fitted = train(dataclasses.replace(config, max_steps=1))
        p_true = fitted.teacher.conditionals(slice(0, 24))
        expected = torch.nn.functional.cross_entropy(fitted.head.logits(), p_true, label_smoothing=0.2)
        torch.testing.assert_close(fitted.head(fitted.training), expected, rtol=1e-10, atol=0)

    def test_a_confidence_penalty_takes_the_entropy_of_each_context_by_its_weight(self):
        config = FitConfig(teacher=lowrank(), hidden_size=4, norm_coefficient=0.7, dtype="float64")
        plain, penalised = (SoftmaxBottleneck(dataclasses.replace(config, confidence_penalty=g)) for g in (0.0, 0.3))
        seen = Observations(*map(torch.tensor, ([0, 0, 2, 4], [1, 6, 2, 0], [3.0, 1.0, 2.0, 5.0])))
        seen = seen._replace(weight=seen.weight.double())
        p = plain.logits().softmax(-1)[seen.context]
        entropy = -(p * p.log()).sum(-1) @ seen.weight / seen.weight.sum()
        torch.testing.assert_close(penalised(seen), plain(seen) - 0.3 * entropy, rtol=1e-10, atol=0)


class TestOptimum:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize(
        ("shape", "temperature"),
        [((8, 8, 6), 1.0), ((16, 15, 4), 0.5), ((16, 15, 4), 1.0), ((12, 40, 1.5), 1.0), ((64, 64, 6.4), 1.0)],
    )
    def test_c1_where_it_is_exact(self, shape, temperature, smoothing):
        vocab_size, _, norm_product = shape
        row = fit(det(*shape, temperature=temperature, label_smoothing=smoothing))
        gap = max_gap(norm_product, vocab_size, temperature=temperature)
        if smoothing:
            gap = min(gap, optimal_gap(smoothing, vocab_size))
        assert row["converged"]
        assert row["logit_gap"] == pytest.approx(gap, abs=5e-3)
        assert row["confidence"] == pytest.approx(gap_to_confidence(gap, vocab_size), abs=1e-3)

    @pytest.mark.parametrize(("shape", "temperature", "gap"), [((8, 8, 6), 1.0, 4.290), ((16, 15, 4), 0.5, 4.977)])
    def test_c1_check_values_under_smoothing(self, shape, temperature, gap):
        row = fit(det(*shape, temperature=temperature, label_smoothing=0.1, tolerance=1e-8))
        assert round(row["logit_gap"], 3) == gap

    @pytest.mark.parametrize(("shape", "most"), [((32, 32, 4.5), 1e-4), ((64, 8, 4), 0.01), ((48, 16, 5), 0.01)])
    def test_smoothing_is_inert_below_rho_09(self, shape, most):
        assert effectiveness_ratio(shape[2], shape[0], 0.1) < 0.9
        plain, smoothed = fit(det(*shape)), fit(det(*shape, label_smoothing=0.1))
        assert abs(plain["confidence"] - smoothed["confidence"]) <= most

    def test_activity_index_where_rank_counts(self):
        """C4's check values: (32, 4, 6) is inert although rho > 1, (32, 4, 12) is not."""
        inert, acting = det(32, 4, 6), det(32, 4, 12)
        assert effectiveness_ratio(6, 32, 0.1) == pytest.approx(1.09, abs=0.005)
        plain, smoothed = (fit(dataclasses.replace(inert, label_smoothing=b)) for b in (0.0, 0.1))
        assert plain["activity_index"] == pytest.approx(1.9, abs=0.15)
        assert plain["confidence"] == pytest.approx(0.575, abs=0.006)
        assert smoothed["confidence"] == pytest.approx(plain["confidence"], abs=0.003)
        plain, smoothed = (fit(dataclasses.replace(acting, label_smoothing=b)) for b in (0.0, 0.1))
        assert plain["activity_index"] < 0.4
        assert 0.1 < plain["confidence"] - smoothed["confidence"] < 0.2

    def test_the_contraction_attains_less_than_its_bound(self):
        """C2's check value: 7.055 attained against the bound 8.451 at (32, 32, 12), c = 5."""
        row = fit(det(32, 32, 12, softcap=5.0, tolerance=1e-7))
        assert float(max_gap(12, 32, softcap=5.0)) == pytest.approx(8.451, abs=5e-4)
        assert row["logit_gap"] == pytest.approx(7.055, abs=0.01)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_the_optimum_is_that_of_a_constrained_solver(self, smoothing):
        """D < V - 1: SLSQP on the norm constraints themselves, from several starts, finds no lower loss."""
        v, d, m = 6, 2, 4.0
        row = min(
            (fit(det(v, d, m, label_smoothing=smoothing, seed=s, tolerance=1e-9)) for s in range(4)),
            key=lambda r: r["loss"],
        )
        target = (1 - smoothing) * np.eye(v) + smoothing / v

        def problem(x):
            angle, w = x[:v], x[v:].reshape(v, d)
            h = np.stack([np.cos(angle), np.sin(angle)], 1) * d**0.5
            log_p = scipy.special.log_softmax(h @ w.T, axis=-1)
            slope = (np.exp(log_p) - target) / v
            turned = np.stack([-h[:, 1], h[:, 0]], 1)
            return -(target * log_p).sum() / v, np.concatenate([((slope @ w) * turned).sum(1), (slope.T @ h).ravel()])

        limit = {"type": "ineq", "fun": lambda x: m**2 / d - (x[v:].reshape(v, d) ** 2).sum(1)}
        rng = np.random.default_rng(0)
        starts = [np.concatenate([rng.uniform(0, 2 * np.pi, v), rng.normal(size=v * d)]) for _ in range(12)]
        best = min(
            scipy.optimize.minimize(
                problem, x, jac=True, constraints=[limit], method="SLSQP", options={"maxiter": 500, "ftol": 1e-12}
            ).fun
            for x in starts
        )
        assert row["loss"] == pytest.approx(best, abs=1e-5)

    def test_no_head_exceeds_the_caps(self):
        for shape in [(8, 2, 3), (16, 4, 5), (16, 20, 3), (32, 3, 8)]:
            row = fit(det(*shape))
            cap = simplex_cap(shape[2], shape[0])
            assert row["min_target_probability"] <= cap * (1 + 1e-9)
            assert row["cross_entropy"] >= -np.log(cap) - 1e-9  # mean log p obeys the bound too

    def test_smoothing_makes_a_calibrated_model_underconfident_by_d2(self):
        teacher = dataclasses.replace(lowrank(12, 16, samples=None), rank=4, logit_std=1.0)
        config = FitConfig(teacher=teacher, hidden_size=12, norm="free", label_smoothing=0.1, dtype="float64")
        row = fit(dataclasses.replace(config, tolerance=1e-8))
        assert row["context_error"] == pytest.approx(0.1 * (row["best_accuracy"] - 1 / 12), abs=1e-4)

    @pytest.mark.parametrize(
        ("losses", "restarts_after"),
        [([5.0, 4.0, 4.0, 4.0], [2]), ([5.0, 4.0, 4.0, 3.0, 3.0, 3.0], [2, 4])],
        ids=["in vain", "it helps"],
    )
    def test_the_restart_is_given_its_chance(self, losses, restarts_after, monkeypatch):
        """A loss that rests is looked at once more after a restart: its memory may have held it up."""
        made = []

        class Scripted:
            def __init__(self, *_):
                self.value, self.coming, self.looks, self.restarts = losses[0], iter(losses[1:]), 0, []
                made.append(self)

            def advance(self, _):
                self.looks += 1
                return next(self.coming)  # one look too many has no value

            def restart(self):
                self.restarts.append(self.looks)

            def finish(self):
                pass

        monkeypatch.setattr("analysis.bottleneck._training.HostLBFGS", Scripted)
        assert train(det(4, 2, 3.0)).losses == losses
        assert [minimiser.restarts for minimiser in made] == [restarts_after]

    @pytest.mark.parametrize(("kind", "norm"), [("sparse", "budget"), ("lowrank", "free")])
    def test_twice_the_steps_change_nothing(self, kind, norm):
        teacher = dataclasses.replace(lowrank(32, 32), kind=kind)
        config = FitConfig(teacher=teacher, hidden_size=8, norm=norm, label_smoothing=0.1, temperature=0.5)
        row = fit(config)
        longer = fit(dataclasses.replace(config, max_steps=2 * row["steps"], tolerance=0.0))
        assert row["converged"]
        assert longer["steps"] >= row["steps"]
        assert longer["confidence"] == pytest.approx(row["confidence"], abs=2e-3)

    def test_a_failed_line_search_is_not_taken_for_the_end(self):
        """Here float32 L-BFGS first stalls 2e-4 nats above where a start with an empty memory takes it."""
        teacher = TeacherConfig(kind="lowrank", vocab_size=256, n_contexts=256)
        config = FitConfig(teacher=teacher, hidden_size=64, temperature=0.25, seed=1000)
        row = fit(config)
        longer = fit(dataclasses.replace(config, max_steps=2 * row["steps"], tolerance=0.0))
        assert row["loss"] - longer["loss"] < 1e-4 * row["loss"]


class TestDenseLoss:
    """What trains small heads on a CPU, against autograd through the reference loss."""

    @pytest.mark.parametrize("samples", [None, 3])
    @pytest.mark.parametrize(
        "options",
        [
            {"norm_coefficient": 0.7},
            {"norm_coefficient": 0.7, "temperature": 0.3, "label_smoothing": 0.2},
            {"norm": "free", "weight_decay": 0.3, "label_smoothing": 0.1},
            {"norm_coefficient": 0.7, "softcap": 2.0, "temperature": 0.5},
            {"norm": "free", "softcap": 2.0, "softcap_form": "gain", "label_smoothing": 0.1},
            {"norm_coefficient": 0.7, "features": "trunk", "label_smoothing": 0.1},
            {"norm_coefficient": 0.7, "confidence_penalty": 0.3, "temperature": 0.3},
            {"norm": "free", "confidence_penalty": 0.3, "softcap": 2.0, "label_smoothing": 0.1},
        ],
        ids=lambda options: ", ".join(options),
    )
    def test_loss_and_gradients_are_the_reference_s(self, options, samples):
        config = FitConfig(teacher=lowrank(12, 20, samples=samples), hidden_size=5, dtype="float64", seed=3, **options)
        _, observations, _ = _data(config.teacher)
        head = SoftmaxBottleneck(config)
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        found, expected = DenseLoss(head, observations)(), head(observations, implementation="reference")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        wanted = torch.autograd.grad(expected, trained)
        for ours, want in zip(torch.autograd.grad(found, trained), wanted, strict=True):
            torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-13)

    def test_it_trains_what_is_small_unless_another_way_is_asked_for(self):
        small, large = (SoftmaxBottleneck(FitConfig(teacher=lowrank(v, v), hidden_size=2)) for v in (8, 1025))
        assert DenseLoss.serves(small, "auto")
        assert not DenseLoss.serves(small, "chunked")
        assert not DenseLoss.serves(large, "auto")
        assert DenseLoss.serves(large, "dense")


def test_a_norm_budget_is_known_by_k_over_t_alone():
    """Powers of two apart training does the same operations: one head is the row of every such config."""
    config = FitConfig(teacher=lowrank(24, 32, samples=8), hidden_size=8, norm_coefficient=0.2, label_smoothing=0.1)
    large, small = fit(config), fit(dataclasses.replace(config, norm_coefficient=0.05, temperature=0.25))
    for name in ("confidence", "loss", "entropy", "activity_index", "effectiveness_ratio"):
        assert large[name] == pytest.approx(small[name], abs=1e-4), name
    assert large["norm_product"] == pytest.approx(4 * small["norm_product"], rel=1e-4)


class TestConvergence:
    def test_converged_at_is_where_the_rule_begins_to_hold_for_good(self):
        falling = [5.0, 3.0, 2.0, 2.0, 1.5, 1.4]  # a rest on the way does not count
        assert _converged_at(falling) == 6  # it does not hold yet
        assert _converged_at([*falling, 1.39999, 1.39998, 1.39998]) == 6
        assert _converged_at([1.0, 1.0]) == 1

    @pytest.mark.parametrize("end", [float("nan"), float("inf"), 9.0])
    def test_a_loss_that_is_lost_or_rises_has_not_converged(self, end):
        assert not _converged([1.0, 1.0, end])

    def test_overtime_trains_that_many_times_as_long(self):
        teacher = TeacherConfig(kind="det", vocab_size=24, n_contexts=24)
        plain = FitConfig(teacher=teacher, hidden_size=24, norm_coefficient=6 / 24)
        once, four = fit(plain), fit(dataclasses.replace(plain, overtime=4))
        assert once["converged_at"] == four["converged_at"]
        assert once["steps"] < 4 * once["converged_at"] <= four["steps"]
        assert four["confidence"] == pytest.approx(once["confidence"], abs=1e-5)


class TestRecord:
    def test_measures_against_independent_formulas(self, noisy):
        row = fit(noisy.head.config)
        z = noisy.head.logits().numpy()
        p, log_p = scipy.special.softmax(z, -1), scipy.special.log_softmax(z, -1)
        q = noisy.teacher.conditionals(slice(0, 24)).numpy()
        count = np.zeros_like(q)
        count[noisy.training.context, noisy.training.token] = noisy.training.weight
        assert count.sum(-1).tolist() == [8.0] * 24
        assert row["confidence"] == pytest.approx(p.max(-1).mean())
        close = p >= 0.99 * p.max(-1, keepdims=True)  # heads repeat equal counts: which token comes first says nothing
        tied = close & (count == count[np.arange(24), p.argmax(-1), None])
        accuracy = (q * tied).sum(-1) / tied.sum(-1)
        assert row["accuracy"] == pytest.approx(accuracy.mean())
        assert row["best_accuracy"] == pytest.approx(q.max(-1).mean())
        assert row["true_ece"] == pytest.approx(binned_true_error(p.max(-1), accuracy))
        assert row["context_error"] == pytest.approx(np.abs(p.max(-1) - accuracy).mean())
        assert row["entropy"] == pytest.approx(scipy.stats.entropy(p, axis=-1).mean())
        assert row["true_entropy"] == pytest.approx(scipy.stats.entropy(q, axis=-1).mean())
        assert row["true_nll"] == pytest.approx(-(q * log_p).sum(-1).mean())
        assert row["cross_entropy"] == pytest.approx(-(count * log_p).sum() / count.sum())
        assert row["uniform_cross_entropy"] == pytest.approx(-log_p.mean())
        assert row["loss"] == pytest.approx(row["cross_entropy"])
        best = p[np.arange(24), q.argmax(-1)]
        assert row["min_target_probability"] == pytest.approx(best.min())
        assert row["logit_gap"] == pytest.approx(np.log(15 * best / (1 - best)).mean())

    @pytest.mark.parametrize("cap", [None, 2.0])
    def test_a_head_that_orders_equal_counts_otherwise_is_as_good(self, cap):
        """Two heads that repeat their sample up to .001, one with the tokens of each count in the opposite order."""
        flat = dataclasses.replace(lowrank(samples=6), logit_std=1.0)
        config = FitConfig(teacher=flat, hidden_size=16, softcap=cap, dtype="float64")
        teacher, training, held_out = _data(config.teacher)
        count = torch.zeros(24, 16, dtype=torch.float64).index_put_((training.context, training.token), training.weight)
        tops = (count == count.amax(-1, keepdim=True)).sum(-1)
        assert (tops > 1).sum() >= 4  # contexts in which the order could matter
        assert (tops < 4).sum() >= 4  # and in which not all that was seen has one count
        rows = []
        for sign in (1, -1):
            head = SoftmaxBottleneck(config)
            repeated = (count + 1e-3).log() + sign * 1e-3 * torch.linspace(-0.5, 0.5, 16, dtype=torch.float64)
            z = repeated if cap is None else cap * torch.tanh(repeated / cap + 3)  # all that were seen are within 1 %
            head.logits = lambda contexts=slice(None), z=z: z[contexts]
            rows.append(measure(head, teacher, training, held_out))
        for name in ("accuracy", "true_ece", "context_error"):
            assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-3), name
        largest = count == count.amax(-1, keepdim=True)  # these are predicted, under the cap too
        mean = (teacher.conditionals(slice(0, 24)) * largest).sum(-1) / tops
        assert rows[0]["accuracy"] == pytest.approx(mean.mean().item(), abs=1e-9)

    def test_the_activity_index_is_the_slope_in_temperature(self, noisy):
        row, b = fit(noisy.head.config), 0.1
        seen = noisy.training

        def smoothed_loss(log_temperature):
            z = noisy.head.logits()[seen.context] / np.exp(log_temperature)
            rows = torch.nn.functional.cross_entropy(z, seen.token, label_smoothing=b, reduction="none")
            return ((rows * seen.weight).sum() / seen.weight.sum()).item()

        slope = (smoothed_loss(1e-5) - smoothed_loss(-1e-5)) / 2e-5
        pull = b * (row["uniform_cross_entropy"] - row["cross_entropy"])
        assert (row["activity_index"] - 1) * pull == pytest.approx(slope, rel=1e-5)

    def test_estimates_approach_the_truth(self):
        row = fit(FitConfig(teacher=lowrank(16, 400, samples=64), hidden_size=6, norm_coefficient=0.3))
        assert row["estimated_ece"] == pytest.approx(row["true_ece"], abs=0.02)
        assert row["held_out_nll"] == pytest.approx(row["true_nll"], abs=0.03)

    def test_rho_is_of_the_budget_and_the_gain_counts(self):
        options = {"max_steps": 1, "temperature": 0.5, "softcap": 3.0}
        row = fit(det(16, 4, 2, **options))
        assert row["effectiveness_ratio"] == effectiveness_ratio(2, 16, 0.1, temperature=0.5, softcap=3.0)
        row = fit(det(16, 4, 2, softcap_form="gain", label_smoothing=0.2, **options))
        assert row["effectiveness_ratio"] == effectiveness_ratio(6, 16, 0.2, temperature=0.5, softcap=3.0)
        row = fit(FitConfig(teacher=lowrank(), hidden_size=4, norm="free", max_steps=20))
        assert row["effectiveness_ratio"] == effectiveness_ratio(row["norm_product"], 16, 0.1)

    def test_a_run_cut_short_says_so(self):
        row = fit(det(64, 16, 20, max_steps=10))
        assert (row["converged"], row["converged_at"]) == (False, None)
        assert row["relative_loss_fall"] == pytest.approx(row["loss_fall"] / row["loss"])

    def test_the_same_config_gives_the_same_row_and_seeds_are_apart(self):
        config = FitConfig(teacher=lowrank(), hidden_size=3)
        timing = {"wall_seconds", "cpu_seconds"}

        def row(**changes):
            return {k: v for k, v in fit(dataclasses.replace(config, **changes)).items() if k not in timing}

        assert row() == row()
        other_model, other_data = row(seed=1), row(teacher=lowrank(seed=1))
        assert other_model["best_accuracy"] == row()["best_accuracy"] != other_data["best_accuracy"]
        assert other_model["loss"] != row()["loss"]

    def test_columns_are_flat_and_name_both_seeds(self):
        columns = FitConfig(teacher=lowrank(seed=5), hidden_size=3, seed=7).columns()
        assert (columns["teacher"], columns["data_seed"], columns["model_seed"]) == ("lowrank", 5, 7)
        assert all(value is None or isinstance(value, str | int | float) for value in columns.values())


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"hidden_size": 0}, ValueError, r"hidden_size must be at least 1, got 0\."),
        ({"hidden_size": 4.0}, TypeError, r"hidden_size must be an int, got 4\.0\."),
        ({"teacher": "det"}, TypeError, r"teacher must be a TeacherConfig, got 'det'\."),
        ({"norm": "l2"}, ValueError, r"norm must be one of \('budget', 'free'\), got 'l2'\."),
        ({"softcap_form": "tanh"}, ValueError, r"softcap_form must be one of \('contraction', 'gain'\), got 'tanh'\."),
        ({"norm_coefficient": 0.0}, ValueError, r"norm_coefficient must be finite and greater than 0, got 0\.0\."),
        ({"temperature": float("nan")}, ValueError, r"temperature must not be NaN, got nan\."),
        ({"softcap": -1.0}, ValueError, r"softcap must be finite and greater than 0, got -1\.0\."),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1\.5\."),
        ({"confidence_penalty": -0.1}, ValueError, r"confidence_penalty must be finite and at least 0, got -0\.1\."),
        ({"max_steps": 0}, ValueError, r"max_steps must be at least 1, got 0\."),
        ({"tolerance": -1e-3}, ValueError, r"tolerance must be finite and at least 0, got -0\.001\."),
        ({"dtype": "float16"}, ValueError, r"dtype must be one of \('float32', 'float64'\), got 'float16'\."),
    ],
)
def test_config_errors_say_what_is_allowed(fields, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        FitConfig(**{"hidden_size": 4, **fields})
