"""The calls that :mod:`.parallel` times: a split loss, its halves, its exchanges, and torch's loss_parallel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..vocab_parallel.host_numbers import HostNumbers, all_gather
from .measure import turn

__all__ = ["Loss", "exchanges", "halves", "loss_parallel", "noted_waits", "run"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of hidden states, rows and targets
_Mark = Callable[[], None]


class _SummedGradient(torch.autograd.Function):
    """Hidden states as they are; their gradient is summed over the processes, in float32."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        total = upstream[0].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.to(upstream[0].dtype)


def loss_parallel(hidden: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """Compute torch's loss of logits sharded by class, the mean over the tokens."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, parallel

    mesh = init_device_mesh(hidden.device.type, (dist.get_world_size(),))
    logits = _SummedGradient.apply(hidden) @ rows.T
    with parallel.loss_parallel():
        return F.cross_entropy(DTensor.from_local(logits, mesh, [Shard(1)]), target)


def run(
    loss: Loss, hidden: Tensor, rows: Tensor, target: Tensor, between: _Mark | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and both gradients; ``between`` is called between them."""
    hidden.grad = rows.grad = None
    value = loss(hidden, rows, target)
    if between is not None:
        between()
    if loss is loss_parallel:
        from torch.distributed.tensor import parallel

        with parallel.loss_parallel():
            value.backward()
    else:
        value.backward()
    assert hidden.grad is not None
    assert rows.grad is not None
    return value.detach(), hidden.grad, rows.grad


@contextmanager
def noted_waits() -> Generator[list[float]]:
    """Note the milliseconds of every wait of the host for what the other hosts tell of their arguments."""
    waits: list[float] = []
    tell, wait = HostNumbers.__init__, HostNumbers.wait

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                waits.append((time.perf_counter() - start) * 1e3)

        return timed

    HostNumbers.__init__, HostNumbers.wait = noted(tell), noted(wait)
    try:
        yield waits
    finally:
        HostNumbers.__init__, HostNumbers.wait = tell, wait


def halves(call: Callable[[_Mark], object], before: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Milliseconds of forward and of backward, on the device where it is a GPU."""
    cuda = device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)] if cuda else []
    times: list[float] = []

    def mark() -> None:
        if cuda:
            events[len(times)].record()
        times.append(time.perf_counter() * 1e3)

    before()
    mark()
    call(mark)
    mark()
    if cuda:
        events[2].synchronize()
        return events[0].elapsed_time(events[1]), events[1].elapsed_time(events[2])
    return times[1] - times[0], times[2] - times[1]


def exchanges(hidden: Tensor, before: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Milliseconds of what a call exchanges, by itself: three numbers a token gathered, hidden states summed."""
    numbers, total = (torch.zeros(size, device=hidden.device) for size in (3 * len(hidden), hidden.numel()))
    every = numbers.new_empty(dist.get_world_size() * len(numbers))
    runs = partial(all_gather, every, numbers), partial(dist.all_reduce, total)
    turns = [[turn(run, hidden.device, before=before).ms for _ in range(rounds + 1)][1:] for run in runs]
    return statistics.median(turns[0]), statistics.median(turns[1])
