"""A head whose rows lie in several processes: loss, statistics and gradients are those of one process."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import OPTIONS
from processes import in_processes

from kernel import LinearCrossEntropy, head_statistics, linear_cross_entropy
from kernel.vocab_parallel import agreement, host_numbers
from kernel.vocab_parallel.agreement import _digest

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform.startswith("linux")), reason="needs gloo"
)

START = """
import kernel
from kernel import LinearCrossEntropy, head_statistics, linear_cross_entropy

rows = eval(arguments[0])
group, begin = dist.group.WORLD, sum(rows[:rank])
mine = slice(begin, begin + rows[rank])
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
hidden, head, bias, scale = draw(3, 7, 6), draw(sum(rows), 6), draw(sum(rows)), draw(3, 7).abs()
target = torch.randint(sum(rows), (3, 7), generator=generator)
target[0, :2] = -100
"""

SAME = """
def results(dtype, **options):
    h, w, b = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, *parts))
    loss, of = linear_cross_entropy(h, w, target, linear_bias=b, token_weight=scale, return_statistics=True, **options)
    kept = target != -100
    told = of.entropy[kept].sum() - 2 * of.log_probability[kept].sum() + of.lse[kept].square().sum()
    (loss.square().sum() + 0.1 * told).backward()
    return loss.detach(), *(x.detach().nan_to_num(-7) for x in of), h.grad, w.grad, b.grad

for i, options in enumerate(eval(arguments[1])):
    for implementation in ("reference", "chunked"):
        options |= {"reduction": ("none", "mean", "sum")[i % 3], "implementation": implementation}
        parts = head, bias
        exact = results(torch.float64, **options)
        parts = head[mine], bias[mine]
        for dtype, near in ((torch.float64, 1e-11), (torch.float32, 1e-4)):  # the gradient of one row's bias cancels
            got = results(dtype, **options, process_group=group)
            again = results(dtype, **options, process_group=group)
            for n, (ours, twice, whole) in enumerate(zip(got, again, exact, strict=True)):
                whole = whole[mine] if n > 6 else whole
                assert torch.equal(ours, twice)
                error = (ours.double() - whole.double()).norm() / whole.double().norm().clamp(min=1e-9)
                assert error < near, (options, dtype, n, float(error))
"""

SAME_STATISTICS = """
def near(ours, whole, dtype):
    for name, a, b in zip(ours._fields, ours, whole, strict=True):
        if name not in ("top_indices", "rank", "argmax") and b is not None:
            low = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(a.double(), b, equal_nan=True, msg=lambda m: name + m, **low)
        elif b is not None:
            assert torch.equal(a, b), (name, a, b)

many = {"temperatures": (0.01, 1.0, 3.0), "top_k": 2}
for options in ({"softcap": 2.0, "logit_scale": 1.5}, {"logit_scale": 30.0}):
    exact = head_statistics(hidden.double(), head.double(), target, linear_bias=bias.double(), **many, **options)
    for dtype in (torch.float64, torch.float32):
        h, w, b = (x.to(dtype) for x in (hidden, head[mine], bias[mine]))
        near(head_statistics(h, w, target, linear_bias=b, process_group=group, **many, **options), exact, dtype)
h, w = hidden.round(), head.round()  # exact logits, many of them equal
exact = head_statistics(h.double(), w.double(), target)
near(head_statistics(h, w[mine], target, process_group=group), exact, torch.float32)
without = head_statistics(h, w[mine], process_group=group)
assert without.rank is None and torch.equal(without.argmax[target != -100], exact.argmax[target != -100])
"""

# What float32 allows for where no gradient cancels.
CLOSE = """
def results(dtype, w, **options):
    h, w = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, w))
    loss = linear_cross_entropy(h, w, target, **options)
    loss.backward()
    return loss.detach(), h.grad, w.grad

for options in ({}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "softcap": 3.0}):
    exact = results(torch.float64, head, **options)
    got = results(torch.float32, head[mine], **options, process_group=group)
    for ours, whole in zip(got, (*exact[:2], exact[2][mine]), strict=True):
        error = float((ours.double() - whole).norm() / whole.norm())
        assert error < 1e-6, (options, error)
print("same")
"""

REFUSED = """
from torch import nn

unit = LinearCrossEntropy(6, len(head[mine]), weight=nn.Parameter(head[mine]), process_group=group)
assert torch.equal(unit(hidden, target), linear_cross_entropy(hidden, head[mine], target, process_group=group))

def said(**changed):
    given = {"input": hidden, "linear_weight": head[mine], "target": target, "process_group": group, **changed}
    try:
        linear_cross_entropy(given.pop("input"), given.pop("linear_weight"), given.pop("target"), **given)
    except Exception as error:
        print(type(error).__name__, error, flush=True)

said(linear_weight=head[mine, :5] if rank == 1 else head[mine])
said(label_smoothing=0.1 * rank)
said(target=target + sum(rows))
said(**{"softcap": -1.0} if rank == 0 else {})
said(target=target.roll(rank))
assert linear_cross_entropy(hidden, head[mine], target, process_group=group).isfinite()  # and goes on

# Fails while it computes: in the forward, in the statistics, in the backward.
said(token_weight=scale + rank)
said(linear_bias=bias[mine] if rank else None)
said(return_statistics=rank == 0)
said(**{"input": "none"} if rank else {})
for call in (linear_cross_entropy, head_statistics):
    empty = call(hidden[0, :0], head[mine], target[0, :0], process_group=group)
assert empty.argmax.shape == (0,)
assert linear_cross_entropy(hidden[0, :0], head[mine], target[0, :0], process_group=group, reduction="sum") == 0
kernel.chunked._run, run = (lambda *_, **__: torch.empty(2**60)) if rank else kernel.chunked._run, kernel.chunked._run
said(implementation="chunked")
kernel.chunked._run = run
try:
    head_statistics(hidden, head[mine] / (1 - rank), target, process_group=group)
except Exception as error:
    print(type(error).__name__, error, flush=True)
h, w = hidden.clone().requires_grad_(), head[mine].clone().requires_grad_()
loss = linear_cross_entropy(h, w, target, process_group=group)
run, kernel.chunked._run = kernel.chunked._run, lambda *_, **__: torch.empty(2**60 if rank == 0 else -1)
if rank == 1:
    kernel.chunked._run = run
try:
    loss.backward(retain_graph=True)
except Exception as error:
    print(type(error).__name__, str(error)[:70], flush=True)
kernel.chunked._run = run
h.grad = w.grad = None
loss.backward(retain_graph=True)
assert h.grad.isfinite().all() and w.grad.isfinite().all()
try:
    torch.autograd.grad(loss, h, create_graph=True)[0].sum().backward()
except RuntimeError as error:
    assert "differentiate twice" in str(error)
else:
    raise AssertionError("a second derivative")

# What the backward needed goes with it.
import gc, weakref

class Held:
    def __init__(self, tensor):
        self.tensor = tensor.detach()
        held.add(self)

held = weakref.WeakSet()
with torch.autograd.graph.saved_tensors_hooks(Held, lambda x: x.tensor):
    loss = linear_cross_entropy(h, w, target, process_group=group, implementation="reference")
assert len(held) > 5
loss.backward()
gc.collect()
assert not held
"""

DEFERRED = """
# As on a device whose tensors the host does not read: the digests go with the first exchange.
from kernel.vocab_parallel import agreement

host_reads, agreement._host_reads = agreement._host_reads, lambda tensor: False
for implementation in ("reference", "triton"):
    said(target=target.roll(rank), implementation=implementation)
said(target=target.roll(rank), token_weight=scale)
said(token_weight=scale + rank)
try:
    head_statistics(hidden, head[mine], target.roll(rank), process_group=group)
except Exception as error:
    print(type(error).__name__, error, flush=True)
assert linear_cross_entropy(hidden, head[mine], target, token_weight=scale, process_group=group).isfinite()
assert head_statistics(hidden, head[mine], process_group=group).rank is None
agreement._host_reads = host_reads
"""

SHARDED = """
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

def grads(h, w, b, **options):
    loss = linear_cross_entropy(h, w, target, linear_bias=b, label_smoothing=0.1, **options)
    loss.backward()
    return loss.detach(), h.grad

# Tensor parallel: the rows of a DTensor in place.
mesh = init_device_mesh("cpu", (world,))
leaf = lambda t: t.clone().requires_grad_()
w, b = leaf(head), leaf(bias)
exact = grads(leaf(hidden), w, b)
for placed in (hidden, distribute_tensor(hidden, mesh, [Replicate()])):
    ours, of = (distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in (head, bias))
    loss, of_hidden = grads(leaf(placed), ours, of)
    of_hidden = of_hidden if placed is hidden else of_hidden.full_tensor()
    for got, whole in zip((loss, of_hidden, ours.grad.full_tensor(), of.grad.full_tensor()), (*exact, w.grad, b.grad)):
        torch.testing.assert_close(got, whole)
    assert ours.to_local().shape[0] == (7, 6)[rank]
found, whole = head_statistics(placed, ours, target, linear_bias=of), head_statistics(hidden, head, target, linear_bias=bias)
torch.testing.assert_close(found.entropy, whole.entropy, equal_nan=True)
assert torch.equal(found.rank, whole.rank)

def said(*arguments, **options):
    try:
        linear_cross_entropy(*arguments, **options)
    except Exception as error:
        print(type(error).__name__, error, flush=True)

split, whole = (distribute_tensor(hidden, mesh, [placement]) for placement in (Shard(0), Replicate()))
said(split if rank else hidden, ours, target)  # wrong in one process
said(hidden, ours, target, process_group="tp" if rank else None)
said(whole if rank else hidden, head[mine], target, process_group=group)
said(hidden, distribute_tensor(head, mesh, [Replicate()]), target)
said(distribute_tensor(hidden, mesh, [Shard(0)]), ours, target)
said(distribute_tensor(hidden, mesh, [Replicate()]), head, target)
square = init_device_mesh("cpu", (world, 1))
said(hidden, distribute_tensor(head, square, [Shard(0), Replicate()]), target)
said(hidden, ours, target, process_group=[dist.new_group([i]) for i in range(world)][rank])

# FSDP: each process has tokens of its own, and the head is whole inside the forward of its unit.
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 13, bias=False)
        self.unit = LinearCrossEntropy(6, 13, label_smoothing=0.1)
    def forward(self, x, y):
        h = self.body(x)
        return linear_cross_entropy(h, self.head.weight, y, label_smoothing=0.1) + self.unit(h, y)

torch.manual_seed(0)
alone, model = Model(), Model()
model.load_state_dict(alone.state_dict())
fully_shard(model.unit)
fully_shard(model)
x, y = draw(2, 5, 6), torch.randint(13, (2, 5), generator=generator)
(sum(alone(x[i], y[i]) for i in range(2)) / 2).backward()
model(x[rank], y[rank]).backward()
for name, p in model.named_parameters():
    torch.testing.assert_close(p.grad.full_tensor(), alone.get_parameter(name).grad)
said(x[rank], model.head.weight, y[rank])  # outside
"""

FUSED = """
sys.path.insert(0, arguments[1])
from interpreter import quicken

quicken()

def results(w, implementation, **options):
    h, w = (x.clone().requires_grad_() for x in (hidden, w))
    loss, of = linear_cross_entropy(h, w, target, label_smoothing=0.1, softcap=3.0, implementation=implementation,
                                    return_statistics=True, **options)
    loss.backward()
    told = head_statistics(h.detach(), w.detach(), target, implementation=implementation, **options)
    return loss.detach(), h.grad, w.grad, of.argmax, told.entropy, told.rank, told.argmax

exact, got = results(head, "chunked"), results(head[mine], "triton", process_group=group)
for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
    torch.testing.assert_close(ours, whole[mine] if n == 2 else whole, equal_nan=True)

# The loss alone uses the softmax that each process keeps of its rows; at last one process has next to no mass.
from kernel.fused.call import LossCall

large, begin = (130, 110), 130 * rank
mine = slice(begin, begin + large[rank])
head, bias, target = draw(sum(large), 6), draw(sum(large)), torch.randint(sum(large), (3, 7), generator=generator)
target[0, :2] = -100

def loss_alone(w, b, **options):
    h, w, b = (x.clone().requires_grad_() for x in (hidden, w, b))
    loss = linear_cross_entropy(h, w, target, linear_bias=b, **options)
    loss.backward()
    return loss.detach(), h.grad, w.grad, b.grad

used, usable = [], LossCall.usable
LossCall.usable = lambda *given: used.append(usable(*given)) or used[-1]
for lower, smoothing in ((0.0, 0.1), (150.0, 0.1), (torch.inf, 0.0)):
    if lower == torch.inf:  # classes that are taken out, and are no targets
        target[target >= 0] %= large[0]
    b = torch.where(torch.arange(len(bias)) < large[0], bias, bias - lower)
    exact = loss_alone(head, b, implementation="reference", label_smoothing=smoothing)
    options = {"workspace_bytes": 2**30, "process_group": group, "label_smoothing": smoothing}
    got = loss_alone(head[mine], b[mine], implementation="triton", **options)
    for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
        torch.testing.assert_close(ours, whole[mine] if n > 1 else whole)
assert len(used) == 3 and all(plan.kept for plan, _ in used)
"""

# Classes that are taken out by a bias of -inf, and ties.
EXTREMES = """
sizes, draw_again = (70, 41), torch.Generator().manual_seed(2)
begin = sum(sizes[:rank])
part = slice(begin, begin + sizes[rank])
h0, w0, b0 = (torch.randn(*shape, generator=draw_again) for shape in ((9, 6), (111, 6), (111,)))
labels = torch.randint(1, 70, (9,), generator=draw_again)

def everything(h, w, b, dtype=torch.float32, **options):
    h, w, b = (x.to(dtype, copy=True).requires_grad_() for x in (h, w, b))
    loss, of = linear_cross_entropy(h, w, labels, linear_bias=b, return_statistics=True, **options)
    (loss + 0.1 * (of.entropy.sum() + of.lse.sum())).backward()
    return [loss.detach(), *(x.detach() for x in of), h.grad, w.grad, b.grad]

every = "reference", "chunked", "triton"
for out, value, implementations in (
    (slice(70, 111), -torch.inf, every), (slice(70, 111), torch.finfo().min, every[2:]), (slice(70, 71), -torch.inf, every[1:])
):
    b = b0.clone()
    b[out] = value
    # To the definition the probabilities that are taken out are finite zeros: its entropy has no gradient at -inf.
    exact = everything(h0, w0, b.clamp(min=-1e5), torch.float64, implementation="reference")
    for implementation in implementations:
        got = everything(h0, w0[part], b[part], implementation=implementation, process_group=group)
        for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
            whole = (whole[part] if n > 6 else whole).double()
            error = float((ours - whole).norm() / whole.norm().clamp(min=1e-6))
            assert error < 1e-5, (implementation, out, value, n, error)
h, labels = torch.randn(48, 6, generator=draw_again).mul(2).round(), torch.zeros(48, dtype=torch.int64)
w = torch.cat([w0[:70], w0[:41]]).round()  # the rows of the second are among those of the first
first = (h @ w.T).argmax(-1)  # of integers
for implementation in ("chunked", "triton"):
    of = linear_cross_entropy(h, w[part], labels, process_group=group, return_statistics=True, implementation=implementation)[1]
    assert torch.equal(of.argmax, first), implementation
"""

FUSED_OPTIONS = """
from kernel.fused import run_backward, run_kept, run_products

large = 40, 33
generator = torch.Generator().manual_seed(1)
hidden, head, bias, scale = draw(2, 9, 6), draw(sum(large), 6), draw(sum(large)), draw(2, 9).abs()
target = torch.randint(sum(large), (2, 9), generator=generator)
target[0, :2] = target[1, 4] = 5  # ignored, and a row of the head
begin = sum(large[:rank])
mine = slice(begin, begin + large[rank])

def results(w, b, h=hidden, grads=(True, True), **options):
    h, w, b = (x.clone().requires_grad_(need) for x, need in ((h, grads[0]), (w, grads[1]), (b, grads[1])))
    loss, of = linear_cross_entropy(h, w, target, linear_bias=b, token_weight=scale, ignore_index=5,
                                    return_statistics=True, **options)
    told = loss.square().sum()
    if options["z_loss"]:
        kept = target != 5
        told = told + 0.1 * (of.entropy[kept].sum() - 2 * of.log_probability[kept].sum() + of.lse[kept].square().sum())
    told.backward(retain_graph=True)
    if options["reduction"] == "none":  # once more, what was kept being used up
        told.backward()
    return loss.detach(), *(x.detach() for x in of), *(x.grad for x in (h, w, b))

cases = (
    {"z_loss": 0.0, "label_smoothing": 0.1, "reduction": "none"},
    {"z_loss": 0.01, "confidence_penalty": 0.1, "reduction": "mean", "workspace_bytes": 2000},
    {"z_loss": 0.0, "softcap": 3.0, "label_smoothing": 0.2, "temperature": 2.0, "reduction": "sum"},
    {"z_loss": 0.01, "label_smoothing": 0.1, "reduction": "sum", "logit_scale": 5.0},
)
cases = [(options, (i != 2, i != 3), "triton") for i, options in enumerate(cases)] + [(cases[0], (True, True), "chunked")]
for options, grads, implementation in cases:
    exact = results(head, bias, implementation="reference", grads=grads, **options)
    got = results(head[mine], bias[mine], implementation=implementation, process_group=group, grads=grads, **options)
    for n, (ours, whole) in enumerate(zip(got, exact, strict=True)):
        if whole is not None:
            whole = (whole[mine] if n > 6 else whole).nan_to_num(-7).double()
            error = float((ours.nan_to_num(-7) - whole).norm() / whole.norm())
            assert error < 1e-4, (options, n, error)

# The others have other rows than in the last call with as many here: noticed, and computed once more.
from kernel.fused import run_forward
from kernel.vocab_parallel import fused_slice

made, forward = [], fused_slice._forward
fused_slice._forward = lambda *given: made.append(given[4]) or forward(*given)
moved = (large[0], *(n + 7 for n in large[1:]))
wider, places = draw(sum(moved), 6), torch.randint(sum(moved), (2, 9), generator=generator)
begin = sum(moved[:rank])
part = slice(begin, begin + moved[rank])
found = linear_cross_entropy(hidden, wider[part], places, process_group=group, implementation="triton")
torch.testing.assert_close(found, linear_cross_entropy(hidden, wider, places))
assert [share.rows for share in made] == ([large, moved] if rank == 0 else [moved]), made
made.clear()
for here, labels in ((head[mine], target), (wider[part], places)) * 2:  # each known by its place in memory
    linear_cross_entropy(hidden, here, labels, process_group=group, implementation="triton")
assert [share.rows for share in made[-2:]] == [large, moved], made
assert len(made) == (5 if rank == 0 else 4), made
fused_slice._forward = forward

# One that fails in the forward or in the backward, before and after the sum has begun.
def said(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, str(error)[:60], flush=True)

def fails(*_, **__):
    raise MemoryError("no more")

def loss():
    h, w = (x.clone().requires_grad_() for x in (hidden, head[mine]))
    return linear_cross_entropy(h, w, target, process_group=group, implementation="triton")

fused_slice._forward = fails if rank == 0 else forward
said(loss)
fused_slice._forward = forward
patched = (run_backward, "recompute_strip"), (run_kept, "column_sum"), (run_products, "weight_gradient_kernel")
for module, name in patched:
    value, before = loss(), getattr(module, name)
    setattr(module, name, fails if rank == 0 and name != "column_sum" else before)
    said(value.backward)
    setattr(module, name, before)
"""


def run(folder, rows, program, *more):
    return in_processes(START + program, len(rows), folder, repr(rows), *more)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes print, one run for two tests: most of its time they start."""
    program = SAME + SAME_STATISTICS + CLOSE + REFUSED + DEFERRED
    return [out.splitlines() for out in run(tmp_path_factory.mktemp("two"), (9, 4), program, repr(OPTIONS))]


def test_they_are_those_of_one_process(two, tmp_path):
    assert [out[0] for out in two] == ["same"] * 2
    assert run(tmp_path, (1, 7, 12), SAME + SAME_STATISTICS + CLOSE, repr(OPTIONS)) == ["same\n"] * 3


def test_dtensors_fsdp_and_the_fused_kernels(tmp_path):
    begin = [
        "ValueError linear_weight must be a plain tensor or a DTensor sharded by rows, Shard(dim=0), over a mesh of one",
        "ValueError input must be the same in every process, Replicate(), got Shard(dim=0). Redistribute it, or pass",
        "TypeError input must be a plain tensor where linear_weight is one, got a DTensor",
        "ValueError linear_weight must be a plain tensor or a DTensor sharded by rows, Shard(dim=0), over a mesh of one",
        "ValueError process_group must be None or hold the processes [0, 1] of linear_weight's mesh, got [",
        "ValueError target must be the same in every process of the group",
    ]
    program, tests = SHARDED + FUSED + EXTREMES + FUSED_OPTIONS, str(Path(__file__).parents[1])
    first, second = (out.splitlines() for out in run(tmp_path, (7, 6), program, tests))
    alone = [
        "ValueError input must be the same in every process, Replicate(), got Shard(dim=0).",
        "TypeError process_group must be a torch.distributed.ProcessGroup or None, got str.",
        "TypeError input must be a plain tensor where linear_weight is one, got a DTensor",
    ]
    assert [line.startswith(text) for line, text in zip(second[:3], alone, strict=True)] == [True] * 3, second
    assert first[:3] == ["RuntimeError process 1 of process_group refused its arguments; its error says why."] * 3
    for lines in (first[3:9], second[3:9]):
        assert [line.startswith(text) for line, text in zip(lines, begin, strict=True)] == [True] * len(begin), lines
        assert "with placement Replicate()" in lines[0]
        assert "over a mesh of 2 dimensions" in lines[3]
    assert first[9:11] == ["MemoryError no more"] * 2
    assert first[11].startswith("TypeError"), "after its sum had begun: the other has what it needs"
    assert second[9:] == [
        "RuntimeError process 0 of process_group failed while it computed; its err",
        "RuntimeError another process of process_group failed while it computed; i",
    ]


def test_one_process_that_is_wrong_or_fails_stops_all(two):
    first, second = (out[1:] for out in two)
    assert first[0] == "RuntimeError process 1 of process_group refused its arguments; its error says why."
    assert second[0].startswith("ValueError input must have shape (..., 5) to match linear_weight (4, 5)")
    for out in (first, second):
        assert out[1].startswith(
            "ValueError input's shape, dtype, type of device and requires_grad, return_statistics and the"
        )
        assert out[2].startswith("ValueError target must be in [0, 13) or equal ignore_index=-100, got ")
        assert out[4].startswith("ValueError target must be the same in every process of the group")
        assert out[5].startswith("ValueError token_weight must be the same in every process of the group")
        assert "linear_bias and token_weight given in all or in none" in out[6]
        assert f"return_statistics={out is first}" in out[7]
        text = "ValueError target and token_weight must be the same in every process of the group"
        assert [line.startswith(text) for line in out[12:]] == [True] * 5, out[12:]
    assert first[3].startswith("ValueError softcap must be None or in ")
    assert second[3].startswith("RuntimeError process 0 of process_group refused its arguments")
    failed = "RuntimeError process 1 of process_group failed while it computed; its error says why."
    assert first[8] == first[0]
    assert second[8] == "TypeError input must be a torch.Tensor, got str."
    assert first[9:11] == [failed, failed]
    assert "alloc" in second[9]
    assert second[10].startswith("ValueError input, linear_weight and linear_bias must give finite logits")
    assert "alloc" in first[11]
    assert second[11].startswith("RuntimeError another process of process_group failed while it computed")


def test_it_takes_process_groups_alone():
    arguments = torch.eye(3), torch.eye(3), torch.arange(3)
    for call in (linear_cross_entropy, head_statistics):
        with pytest.raises(TypeError, match=r"process_group must be a torch.distributed.ProcessGroup or None, got str"):
            call(*arguments, process_group="tp")
    with pytest.raises(TypeError, match=r"process_group must be a torch.distributed.ProcessGroup or None, got int"):
        LinearCrossEntropy(3, 3, process_group=0)


def test_values_that_trade_places_have_another_digest():
    pairs = [[0, 3, 3, 0], [3, 0, 0, 3]], [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
    for first, second in pairs:
        assert _digest(torch.tensor(first)) != _digest(torch.tensor(second))
        assert torch.equal(_digest(torch.tensor(first)), _digest(torch.tensor([first]).T))
    masks = torch.randint(0, 2, (20000, 14), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    assert len({int(_digest(mask)) for mask in masks}) == len(masks) > 10000


@pytest.mark.parametrize(
    ("served", "devices", "bound", "place"),
    [
        (["cpu", "cuda"], ("cuda:1", "cuda:1"), None, "cpu"),
        (["cuda"], ("cuda:1", "cuda:1"), None, "cuda:1"),
        (["cuda"], ("cpu", "cuda:1"), "cuda:2", "cuda:1"),  # input is wrong, which the others have to learn
        (["cuda"], ("cpu", None), "cuda:2", "cuda:2"),
        (["cuda"], ("cpu", None), None, "cuda"),  # the current one
    ],
)
def test_hosts_tell_each_other_through_the_device_of_the_tensors(served, devices, bound, place, monkeypatch):
    """Not through the current device: without set_device all processes of a group of NCCL would take the first GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    group = SimpleNamespace(bound_device_id=None if bound is None else torch.device(bound))
    given = []
    monkeypatch.setattr(agreement.dist, "get_rank", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (agreement, host_numbers):
        monkeypatch.setattr(module, "served", lambda _: served)
    monkeypatch.setattr(agreement, "HostNumbers", lambda *told: given.append(told) or 1 / 0)
    with FakeTensorMode():
        tensors = (None if device is None else torch.empty(3, 3, device=device) for device in devices)
        with pytest.raises(ZeroDivisionError):
            agreement.propose(group, lambda: "options", *tensors, None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: (device, priority))
    ((_, told, device),) = given
    assert (told, device) == (group, torch.device(place))
    if device.type == "cuda":
        assert host_numbers._stream(device) == (3 if device.index is None else device.index, -1)
    host_numbers._streams.clear()
