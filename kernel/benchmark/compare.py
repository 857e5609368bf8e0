"""Measures implementations on the cases of one problem, in rounds that they share."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from . import measure
from .measure import Turn
from .problems import Data, Shape, make_data
from .rivals import Case, DataLoss, Rival, rivals

__all__ = ["GROUPS", "compare"]

GROUPS = (  # cases of a group share their rounds, and with them the state of the device
    (Case(), Case(ignored=0.8)),
    (Case(softcap=30.0), Case(softcap=30.0, ignored=0.8)),
    (Case(gradients=False), Case(gradients=False, softcap=30.0)),
    (Case(label_smoothing=0.0),),
)
PRODUCTS = "three products"


def compare(
    shape: Shape, dtype: torch.dtype, device: torch.device, rounds: int, only: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Any], list[Turn]]]:
    """Measure every case of one shape; yield each row of the table with the raw times behind it."""
    data = make_data(shape, dtype, device)
    chosen = rivals(2 * shape.n * (shape.vocab_size + 20000) * dtype.itemsize)
    chosen = [r for r in chosen if only is None or r.name.startswith(tuple(only))]
    for cases in GROUPS:
        yield from _Group(shape, data, rounds).compare(cases, chosen)


@dataclass
class _Entry:
    """An implementation on a case: what it runs or why it does not, and the columns that are measured first."""

    case: Case
    name: str
    run: Callable[[], object] | None = None
    columns: dict[str, Any] = field(default_factory=dict)


class _Group:
    """Measures cases of one problem in the same rounds."""

    def __init__(self, shape: Shape, data: Data, rounds: int) -> None:
        self.shape, self.data, self.rounds = shape, data, rounds
        self.device = data.hidden.device

    def compare(self, cases: Sequence[Case], chosen: list[Rival]) -> Iterator[tuple[dict[str, Any], list[Turn]]]:
        """Rows with their raw times; the first row is the product whose time all are compared with."""
        losses: list[_Entry] = []  # prepared while nothing else takes memory
        for case in cases:
            side = case.ignored or not case.gradients  # one of ours, one to compare with
            losses += self.prepare(case, [r for r in chosen if not side or r.name in ("triton, default", "eager")])
        data = self.data
        hidden, weight = data.hidden.detach(), data.weight.detach()
        product = hidden @ weight.T
        entries = [_Entry(cases[0], "matmul", partial(torch.mm, hidden, weight.T, out=product))]
        if cases[0] == Case():
            entries.append(_Entry(cases[0], PRODUCTS, measure.three_products(data, cases[0], self.device)))
        entries += losses
        times = self.time(entries)
        data.hidden.grad = data.weight.grad = None
        matmul_ms = statistics.median(turn.ms for turn in times[0])
        for entry, turns in zip(entries, times, strict=True):
            row = self.describe(entry.case) | {"implementation": entry.name, "matmul_ms": f"{matmul_ms:.3f}"}
            if turns:
                ms = [turn.ms for turn in turns]
                low, median, high = statistics.quantiles(ms, n=4) if self.rounds > 1 else ms * 3
                share = (3 if entry.case.gradients else 1) * (1 - entry.case.ignored) * matmul_ms / median
                row |= {"ms": f"{median:.3f}", "host_ms": f"{statistics.median(t.host_ms for t in turns):.3f}"}
                if entry.name != "matmul":
                    row |= {"ms_low": f"{low:.3f}", "ms_high": f"{high:.3f}", "share": f"{share:.3f}"}
            yield row | entry.columns, turns

    def prepare(self, case: Case, chosen: list[Rival]) -> Iterator[_Entry]:
        """Build, check and measure the memory of every implementation."""
        data = self.data
        if case.ignored:
            generator = torch.Generator(self.device).manual_seed(1)
            drop = torch.rand(self.shape.n, device=self.device, generator=generator) < case.ignored
            data = replace(data, target=torch.where(drop, -100, data.target))
        exact = measure.exact_gradients(data, case) if case.gradients and not case.ignored else None
        for rival in chosen:
            reason = rival.refuses(case, self.device)
            if reason is None:
                try:
                    loss, columns = _prepare(rival, case, data, exact, self.device)
                    yield _Entry(case, rival.name, partial(measure.step, loss, data, case), columns)
                    continue
                except Exception as error:  # an implementation that fails is a result, and must not end the run
                    reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
                    data.hidden.grad = data.weight.grad = None
            yield _Entry(case, rival.name, columns={"skipped": reason})

    def time(self, entries: list[_Entry]) -> list[list[Turn]]:
        """Times of each entry in each round, all behind the same work: some of the product, the first entry."""
        times: list[list[Turn]] = [[] for _ in entries]
        product = entries[0].run
        assert product is not None
        before = measure.ahead(product, self.device)
        running = [i for i, entry in enumerate(entries) if entry.run is not None]
        for index in range(self.rounds + 1):  # the first round warms up
            # In another order each round: what ran before decides how warm the device is, hence how fast.
            for i in random.Random(index).sample(running, len(running)):
                run = entries[i].run
                assert run is not None
                turn = measure.turn(run, self.device, before=before)
                if index:
                    times[i].append(turn)
        return times

    def describe(self, case: Case) -> dict[str, Any]:
        """The columns that say what is computed."""
        shape, hidden, weight = self.shape, self.data.hidden, self.data.weight
        gradient_bytes = (hidden.numel() + weight.numel()) * hidden.element_size()
        return {
            "shape": shape.name,
            "tokens": shape.n,
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "dtype": str(hidden.dtype).removeprefix("torch."),
            "label_smoothing": case.label_smoothing,
            "softcap": "" if case.softcap is None else case.softcap,
            "ignored": case.ignored,
            "mode": "loss and gradients" if case.gradients else "loss",
            "gradient_mib": f"{gradient_bytes / 2**20:.0f}" if case.gradients else "0",
        }


def _prepare(
    rival: Rival, case: Case, data: Data, exact: tuple[Any, Any, Any] | None, device: torch.device
) -> tuple[DataLoss, dict[str, Any]]:
    """Build an implementation, choose its fastest variant, and measure its memory and its error."""
    variants = rival.variants or ((),)
    best: tuple[float, DataLoss] | None = None
    for variant in variants:
        loss = rival.make(case, variant) if rival.variants else rival.make(case)  # pyright: ignore[reportCallIssue]
        measure.step(loss, data, case)
        if len(variants) > 1:
            ms = measure.turn(lambda loss=loss: measure.step(loss, data, case), device).ms
            best = min(best, (ms, loss), key=lambda pair: pair[0]) if best else (ms, loss)
        else:
            best = (0.0, loss)
    assert best is not None
    loss = best[1]
    data.hidden.grad = data.weight.grad = None
    peak = measure.peak_bytes(lambda: measure.step(loss, data, case), device)
    data.hidden.grad = data.weight.grad = None
    columns: dict[str, Any] = {"peak_mib": "" if peak is None else f"{peak / 2**20:.1f}"}
    if exact is not None:
        names = ("loss_error", "input_gradient_error", "weight_gradient_error")
        columns |= {k: f"{e:.2e}" for k, e in zip(names, measure.errors(loss, data, case, exact), strict=True)}
    return loss, columns
