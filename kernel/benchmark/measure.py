"""Time, memory and error of one call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..options import LossOptions
from ..reference import loss as reference_loss
from .problems import Data
from .rivals import Case, Loss

__all__ = ["errors", "exact_gradients", "peak_bytes", "step", "three_products", "turn"]


def step(loss: Loss, data: Data, case: Case) -> Tensor:
    """One call: the loss, and the gradients if the case wants them; earlier gradients are dropped first."""
    data.hidden.grad = data.weight.grad = None
    with torch.set_grad_enabled(case.gradients):
        value = loss(data)
    if case.gradients:
        value.backward()
    return value.detach()


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Most device memory in use during ``run`` beyond what was in use before; None without a CUDA device."""
    if device.type != "cuda":
        run()
        return None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def turn(run: Callable[[], object], device: torch.device, before: Callable[[], object] | None = None) -> float:
    """Milliseconds of one run.

    ``before`` keeps the device busy, untimed, while the host enqueues the run, as it would be in training: it hides the
    host's part unless that takes longer than the device's, and brings the device to the same temperature for all.
    """
    if before is not None:
        before()
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()

    end.synchronize()
    return begin.elapsed_time(end)


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
        share = reference_loss(part, weight, target, None, None, options) / count
        share.backward()
        value += share.detach()
    assert hidden.grad is not None
    assert weight.grad is not None
    return value, hidden.grad, weight.grad


def errors(loss: Loss, data: Data, case: Case, exact: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float, float]:
    """Relative errors, norm-wise, of loss, input gradient and weight gradient."""
    value = step(loss, data, case)
    assert data.hidden.grad is not None
    assert data.weight.grad is not None

    def relative(got: Tensor, want: Tensor) -> float:
        return ((got.double() - want).norm() / want.norm()).item()

    result = [relative(a, b) for a, b in zip((value, data.hidden.grad, data.weight.grad), exact, strict=True)]
    data.hidden.grad = data.weight.grad = None
    return result[0], result[1], result[2]


def three_products(data: Data, case: Case, device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    """Logits and both gradients (of the sum over tokens) by ``torch.mm`` alone: the floor of a loss that keeps logits.

    The logits' gradient is the case's own, softmax minus target, computed beforehand: products of other numbers take
    another time. Each product runs in the faster of its two orientations.
    """
    hidden, weight = data.hidden.detach(), data.weight.detach()
    gradient = hidden @ weight.T
    for part, target in zip(gradient.split(512), data.target.split(512), strict=True):  # float32 of all takes too much
        p = torch.softmax(part.float(), -1) - case.label_smoothing / weight.shape[0]
        p[torch.arange(len(target), device=device), target] -= 1 - case.label_smoothing
        part.copy_(p)
    runs = []
    for a, b in ((hidden, weight.T), (gradient.T, hidden), (gradient, weight)):
        choices = []
        for left, right, transposed in ((a, b, False), (b.T, a.T, True)):
            out = left @ right
            run = partial(torch.mm, left, right, out=out)
            choices.append((min(turn(run, device) for _ in range(3)), len(choices), run, out.T if transposed else out))
        runs.append(min(choices)[2:])

    def products() -> tuple[Tensor, ...]:
        for run, _ in runs:
            run()
        return tuple(out for _, out in runs)

    return products
