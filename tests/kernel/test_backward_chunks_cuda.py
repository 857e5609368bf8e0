"""The backward in chunks of tokens on a GPU: accuracy and memory in bfloat16, repeats, nothing compiled afterwards."""

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
MIB = 2**20


@pytest.fixture
def cut(monkeypatch):
    from kernel.fused.call import LossCall  # needs Triton

    def cut(rows):
        monkeypatch.setattr(LossCall, "backward_rows", lambda self, *_: min(rows, len(self.head.target)))

    return cut


def test_many_tokens_take_less_memory_and_are_as_exact(cut):
    data = make_data(Shape("", 40_000, 8001, 512), torch.bfloat16, torch.device("cuda"))
    exact = measure.exact_gradients(data, Case())

    def step():
        data.hidden.grad = data.weight.grad = None
        loss = ours(data.hidden, data.weight, data.target, label_smoothing=0.1)
        loss.backward()
        return loss, data.hidden.grad, data.weight.grad

    peaks = []
    for rows in (40_000, 5120):
        cut(rows)
        found = [t.detach().clone() for t in step()]
        assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))
        assert relative_error(found[0].double(), exact[0]) < 1e-5
        for a, b in zip(found[1:], exact[1:], strict=True):
            assert relative_error(a.double(), b) < 0.0024
        data.hidden.grad = data.weight.grad = None
        peaks.append(measure.peak_bytes(step, torch.device("cuda")))
    assert peaks[1] < peaks[0] - 4 * 512 * (40_000 - 3 * 5120)


def test_softcap_bias_and_ignored_tokens(cut):
    args = problem(3000, 20_001, 320, bias=True, ignored=0.4, seed=3).to(torch.bfloat16, "cuda")
    with torch.no_grad():
        args.target[1024:2048] = -100
    options = {"softcap": 5.0, "temperature": 0.7, "label_smoothing": 0.1}
    of_input, *others = capped_gradients(*without_ignored(args)[:4], **options)
    exact = among_ignored(of_input, args), *others
    cut(1024)
    ours(*args[:3], linear_bias=args.linear_bias, **options).backward()
    for leaf, want in zip((args.input, args.linear_weight, args.linear_bias), exact, strict=True):
        assert relative_error(leaf.grad.double(), want) < 0.0032


@pytest.mark.parametrize(
    ("dtype", "frozen", "options", "most"),
    [
        (torch.float32, False, {"reduction": "none"}, 2e-6),
        (torch.bfloat16, False, {"z_loss": 1e-2, "confidence_penalty": 0.1}, 0.0032),
        (torch.float16, True, {"label_smoothing": 0.1}, 0.001),
    ],
    ids=["float32", "z-loss and penalty", "frozen float16"],
)
def test_other_losses(dtype, frozen, options, most, cut):
    args = problem(2000, 5000, 128, seed=3, ignored=0.2).to(dtype)
    whole = args.to(torch.float64, "cuda")
    args = args.to(dtype, "cuda")
    cut(512)
    found = []
    for given, implementation in ((args, "triton"), (whole, "reference")):
        weight = given.linear_weight.detach() if frozen else given.linear_weight
        value = linear_cross_entropy(given.input, weight, given.target, implementation=implementation, **options)
        found.append(torch.autograd.grad(value.sum(), (given.input,) if frozen else given[:2]))
    for a, b in zip(*found, strict=True):
        assert relative_error(a.double(), b) < most


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_compiles_or_waits_after_a_call_without_chunks(frozen, cut):
    def step(n):
        args = problem(n, 3000, 192, ignored=0.3, bias=True).to(torch.bfloat16, "cuda")
        weight = args.linear_weight.detach() if frozen else args.linear_weight
        with without_waiting():
            loss = ours(args.input, weight, args.target, linear_bias=args.linear_bias, label_smoothing=0.1)
            (0.5 * loss).backward()

    cut(2**20)
    args = problem(3, 3000, 192, bias=True).to(torch.bfloat16, "cuda")
    weight = args.linear_weight.detach() if frozen else args.linear_weight
    ours(args.input, weight, args.target, linear_bias=args.linear_bias, label_smoothing=0.1).backward()
    kernels = compiled_kernels()
    for n, rows in ((777, 256), (778, 256), (129, 128), (2000, 512)):
        cut(rows)
        step(n)
    assert compiled_kernels() == kernels


def test_cuda_graph(cut):
    args = problem(700, 3000, 192, ignored=0.3).to(torch.bfloat16, "cuda")
    cut(256)
    leaves = args.input, args.linear_weight

    def step():
        return torch.autograd.grad(ours(*args[:3]), leaves)

    want, got = replayed(step)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method:DeprecationWarning"
)  # of the compiler's own: torch.jit.script_method in torch 2.11
def test_compiled_code(cut):
    args = problem(2000, 5000, 128, seed=3, ignored=0.2).to(torch.bfloat16, "cuda")
    cut(512)
    want = torch.autograd.grad(ours(*args[:3], label_smoothing=0.1), args[:2])
    got = torch.autograd.grad(torch.compile(ours)(*args[:3], label_smoothing=0.1), args[:2])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
