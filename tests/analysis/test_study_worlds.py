"""The tuning world and its model, and the readings, features and optimisers of trained heads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.bottleneck import FitConfig, SoftmaxBottleneck, fit, train
from analysis.bottleneck._head import Batch
from analysis.calibration._scores import aurc_from_risks
from analysis.study.s5_capping import capping
from analysis.study.s7_tuning import TuningConfig, tune
from analysis.study.s7_world import Model, World
from analysis.teachers import Observations, TeacherConfig, make_teacher

NOISY = TeacherConfig(kind="lowrank", vocab_size=24, n_contexts=16)


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0, "temperature": 0.5}, {"softcap": 3.0, "softcap_form": "gain", "temperature": 0.5}]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_definition_and_grouping_by_context_changes_no_gradient(options, smoothing):
    config = FitConfig(
        teacher=NOISY, hidden_size=5, label_smoothing=smoothing, norm_coefficient=0.7, dtype="float64", **options
    )
    head = SoftmaxBottleneck(config)
    teacher = make_teacher(NOISY, torch.Generator().manual_seed(0))
    seen = Observations(*(x[3:] for x in teacher.sample(8, torch.Generator().manual_seed(1))))  # some contexts unseen
    z = (head.hidden() @ head.weight().T) * config.logit_scale
    if config.softcap:
        z = config.softcap * torch.tanh(z / config.softcap)
    torch.testing.assert_close(head.logits(), z / config.temperature)
    z = (z / config.temperature)[seen.context]
    rows = F.cross_entropy(z, seen.token, label_smoothing=smoothing, reduction="none")
    expected = (rows * seen.weight).sum() / seen.weight.sum()
    batch = Batch.of(seen, device="cpu", dtype=torch.float64)
    assert len(batch.token) + len(batch.others.token) == len(seen.token)
    torch.testing.assert_close(head(batch), expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(head(batch), list(head.parameters())),
        torch.autograd.grad(expected, list(head.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def test_a_view_reads_the_same_weights_with_another_cap_and_temperature():
    head = SoftmaxBottleneck(FitConfig(teacher=NOISY, hidden_size=4))
    view = head.evaluated(softcap=2.0, temperature=0.5)
    torch.testing.assert_close(view.logits(), 2.0 * torch.tanh(head.logits() / 2.0) / 0.5)
    assert head.config.softcap is None
    assert view.raw_weight is head.raw_weight
    with pytest.raises(ValueError, match=r"^changes must be among softcap, .* got \['hidden_size'\]\.$"):
        head.evaluated(hidden_size=8)


def test_a_trunk_shares_weights_between_contexts_and_leaves_its_inputs_alone():
    config = FitConfig(teacher=NOISY, hidden_size=6, features="trunk", max_steps=50)
    start, fitted = SoftmaxBottleneck(config), train(config)
    torch.testing.assert_close(fitted.head.raw_features, start.raw_features)
    assert fitted.losses[-1] < fitted.losses[0] - 0.3
    torch.testing.assert_close(fitted.head.hidden().norm(dim=-1), torch.full((16,), 6**0.5))
    assert not torch.equal(fitted.head.trunk[0].weight, start.trunk[0].weight)


def test_weight_decay_reaches_the_closed_form():
    """One context, two tokens, det at D = 1: minimise log(1 + e^-2hw) + decay / 2 (h^2 + w^2), with w_1 = -w_2."""
    decay = 0.2
    teacher = TeacherConfig(kind="det", vocab_size=2, n_contexts=2)
    head = train(FitConfig(teacher=teacher, hidden_size=1, norm="free", weight_decay=decay, tolerance=0.0)).head
    m = np.linspace(0, 10, 200_001)  # |h| |w| = m, and |h| = |w| at the least decay
    least = m[np.argmin(np.log1p(np.exp(-2 * m)) + decay * m)]
    assert head.norm_product() == pytest.approx(least, abs=1e-3)
    with pytest.raises(ValueError, match=r"^weight_decay must be 0 under a norm budget, got 0\.2\.$"):
        FitConfig(hidden_size=4, weight_decay=0.2)


def test_adam_reaches_what_lbfgs_reaches_and_reports_its_step_size():
    common = {"teacher": NOISY, "hidden_size": 4, "norm_coefficient": 0.5}
    one, two = fit(FitConfig(**common)), fit(FitConfig(**common, optimiser="adam", max_steps=600))
    assert two["step_size"] in (0.003, 0.01, 0.03, 0.1)
    assert one["step_size"] is None
    assert two["loss"] == pytest.approx(one["loss"], abs=5e-3)


def test_aurc_by_hand_and_ties():
    assert aurc_from_risks(np.array([0.9, 0.5, 0.7]), np.array([0.0, 1.0, 0.5])) == pytest.approx((0 + 0.25 + 0.5) / 3)
    assert aurc_from_risks(np.array([0.5, 0.5]), np.array([0.0, 1.0])) == 0.5  # in either order


def test_readings_of_a_capped_head():
    teacher = TeacherConfig(kind="lowrank", vocab_size=24, n_contexts=16)
    config = FitConfig(teacher=teacher, hidden_size=4, softcap=2.0, label_smoothing=0.1, norm_coefficient=0.5)
    by_name = {line["evaluation"]: line for line in capping(config)["measurements"]}
    assert list(by_name) == ["as_trained", "plain", "post_hoc", "inverted"]
    assert by_name["plain"]["confidence"] > by_name["as_trained"]["confidence"]  # a contraction taken away
    assert by_name["inverted"]["confidence"] > by_name["as_trained"]["confidence"]
    assert by_name["inverted"]["accuracy"] == by_name["as_trained"]["accuracy"]
    assert by_name["post_hoc"]["eval_temperature"] != 1


@pytest.fixture(scope="module")
def tuning():
    return TuningConfig(
        vocab_size=32,
        hidden_size=8,
        smoothings=(0.0, 0.1),
        pretraining_steps=60,
        examples=64,
        epochs=4,
        evaluated=200,
    )


@pytest.fixture(scope="module")
def row(tuning):
    return tune(tuning)


class TestTuning:
    def test_conditionals_are_known_and_shifted_ones_nearly_determined(self):
        world, generator = World(64, 0), torch.Generator().manual_seed(1)
        broad = world.draw(4000, shifted=False, generator=generator)
        shifted = world.draw(4000, shifted=True, generator=generator)
        entropies = [-torch.xlogy(b.conditionals, b.conditionals).sum(-1).mean() for b in (broad, shifted)]
        assert entropies[1] < 0.5 * entropies[0]
        for batch in (broad, shifted):
            torch.testing.assert_close(batch.conditionals.sum(-1), torch.ones(4000, dtype=torch.float64))
            counts = torch.bincount(batch.tokens, minlength=64).double() / 4000
            assert (counts - batch.conditionals.mean(0)).abs().max() < 5 * 0.5 / 4000**0.5
        assert (shifted.inputs.mean(0).double() - world.centre).abs().max() < 0.1

    def test_the_loss_is_that_of_the_logits(self):
        model = Model(20, 8, seed=0)
        x, y = torch.randn(30, 24, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 20
        expected = F.cross_entropy(model.logits(x), y, label_smoothing=0.1)
        assert model.loss(x, y, label_smoothing=0.1).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_lines_are_complete(self, row):
        lines = {(x["method"], x["epoch"], x["distribution"], x["reading"]) for x in row["measurements"]}
        assert len(lines) == len(row["measurements"])
        for method in ("b=0", "b=0.1", "weight_decay", "dropout"):
            for epoch in (0, 1, 2, 4):
                assert {(method, epoch, d, "as_trained") for d in ("train", "broad", "shifted")} <= lines
            assert (method, 4, "shifted", "post_hoc") in lines
        assert ("b=0.1", 4, "shifted", "inverted") in lines
        assert ("b=0", 4, "shifted", "inverted") not in lines

    def test_every_method_starts_from_the_same_model_and_tuning_fits_the_examples(self, row):
        lines = {
            (x["method"], x["epoch"]): x["nll"]
            for x in row["measurements"]
            if (x["distribution"], x["reading"]) == ("train", "as_trained")
        }
        assert len({lines[method, 0] for method in ("b=0", "b=0.1", "weight_decay", "dropout")}) == 1
        assert lines["b=0", 4] < lines["b=0", 1] < lines["b=0", 0]

    def test_a_penalty_starts_from_the_same_model_and_ends_less_sure(self, tuning, row):
        alone = {"smoothings": (), "weight_decay": 0.0, "dropout": 0.0, "penalties": (2.0,)}
        lines = [*row["measurements"], *tune(replace(tuning, **alone))["measurements"]]
        trained = {
            (x["method"], x["epoch"]): x
            for x in lines
            if (x["distribution"], x["reading"]) == ("train", "as_trained") and x["method"] in ("b=0", "penalty=2")
        }
        assert len(trained) == 8
        assert {x["method"] for x in lines} == {"b=0", "b=0.1", "weight_decay", "dropout", "penalty=2"}
        assert trained["penalty=2", 0]["nll"] == pytest.approx(trained["b=0", 0]["nll"], rel=1e-6)
        assert trained["penalty=2", 4]["confidence"] < trained["b=0", 4]["confidence"] - 5e-3

    def test_it_can_be_made_again(self, tuning, row):
        def numbers(r):
            return [x["true_ece"] for x in r["measurements"]]

        np.testing.assert_allclose(numbers(tune(tuning)), numbers(row), atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("implementation", ["triton", "dense"])
def test_a_gpu_trains_the_head_of_a_cpu(implementation):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    teacher = TeacherConfig(kind="lowrank", vocab_size=256, n_contexts=64)
    config = FitConfig(teacher=teacher, hidden_size=16, label_smoothing=0.1)
    rows = [fit(config), fit(config, device="cuda", implementation=implementation)]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=1e-4)
    assert rows[0]["confidence"] == pytest.approx(rows[1]["confidence"], abs=2e-3)
