"""Builds an implementation for a case, chooses its variant, and measures its memory and its error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import measure
from .measure import Turn
from .problems import Data
from .rivals import Case, DataLoss, Rival

__all__ = ["ERRORS", "Entry", "prepare"]

ERRORS = ("loss_error", "input_gradient_error", "weight_gradient_error", "no_target_rows_error")
_Exact = tuple[Tensor, Tensor, Tensor]


@dataclass
class Entry:
    """An implementation on a case: what it runs or why it does not, and the columns that are measured first."""

    case: Case
    name: str
    run: Callable[[], object] | None = None
    turn: Callable[[], Turn] | None = None  # of one that runs in a process of its own
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """False of one that is skipped."""
        return self.run is not None or self.turn is not None


def prepare(
    data: Data,
    case: Case,
    chosen: Sequence[Rival],
    device: torch.device,
    known: MutableMapping[Case, _Exact] | None = None,
    *,
    errors: bool = True,
) -> Iterator[Entry]:
    """Build, check and measure the memory of every implementation, and unless ``errors`` is False its errors.

    ``known`` holds the exact gradients of ``data`` for the last case: in float64 they take as long as many a rival.
    """
    if case.ignored:
        generator = torch.Generator(device).manual_seed(1)
        drop = torch.rand(len(data.target), device=device, generator=generator) < case.ignored
        data = replace(data, target=torch.where(drop, -100, data.target))
    known = {} if known is None else known
    if errors and case.gradients and not case.ignored and case not in known and chosen:
        known.clear()
        known[case] = measure.exact_gradients(data, case)
    exact = known.get(case)
    for rival in chosen:
        reason = rival.refuses(case, device)
        if reason is None:
            try:
                loss, columns = _prepared(rival, case, data, exact, device)
                yield Entry(case, rival.name, partial(measure.step, loss, data, case), columns=columns)
                continue
            except Exception as error:  # an implementation that fails is a result, and must not end the run
                reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
                data.hidden.grad = data.weight.grad = None
        yield Entry(case, rival.name, columns={"skipped": reason})


def _prepared(
    rival: Rival, case: Case, data: Data, exact: _Exact | None, device: torch.device
) -> tuple[DataLoss, dict[str, Any]]:
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
        columns |= {k: f"{e:.2e}" for k, e in zip(ERRORS, measure.errors(loss, data, case, exact), strict=True)}
    return loss, columns
