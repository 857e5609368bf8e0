"""One row for all tokens that training never saw: an exact reduction that makes a large vocabulary a small one.

A sample of 2,048 tokens shows some 1,200 of 32,768; the rows of the others differ by their first values alone. At fixed
features the loss is convex in the rows, each row has a ball of its own, and exchanging two unseen tokens changes
nothing: the mean of their rows does no worse (docs/theory.md, E4). So one row, counted as often as there are
such tokens, trains in their place, and the head is expanded when it is done.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..teachers import Observations
from ._config import FitConfig
from ._head import SoftmaxBottleneck

MERGED_SHARE = 0.75  # least share of the vocabulary from which "auto" merges: below it there is little to gain


class Classes(NamedTuple):
    """Tokens by the row of the head that they share: the seen ones in ascending order, then all others together.

    The parameters of a row that U tokens share are sqrt(U) times those of each. So the shared rows are the full head's
    subspace of equal rows with its own metric: the gradient has the same norm, and L-BFGS makes the steps that it would
    make on the full head from these first values.
    """

    of_token: Tensor  # (V,) int64, class of each token
    size: Tensor  # (C,) float64, tokens of each class

    @classmethod
    def of(cls, observations: Observations, vocab_size: int, *, device: torch.device | str) -> Classes:
        """Classes of a sample."""
        seen = torch.zeros(vocab_size, dtype=torch.bool)
        seen[observations.token] = True
        of_token = torch.where(seen, seen.cumsum(0) - 1, seen.sum())
        return cls(of_token.to(device), of_token.bincount().double().to(device))

    def merge(self, head: SoftmaxBottleneck) -> None:
        """Give the head a row for each class, in place: its tokens' mean, so that the loss does not rise."""
        full = head.raw_weight.detach().double()
        shared = self._mean(full)
        if head.config.norm == "budget":  # the mean of rows in the ball, lifted to the sphere again
            length = full.norm(dim=-1, keepdim=True)
            row = self._mean(full / length)[:, :-1]
            slack = (1 - row.square().sum(-1, keepdim=True)).sqrt()
            lifted = torch.cat([row, slack], dim=-1) * self._mean(length)
            shared = torch.where(self.size.unsqueeze(-1) > 1, lifted, shared)
        shared *= self.size.sqrt().unsqueeze(-1)
        head.raw_weight = nn.Parameter(shared.to(head.raw_weight.dtype))

    def _mean(self, x: Tensor) -> Tensor:  # (V, m) -> (C, m)
        sums = x.new_zeros(len(self.size), x.shape[1]).index_add_(0, self.of_token, x)
        return sums / self.size.unsqueeze(-1)

    def expand(self, head: SoftmaxBottleneck) -> None:
        """Undo :meth:`merge`: a row for each token, and its gradient, in place."""
        scale = self.size.rsqrt().unsqueeze(-1)
        shared = head.raw_weight
        full, gradient = (
            (part.double() * scale)[self.of_token].to(shared.dtype) for part in (shared.detach(), _gradient(shared))
        )
        head.raw_weight = nn.Parameter(full)
        head.raw_weight.grad = gradient


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None  # a minimiser leaves that of the last point
    return parameter.grad


def merged_classes(
    config: FitConfig, observations: Observations, *, device: torch.device, implementation: Any
) -> Classes | None:
    """The classes to train with: where merging was asked for, or no other way was and it is exact and pays on a CPU.

    Raises:
        ValueError: If it was asked for and is not exact.
    """
    if implementation == "merged":
        _check_exact(config)
    elif implementation != "auto" or device.type != "cpu" or not merging_is_exact(config):
        return None
    classes = Classes.of(observations, config.teacher.vocab_size, device=device)
    unseen = 1 - (len(classes.size) - 1) / config.teacher.vocab_size
    return classes if implementation == "merged" or unseen >= MERGED_SHARE else None


def merging_is_exact(config: FitConfig) -> bool:
    """Whether tokens that were never seen may share a row: without softcap and confidence penalty, under L-BFGS.

    Example:
        >>> merging_is_exact(FitConfig(hidden_size=4)), merging_is_exact(FitConfig(hidden_size=4, softcap=5.0))
        (True, False)
    """
    return not _inexact(config)


def _inexact(config: FitConfig) -> dict[str, Any]:
    """Fields of a config with which equal rows need not be best, or are reached on another way; and what each must be.

    A capped logit is no linear function of the row and a penalty subtracts a convex one, so that the mean of rows may
    do worse; Adam's step is by coordinate, and knows no metric.
    """
    exact = {"softcap": None, "confidence_penalty": 0.0, "optimiser": "lbfgs"}
    return {name: value for name, value in exact.items() if getattr(config, name) != value}


def _check_exact(config: FitConfig) -> None:
    for name, value in _inexact(config).items():
        raise ValueError(f"{name} must be {value!r} for implementation='merged', got {getattr(config, name)!r}.")
