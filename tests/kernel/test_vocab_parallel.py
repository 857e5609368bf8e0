"""A head whose rows lie in several processes: loss, statistics and gradients are those of one process."""

import pytest
from helpers import OPTIONS
from split_heads import needs_gloo, with_rows

pytestmark = needs_gloo

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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes print, one run for two tests: most of its time they start."""
    program = SAME + SAME_STATISTICS + CLOSE + REFUSED + DEFERRED
    return [out.splitlines() for out in with_rows((9, 4), program, tmp_path_factory.mktemp("two"), repr(OPTIONS))]


def test_they_are_those_of_one_process(two, tmp_path):
    assert [out[0] for out in two] == ["same"] * 2
    assert with_rows((1, 7, 12), SAME + SAME_STATISTICS + CLOSE, tmp_path, repr(OPTIONS)) == ["same\n"] * 3


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
