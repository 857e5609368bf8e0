"""The chunked path against float64 autograd of independent eager code."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import Problem, assert_within_budget, eager, problem, relative_error, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import chunked, linear_cross_entropy, reference
from kernel.blocks import BLOCK_BYTES

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"softcap": 3.0},
    {"temperature": 0.25},
    {"logit_scale": 0.5},
    {"z_loss": 1e-2},
    {"softcap": 2.0, "temperature": 0.5, "logit_scale": 1.5, "z_loss": 1e-3, "label_smoothing": 0.2},
]
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
            floor=1e-6 if n >= 4 and d >= 4 else 1e-5,  # a few numbers can cancel to far less than their terms
            label_smoothing=smoothing,
            softcap=softcap,
            temperature=temperature,
            logit_scale=logit_scale,
            z_loss=z_loss,
            reduction=reduction,
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options, reduction, monkeypatch):
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 8 * 9 * 2)
    args = problem(5, 9, 4, bias=True, weighted=True, ignored=0.2, seed=1)

    def loss(input, weight, bias):
        return ours(
            input, weight, args.target, linear_bias=bias, token_weight=args.token_weight, reduction=reduction, **options
        )

    assert torch.autograd.gradcheck(loss, (args.input, args.linear_weight, args.linear_bias))


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


def test_small_mean_gradients_survive_float16():
    """Every gradient entry is near 1 / N: products of float16 p - q already divided by N would vanish."""
    args = problem(4096, 8, 4).to(torch.float16)
    exact = value_and_gradients(eager, args.to(torch.float64))
    got = value_and_gradients(ours, args)
    assert relative_error(got[2], exact[2]) < 1e-3


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


@pytest.mark.parametrize("frozen", ["input", "linear_weight", "linear_bias"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_frozen_arguments_get_no_gradient(frozen, reduction, monkeypatch):
    args = problem(6, 7, 3, bias=True)
    free = dict(zip(("input", "linear_weight", "linear_bias"), (*args[:2], args.linear_bias), strict=True))
    whole = value_and_gradients(ours, args, reduction=reduction)[1:]
    free[frozen].requires_grad_(False)
    seen = []
    run = chunked._run
    monkeypatch.setattr(chunked, "_run", lambda *a, **k: seen.append(list(a[-1])) or run(*a, **k))
    value = ours(args.input, args.linear_weight, args.target, linear_bias=args.linear_bias, reduction=reduction)
    value.backward(
        torch.linspace(0.5, 2, max(value.numel(), 1), dtype=value.dtype)[: value.numel()].reshape(value.shape)
    )
    assert seen[-1] == [name != frozen for name in free], "work was done for a gradient nobody asked for"
    for (name, tensor), expected in zip(free.items(), whole, strict=True):
        if name == frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, expected)


def test_no_gradient_is_formed_without_need(monkeypatch):
    args = problem(6, 7, 3)
    seen = []
    run = chunked._run
    monkeypatch.setattr(chunked, "_run", lambda *a, **k: seen.append(any(a[-1])) or run(*a, **k))
    with torch.no_grad():
        ours(*args[:3])
    with torch.inference_mode():
        ours(*args[:3])
    ours(args.input.detach(), args.linear_weight.detach(), args.target)
    assert seen == [False, False, False]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_second_backward_gives_the_same_gradient(reduction):
    args = problem(6, 7, 3)
    value = ours(*args[:3], reduction=reduction).sum()
    first = torch.autograd.grad(value, args[:2], retain_graph=True)
    second = torch.autograd.grad(value, args[:2], retain_graph=True)
    doubled = torch.autograd.grad(2 * value, args[:2])
    for a, b, c in zip(first, second, doubled, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(2 * a, c)


def test_backward_under_autocast_is_not_cast():
    """The per-token backward recomputes the blocks; an autocast around it must not reach those products."""
    args = problem(6, 7, 3).to(torch.float32)
    value = ours(*args[:3], reduction="none")
    outside = torch.autograd.grad(value.sum(), args[:2], retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(value.sum(), args[:2])
    for a, b in zip(outside, inside, strict=True):
        assert torch.equal(a, b)


def test_second_derivatives_are_refused():
    args = problem(6, 7, 3)
    with pytest.raises(RuntimeError, match="no second derivative; use implementation='reference'"):
        torch.autograd.grad(ours(*args[:3]), args.input, create_graph=True)


def test_ignored_rows_cost_nothing(monkeypatch):
    args = problem(100, 20, 4, ignored=0.0)
    args.target[10:] = -100
    sizes = []
    blocks = chunked._blocks
    monkeypatch.setattr(chunked, "_blocks", lambda hidden, *a: sizes.append(hidden.shape[0]) or blocks(hidden, *a))
    value_and_gradients(ours, args)
    assert sizes == [10]


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("case", ["all ignored", "no tokens", "no weight"])
def test_nothing_to_learn_from(case, reduction, implementation):
    args = problem(0 if case == "no tokens" else 4, 7, 3, bias=True)
    token_weight = torch.zeros(4) if case == "no weight" else None
    if case == "all ignored":
        args.target.fill_(-100)
    value = linear_cross_entropy(
        args.input,
        args.linear_weight,
        args.target,
        linear_bias=args.linear_bias,
        token_weight=token_weight,
        reduction=reduction,
        label_smoothing=0.1,
        z_loss=0.1,
        implementation=implementation,
    )
    if case != "no weight":
        expected = torch.nn.functional.cross_entropy(
            args.input @ args.linear_weight.T, args.target, reduction=reduction
        )
        torch.testing.assert_close(value, expected, equal_nan=True)
    value.sum().backward()
    for leaf in (args.input, args.linear_weight, args.linear_bias):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("layout", ["transposed weight", "strided weight", "expanded weight", "transposed input"])
def test_non_contiguous_arguments(layout):
    args = problem(12, 10, 6)
    input, weight = args.input.detach(), args.linear_weight.detach()
    if layout == "transposed weight":
        weight = weight.T.contiguous().T
    elif layout == "strided weight":
        weight = torch.stack([weight, weight], 1).flatten(0, 1)[::2]
    elif layout == "expanded weight":
        weight = weight[:1].expand(10, 6)
    else:
        input = input.T.contiguous().T
    assert not (input.is_contiguous() and weight.is_contiguous())
    leaves = [t.detach().requires_grad_() for t in (input, weight)]
    copies = [t.detach().contiguous().requires_grad_() for t in (input, weight)]
    got = torch.autograd.grad(ours(*leaves, args.target, label_smoothing=0.1), leaves)
    expected = torch.autograd.grad(eager(*copies, args.target, label_smoothing=0.1), copies)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_equals_the_reference_module():
    """chunked.loss and reference.loss share a signature, so that either can stand behind the public function."""
    from kernel.options import LossOptions

    args = problem(9, 11, 5, bias=True, weighted=True, ignored=0.3)
    options = LossOptions(label_smoothing=0.1, softcap=4.0)
    torch.testing.assert_close(chunked.loss(*args, options)[0], reference.loss(*args, options)[0])
