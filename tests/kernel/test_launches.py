"""How much a loss asks of the host: few launches and operations beside the products."""

from __future__ import annotations

import importlib
from collections import Counter

import pytest
import torch
from helpers import free_launches, ours, problem
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
compile_ahead, calls, chunks = (
    importlib.import_module(f"kernel.fused.{name}") for name in ("compile_ahead", "call", "token_chunks")
)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's plans are small")
PRODUCTS = {
    *("forward_kernel", "recomputed_strip_kernel", "decoded_strip_kernel", "weight_gradient_kernel"),
    *("join_sums_kernel", "input_gradient_kernel"),
}
WITHOUT_A_LAUNCH = {
    *("empty", "new_empty", "empty_like", "view", "_unsafe_view", "slice", "select", "unbind", "unsqueeze", "detach"),
    *("alias", "expand", "split", "scalar_tensor"),
}


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch that a device would be asked to do."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation).split(".")[1]
        if name not in WITHOUT_A_LAUNCH:
            self.found[name] += 1
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def count(monkeypatch):
    """Counts small kernels and operations of a loss of bfloat16, its targets known to be right; no kernel runs."""
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.api.check_target_range", lambda *given: None)
    monkeypatch.setattr("kernel.fused.schedule.LEAST_DEFAULT_BYTES", 0)

    def count(n, workspace_bytes, rows=None):
        if rows is not None:
            monkeypatch.setattr(calls.LossCall, "chunks", lambda self: chunks.Chunks(rows))
        args = problem(n, 200, 16).to(torch.bfloat16)
        args.target.fill_(3)

        def call():
            loss = ours(*args[:3], label_smoothing=0.1, workspace_bytes=workspace_bytes)
            loss.backward()

        with free_launches(), Operations() as operations:
            launches = compile_ahead._record(call)
        names = Counter(kernel.__name__ for kernel, *_ in launches)
        return sum(names.values()) - sum(names[name] for name in PRODUCTS), sum(operations.found.values())

    return count


@pytest.mark.parametrize(
    ("workspace_bytes", "most"), [(0, 8), (10_000, 8), (2**20, 14)], ids=["strips", "in bytes", "in both memories"]
)
def test_few_launches_beside_the_products(workspace_bytes, most, count):
    small, operations = count(80, workspace_bytes)
    assert small <= most
    assert operations <= 7


def test_a_chunk_of_tokens_takes_few_launches_more(count):
    few, many = (count(rows * 16, 20_000, 16) for rows in (4, 12))
    assert (many[0] - few[0]) / 8 <= 8
    assert (many[1] - few[1]) / 8 <= 1, "the zeros of its sums"
