"""Measures implementations on the cases of one problem, in rounds that they share."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from . import measure
from .apart import Apart
from .cute_rivals import cute_rivals
from .measure import Turn
from .prepare import Entry, prepare
from .problems import Data, Shape, make_data
from .rivals import Case, Rival, rivals

__all__ = ["GROUPS", "compare"]

GROUPS = (  # cases of a group share their rounds, and with them the state of the device
    (Case(), Case(ignored=0.8)),
    (Case(softcap=30.0), Case(softcap=30.0, ignored=0.8)),
    (Case(gradients=False), Case(gradients=False, softcap=30.0)),
    (Case(label_smoothing=0.0),),
)
PRODUCTS = "three products"


def compare(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    only: Sequence[str] | None = None,
    done: Collection[int] = (),
    variants: Sequence[str] = (),
) -> Iterator[list[tuple[dict[str, Any], list[Turn]]]]:
    """Measure every case of one shape; yield the table's rows of each group that is not ``done``, with their times."""
    data = make_data(shape, dtype, device)
    chosen = rivals(2 * shape.n * (shape.vocab_size + 20000) * dtype.itemsize, variants)
    chosen = [r for r in chosen if only is None or r.name.startswith(tuple(only))]
    names = [r.name for r in cute_rivals() if only is None or r.name.startswith(tuple(only))]
    apart = Apart(shape, dtype, device, names)
    try:
        for index, cases in enumerate(GROUPS):
            wanted = not shape.plain or (cases[0].gradients and cases[0].softcap is None)
            if wanted and index not in done:
                yield list(_Group(shape, data, rounds, apart).compare(cases, chosen))
    finally:
        apart.close()


class _Group:
    """Measures cases of one problem in the same rounds."""

    def __init__(self, shape: Shape, data: Data, rounds: int, apart: Apart | None = None) -> None:
        self.shape, self.data, self.rounds, self.apart = shape, data, rounds, apart
        self.device = data.hidden.device

    def compare(self, cases: Sequence[Case], chosen: list[Rival]) -> Iterator[tuple[dict[str, Any], list[Turn]]]:
        """Rows with their raw times; the first row is the product whose time all are compared with."""
        losses: list[Entry] = []  # prepared while nothing else takes memory
        data = self.data
        for case in cases:
            side = case.ignored or not case.gradients  # one of ours, one to compare with
            measured = [r for r in chosen if case == Case() or not r.frontier]
            measured = [r for r in measured if not side or r.name in ("triton, default", "eager")]
            losses += prepare(data, case, measured, self.device)
            if self.apart is not None and not side and case.softcap is None:
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()  # for the other process
                losses += self.apart.prepare(case)
        hidden, weight = data.hidden.detach(), data.weight.detach()
        product = hidden @ weight.T
        entries = [Entry(cases[0], "matmul", partial(torch.mm, hidden, weight.T, out=product))]
        if cases[0] == Case():
            entries.append(Entry(cases[0], PRODUCTS, measure.three_products(data, cases[0], self.device)))
        entries += losses
        times = self.time(entries)
        data.hidden.grad = data.weight.grad = None
        matmul_ms = statistics.median(turn.ms for turn in times[0])
        for entry, turns in zip(entries, times, strict=True):
            row = self.describe(entry.case) | {"implementation": entry.name, "matmul_ms": f"{matmul_ms:.3f}"}
            if turns and not entry.columns.get("skipped"):
                ms = [turn.ms for turn in turns]
                low, median, high = statistics.quantiles(ms, n=4) if self.rounds > 1 else ms * 3
                share = (3 if entry.case.gradients else 1) * (1 - entry.case.ignored) * matmul_ms / median
                row |= {"ms": f"{median:.3f}", "host_ms": f"{statistics.median(t.host_ms for t in turns):.3f}"}
                if entry.name != "matmul":
                    row |= {"ms_low": f"{low:.3f}", "ms_high": f"{high:.3f}", "share": f"{share:.3f}"}
            yield row | entry.columns, turns if "ms" in row else []

    def time(self, entries: list[Entry]) -> list[list[Turn]]:
        """Times of each entry in each round, all behind the same work: some of the product, the first entry."""
        times: list[list[Turn]] = [[] for _ in entries]
        product = entries[0].run
        assert product is not None
        before = measure.ahead(product, self.device)
        running = [i for i, entry in enumerate(entries) if entry.runs]
        for index in range(self.rounds + 1):  # the first round warms up
            # In another order each round: what ran before decides how warm the device is, hence how fast.
            for i in random.Random(index).sample(running, len(running)):
                turn = _turn(entries[i], self.device, before)
                if turn is None:
                    running.remove(i)
                elif index:
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


def _turn(entry: Entry, device: torch.device, before: Callable[[], None]) -> Turn | None:
    """Time an entry once; None if its process has ended."""
    if entry.run is not None:
        return measure.turn(entry.run, device, before=before)
    assert entry.turn is not None
    try:
        return entry.turn()
    except EOFError:
        entry.columns["skipped"] = "its process ended during the rounds"
        return None
