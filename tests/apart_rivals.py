"""Implementations that a test runs in a process of their own, which imports them by the name of this module."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

from kernel.benchmark.rivals import Case, DataLoss, Rival


def _eager(case: Case) -> DataLoss:
    return lambda data: F.cross_entropy(data.hidden @ data.weight.T, data.target)


def _broken(case: Case) -> DataLoss:
    raise RuntimeError("out of luck")


def _ends(case: Case) -> DataLoss:
    os._exit(7)


def _never(case: Case, device: torch.device) -> None:
    return None


def _missing(case: Case, device: torch.device) -> str:
    return "not installed: elsewhere"


def implementations() -> list[Rival]:
    """One that runs, one that fails, one that ends its process, and one that is not there; none smooths."""
    return [
        Rival("eager", _eager, _never, smooths=False),
        Rival("broken", _broken, _never, smooths=False),
        Rival("ends at once", _ends, _never, smooths=False),
        Rival("elsewhere", _eager, _missing, smooths=False),
    ]
