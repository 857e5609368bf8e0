"""Profiles calls of the loss on one problem, beside the library's products, each with rounds of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import GradientTolerance, linear_cross_entropy
from ..fused import default_workspace_bytes
from . import measure
from .phases import DeviceEvent, PhaseTime, calls_of, phase_times
from .problems import Data
from .rivals import Case
from .rounds import orders

__all__ = ["NEAR", "Profiled", "record", "rows"]

NEAR = 0.03  # how far the times of a call with and without the profiler may be apart
_TRIES = 3  # to measure both so near
# The library's product that a phase does, in whole or in part.
_PRODUCT_OF = {"forward": 0, "logits anew": 0, "weight gradient": 1, "input gradient": 2}


@dataclass
class Profiled:
    """One budget of one problem."""

    budget: str
    workspace_bytes: int | None  # None: the default
    data: Data
    told: GradientTolerance | None = None

    def run(self) -> Tensor:
        """Compute loss and gradients."""
        return measure.step(self.loss, self.data, Case())

    def loss(self, data: Data) -> Tensor:
        """Compute the loss within the budget."""
        options: dict[str, Any] = {} if self.told is None else {"gradient_tolerance": self.told}
        return linear_cross_entropy(
            data.hidden,
            data.weight,
            data.target,
            label_smoothing=Case().label_smoothing,
            workspace_bytes=self.workspace_bytes,
            **options,
        )

    def shares(self) -> dict[str, float]:
        """Shares of the columns that each phase computes, of those kept and of those in bytes; chunks of tokens."""
        if self.told is not None:
            of_input, of_weight = self.told.input_active, self.told.weight_active
            known = {"logits anew": of_input, "weight gradient": of_weight, "input gradient": of_input}
            return {**known, "forward": 1.0, "kept": 0.0, "in_bytes": 0.0, "chunks": 1}
        kept, in_bytes, chunks = _planned(self.data, self.workspace_bytes)
        found = {"kept": kept, "in_bytes": in_bytes, "chunks": chunks, "logits anew": 1 - kept}
        return found | dict.fromkeys(("forward", "weight gradient", "input gradient"), 1.0)


def _planned(data: Data, workspace_bytes: int | None) -> tuple[float, float, int]:
    """Shares of the columns, over all tokens, that are kept and kept in bytes, and the chunks of tokens."""
    from .own_peak import Plans, call_of  # needs Triton

    chunk, plans, _ = Plans.of(call_of(data, Case(), workspace_bytes))
    tokens, vocab_size = len(data.hidden), len(data.weight)
    kept = in_bytes = 0.0
    for start in range(0, tokens, chunk):
        share = min(chunk, tokens - start) / tokens
        for run in plans[start > 0].kept:
            columns = share * (min(run.start + run.columns, vocab_size) - run.start) / vocab_size
            kept += columns
            in_bytes += columns if run.in_bytes else 0.0
    return kept, in_bytes, -(-tokens // chunk)


def record(run: Callable[[], object], before: Callable[[], object], calls: int) -> list[DeviceEvent]:
    """Return what the GPU did in ``calls`` calls, each between two marks and behind ``before``."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    # torch 2.11 warns of any profile that does not add up its cycles, though this one has a single cycle.
    with torch.profiler.profile(activities=activities, acc_events=True) as found:
        for _ in range(calls):
            before()
            torch.cuda._sleep(1)
            run()
            torch.cuda._sleep(1)
            torch.cuda.synchronize()
    events = (event for event in found.events() or () if event.device_type.name == "CUDA")
    return [DeviceEvent(event.name, event.time_range.start, event.time_range.end) for event in events]


def rows(name: str, data: Data, cases: Sequence[Profiled], calls: int, device: torch.device) -> Iterator[Any]:
    """Rows of all budgets of one problem."""
    peaks = []
    for case in cases:
        case.run()  # compiles
        data.hidden.grad = data.weight.grad = None
        peaks.append(measure.peak_bytes(case.run, device))
        data.hidden.grad = data.weight.grad = None
    hidden, weight = data.hidden.detach(), data.weight.detach()
    product = partial(torch.mm, hidden, weight.T, out=hidden @ weight.T)
    library = [run for run, _ in measure.library_products(data, Case(), device)]
    beside = [product, partial(_all, library), *library, partial(torch.empty_like(weight).copy_, weight)]
    before = measure.ahead(product, device)
    for case, peak in zip(cases, peaks, strict=True):
        medians, times, tries = _agreeing([*beside, case.run], before, calls, device)
        matmul_ms, three_ms, *library_ms, copy_ms, call_ms = medians
        data.hidden.grad = data.weight.grad = None
        shares, workspace_bytes = case.shares(), case.workspace_bytes
        if workspace_bytes is None:
            workspace_bytes = default_workspace_bytes(len(hidden))
        common = {
            "shape": name,
            "tokens": len(hidden),
            "vocab_size": len(weight),
            "hidden_size": hidden.shape[1],
            "dtype": str(hidden.dtype).removeprefix("torch."),
            "label_smoothing": Case().label_smoothing,
            "budget": case.budget,
            "workspace_mib": f"{workspace_bytes / 2**20:.0f}",
            "chunks": shares["chunks"],
            "kept": f"{shares['kept']:.4f}",
            "in_bytes": f"{shares['in_bytes']:.4f}",
            "tries": tries,
        }
        of_call = {
            "call_ms": f"{call_ms:.3f}",
            "profiled_ms": f"{sum(time.ms for time in times.values()):.3f}",
            "matmul_ms": f"{matmul_ms:.3f}",
            "three_products_ms": f"{three_ms:.3f}",
            "copy_ms": f"{copy_ms:.4f}",
            "peak_mib": "" if peak is None else f"{peak / 2**20:.1f}",
        }
        for phase, time in times.items():
            product_ms = library_ms[_PRODUCT_OF[phase]] if phase in _PRODUCT_OF else None
            if phase == "dz of what was kept":  # as they are they need none
                shares[phase] = shares["in_bytes"]
            yield common | _phase_columns(phase, time, shares.get(phase), product_ms) | of_call


def _phase_columns(phase: str, time: PhaseTime, columns: float | None, product_ms: float | None) -> dict[str, Any]:
    own_ms = 0.0 if product_ms is None or columns is None else columns * product_ms
    return {
        "phase": phase,
        "kernels": "; ".join(kernel.partition("<")[0] for kernel in time.kernels[:4]),
        "launches": f"{time.launches:.1f}",
        "ms": f"{time.ms:.4f}",
        "columns": "" if columns is None else f"{columns:.4f}",
        "product_ms": "" if product_ms is None else f"{product_ms:.3f}",
        "rate": f"{own_ms / time.ms:.3f}" if own_ms and time.ms else "",
        "excess_ms": f"{time.ms - own_ms:.4f}",
    }


def _all(runs: Sequence[Callable[[], object]]) -> None:
    for run in runs:
        run()


def _agreeing(
    runs: Sequence[Callable[[], object]], before: Callable[[], None], calls: int, device: torch.device
) -> tuple[list[float], dict[str, PhaseTime], int]:
    """Median times without the profiler, phases of the last run in it, and how often both were measured.

    The profiled calls come between two halves of the others: at its power limit, and on a host with other work, a
    device changes its clock within seconds. Where both differ all the same they are measured again; the best counts.
    """
    found: list[tuple[float, list[float], dict[str, PhaseTime]]] = []
    half = max(calls // 2, 1)
    every = list(orders(len(runs), 2 * half))
    while not found or (found[-1][0] > NEAR and len(found) < _TRIES):
        first = _rounds(runs, before, every[:half], device)
        phases = phase_times(calls_of(record(runs[-1], before, calls)))
        second = _rounds(runs, before, every[half:], device)
        medians = [statistics.median(a + b) for a, b in zip(first, second, strict=True)]
        found.append((abs(sum(time.ms for time in phases.values()) / medians[-1] - 1), medians, phases))
    _, medians, phases = min(found, key=lambda one: one[0])
    return medians, phases, len(found)


def _rounds(
    runs: Sequence[Callable[[], object]],
    before: Callable[[], None],
    rounds: Sequence[Sequence[int]],
    device: torch.device,
) -> list[list[float]]:
    """The times of each run, in rounds that all share, each in an order of its own."""
    times: list[list[float]] = [[] for _ in runs]
    for order in rounds:
        for i in order:
            times[i].append(measure.turn(runs[i], device, before=before).ms)
    return times
