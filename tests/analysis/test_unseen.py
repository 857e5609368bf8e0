"""One row for all tokens that training never saw: the same optimum as with a row for each, and refused where it is not."""

import dataclasses

import pytest
import torch

from analysis.bottleneck import FitConfig, SoftmaxBottleneck, course, fit, train
from analysis.bottleneck._unseen import Classes, merged_classes
from analysis.teachers import PaddedTeacherConfig, TeacherConfig

NOISY = TeacherConfig(kind="lowrank", vocab_size=64, n_contexts=12, samples_per_context=6, seed=1)  # sees 27 of the 64
FEW = dataclasses.replace(NOISY, vocab_size=256)  # of which it sees less than a quarter
NORMS = {
    "budget": {"norm_coefficient": 0.5},
    "decay": {"norm": "free", "weight_decay": 0.01},
    "trunk": {"norm_coefficient": 0.5, "features": "trunk"},
}


def noisy(norms, **options):
    options = {"teacher": NOISY, "hidden_size": 8, "dtype": "float64", "label_smoothing": 0.1, **options}
    return FitConfig(**NORMS[norms], **options)


def unseen(fitted):
    return ~torch.isin(torch.arange(fitted.teacher.vocab_size), fitted.training.token)


@pytest.mark.parametrize(("norms", "smoothing"), [("budget", 0.0), ("budget", 0.1), ("decay", 0.1)])
def test_the_optimum_is_that_of_a_row_for_each_token(norms, smoothing):
    config = noisy(norms, label_smoothing=smoothing, tolerance=1e-10, max_steps=1000)
    merged, full = (train(config, implementation=name) for name in ("merged", "dense"))
    assert 2 * unseen(full).sum() > 64
    assert merged.losses[-1] == pytest.approx(full.losses[-1], abs=1e-6)
    z = full.head.logits()[:, unseen(full)]
    assert (z.amax(-1) - z.amin(-1)).max() < 1e-3  # nothing made them equal but the optimum
    torch.testing.assert_close(merged.head.logits().softmax(-1), full.head.logits().softmax(-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("norms", list(NORMS))
def test_loss_and_gradient_are_those_of_the_expanded_head(norms):
    config = noisy(norms, max_steps=10)
    fitted = train(config, implementation="merged")
    head, recorded = fitted.head, course(fitted)["gradient_norm"]
    rows = head.weight()[unseen(fitted)]
    assert head.raw_weight.shape == SoftmaxBottleneck(config).raw_weight.shape
    assert (rows == rows[0]).all()
    head.zero_grad()
    loss = head(fitted.training)
    loss.backward()
    assert fitted.losses[-1] == pytest.approx(loss.item(), rel=1e-12)
    trained = [parameter.grad.norm() for parameter in head.parameters() if parameter.grad is not None]
    assert recorded == pytest.approx(torch.stack(trained).norm().item(), rel=1e-9)


@pytest.mark.parametrize("norms", list(NORMS))
def test_training_begins_at_the_mean_of_the_unseen_rows(norms):
    fitted = train(noisy(norms, max_steps=1), implementation="merged")
    full, merged = SoftmaxBottleneck(fitted.head.config), SoftmaxBottleneck(fitted.head.config)
    classes = Classes.of(fitted.training, 64, device="cpu")
    classes.merge(merged)
    merged.raw_weight.grad = torch.zeros_like(merged.raw_weight)
    classes.expand(merged)
    some = unseen(fitted)
    torch.testing.assert_close(merged.weight()[~some], full.weight()[~some])
    torch.testing.assert_close(merged.weight()[some][0], full.weight()[some].mean(0))
    assert fitted.losses[0] == pytest.approx(merged(fitted.training).item(), rel=1e-12)
    assert fitted.losses[0] < full(fitted.training)


def test_a_large_vocabulary_in_float32_does_as_well_as_a_row_for_each_token():
    teacher = TeacherConfig(kind="lowrank", vocab_size=4096, n_contexts=48, samples_per_context=8)
    for smoothing in (0.0, 0.2):
        config = FitConfig(teacher=teacher, hidden_size=16, label_smoothing=smoothing, overtime=2)
        merged, full = (fit(config, implementation=name) for name in ("merged", "dense"))
        assert merged["converged"]
        assert merged["loss"] <= full["loss"] + 1e-4  # by a row's convergence; some 1e-4 below it as a rule
        for name in ("confidence", "true_ece", "accuracy", "activity_index", "entropy"):
            assert merged[name] == pytest.approx(full[name], abs=2e-3), name


def test_powers_of_two_of_strength_and_temperature_train_alike():
    config = noisy("budget", dtype="float32", max_steps=50)
    other = dataclasses.replace(config, norm_coefficient=config.norm_coefficient / 4, temperature=0.25)
    ours, theirs = (train(c, implementation="merged").losses for c in (config, other))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_without_unseen_tokens_it_is_training_as_it_was():
    config = FitConfig(teacher=TeacherConfig(kind="det", vocab_size=8, n_contexts=8), hidden_size=8, dtype="float64")
    merged, dense = (train(config, implementation=name).losses[-1] for name in ("merged", "dense"))
    assert merged == pytest.approx(dense, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softcap": 5.0}, "softcap must be None for implementation='merged', got 5.0"),
        ({"softcap": 5.0, "softcap_form": "gain"}, "softcap must be None for implementation='merged', got 5.0"),
        ({"confidence_penalty": 0.1}, "confidence_penalty must be 0.0 for implementation='merged', got 0.1"),
        ({"optimiser": "adam"}, "optimiser must be 'lbfgs' for implementation='merged', got 'adam'"),
    ],
)
def test_it_is_refused_where_equal_rows_need_not_be_best(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        train(noisy("budget", max_steps=1, **change), implementation="merged")


@pytest.mark.parametrize(
    ("change", "implementation", "device", "taken"),
    [
        ({"teacher": FEW}, "auto", "cpu", True),
        ({"teacher": FEW}, "auto", "cuda", False),
        ({"teacher": FEW}, "dense", "cpu", False),
        ({"teacher": FEW}, "merged", "cuda", True),
        ({"teacher": FEW, "softcap": 5.0}, "auto", "cpu", False),
        ({"teacher": FEW, "confidence_penalty": 0.1}, "auto", "cpu", False),
        ({"teacher": FEW, "optimiser": "adam"}, "auto", "cpu", False),
        ({}, "auto", "cpu", False),
        ({}, "merged", "cpu", True),
    ],
)
def test_auto_merges_on_a_cpu_where_three_quarters_were_never_seen(change, implementation, device, taken):
    config = noisy("budget", **change)
    training = train(noisy("budget", teacher=config.teacher, max_steps=1)).training
    device = torch.device(device if torch.cuda.is_available() else "cpu" if device == "cpu" else "meta")
    assert (merged_classes(config, training, device=device, implementation=implementation) is not None) == taken


def test_auto_merges_tokens_that_never_occur():
    teacher = PaddedTeacherConfig(
        kind="lowrank", vocab_size=64, dead_tokens=56, n_contexts=12, samples_per_context=None
    )
    config = noisy("budget", teacher=teacher, max_steps=20)
    automatic, merged, dense = (train(config, implementation=name).losses for name in ("auto", "merged", "dense"))
    assert automatic == merged
    assert automatic[0] < dense[0]
