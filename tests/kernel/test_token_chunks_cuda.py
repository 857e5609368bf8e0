"""The loss in chunks of tokens on a GPU: accuracy and memory in bfloat16, repeats, nothing compiled after the first call."""

from __future__ import annotations

import pytest
import torch
from chunks import among_ignored, without_ignored
from helpers import capped_gradients, ours, problem, relative_error
from on_device import compiled_kernels, replayed, without_waiting

from kernel import linear_cross_entropy
from kernel.benchmark import measure
from kernel.benchmark.problems import Shape, make_data
from kernel.benchmark.rivals import Case

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
N, V, D = 16_000, 60_001, 896
MIB = 2**20


@pytest.fixture
def cut(monkeypatch):
    from kernel.fused.call import LossCall  # needs Triton
    from kernel.fused.token_chunks import Chunks

    def cut(rows):
        monkeypatch.setattr(LossCall, "chunks", lambda self: Chunks(rows))

    return cut


@pytest.fixture(scope="module")
def peaked():
    """Hidden states, head and targets of peaked logits, their exact gradients, and which rows no token names."""
    data = make_data(Shape("", N, V, D), torch.bfloat16, torch.device("cuda"))
    rare = torch.ones(V, dtype=torch.bool, device="cuda")
    rare[data.target] = False
    return data, measure.exact_gradients(data, Case()), rare


@pytest.mark.parametrize(("rows", "mib"), [(8192, 1200), (4096, 280), (896, 130), (5376, 600), (8192, 280)])
def test_gradients_and_memory(rows, mib, cut, peaked):
    from kernel.fused.last_round import extra_row_blocks  # needs Triton

    data, exact, rare = peaked
    cut(rows)

    def step(factor=1.0):
        data.hidden.grad = data.weight.grad = None
        loss = ours(data.hidden, data.weight, data.target, label_smoothing=0.1, workspace_bytes=mib * MIB)
        (loss * factor).backward()
        return loss, data.hidden.grad, data.weight.grad

    found = [t.detach().clone() for t in step()]
    assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))
    assert relative_error(found[0].double(), exact[0]) < 1e-5
    for a, b in zip(found[1:], exact[1:], strict=True):
        assert relative_error(a.double(), b) < 0.0030
    assert relative_error(found[2][rare].double(), exact[2][rare]) < 0.0050
    for a, b in zip(step(-4.0)[1:], found[1:], strict=True):
        assert torch.equal(a, -4 * b)
    for a, b in zip(step(0.3)[1:], exact[1:], strict=True):
        assert relative_error(a.double(), 0.3 * b) < 0.0040  # rounded once more
    data.hidden.grad = data.weight.grad = None
    peak = measure.peak_bytes(step, torch.device("cuda"))
    blocks = -(-N // 128)
    padded = 128 * (blocks + extra_row_blocks(blocks, -(-D // 256), 132))
    data.hidden.grad = data.weight.grad = None
    assert peak <= 2 * (N + V) * D + 4 * padded * D + 2**24 + mib * MIB


def test_small_sums_between_chunks(cut):
    """Down to 2^-37 of what is possible in a column, a step of float16, sums are not flushed to 0, however added."""
    n, v, d, rows = 4096, 4096, 256, 512
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(n, d, device="cuda", generator=generator).bfloat16()
    hidden[:, 0] = 8.0
    weight = torch.zeros(v, d, device="cuda", dtype=torch.bfloat16)
    weight[:, 0] = -torch.linspace(0, 3.0, v, device="cuda")  # probabilities down to exp(-24)
    target = torch.zeros(n, dtype=torch.int64, device="cuda")
    leaves = [t.requires_grad_() for t in (hidden, weight)]
    cut(rows)
    ours(*leaves, target, workspace_bytes=16 * MIB).backward()
    exact = [t.detach().double().requires_grad_() for t in leaves]
    linear_cross_entropy(*exact, target, implementation="reference").backward()
    want, possible = exact[1].grad, hidden.detach().double().abs().mean(0)
    of_rows = want[:, :1].abs() / 8  # mean of dz, which all tokens share
    assert of_rows.min() < 2**-31  # where numbers of float16 are subnormal
    half_steps = 2 * n // rows * 2**-38  # each part and each sum is rounded once
    assert torch.all((weight.grad.double() - want).abs() <= (2**-7 * of_rows + half_steps) * possible)


def test_softcap_bias_and_ignored_tokens(cut):
    args = problem(3000, 20_001, 320, bias=True, ignored=0.4, seed=3).to(torch.bfloat16, "cuda")
    with torch.no_grad():
        args.target[1024:2048] = -100  # a chunk of none
    options = {"softcap": 5.0, "temperature": 0.7, "label_smoothing": 0.1}
    of_input, *others = capped_gradients(*without_ignored(args)[:4], **options)
    exact = among_ignored(of_input, args), *others
    cut(1024)
    loss = ours(*args[:3], linear_bias=args.linear_bias, workspace_bytes=40 * MIB, **options)
    loss.backward()
    for leaf, want in zip((args.input, args.linear_weight, args.linear_bias), exact, strict=True):
        assert relative_error(leaf.grad.double(), want) < 0.0032


def test_float32(cut):
    args = problem(2000, 5000, 128, seed=3)
    leaves = args.to(torch.float32, "cuda")
    cut(512)
    ours(*leaves[:3], label_smoothing=0.1, workspace_bytes=8 * MIB).backward()
    whole = args.to(torch.float64, "cuda")
    linear_cross_entropy(*whole[:3], label_smoothing=0.1, implementation="reference").backward()
    for a, b in zip(leaves[:2], whole[:2], strict=True):
        assert relative_error(a.grad.double(), b.grad) < 2e-6


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_compiles_or_waits_after_a_call_without_chunks(cut):
    def step(n, mib):
        args = problem(n, 3000, 192, ignored=0.3).to(torch.bfloat16, "cuda")
        with without_waiting():
            (0.5 * ours(*args[:3], label_smoothing=0.1, workspace_bytes=mib * MIB)).backward()

    args = problem(3, 3000, 192).to(torch.bfloat16, "cuda")
    ours(*args[:3], label_smoothing=0.1).backward()
    kernels = compiled_kernels()
    for n, rows, mib in ((777, 256, 1), (778, 256, 4), (129, 128, 40), (2000, 512, 2)):
        cut(rows)
        step(n, mib)
    assert compiled_kernels() == kernels


def test_cuda_graph(cut):
    args = problem(700, 3000, 192, ignored=0.3).to(torch.bfloat16, "cuda")
    cut(256)
    leaves = args.input, args.linear_weight

    def step():
        return torch.autograd.grad(ours(*args[:3], workspace_bytes=4 * MIB), leaves)

    want, got = replayed(step)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
