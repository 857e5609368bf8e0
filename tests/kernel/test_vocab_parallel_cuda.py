"""A head whose rows lie on two GPUs: the results of one GPU, a host that does not wait, errors in every process."""

from __future__ import annotations

import pytest
import torch
from processes import in_processes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

BACKENDS = ["nccl", "cpu:gloo,cuda:nccl"]

START = """
from kernel import head_statistics, linear_cross_entropy

n, vocab, size = 1000, 6000, 256
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16().cuda()
hidden, head, scale = draw(n, size), draw(vocab, size) / 8, torch.rand(n, generator=generator).cuda()
target = torch.randint(vocab, (n,), generator=generator)
target[:7] = -100
target, group = target.cuda(), dist.group.WORLD
mine = slice(0, 2500) if rank == 0 else slice(2500, vocab)

def results(rows, dtype=torch.bfloat16, **options):
    h, w = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, rows))
    loss = linear_cross_entropy(h, w, target, token_weight=scale, label_smoothing=0.1, **options)
    loss.backward()
    return loss.detach(), h.grad, w.grad
"""

SAME = """
def compare(**options):
    exact = results(head, torch.float64, implementation="chunked", **options)
    first, second = (results(head[mine], process_group=group, **options) for _ in range(2))
    for ours, again, whole in zip(first, second, (*exact[:2], exact[2][mine]), strict=True):
        assert torch.equal(ours, again)
        assert (ours.double() - whole).norm() / whole.norm() < 0.005, options

for options in ({}, {"softcap": 30.0}, {"z_loss": 1e-3, "reduction": "sum"}):
    compare(**options)
torch.cuda.set_device(1 - rank)  # the tensors' devices count, not the current one
compare()
torch.cuda.set_device(rank)
first = results(head[mine], process_group=group, implementation="chunked")
assert (first[0] - results(head)[0]).abs() < 0.01
told, whole = (head_statistics(hidden, w, target, process_group=g) for w, g in ((head[mine], group), (head, None)))
assert torch.equal(told.rank, whole.rank) and torch.allclose(told.entropy, whole.entropy, equal_nan=True)
torch.cuda.synchronize()
torch.cuda.set_sync_debug_mode("error")  # from the second call on the host waits for no copy
h, w = hidden.clone().requires_grad_(), head[mine].clone().requires_grad_()
linear_cross_entropy(h, w, target, token_weight=scale, label_smoothing=0.1, process_group=group).backward()
torch.cuda.set_sync_debug_mode("default")
try:
    linear_cross_entropy(hidden, head[mine], target, softcap=rank + 1.0, process_group=group)
except ValueError as error:
    print(error)
try:
    linear_cross_entropy(hidden, head[mine] if rank else head[mine].float(), target, process_group=group)
except (RuntimeError, TypeError) as error:
    print(error)
torch.cuda.synchronize()
torch.cuda.is_current_stream_capturing = lambda: True
try:
    linear_cross_entropy(hidden, head[mine], target, process_group=group)
except RuntimeError as error:
    print(error)
"""

DIFFERENT = """
try:
    results(head[mine], process_group=group)
    target = target.roll(rank)
    results(head[mine], process_group=group)
    torch.cuda.synchronize()
except RuntimeError as error:  # a device-side assertion: CUDA takes no more work
    print("failed", type(error).__name__, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_gpus_give_the_results_of_one(backend, tmp_path):
    first, second = in_processes(START + SAME, 2, tmp_path, backend=backend)
    for out in (first, second):
        assert out.startswith(
            "input's shape, dtype, type of device and requires_grad, return_statistics and the options"
        )
        assert "process_group must be None while a CUDA graph is captured" in out
    assert "linear_weight must have input's dtype" in first
    assert "process 0 of process_group refused its arguments" in second


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_tokens_fail_in_every_process(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else its watchdog ends the process
    out = in_processes(START + DIFFERENT, 2, tmp_path, backend=backend)
    assert [line.partition(" ")[0] for line in out] == ["failed"] * 2
