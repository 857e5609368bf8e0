"""Measures implementations on the cases of one problem, in rounds that they share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from . import measure
from .apart import Apart
from .measure import Turn
from .prepare import Entry, prepare
from .problems import Data, Shape, make_data
from .results import is_ours
from .rivals import Case, Rival, ours, rivals
from .rounds import orders

__all__ = ["GROUPS", "compare"]

GROUPS = (  # cases of a group share their rounds, and with them the state of the device
    (Case(), Case(ignored=0.8)),
    (Case(softcap=30.0), Case(softcap=30.0, ignored=0.8)),
    (Case(gradients=False), Case(gradients=False, softcap=30.0)),
    (Case(label_smoothing=0.0),),
)
PRODUCTS = "three products"
_SLOW, _FEW = 20, 2  # times the product of the logits; rounds of what takes longer
_LEAST_MIB = 32  # the smallest of our own workspaces


def compare(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    only: Sequence[str] | None = None,
    done: Collection[int] = (),
    variants: Sequence[str] = (),
    apart: Apart | None = None,
) -> Iterator[list[tuple[dict[str, Any], list[Turn]]]]:
    """Measure every case of one shape; yield the table's rows of each group that is not ``done``, with their times.

    ``apart`` runs what needs a process of its own.
    """
    data = make_data(shape, dtype, device)
    chosen = rivals(2 * shape.n * (shape.vocab_size + 20000) * dtype.itemsize, variants)
    chosen = [r for r in chosen if only is None or r.name.startswith(tuple(only))]
    if apart is not None:
        apart.shape = shape
    for index, cases in enumerate(GROUPS):
        wanted = not shape.plain or (cases[0].gradients and cases[0].softcap is None)
        if wanted and index not in done:
            yield list(_Group(shape, data, rounds, apart).compare(cases, chosen))


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
            if self.shape.plain and not case.label_smoothing:
                measured = [r for r in measured if is_ours(r.name) or not r.smooths]
            known: dict[Case, Any] = {}
            found = list(prepare(data, case, measured, self.device, known))
            if not side and case.softcap is None:
                if self.apart is not None:
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()  # for the other process
                    found += self.apart.prepare(case)
                found += prepare(data, case, list(self.between(case, found, measured)), self.device, known)
            losses += found
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
                low, median, high = statistics.quantiles(ms, n=4) if len(ms) > 1 else ms * 3
                share = (3 if entry.case.gradients else 1) * (1 - entry.case.ignored) * matmul_ms / median
                row |= {"ms": f"{median:.3f}", "host_ms": f"{statistics.median(t.host_ms for t in turns):.3f}"}
                clock = measure.product_ms(turns)  # nan of a process that times no product
                row |= {} if math.isnan(clock) else {"product_ms": f"{clock:.3f}"}
                if entry.name != "matmul":
                    row |= {"ms_low": f"{low:.3f}", "ms_high": f"{high:.3f}", "share": f"{share:.3f}"}
            yield row | entry.columns, turns if "ms" in row else []

    def between(self, case: Case, entries: Sequence[Entry], chosen: Sequence[Rival]) -> Iterator[Rival]:
        """Yield ours with the largest workspace within the memory of each of the others, unless its plan is measured.

        ``chosen`` are what was measured, ours among them.
        """
        peaks = {e.name: float(e.columns["peak_mib"]) for e in entries if e.columns.get("peak_mib")}
        if not any(is_ours(name) for name in peaks):
            return
        from .own_peak import Plans, call_of, largest_workspace  # needs Triton

        call, hidden = call_of(self.data, case), self.data.hidden
        own = [rival.workspace_bytes for rival in chosen if is_ours(rival.name) and rival.name in peaks]
        known = {Plans.of(replace(call, workspace_bytes=size)) for size in own}
        apart = hidden.shape[0] * 512 * hidden.element_size() / 2**20  # two tiles' columns
        least = float(_LEAST_MIB)
        for other in sorted({peak for name, peak in peaks.items() if not is_ours(name)}):
            found = largest_workspace(call, int(other * 2**20))
            if found is not None and found[0] >= least and found[1] not in known:
                known.add(found[1])
                least = found[0] + apart
                yield ours(f"{found[0]} MiB", found[0] * 2**20)

    def time(self, entries: list[Entry]) -> list[list[Turn]]:
        """Times of each entry in each round, all behind the same work: some of the product, the first entry."""
        times: list[list[Turn]] = [[] for _ in entries]
        product = entries[0].run
        assert product is not None
        before, first = measure.ahead(product, self.device), dict[int, float]()
        running, slow = [i for i, entry in enumerate(entries) if entry.runs], set[int]()
        begun = list(running)
        # What ran before decides how warm the device is and at which clock, hence how fast: another run each round.
        for index, order in enumerate(orders(len(begun), self.rounds + 1)):  # the first round warms up
            for i in (begun[place] for place in order):
                if i not in running:
                    continue
                turn = _turn(entries[i], self.device, before)
                if turn is None:
                    running.remove(i)
                elif index:
                    times[i].append(turn)
                    if i in slow and index >= _FEW:
                        running.remove(i)
                else:
                    first[i] = turn.ms
            if not index:
                slow = {i for i, ms in first.items() if ms > _SLOW * first[0]}
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
