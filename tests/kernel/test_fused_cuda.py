"""The fused kernels on a CUDA device: accuracy in every dtype, and torch's ways of running a model."""

from __future__ import annotations

import pytest
import torch
from helpers import NAMES, Problem, eager, problem, relative_error
from torch.utils.checkpoint import checkpoint

from kernel import linear_cross_entropy

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
FLOOR = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4, torch.float32: 2e-6}
ALL_OPTIONS = {"softcap": 2.0, "temperature": 0.5, "logit_scale": 1.5, "z_loss": 1e-3, "label_smoothing": 0.2}


def ours(*args, **options):
    return linear_cross_entropy(*args, implementation="triton", **options)


def on_device(args: Problem, dtype: torch.dtype) -> Problem:
    moved = [None if t is None else t.detach().cuda() for t in args]
    return Problem(
        *[t.to(dtype).requires_grad_() if t is not None and i in (0, 1, 3) else t for i, t in enumerate(moved)]
    )


def gradients(loss, args: Problem, **options):
    leaves = (args.input, args.linear_weight, args.linear_bias)
    for leaf in leaves:
        if leaf is not None:
            leaf.grad = None
    value = loss(
        args.input,
        args.linear_weight,
        args.target,
        linear_bias=args.linear_bias,
        token_weight=args.token_weight,
        **options,
    )
    upstream = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype, device="cuda").reshape(value.shape)
    value.backward(upstream)
    return [value.detach().clone(), *(None if t is None else t.grad.clone() for t in leaves)]


def check(shape, dtype, *, bias=False, weighted=True, ignored=0.3, **options):
    budget_options = {k: v for k, v in options.items() if k != "workspace_bytes"}
    args = problem(*shape, bias=bias, weighted=weighted, ignored=ignored, seed=shape[0])
    exact = gradients(eager, on_device(args, torch.float64), **budget_options)
    budget = gradients(eager, on_device(args, dtype), **budget_options)
    got = gradients(ours, on_device(args, dtype), **options)
    for name, a, b, c in zip(NAMES, got, budget, exact, strict=True):
        if c is None:
            assert a is None
            continue
        allowed = max(FLOOR[dtype], 2 * relative_error(b.double(), c))
        assert relative_error(a.double(), c) <= allowed, (name, relative_error(a.double(), c), allowed)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("workspace_bytes", [0, 2**27])
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {**ALL_OPTIONS, "reduction": "none"}], ids=["b", "all"])
@pytest.mark.parametrize("shape", [(128, 256, 64), (129, 257, 72), (333, 1111, 77), (700, 3000, 264)], ids=str)
def test_gradients_within_the_error_eager_makes(shape, options, workspace_bytes, dtype):
    check(shape, dtype, bias=True, workspace_bytes=workspace_bytes, **options)


def test_bf16_gradients_are_as_exact_as_their_rounding():
    args = problem(1024, 8192, 512, seed=5).to(torch.bfloat16)
    exact = gradients(eager, on_device(args, torch.float64), label_smoothing=0.1)  # of the rounded numbers
    for workspace_bytes, most in ((0, 2.6e-3), (2**28, 3.5e-3)):
        got = gradients(ours, on_device(args, torch.bfloat16), label_smoothing=0.1, workspace_bytes=workspace_bytes)
        for a, c in zip(got[1:3], exact[1:3], strict=True):
            assert relative_error(a.double(), c) <= most


def test_float16_gradients_of_a_mean_do_not_underflow():
    args = problem(8192, 512, 64, seed=2)
    exact = gradients(eager, on_device(args, torch.float64), label_smoothing=0.1)
    scale = 2.0**16  # a loss scaler's
    leaves = on_device(args, torch.float16)
    (ours(leaves.input, leaves.linear_weight, leaves.target, label_smoothing=0.1) * scale).backward()
    for leaf, c in zip(leaves[:2], exact[1:3], strict=True):
        assert relative_error(leaf.grad.double() / scale, 2 * c) < 1e-3  # gradients() sends 1/2


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("workspace_bytes", [0, 2**27])
def test_no_synchronisation(workspace_bytes):
    args = on_device(problem(256, 1000, 64, weighted=True, ignored=0.5), torch.bfloat16)
    gradients(ours, args, workspace_bytes=workspace_bytes)
    try:
        torch.cuda.set_sync_debug_mode("error")
        gradients(ours, args, workspace_bytes=workspace_bytes)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("workspace_bytes", [0, 2**27])
def test_repeats_are_bitwise_equal(workspace_bytes):
    args = on_device(problem(1000, 5000, 264, weighted=True, ignored=0.2), torch.bfloat16)
    first = gradients(ours, args, workspace_bytes=workspace_bytes, **ALL_OPTIONS)
    for _ in range(20):
        again = gradients(ours, args, workspace_bytes=workspace_bytes, **ALL_OPTIONS)
        assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own
@pytest.mark.parametrize("workspace_bytes", [0, 2**27])
def test_compile_fullgraph(workspace_bytes):
    args = on_device(problem(300, 1000, 64, bias=True, weighted=True, ignored=0.3), torch.bfloat16)
    options = {"label_smoothing": 0.1, "workspace_bytes": workspace_bytes}
    expected = gradients(ours, args, **options)
    got = gradients(torch.compile(ours, fullgraph=True), args, **options)
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a.double(), b.double()) < 4e-3


def test_autocast_casts_float32_parameters():
    args = on_device(problem(300, 1000, 64, bias=True), torch.float32)
    exact = gradients(eager, on_device(problem(300, 1000, 64, bias=True), torch.float64))
    with torch.autocast("cuda", torch.bfloat16):
        got = gradients(ours, args)
    assert got[1].dtype == torch.float32
    for a, c in zip(got[1:], exact[1:], strict=True):
        assert relative_error(a.double(), c) < 1e-2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoint(use_reentrant):
    args = on_device(problem(300, 1000, 64), torch.bfloat16)
    expected = gradients(ours, args)

    def loss(input, weight, target, **options):
        return checkpoint(lambda x, w: ours(x, w, target), input, weight, use_reentrant=use_reentrant)

    for a, b in zip(gradients(loss, args)[:3], expected[:3], strict=True):
        assert relative_error(a.double(), b.double()) < 1e-6  # a loss alone is summed in another order


def test_cuda_graph():
    args = on_device(problem(300, 1000, 64, ignored=0.3), torch.bfloat16)
    expected = gradients(ours, args)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients(ours, args)
    torch.cuda.current_stream().wait_stream(side)
    args.input.grad = args.linear_weight.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = ours(args.input, args.linear_weight, args.target)
        value.backward()
    args.input.grad.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(value, expected[0])
    scale = 0.5  # gradients() sends an upstream gradient of 1/2
    assert torch.equal(args.input.grad * scale, expected[1])


def test_accumulation_over_microbatches():
    args = on_device(problem(400, 1000, 64), torch.float32)
    whole = gradients(ours, args, reduction="sum")
    args.input.grad = args.linear_weight.grad = None
    for part in (slice(0, 150), slice(150, 400)):
        (0.5 * ours(args.input[part], args.linear_weight, args.target[part], reduction="sum")).backward()
    assert relative_error(args.linear_weight.grad, whole[2]) < 1e-5
    assert relative_error(args.input.grad, whole[1]) < 1e-5


def test_second_backward_gives_the_same_gradient():
    args = on_device(problem(300, 3000, 264), torch.bfloat16)
    value = ours(args.input, args.linear_weight, args.target, label_smoothing=0.1)
    first = torch.autograd.grad(value, args[:2], retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(value, args[:2])
    for a, b, c in zip(first, second, kept, strict=True):
        assert torch.equal(a, c)
        assert relative_error(a.double(), b.double()) < 4e-3


def test_offsets_beyond_31_bits():
    n, v, d = 32, 70_000_000, 8  # 2.2e9 logits and 5.6e8 weights
    weight = torch.zeros(v, d, dtype=torch.bfloat16, device="cuda")
    weight[-1] = 2.0
    weight.requires_grad_()
    input = torch.ones(n, d, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    target = torch.full((n,), v - 1, device="cuda")
    value = ours(input, weight, target, workspace_bytes=2**33)
    value.backward()
    exact = torch.log1p(torch.tensor((v - 1) * 2.718281828459045**-16, dtype=torch.float64))
    assert abs(value.item() - exact.item()) < 1e-4
    p = torch.exp(-exact)
    assert relative_error(weight.grad[-1].cpu().double(), (p - 1).expand(d)) < 1e-2
