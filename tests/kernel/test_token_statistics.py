"""Statistics that come with the loss, their gradients, and the confidence penalty, in every implementation."""

from __future__ import annotations

import pytest
import torch
from helpers import call, eager, problem, relative_error, value_and_gradients

from kernel import LinearCrossEntropy, TokenStatistics, head_statistics, linear_cross_entropy
from kernel.blocks import BLOCK_BYTES

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_fused_cuda.py covers the device")
IMPLEMENTATIONS = ["reference", "chunked", "triton"]
OPTIONS = [
    {},
    {"softcap": 3.0, "temperature": 0.5, "label_smoothing": 0.1},
    {"logit_scale": -1.5, "z_loss": 1e-3, "confidence_penalty": 0.2, "reduction": "none"},
]


def both(args, implementation, dtype=torch.float32, **options):
    leaves = args.to(dtype)
    return leaves, *call(leaves, implementation=implementation, return_statistics=True, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_fields_are_those_of_the_full_logits(implementation, options):
    args = problem(37, 140, 20, bias=True, weighted=True, ignored=0.3)
    _, loss, of = both(args, implementation, **options)
    assert isinstance(of, TokenStatistics)
    alone = call(args, implementation="reference", **options)
    torch.testing.assert_close(loss.double(), alone, rtol=1e-6, atol=1e-6)
    want = head_statistics(
        *args[:3],
        linear_bias=args.linear_bias,
        softcap=options.get("softcap"),
        logit_scale=options.get("logit_scale", 1.0),
        temperatures=(options.get("temperature", 1.0),),
    )
    for name in ("log_probability", "lse", "entropy", "confidence"):
        found, exact = getattr(of, name), getattr(want, name)[:, 0]
        torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-6, equal_nan=True)
    assert torch.equal(of.argmax, want.argmax)
    assert of.entropy.isnan().sum() == (args.target == -100).sum() > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("workspace_bytes", [0, 2**28])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_statistics(implementation, workspace_bytes, options, monkeypatch):
    if workspace_bytes:  # several blocks of the chunked loss
        monkeypatch.setitem(BLOCK_BYTES, "cpu", 10 * 140 * 4)
    args = problem(37, 140, 20, bias=True, weighted=True, ignored=0.3)
    kept = args.target != -100

    def gradients(implementation, dtype):
        leaves, loss, of = both(args, implementation, dtype, workspace_bytes=workspace_bytes, **options)
        rows = torch.linspace(-1, 2, int(kept.sum()), dtype=loss.dtype)
        total = loss.sum() + (of.entropy[kept].square() * rows).sum() + of.lse[kept].exp().log().sum()
        total = total - 0.3 * (of.log_probability[kept] * rows).sum()
        return torch.autograd.grad(total, (leaves.input, leaves.linear_weight, leaves.linear_bias))

    for got, want in zip(gradients(implementation, torch.float32), gradients("reference", torch.float64), strict=True):
        assert relative_error(got.double(), want) < 3e-6


@pytest.mark.parametrize("name", ["log_probability", "lse", "entropy"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_of_one_statistic_alone(implementation, name):
    args = problem(20, 70, 16)

    def gradients(implementation, dtype):
        leaves, _, of = both(args, implementation, dtype)
        return torch.autograd.grad(getattr(of, name).sum(), leaves[:2])

    for got, want in zip(gradients(implementation, torch.float32), gradients("reference", torch.float64), strict=True):
        assert relative_error(got.double(), want) < 3e-6


def test_reference_gradients_of_the_entropy_by_finite_differences():
    args = problem(4, 9, 3)
    leaves = args.input, args.linear_weight

    def entropy(input, weight):
        return linear_cross_entropy(input, weight, args.target, implementation="reference", return_statistics=True)[1][
            2
        ]

    assert torch.autograd.gradcheck(entropy, leaves)
    assert torch.autograd.gradgradcheck(entropy, leaves)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_gradients(implementation):
    args = problem(20, 70, 16, ignored=0.2).to(torch.float32)
    with torch.no_grad():
        loss, of = linear_cross_entropy(*args[:3], implementation=implementation, return_statistics=True)
    _, want, others = both(problem(20, 70, 16, ignored=0.2), "reference", torch.float64)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of.entropy.double(), others.entropy.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)
    assert not of.entropy.requires_grad


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_confidence_and_argmax_have_no_gradient(implementation):
    _, loss, of = both(problem(20, 70, 16), implementation)
    assert loss.requires_grad
    assert all(getattr(of, name).requires_grad for name in ("log_probability", "lse", "entropy"))
    assert not of.confidence.requires_grad
    assert not of.argmax.requires_grad


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_classes_that_are_ruled_out_add_nothing(implementation):
    args = problem(20, 70, 16, bias=True).to(torch.float32)
    with torch.no_grad():
        args.linear_bias[40:] = -torch.inf
        args.target[:] = args.target % 40
    short = problem(20, 70, 16, bias=True).to(torch.float64)
    options = {"confidence_penalty": 0.3, "z_loss": 1e-3}
    loss = call(args, implementation=implementation, workspace_bytes=2**28, **options)
    gradients = torch.autograd.grad(loss, (args.input, args.linear_weight))
    head = short.linear_weight[:40].detach().requires_grad_()
    want = eager(short.input, head, args.target, linear_bias=short.linear_bias[:40], **options)
    exact = torch.autograd.grad(want, (short.input, head))
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    assert relative_error(gradients[0].double(), exact[0]) < 1e-5
    assert relative_error(gradients[1][:40].double(), exact[1]) < 1e-5
    assert not gradients[1][40:].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_first_of_equal_logits(implementation):
    weight = torch.zeros(90, 4)
    weight[[7, 33, 80]] = 1.0
    args = problem(3, 90, 4)._replace(input=torch.ones(3, 4), linear_weight=weight)
    _, of = call(args, implementation=implementation, return_statistics=True)
    assert of.argmax.tolist() == [7, 7, 7]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_tokens_and_leading_axes(implementation):
    args = problem(6, 9, 4).to(torch.float32)
    folded = args._replace(input=args.input.view(2, 3, 4), target=args.target.view(2, 3))
    options = {"implementation": implementation, "return_statistics": True}
    loss, of = call(folded, reduction="none", **options)
    assert loss.shape == (2, 3)
    assert all(field.shape == (2, 3) for field in of)
    _, of = call(args._replace(input=args.input[:0], target=args.target[:0]), **options)
    assert all(field.shape == (0,) for field in of)
    of.entropy.sum().backward()
    assert not args.linear_weight.grad.any()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_penalty_subtracts_the_entropy(implementation, reduction):
    args = problem(37, 70, 16, bias=True, weighted=True, ignored=0.2)
    options = {"confidence_penalty": 0.4, "softcap": 2.0, "temperature": 0.7, "logit_scale": 1.3}
    options["reduction"] = reduction
    exact = value_and_gradients(eager, args, **options)
    without = value_and_gradients(eager, args, **{**options, "confidence_penalty": 0.0})
    found = value_and_gradients(
        lambda *a, **k: linear_cross_entropy(*a, implementation=implementation, **k), args.to(torch.float32), **options
    )
    for got, want, other in zip(found, exact, without, strict=True):
        assert relative_error(got, want) < 2e-6
        assert relative_error(other, want) > 0.02


def test_module_returns_statistics():
    head = LinearCrossEntropy(4, 9, confidence_penalty=0.1)
    hidden, target = torch.randn(5, 4), torch.arange(5)
    loss, of = head(hidden, target, return_statistics=True)
    assert loss == head(hidden, target)
    plain = LinearCrossEntropy(4, 9, weight=head.weight)
    torch.testing.assert_close(loss, plain(hidden, target) - 0.1 * of.entropy.mean())
    assert "confidence_penalty=0.1" in repr(head)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"confidence_penalty": -0.1}, ValueError, r"confidence_penalty must be in \[0, .*, got -0.1"),
        ({"confidence_penalty": "a"}, TypeError, "confidence_penalty must be a Python number, got str"),
        ({"return_statistics": 1}, TypeError, "return_statistics must be a bool, got int"),
    ],
    ids=str,
)
def test_refusals(options, error, text):
    args = problem(2, 3, 4)
    with pytest.raises(error, match=text):
        linear_cross_entropy(*args[:3], **options)
