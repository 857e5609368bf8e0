"""Caps that saturate: slopes and gradients to relative accuracy, and logits kept in 16 bits."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from helpers import Problem, call, capped_gradients, eager, problem, relative_error, value_and_gradients

from kernel import linear_cross_entropy
from kernel.benchmark.rivals import VARIANTS
from kernel.options import LossOptions
from kernel.softcap import slope, softcap

triton = pytest.importorskip("triton")
tl = triton.language
codes, launch, logits = (importlib.import_module(f"kernel.fused.{name}") for name in ("codes", "launch", "logits"))
on_host = pytest.mark.skipif(torch.cuda.is_available(), reason="test_fused_cuda.py covers the device")
IMPLEMENTATIONS = ["reference", "chunked", pytest.param("triton", marks=on_host)]


def test_the_slope_keeps_relative_accuracy():
    x = torch.tensor([0.0, 1e-20, 0.3, -2.0, 9.0, -20.0, 40.0])
    exact = [1 / math.cosh(value) ** 2 for value in x.tolist()]
    torch.testing.assert_close(slope(x).double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-5, atol=0)
    z = (2 * x).requires_grad_()
    (gradient,) = torch.autograd.grad(softcap(z, 2.0).sum(), z)
    torch.testing.assert_close(gradient, slope(x))
    assert softcap(z, None) is z


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func's own
def test_the_cap_can_be_differentiated_twice():
    z = torch.linspace(-4, 4, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: softcap(z, 1.5), z)
    assert torch.autograd.gradgradcheck(lambda z: softcap(z, 1.5), z)
    tangent = torch.func.jvp(lambda z: softcap(z, 1.5), (z.detach(),), (torch.ones_like(z),))[1]
    torch.testing.assert_close(tangent, slope(z.detach() / 1.5))


def saturated(seed: int) -> tuple[Problem, dict[str, float]]:
    """Three classes far in the flat part of the cap; the exact gradient of the hidden states is about 1e-5."""
    base = problem(17, 3, 100, seed=seed, bias=True, scale=0.05)
    bias = torch.tensor([-13.6, 7.7, -5.8], dtype=torch.float64)
    return base._replace(linear_bias=bias.requires_grad_()), {"softcap": 0.5, "temperature": 0.05}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("workspace_bytes", [0, 2**28])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_saturated_gradients_keep_relative_accuracy(implementation, workspace_bytes, label_smoothing):
    args, options = saturated(0)
    args = args.to(torch.float32)
    options["label_smoothing"] = label_smoothing
    call(args, implementation=implementation, workspace_bytes=workspace_bytes, **options).backward()
    exact = capped_gradients(*args[:4], **options)
    assert 0 < exact[0].norm() < 1e-4
    for leaf, want in zip((args.input, args.linear_weight, args.linear_bias), exact, strict=True):
        assert relative_error(leaf.grad.double(), want) < 1e-4


@triton.jit
def code_and_back(u, z, found, cap, knee, ratio, offset, gain, step, logit_step, tanh_step, COLUMNS: tl.constexpr):
    index = tl.arange(0, 8)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    code = codes.encode(tl.load(u + index), tl.load(z + index), knee, ratio, offset, gain)
    logit, found_slope = codes.decode(code, knee, offset, step, logit_step, tanh_step, cap)
    tl.store(found + index, logit)
    tl.store(found + 8 * COLUMNS + index, found_slope)


@triton.jit
def cap_of(u, found, cap, COLUMNS: tl.constexpr, PRECISE: tl.constexpr, FOLDED: tl.constexpr):
    index = tl.arange(0, 1)[:, None] + tl.arange(0, COLUMNS)[None, :]
    logit, found_slope = logits.capped(tl.load(u + index), cap, True, PRECISE, FOLDED)
    tl.store(found + index, logit)
    tl.store(found + COLUMNS + index, found_slope)


@on_host
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("folded", [False, True])
def test_both_forms_of_the_slope_are_exact_from_linear_to_saturated(folded):
    u = torch.cat([torch.linspace(-180, 180, 4093), torch.tensor([0.0, 1e-3, -1e-3])])
    found = torch.zeros(2, len(u))
    cap_of[(1,)](u, found, 3.0, COLUMNS=len(u), PRECISE=True, FOLDED=folded)
    x = u.double() * math.log(2) / 2
    torch.testing.assert_close(found[0].double(), 3 * torch.tanh(x), rtol=1e-6, atol=0)
    inside = u.abs() < 120  # then the slope is close to float32's smallest numbers
    torch.testing.assert_close(found[1].double()[inside], 1 / torch.cosh(x[inside]) ** 2, rtol=3e-5, atol=0)
    assert (found[1][~inside] < 1e-34).all()


@on_host
def test_the_folded_slope_gives_the_same_gradients():
    args = problem(12, 40, 16, scale=5.0).to(torch.float32)
    options = {"implementation": "triton", "softcap": 2.0, "label_smoothing": 0.1, "workspace_bytes": 0}
    found = value_and_gradients(linear_cross_entropy, args, **options)
    cpu, table = torch.device("cpu"), launch.launch_table(torch.device("cpu"), torch.float32)
    launch.set_launch_table(cpu, torch.float32, VARIANTS["folded"](table))
    try:
        folded = value_and_gradients(linear_cross_entropy, args, **options)
    finally:
        launch.set_launch_table(cpu, torch.float32, None)
    assert not all(torch.equal(a, b) for a, b in zip(found[:3], folded[:3], strict=True)), "the same kernel"
    for a, b in zip(folded[:3], found[:3], strict=True):
        assert relative_error(a, b) < 1e-6


@on_host
@pytest.mark.parametrize("cap", [0.05, 0.5, 1.0, 3.0, 10.0, 30.0, 31.3, 40.0])
def test_codes_determine_logit_and_slope(cap):
    x = torch.linspace(-40, 40, 8 * 512, dtype=torch.float64)
    x = torch.cat([x[::2], x[::2] / 30]).view(8, 512)
    z = cap * torch.tanh(x)
    bits = math.log2(math.e)
    code = codes.Code.of(3 * cap, 3.0)
    found = torch.empty(2, 8, 512)
    arguments = {**code._asdict(), **code.steps(cap * bits)}
    code_and_back[(1,)]((2 * x * bits).float(), (z * bits).float(), found, cap * bits, **arguments, COLUMNS=512)
    step = 1 / (code.gain * bits)  # in nats
    assert step < 0.004
    of_logit = (found[0].double() / bits - z).abs().max()
    of_slope = (found[1].double() * torch.cosh(x) ** 2).log().abs().max()
    # Float32 logits of 40 nats are off by 4e-6; where the logit hardly moves a step of the slope moves it even less.
    assert of_logit <= 0.51 * step / code.ratio + 1e-5
    assert of_slope <= 0.51 * step + 1e-4


def test_codes_spend_what_a_small_cap_leaves_on_the_logit():
    assert codes.Code.of(30.0, 1.0).ratio == pytest.approx(1, abs=0.1)
    assert codes.Code.of(0.5, 1.0).ratio > 50
    assert codes.Code.of(40.0, 1.0).ratio == 1
    assert codes.Code.of(0.0, 1.0) == (0, 0, 0, 0)


@pytest.fixture
def coded(monkeypatch):
    """Codes where float16 under a cap keeps nothing: in half precision the interpreter has no other dtype."""
    monkeypatch.setattr("kernel.fused.arguments.Scalars.storage", lambda scalars, dtype: "code")


@on_host
@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize("softcap", [0.3, 3.0, 20.0])
@pytest.mark.parametrize("shape", [(40, 130, 20), (33, 200, 32)], ids=str)
@pytest.mark.parametrize("more", [{}, {"label_smoothing": 0.2}, {"z_loss": 1e-3, "confidence_penalty": 0.3}], ids=str)
def test_gradients_from_codes(more, shape, softcap):
    args = problem(*shape, bias=True, weighted=True, ignored=0.3, scale=3.0).to(torch.float16)
    options = {"softcap": softcap, "temperature": 0.6, **more}
    exact = value_and_gradients(eager, args.to(torch.float64), **options)
    found = value_and_gradients(
        lambda *a, **k: linear_cross_entropy(*a, implementation="triton", workspace_bytes=2**28, **k), args, **options
    )
    for got, want in zip(found[1:], exact[1:], strict=True):
        assert relative_error(got, want) < 2.5e-3


@on_host
@pytest.mark.parametrize("seed", range(6))
def test_the_workspace_does_not_change_the_error(seed):
    generator = torch.Generator().manual_seed(seed)
    cap, spread, temperature = torch.rand(3, generator=generator).tolist()
    args = problem(40, 120, 16, seed=seed, bias=True, scale=0.3 * 100**spread).to(torch.float32)
    options = {"softcap": 0.3 * 100**cap, "temperature": 0.05 + temperature, "label_smoothing": 0.1 * (seed % 2)}
    exact = capped_gradients(*args[:4], **options)
    errors = []
    for workspace_bytes in (0, 2**28):
        leaves = args.to(torch.float32)
        call(leaves, implementation="triton", workspace_bytes=workspace_bytes, **options).backward()
        found = (leaves.input.grad, leaves.linear_weight.grad, leaves.linear_bias.grad)
        errors.append([relative_error(a.double(), b) for a, b in zip(found, exact, strict=True)])
    assert all(kept <= 1.3 * recomputed for recomputed, kept in zip(*errors, strict=True)), errors


@pytest.mark.parametrize(
    ("dtype", "options", "kind"),
    [
        (torch.bfloat16, {}, "softmax"),
        (torch.float32, {}, "softmax"),
        (torch.float16, {}, "code"),
        (torch.bfloat16, {"z_loss": 1e-3}, "code"),
        (torch.bfloat16, {"confidence_penalty": 0.1}, "code"),
        (torch.bfloat16, {"softcap": 30.0}, "code"),
        (torch.bfloat16, {"softcap": 30.0, "temperature": 0.5}, ""),
        (torch.float16, {"softcap": 30.0}, ""),
        (torch.float32, {"softcap": 300.0}, "raw"),
        (torch.float32, {"z_loss": 1e-3}, "raw"),
    ],
    ids=str,
)
def test_what_is_kept(dtype, options, kind):
    arguments = importlib.import_module("kernel.fused.arguments")
    scalars = arguments.Scalars.of(LossOptions(label_smoothing=0.1, **options))
    assert scalars.storage(dtype) == kind
    assert arguments.Scalars.unpack(*scalars.pack()) == scalars
