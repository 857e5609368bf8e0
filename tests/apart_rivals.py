"""Implementations that a test runs in a process of their own, which imports them by the name of this module."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel.benchmark.problems import Data
from kernel.benchmark.rivals import Case, DataLoss, Rival


def _eager(case: Case) -> DataLoss:
    return lambda data: F.cross_entropy(data.hidden @ data.weight.T, data.target)


def _broken(case: Case) -> DataLoss:
    raise RuntimeError("out of luck")


def _ends(after: int) -> Callable[[Case], DataLoss]:
    def make(case: Case) -> DataLoss:
        calls: list[Data] = []

        def loss(data: Data) -> Tensor:
            calls.append(data)
            if len(calls) > after:
                os._exit(7)
            return _eager(case)(data)

        return loss

    return make


def _never(case: Case, device: torch.device) -> None:
    return None


def _missing(case: Case, device: torch.device) -> str:
    return "not installed: elsewhere"


def implementations() -> list[Rival]:
    """One that runs, one that fails, two that end their process, at once and in the rounds, one that is not there."""
    return [
        Rival("eager", _eager, _never),
        Rival("broken", _broken, _never),
        Rival("ends at once", _ends(0), _never),
        Rival("ends later", _ends(3), _never),
        Rival("elsewhere", _eager, _missing),
    ]
