"""The fused kernels on a CUDA device: accuracy in every dtype, and torch's ways of running a model."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    ALL_OPTIONS,
    assert_within_budget,
    call,
    capped_gradients,
    eager,
    free_launches,
    ours,
    problem,
    relative_error,
)
from helpers import value_and_gradients as gradients
from on_device import without_waiting
from torch.utils.checkpoint import checkpoint

from kernel.benchmark import byte_codes, measure
from kernel.benchmark.command import committed
from kernel.benchmark.problems import Data, Shape, make_data
from kernel.benchmark.rivals import Case
from kernel.options import LossOptions

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
FLOOR = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("workspace_bytes", [0, 2**28])
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {**ALL_OPTIONS, "reduction": "none"}], ids=["b", "all"])
@pytest.mark.parametrize(
    "shape", [(128, 256, 64), (129, 257, 72), (333, 1111, 77), (700, 3000, 264), (5000, 1111, 72)], ids=str
)  # the last one's sums over the tokens are cut
def test_gradients_within_the_error_eager_makes(shape, options, workspace_bytes, dtype):
    args = problem(*shape, bias=True, weighted=True, ignored=0.3, seed=shape[0])
    exact = gradients(eager, args.to(torch.float64, "cuda"), **options)
    budget = gradients(eager, args.to(dtype, "cuda"), **options)
    got = gradients(ours, args.to(dtype, "cuda"), workspace_bytes=workspace_bytes, **options)
    assert_within_budget(got, budget, exact, floor=FLOOR[dtype])


def test_bf16_gradients_are_as_exact_as_their_rounding():
    args = problem(1024, 8192, 512, seed=5).to(torch.bfloat16)
    exact = gradients(eager, args.to(torch.float64, "cuda"), label_smoothing=0.1)  # of the rounded numbers
    for workspace_bytes, most in ((0, 2.6e-3), (2**28, 3.5e-3)):
        got = gradients(ours, args.to(torch.bfloat16, "cuda"), label_smoothing=0.1, workspace_bytes=workspace_bytes)
        for a, c in zip(got[1:3], exact[1:3], strict=True):
            assert relative_error(a.double(), c) <= most


def budgets_in_bytes(data, options):
    """Three budgets in MiB of which all that is kept is in bytes, in the weight's gradient and in the workspace.

    Found among the plans: which budgets they are changes with the model of times.
    """
    from kernel.fused.arguments import Head, Scalars  # needs Triton
    from kernel.fused.call import LossCall

    head, scalars = Head(data.hidden, data.weight, None, data.target), Scalars.of(LossOptions(**options))
    found = []
    for mib in range(130, 250, 4):
        plan = LossCall(head, scalars, mib * 2**20).plan(keep=True, consumed=True, weight_gradient=True)
        if {(run.in_gradient, run.in_bytes) for run in plan.kept} == {(True, True), (False, True)}:
            found.append(mib)
    assert len(found) > 2
    return found[0], found[len(found) // 2], found[-1]


@pytest.fixture
def bytes_pay(monkeypatch):
    """Whatever the times are taken for, columns are kept in bytes where all would not fit otherwise."""
    monkeypatch.setattr("kernel.fused.strip_times._BYTES_DECODED", 1e12)
    with free_launches():
        yield


@pytest.mark.usefixtures("bytes_pay")
def test_columns_in_bytes_are_within_the_bounds(monkeypatch):
    """On peaked logits, in a vocabulary that is no multiple of a tile; rows of the head that no token names apart."""
    from kernel.fused.call import LossCall  # needs Triton
    from kernel.fused.token_chunks import Chunks

    monkeypatch.setattr(LossCall, "chunks", lambda self: Chunks(4000))  # one
    data = make_data(Shape("", 4000, 60_001, 1024), torch.bfloat16, torch.device("cuda"))
    exact = measure.exact_gradients(data, Case())
    rare = torch.ones(60_001, dtype=torch.bool, device="cuda")
    rare[data.target] = False
    for mib in budgets_in_bytes(data, {"label_smoothing": 0.1}):
        found = []
        for _ in range(2):
            data.hidden.grad = data.weight.grad = None
            loss = ours(data.hidden, data.weight, data.target, label_smoothing=0.1, workspace_bytes=mib * 2**20)
            loss.backward()
            found.append((data.hidden.grad.clone(), data.weight.grad.clone()))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert relative_error(loss.double(), exact[0]) < 1e-5  # bfloat16 inputs; float32 sums
        for a, b in zip(found[0], exact[1:], strict=True):
            assert relative_error(a.double(), b) < 0.0030
        assert relative_error(found[0][1][rare].double(), exact[2][rare]) < 0.0050


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"softcap": 30.0}], ids=str)
@pytest.mark.parametrize("d", [512, 4096])  # less than the tokens, and more
def test_every_budget_gives_the_same_gradients_within_its_memory(d, options):
    from kernel.fused.last_round import extra_row_blocks  # needs Triton

    n, v = 2000, 60_001
    args = problem(n, v, d, ignored=0.1).to(torch.bfloat16, "cuda")
    row_blocks = -(-n // 128)
    rows = row_blocks + extra_row_blocks(row_blocks, -(-d // 256), 132)
    promised = 2 * (n + v) * d + 4 * 128 * rows * d + 2**24  # gradients, float32 sums, partial statistics
    want = None
    for workspace_bytes in (0, 2**25, 2**27, 2**27 + 1, 2**28, 2**30):

        def step(workspace_bytes=workspace_bytes):
            args.input.grad = args.linear_weight.grad = None
            ours(*args[:3], workspace_bytes=workspace_bytes, **options).backward()
            return args.input.grad, args.linear_weight.grad

        found = [gradient.clone() for gradient in step()]
        assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))
        args.input.grad = args.linear_weight.grad = None
        peak = measure.peak_bytes(step, torch.device("cuda"))
        assert peak <= promised + max(workspace_bytes, 2 * n * 256), workspace_bytes
        want = want or found
        for a, b in zip(found, want, strict=True):
            assert relative_error(a.double(), b.double()) < 4e-3


def test_float16_gradients_of_a_mean_do_not_underflow():
    args = problem(8192, 512, 64, seed=2)
    exact = gradients(eager, args.to(torch.float64, "cuda"), label_smoothing=0.1)
    scale = 2.0**16  # a loss scaler's
    leaves = args.to(torch.float16, "cuda")
    (ours(leaves.input, leaves.linear_weight, leaves.target, label_smoothing=0.1) * scale).backward()
    for leaf, c in zip(leaves[:2], exact[1:3], strict=True):
        assert relative_error(leaf.grad.double() / scale, 2 * c) < 1e-3  # gradients() sends 1/2


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("workspace_bytes", [0, 2**28])
def test_no_synchronisation(workspace_bytes):
    args = problem(256, 1000, 64, weighted=True, ignored=0.5).to(torch.bfloat16, "cuda")
    gradients(ours, args, workspace_bytes=workspace_bytes)
    with without_waiting():
        gradients(ours, args, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("workspace_bytes", [0, 2**28])
@pytest.mark.parametrize("shape", [(1000, 5000, 264), (9000, 1500, 64)], ids=str)
def test_repeats_are_bitwise_equal(shape, workspace_bytes):
    args = problem(*shape, weighted=True, ignored=0.2).to(torch.bfloat16, "cuda")
    first = gradients(ours, args, workspace_bytes=workspace_bytes, **ALL_OPTIONS)
    for _ in range(20):
        again = gradients(ours, args, workspace_bytes=workspace_bytes, **ALL_OPTIONS)
        assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of the compiler's own: torch.jit.script_method in torch 2.11
@pytest.mark.parametrize("workspace_bytes", [None, 0, 2**28])
def test_compile_fullgraph(workspace_bytes):
    args = problem(300, 1000, 64, bias=True, weighted=True, ignored=0.3).to(torch.bfloat16, "cuda")
    options = {"label_smoothing": 0.1, "workspace_bytes": workspace_bytes}
    expected = gradients(ours, args, **options)
    got = gradients(torch.compile(ours, fullgraph=True), args, **options)
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a.double(), b.double()) < 4e-3


def test_autocast_casts_float32_parameters():
    args = problem(300, 1000, 64, bias=True).to(torch.float32, "cuda")
    exact = gradients(eager, problem(300, 1000, 64, bias=True).to(torch.float64, "cuda"))
    with torch.autocast("cuda", torch.bfloat16):
        got = gradients(ours, args)
    for a, c in zip(got[1:], exact[1:], strict=True):
        assert relative_error(a.double(), c) < 1e-2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoint(use_reentrant):
    args = problem(300, 1000, 64).to(torch.bfloat16, "cuda")
    expected = gradients(ours, args)

    def loss(input, weight, target, **options):
        return checkpoint(lambda x, w: ours(x, w, target), input, weight, use_reentrant=use_reentrant)

    for a, b in zip(gradients(loss, args)[:3], expected[:3], strict=True):
        assert relative_error(a.double(), b.double()) < 1e-6  # a loss alone is summed in another order


def test_cuda_graph():
    args = problem(300, 1000, 64, ignored=0.3).to(torch.bfloat16, "cuda")
    expected = gradients(ours, args)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients(ours, args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = ours(args.input, args.linear_weight, args.target)
        value.backward()
    args.input.grad.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(value.double(), expected[0])
    scale = 0.5  # gradients() sends an upstream gradient of 1/2
    assert torch.equal((args.input.grad * scale).double(), expected[1])


def test_accumulation_over_microbatches():
    args = problem(400, 1000, 64).to(torch.float32, "cuda")
    whole = gradients(ours, args, reduction="sum")
    for part in (slice(0, 150), slice(150, 400)):
        (0.5 * ours(args.input[part], args.linear_weight, args.target[part], reduction="sum")).backward()
    assert relative_error(args.linear_weight.grad, whole[2]) < 1e-5
    assert relative_error(args.input.grad, whole[1]) < 1e-5


def test_second_backward_gives_the_same_gradient():
    args = problem(300, 3000, 264).to(torch.bfloat16, "cuda")
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


def test_a_cap_that_saturates_is_as_exact_with_any_workspace():
    worst, kept = (0.0, ()), 0
    for seed in range(300):
        choose, generator = random.Random(seed), torch.Generator("cuda").manual_seed(seed)
        n, v, d = choose.choice([17, 129, 300, 700]), choose.choice([3, 257, 1000, 4096]), choose.choice([16, 100, 512])
        temperature = math.exp(choose.uniform(math.log(0.05), math.log(2)))
        cap = temperature * math.exp(choose.uniform(math.log(0.2), math.log(60)))
        spread = cap * math.exp(choose.uniform(math.log(0.05), math.log(20)))  # of the raw logits: barely to fully

        def normal(*size, generator=generator):
            return torch.randn(size, device="cuda", generator=generator)

        hidden, weight = normal(n, d).bfloat16(), (normal(v, d) * spread / d**0.5).bfloat16()
        bias = (normal(v) * spread * choose.choice([0, 1])).bfloat16()
        target = torch.randint(v, (n,), device="cuda", generator=generator)
        options = {"softcap": cap, "temperature": temperature, "label_smoothing": choose.choice([0, 0.1, 0.5])}
        exact = capped_gradients(hidden, weight, target, bias, **options)
        errors = []
        for workspace_bytes in (0, n * v * 2, 2**30):
            leaves = [t.detach().requires_grad_() for t in (hidden, weight, bias)]
            ours(*leaves[:2], target, linear_bias=leaves[2], workspace_bytes=workspace_bytes, **options).backward()
            errors.append([relative_error(t.grad.double(), want) for t, want in zip(leaves, exact, strict=True)])
        kept += errors[0] != errors[2]
        assert max(errors[0]) < 0.02, (seed, errors[0])
        for more in errors[1:]:
            worst = max(
                worst, *((b / a, (seed, n, v, d, options, errors)) for a, b in zip(errors[0], more, strict=True))
            )
    print(f"largest ratio {worst[0]:.3f}; {kept} of 300 kept something; {worst[1]}")
    assert worst[0] <= 1.3, worst
    assert kept > 50


def allowed_at_an_optimum(kind, storage):
    """Errors of the input's gradient, the head's and its rows without a target that the committed table has."""
    rows = csv.DictReader(committed("byte_codes").read_text(encoding="utf-8").splitlines())
    (row,) = (row for row in rows if (row["data"], row["storage"]) == (kind, storage))
    return [float(row[name]) for name in row if name.endswith("_error")]


def at_an_optimum(kind, n, v, d):
    """A problem in bfloat16, and what the default keeps of it."""
    from kernel.fused.arguments import Head, Scalars  # needs Triton
    from kernel.fused.call import LossCall

    made = make_data(Shape("", n, v, d), torch.float32, torch.device("cpu"))
    moved = byte_codes.optimum(made, float(kind.split()[1]), torch.Generator().manual_seed(0))
    hidden, weight = (t.detach().to("cuda", torch.bfloat16).requires_grad_() for t in (moved.hidden, moved.weight))
    data = Data(hidden, weight, moved.target.cuda())
    call = LossCall(Head(hidden, weight, None, data.target), Scalars.of(LossOptions(label_smoothing=0.1)), None)
    return data, call.plan(keep=True, consumed=True, weight_gradient=True).kept


def errors_by_workspace(data, budgets):
    """Errors of the input's gradient, the head's and its rows without a target, for each budget."""
    hidden, weight, exact = data.hidden, data.weight, measure.exact_gradients(data, Case())
    rare = torch.ones(len(weight), dtype=torch.bool, device="cuda")
    rare[data.target] = False
    errors = {}
    for workspace_bytes in budgets:
        hidden.grad = weight.grad = None
        ours(hidden, weight, data.target, label_smoothing=0.1, workspace_bytes=workspace_bytes).backward()
        found, of_weight = (t.grad.double() for t in (hidden, weight))
        errors[workspace_bytes] = [
            relative_error(found, exact[1]),
            relative_error(of_weight, exact[2]),
            relative_error(of_weight[rare], exact[2][rare]),
        ]
    return errors


@pytest.mark.parametrize("kind", ["optimum, 0.3", "optimum, 0.03", "optimum, 0.01"])
def test_near_a_smoothed_optimum_bytes_are_no_farther_off_than_the_table_says(kind):
    """All columns of this head are kept in one byte by default; of the target's logit as with two bytes below."""
    v = 65536
    data, kept = at_an_optimum(kind, 4096, v, 2048)
    assert sum(run.columns for run in kept if run.in_bytes) == v
    (found,) = errors_by_workspace(data, (None,)).values()
    print(kind, found)
    assert all(e < 1.25 * most + 0.004 for e, most in zip(found, allowed_at_an_optimum(kind, "bytes"), strict=True))


@pytest.mark.parametrize("kind", ["optimum, 0.03", "optimum, 0.01"])
def test_near_a_smoothed_optimum_the_default_is_no_farther_off_than_the_table_says(kind):
    """No cap here, and kept columns cost what docs/kernel.md says.

    Where smoothing leaves a model, p = 1 - b at the target and nearly b / V elsewhere, dz is a small difference of
    what is kept and b / V. A probability kept in two bytes has a relative error of 2^-9, which is most of what is left
    of dz: it triples the error of the head's gradient, and makes that of rows that no token names 30 to 90 times as
    large. That is allowed, being what the table byte_codes.csv has of two bytes for all columns (the default keeps all
    but a sixteenth here), and no more but for the float32 of the target's logit: 1e-6 of it is 0.003 of dz there.

    Of logits computed anew the target's, too, is the tensor cores' sum, which is rounded towards zero every 16
    products: some 3e-5 of a logit of 12.6, and that is 0.02 of what is left of dz (a float64 sum truncated so to 23
    bits gives 0.022). By default that is so of the tokens whose targets are among the first columns.
    """
    from kernel.fused.schedule import _RECOMPUTED  # needs Triton

    v = 32768  # of which the default keeps all columns that it keeps of any head
    data, kept = at_an_optimum(kind, 2048, v, 1024)
    assert sum(run.columns for run in kept) > v / 2
    assert not any(run.in_bytes for run in kept)
    anew_share = float((data.target < v // _RECOMPUTED).double().mean())  # of the tokens, their targets' logits
    errors = errors_by_workspace(data, (0, None))
    print(kind, errors)
    anew, two_bytes = (allowed_at_an_optimum(kind, name) for name in ("none, dz anew", "softmax in bfloat16"))
    assert all(error < 1.25 * most + 0.03 for error, most in zip(errors[0], anew, strict=True)), errors
    for error, most, of_anew in zip(errors[None], two_bytes, errors[0], strict=True):
        assert error < math.hypot(1.25 * most, anew_share**0.5 * of_anew) + 0.004, errors


def test_bf16_gradients_under_a_cap_where_the_slope_was_lost():
    args = problem(1024, 8192, 512, seed=5)
    args = args._replace(input=12 * args.input.detach()).to(torch.bfloat16)
    options = {"softcap": 5.0, "label_smoothing": 0.1}
    exact = gradients(eager, args.to(torch.float64, "cuda"), **options)
    found = [gradients(ours, args.to(torch.bfloat16, "cuda"), workspace_bytes=w, **options) for w in (0, 2**28)]
    errors = [[relative_error(a.double(), c) for a, c in zip(got[1:3], exact[1:3], strict=True)] for got in found]
    assert max(errors[0]) < 3e-3
    assert all(kept <= 1.3 * recomputed for recomputed, kept in zip(*errors, strict=True)), errors


_STALLS = """
import json, random, time
import torch
from on_device import compiled_kernels
from kernel import linear_cross_entropy
import kernel.fused.token_losses
from kernel.fused.call import LossCall
from kernel.fused.arguments import Head, Scalars
from kernel.options import LossOptions
plan, in_bytes = LossCall.plan, []

def noted(self, **kinds):
    found = plan(self, **kinds)
    in_bytes.append(any(run.in_bytes for run in found.kept))
    return found

LossCall.plan = noted
choose = random.Random(0)
torch.zeros(1, device="cuda")
weight = torch.randn(49152, 576, device="cuda").mul_(0.04).bfloat16().requires_grad_()

def keeps_bytes(n, workspace_bytes):
    head = Head(weight.detach()[:n], weight, None, torch.zeros(n, dtype=torch.int64, device="cuda"))
    call = LossCall(head, Scalars.of(LossOptions(label_smoothing=0.1)), workspace_bytes)
    kept = plan(call, keep=True, consumed=True, weight_gradient=True).kept
    return any(run.in_bytes for run in kept) and call.chunks().rows >= n

sizes = [(n, budget) for budget in (5 * 2**25, 2**28) for n in range(4096, 12288, 256) if keeps_bytes(n, budget)]

def call(n, ignored, workspace_bytes, options):
    hidden = torch.randn(n, 576, device="cuda").bfloat16().requires_grad_()
    target = torch.randint(49152, (n + 1,), device="cuda")[1:]
    target = torch.where(torch.rand(n, device="cuda") < ignored, -100, target)
    torch.cuda.synchronize()
    start = time.perf_counter()
    loss = linear_cross_entropy(hidden, weight, target, workspace_bytes=workspace_bytes, **options)
    loss.backward()
    torch.cuda.synchronize()
    return time.perf_counter() - start

found = []
for options in ({"label_smoothing": 0.1}, {"label_smoothing": 0.1, "softcap": 30.0}):
    first = call(1, 0.0, None, options)
    kernels = compiled_kernels()
    times = []
    in_bytes.clear()
    for trial in range(300):
        n = 1 if trial == 7 else choose.randint(1, 16384)
        workspace_bytes = choose.choice([None, 0, 2**25, 2**27, 2**28, 2**29, 2**31])
        if trial % 5 == 0:
            n, workspace_bytes = choose.choice(sizes)
        times.append(call(n, choose.choice([0, 0, 0.5, 0.95]), workspace_bytes, options))
    found.append({"first": first, "kernels": kernels, "new": compiled_kernels() - kernels, "longest": max(times)})
    found[-1]["in_bytes"] = sum(in_bytes)
print(json.dumps(found))
"""


@pytest.mark.alone
def test_no_call_but_the_first_compiles(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{Path.cwd()}{os.pathsep}tests"}
    done = subprocess.run([sys.executable, "-c", _STALLS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert found["new"] == 0
        assert found["longest"] < 1, "seconds: something stalled"
        # 5 s on 16 cores and 12 s on 2 are asked (first_call.csv is held against that); half as much again here.
        assert found["first"] < 1.5 * (4 + 16 / len(os.sched_getaffinity(0)))
    plain, capped = json.loads(done.stdout.splitlines()[-1])
    assert plain["in_bytes"] >= 60, "every fifth call"
    assert capped["in_bytes"] == 0


def statistics_and_gradients(args, implementation, of_entropy, **options):
    kept = args.target != -100
    loss, of = call(args, implementation=implementation, return_statistics=True, **options)
    total = loss - 0.1 * of.log_probability[kept].mean() + 0.01 * of.lse[kept].mean()
    if of_entropy:
        total = total + of.entropy[kept].square().mean()
    return [*of, *torch.autograd.grad(total, (args.input, args.linear_weight, args.linear_bias))]


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("of_entropy", [True, False])  # without it a kept softmax is used
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, ALL_OPTIONS], ids=["b", "all"])
def test_statistics_and_their_gradients(options, of_entropy, dtype):
    args = problem(333, 1111, 72, bias=True, ignored=0.3).to(dtype)
    exact = statistics_and_gradients(args.to(torch.float64, "cuda"), "reference", of_entropy, **options)
    for workspace_bytes in (0, 2**28):
        budget = {"workspace_bytes": workspace_bytes}
        found = statistics_and_gradients(args.to(dtype, "cuda"), "triton", of_entropy, **budget, **options)
        for a, b in zip(found[:4], exact[:4], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5, equal_nan=True)
        assert torch.equal(found[4], exact[4])
        for a, b in zip(found[5:], exact[5:], strict=True):
            assert relative_error(a.double(), b) < 3 * FLOOR[dtype]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of the compiler's own: torch.jit.script_method in torch 2.11
def test_compile_fullgraph_with_statistics():
    args = problem(300, 1000, 64, bias=True).to(torch.bfloat16, "cuda")

    def loss(input, weight, target, bias):
        options = {"confidence_penalty": 0.1, "return_statistics": True}
        value, of = ours(input, weight, target, linear_bias=bias, **options)
        return value + of.entropy.mean()

    leaves = (args.input, args.linear_weight, args.linear_bias)
    arguments = (args.input, args.linear_weight, args.target, args.linear_bias)
    want = torch.autograd.grad(loss(*arguments), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*arguments), leaves)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a.double(), b.double()) < 4e-3
