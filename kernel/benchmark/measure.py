"""Time, memory and error of one call."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import LossOptions
from ..reference import loss as reference_loss
from .problems import Data
from .rivals import Case, DataLoss

__all__ = [
    "AHEAD_MS",
    "Ahead",
    "Turn",
    "ahead",
    "errors",
    "exact_gradients",
    "library_products",
    "logit_gradient",
    "peak_bytes",
    "product_ms",
    "step",
    "three_products",
    "turn",
]

# Of work queued before each timed run: more than most losses take the host, and meant to be as long as a device at its
# power limit takes after a pause to lower its clock (kernel.benchmark.settle tells).
AHEAD_MS = 160.0


def step(loss: DataLoss, data: Data, case: Case) -> Tensor:
    """Compute the loss, and the gradients if the case wants them; drop earlier gradients first."""
    data.hidden.grad = data.weight.grad = None
    with torch.set_grad_enabled(case.gradients):
        value = loss(data)
    if case.gradients:
        value.backward()
    return value.detach()


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Most device memory asked for during ``run`` beyond what was held before; None without a CUDA device.

    Bytes of the tensors, not of the allocator's blocks, which it rounds up by as much as 1 MiB each, depending on what
    was free before: so the outputs' own bytes can be taken off.
    """
    if device.type != "cuda":
        run()
        return None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    run()
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before


class Turn(NamedTuple):
    """Milliseconds of one run: of the device, and of the host until the call returned.

    Attributes:
        product_ms: Of the last product of the :class:`Ahead` before it: the same work at the clock that the run found.
    """

    ms: float
    host_ms: float
    product_ms: float | None = None


def turn(run: Callable[[], object], device: torch.device, before: Callable[[], object] | None = None) -> Turn:
    """Time one run, by events on the device's own clock; on a CPU both times are the same.

    ``before`` keeps the device busy, untimed, while the host enqueues the run, as the rest of a training step would:
    the device's time has no part of the host's unless the host takes longer than ``before`` and the run together, and
    the device is as warm for all. What the host takes, with the device busy, is returned beside it. A run that waits
    for the device, as by ``.item()``, waits for ``before`` too: that is in its host's time, and what the device then
    idles until the next launch is in its device's time.
    """
    work = before if isinstance(before, Ahead) else None
    if device.type != "cuda":
        if before is not None:
            before()
        start = time.perf_counter()
        run()
        ms = (time.perf_counter() - start) * 1e3
        return Turn(ms, ms, None if work is None else work.last_ms())
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if before is not None:
        before()
    begin.record()
    start = time.perf_counter()
    run()
    host_ms = (time.perf_counter() - start) * 1e3
    end.record()
    end.synchronize()
    return Turn(begin.elapsed_time(end), host_ms, None if work is None else work.last_ms())


def product_ms(turns: Iterable[Turn]) -> float:
    """Median time of the product right ahead of each run: the clock that the runs found; nan if none was timed."""
    found = [turn.product_ms for turn in turns if turn.product_ms is not None]
    return statistics.median(found) if found else math.nan


class Ahead:
    """Work for ``before`` of :func:`turn`: one run several times, the last of them timed.

    Args:
        run: The run.
        times: How often.
        device: Whose clock times the last; on a CPU it is the host's.
    """

    def __init__(self, run: Callable[[], object], times: int, device: torch.device) -> None:
        self._run, self._times, self._ms, self._events = run, times, 0.0, []
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self) -> None:
        """Do it all."""
        for _ in range(self._times - 1):
            self._run()
        if self._events:
            self._events[0].record()
        start = time.perf_counter()
        self._run()
        self._ms = (time.perf_counter() - start) * 1e3
        if self._events:
            self._events[1].record()

    def last_ms(self) -> float:
        """How long the last run took, once it is done."""
        return self._events[0].elapsed_time(self._events[1]) if self._events else self._ms


def ahead(run: Callable[[], object], device: torch.device, ms: float = AHEAD_MS) -> Ahead:
    """Return work for ``before`` of :func:`turn`: ``run``, as often as takes a GPU about ``ms``, or once on a CPU."""
    times = 1
    if device.type == "cuda":
        times = math.ceil(ms / min(turn(run, device, before=run).ms for _ in range(3)))
    return Ahead(run, times, device)


def exact_gradients(data: Data, case: Case, tokens: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of the definition in float64, of the very numbers that the rivals are given.

    The sum over tokens is taken ``tokens`` at a time: at 256,000 classes their logits take 1 GB and as much for each
    step of the definition.
    """
    hidden, weight = (t.detach().double().requires_grad_() for t in (data.hidden, data.weight))
    options = LossOptions(label_smoothing=case.label_smoothing, softcap=case.softcap, reduction="sum")
    value = torch.zeros((), dtype=torch.float64, device=hidden.device)
    count = len(data.target)
    for part, target in zip(hidden.split(tokens), data.target.split(tokens), strict=True):
        share = reference_loss(part, weight, target, None, None, options)[0] / count
        share.backward()
        value += share.detach()
    assert hidden.grad is not None
    assert weight.grad is not None
    return value, hidden.grad, weight.grad


def errors(loss: DataLoss, data: Data, case: Case, exact: tuple[Tensor, Tensor, Tensor]) -> tuple[float, ...]:
    """Return relative errors in the Frobenius norm: of loss, input gradient and weight gradient.

    A fourth is that of the weight gradient's rows that no token targets; nan where there are none.
    """
    value = step(loss, data, case)
    assert data.hidden.grad is not None
    assert data.weight.grad is not None

    def relative(got: Tensor, want: Tensor) -> float:
        return ((got.double() - want).norm() / want.norm()).item()

    got = value, data.hidden.grad, data.weight.grad
    result = [relative(a, b) for a, b in zip(got, exact, strict=True)]
    rare = torch.bincount(data.target[data.target >= 0], minlength=len(data.weight)) == 0
    result.append(relative(got[2][rare], exact[2][rare]))
    data.hidden.grad = data.weight.grad = None
    return tuple(result)


def logit_gradient(data: Data, case: Case) -> Tensor:
    """The gradient of the sum over tokens of the loss, ``(N, V)``: softmax minus target, in the data's dtype."""
    hidden, weight = data.hidden.detach(), data.weight.detach()
    gradient = hidden @ weight.T
    for part, target in zip(gradient.split(512), data.target.split(512), strict=True):  # float32 of all takes too much
        p = torch.softmax(part.float(), -1) - case.label_smoothing / weight.shape[0]
        p[torch.arange(len(target), device=p.device), target] -= 1 - case.label_smoothing
        part.copy_(p)
    return gradient


def library_products(
    data: Data, case: Case, device: torch.device, gradient: Tensor | None = None
) -> list[tuple[Callable[[], object], Tensor]]:
    """Logits, head's and input's gradient (of the sum over tokens) by ``torch.mm``, each with its result.

    The logits' gradient is :func:`logit_gradient` unless it is given: products of other numbers take another time. Each
    product runs in the faster of its two orientations.
    """
    hidden, weight = data.hidden.detach(), data.weight.detach()
    gradient = logit_gradient(data, case) if gradient is None else gradient
    runs: list[tuple[Callable[[], object], Tensor]] = []
    for a, b in ((hidden, weight.T), (gradient.T, hidden), (gradient, weight)):
        choices = []
        for left, right, transposed in ((a, b, False), (b.T, a.T, True)):
            out = left @ right
            run = partial(torch.mm, left, right, out=out)
            ms = min(turn(run, device).ms for _ in range(3))
            choices.append((ms, len(choices), run, out.T if transposed else out))
        runs.append(min(choices)[2:])
    return runs


def three_products(data: Data, case: Case, device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    """All of :func:`library_products`, one after the other: the floor of a loss that keeps its logits."""
    runs = library_products(data, case, device)

    def products() -> tuple[Tensor, ...]:
        for run, _ in runs:
            run()
        return tuple(out for _, out in runs)

    return products
