"""Shared by the tests on a GPU: kernels that are compiled, steps that do not wait for the device, CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def compiled_kernels() -> int:
    """How many kernels this process holds compiled."""
    from triton.runtime.jit import JITFunction  # needs Triton

    # isinstance would ask objects for their __class__, at which some of PyTorch's warn
    kernels = [k for k in gc.get_objects() if issubclass(type(k), JITFunction)]
    found = sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())
    assert found > 8, "kernels are counted after a first call"
    return found


@contextmanager
def without_waiting() -> Iterator[None]:
    """Raise where the host waits for the device; PyTorch warns that this is a prototype."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def replayed(step: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What a step returns, and what a CUDA graph of it writes where it returned something else before."""
    want = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for tensor in got:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return want, got
