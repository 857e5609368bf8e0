"""The calls that :mod:`kernel.benchmark.sparse` measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import GradientTolerance, VocabularyOrder, linear_cross_entropy
from . import measure
from .problems import Data
from .rivals import Case, DataLoss, rivals

__all__ = ["Contender", "OwnOrder", "entries_of"]

_TOLERANCES = (0.001, 0.003, 0.01)


class OwnOrder(NamedTuple):
    """A problem in the model's own order of the vocabulary, and the order that sorts it."""

    data: Data
    order: VocabularyOrder


@dataclass
class Contender:
    """A loss of one problem, with what is known of it but its times."""

    name: str
    case: Case
    data: Data
    loss: DataLoss
    tolerance: float = 0.0
    told: GradientTolerance | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    shares: set[str] = field(default_factory=set)  # of active tiles, in the rounds

    def run(self) -> Tensor:
        """Compute the loss and both gradients."""
        return measure.step(self.loss, self.data, self.case)

    @property
    def active(self) -> str:
        """Share of the tiles that the last call told of, as the table has it; nothing of a call that tells none."""
        return "" if self.told is None else f"{self.told.input_active:.4f}"


def _ours(case: Case, **options: Any) -> DataLoss:
    given = {"label_smoothing": case.label_smoothing, "implementation": "triton", **options}
    return lambda data: linear_cross_entropy(data.hidden, data.weight, data.target, **given)


def _ever_trying(case: Case, tolerance: float) -> DataLoss:
    """A loss that remembers no failed try: each call has a tolerance of its own."""
    return lambda data: _ours(case, gradient_tolerance=GradientTolerance(tolerance))(data)


def _sorting(case: Case, order: VocabularyOrder, told: GradientTolerance) -> DataLoss:
    """A loss of a head that is not stored sorted, as :mod:`kernel.huggingface` takes it."""
    loss = _ours(case, gradient_tolerance=told)
    return lambda data: loss(Data(data.hidden, order.rows(data.weight), order.places(data.target)))


def entries_of(data: Data, own: OwnOrder | None, device: torch.device) -> Iterator[Contender]:
    """Yield all calls of a problem, and those of the model's own order where it is another one."""
    all_kept = 2 * data.hidden.shape[0] * (data.weight.shape[0] + 20000) * data.hidden.element_size()
    for case in (Case(), Case(label_smoothing=0.0)):
        yield Contender("default", case, data, _ours(case))
        yield Contender("all kept", case, data, _ours(case, workspace_bytes=all_kept))
        for tolerance in _TOLERANCES:
            told = GradientTolerance(tolerance)
            yield Contender("sparse", case, data, _ours(case, gradient_tolerance=told), tolerance, told)
        told = GradientTolerance(0.003)
        larger = _ours(case, gradient_tolerance=told, workspace_bytes=3 * 2**27)  # fewer rounds
        yield Contender("sparse, 384 MiB", case, data, larger, 0.003, told)
        if own is not None and case == Case():
            yield from _in_own_order(case, own, all_kept)
        for rival in rivals(all_kept):
            if rival.name.startswith("cut-cross-entropy") and rival.refuses(case, device) is None:
                yield Contender(rival.name, case, data, rival.make(case))


def _in_own_order(case: Case, own: OwnOrder, all_kept: int) -> Iterator[Contender]:
    yield Contender("default, as they are", case, own.data, _ours(case))
    yield Contender("all kept, as they are", case, own.data, _ours(case, workspace_bytes=all_kept))
    told = GradientTolerance(0.003)
    yield Contender("sparse, as they are", case, own.data, _ours(case, gradient_tolerance=told), 0.003, told)
    yield Contender("sparse, as they are, each a try", case, own.data, _ever_trying(case, 0.003), 0.003)
    for tolerance in _TOLERANCES:
        told = GradientTolerance(tolerance)
        loss = _sorting(case, own.order, told)
        yield Contender("sparse, sorting in each call", case, own.data, loss, tolerance, told)
