"""The chunked path against float64 autograd of independent eager code."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import OPTIONS, Problem, assert_within_budget, eager, problem, relative_error, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import chunked, linear_cross_entropy
from kernel.blocks import BLOCK_BYTES

SHAPES = [(1, 1, 1), (1, 2, 3), (7, 13, 5), (64, 33, 17), (130, 257, 31)]


def ours(*args: object, **options: object) -> torch.Tensor:
    return linear_cross_entropy(*args, implementation="chunked", **options)  # type: ignore[arg-type]


@pytest.fixture(params=[None, 20 * 64], ids=["one block", "several blocks"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setitem(BLOCK_BYTES, "cpu", request.param)


def check(args: Problem, *, floor: float = 1e-6, **options: object) -> None:
    exact = value_and_gradients(eager, args.to(torch.float64), **options)
    budget = value_and_gradients(eager, args.to(torch.float32), **options)
    assert_within_budget(value_and_gradients(ours, args.to(torch.float32), **options), budget, exact, floor=floor)
    reference_gradients = value_and_gradients(
        lambda *a, **k: linear_cross_entropy(*a, implementation="reference", **k), args, **options
    )
    for got in (value_and_gradients(ours, args.to(torch.float64), **options), reference_gradients):
        assert_within_budget(got, exact, exact, floor=1e-12)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients(shape, reduction, options):
    check(problem(*shape, bias=True, weighted=True, ignored=0.3, seed=3), reduction=reduction, **options)


@pytest.mark.parametrize(
    ("bias", "weighted", "ignored"), list(itertools.product([False, True], [False, True], [0.0, 0.5]))
)
def test_optional_tensors(bias, weighted, ignored):
    check(problem(33, 40, 8, bias=bias, weighted=weighted, ignored=ignored), label_smoothing=0.1, softcap=5.0)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    v=st.integers(1, 60),
    d=st.integers(1, 20),
    smoothing=st.floats(0, 1).map(lambda x: round(x, 6)),
    softcap=st.none() | st.floats(0.5, 50),
    temperature=st.floats(0.1, 10),
    logit_scale=st.floats(-2, 2).map(lambda x: round(x, 3)),  # products of subnormal numbers are not the point
    z_loss=st.sampled_from([0.0, 1e-3]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    ignored=st.sampled_from([0.0, 0.5]),
    block=st.integers(1, 4000),
    seed=st.integers(0, 99),
)
def test_gradients_by_hypothesis(
    n, v, d, smoothing, softcap, temperature, logit_scale, z_loss, reduction, ignored, block, seed
):
    args = problem(n, v, d, bias=bool(seed % 2), weighted=bool(seed % 3), ignored=ignored, seed=seed)
    if (args.target == -100).all():
        args.target[0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCK_BYTES, "cpu", block)
        check(
            args,
            floor=1e-5,  # a few numbers can cancel to far less than their terms, a small loss between large logits
            label_smoothing=smoothing,
            softcap=softcap,
            temperature=temperature,
            logit_scale=logit_scale,
            z_loss=z_loss,
            reduction=reduction,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_accumulated_in_float32(dtype):
    """Against float64 on the very same half-precision numbers, only the rounding of the outputs is left."""
    args = problem(200, 300, 40, ignored=0.2).to(dtype)
    exact = value_and_gradients(eager, args.to(torch.float64), label_smoothing=0.1)
    got = value_and_gradients(ours, args, label_smoothing=0.1)
    assert ours(*args[:3]).dtype == torch.float32
    assert relative_error(got[0], exact[0]) < 1e-6
    rounding = torch.finfo(dtype).eps / 2
    for g, e in zip(got[1:3], exact[1:3], strict=True):
        assert relative_error(g, e) < rounding + 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.003, 2.0**16, 2.0**17])
def test_gradients_of_half_inputs_bear_a_loss_scale(scale, dtype):
    """65536 is the first scale of torch.amp.GradScaler and no float16 number; 1.003 is no bfloat16 number."""
    args = problem(16384, 8, 4).to(dtype)
    exact = problem(16384, 8, 4).to(dtype).to(torch.float64)
    (ours(*args[:3]) * scale).backward()
    (eager(*exact[:3]) * scale).backward()
    for got, want in zip(args[:2], exact[:2], strict=True):
        assert relative_error(got.grad.double(), want.grad) < torch.finfo(dtype).eps / 2 + (1e-3 if scale < 2 else 1e-5)


def test_large_logits_do_not_overflow():
    args = problem(20, 50, 8, scale=3000.0)
    exact = value_and_gradients(eager, args, label_smoothing=0.1)
    got = value_and_gradients(ours, args.to(torch.float32), label_smoothing=0.1)
    assert exact[0].item() > 100
    assert_within_budget(got, got, exact, floor=1e-5, factor=0)


def test_small_losses_keep_relative_accuracy():
    """Near 0 the loss is not the difference of two large float32 numbers: that would be off by 8 % here."""
    got = ours(torch.tensor([[40.0]]), torch.tensor([[1.0], [0.75]]), torch.tensor([0])).item()
    assert got == pytest.approx(torch.tensor(-10.0).double().exp().log1p().item(), rel=2e-3)


def test_no_gradient_is_formed_without_need(monkeypatch):
    args = problem(6, 7, 3)
    seen = []
    run = chunked._run
    monkeypatch.setattr(chunked, "_run", lambda *a, **k: seen.append(list(a[-1])) or run(*a, **k))
    with torch.no_grad():
        ours(*args[:3])
    with torch.inference_mode():
        ours(*args[:3])
    ours(args.input.detach(), args.linear_weight.detach(), args.target)
    ours(args.input.detach(), args.linear_weight, args.target)
    ours(args.input.detach(), args.linear_weight, args.target, reduction="none").sum().backward()
    none, head = [False] * 3, [False, True, False]
    assert seen == [none, none, none, head, none, head], "losses of each token form their gradients in the backward"


def test_backward_under_autocast_is_not_cast():
    """The per-token backward recomputes the blocks; an autocast around it must not reach those products."""
    args = problem(6, 7, 3).to(torch.float32)
    value = ours(*args[:3], reduction="none")
    outside = torch.autograd.grad(value.sum(), args[:2], retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(value.sum(), args[:2])
    for a, b in zip(outside, inside, strict=True):
        assert torch.equal(a, b)


def test_ignored_rows_cost_nothing(monkeypatch):
    args = problem(100, 20, 4, ignored=0.0)
    args.target[10:] = -100
    sizes = []
    blocks = chunked.loss_blocks
    monkeypatch.setattr(chunked, "loss_blocks", lambda hidden, *a: sizes.append(hidden.shape[0]) or blocks(hidden, *a))
    value_and_gradients(ours, args)
    assert sizes == [10]
