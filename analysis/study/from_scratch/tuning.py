"""Tuning a pretrained model on few sequences of the shifted language: what smoothing and its rivals act in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .pretraining import adamw, step
from .transformer import Transformer

__all__ = ["Arm", "arm_of", "tuned"]

_KEYS = {"b": "label_smoothing", "T": "temperature", "cap": "softcap", "penalty": "confidence_penalty"}


class Arm(NamedTuple):
    """One way to tune.

    Attributes:
        name: As :func:`arm_of` reads it.
        label_smoothing: b.
        temperature: T of the loss.
        softcap: Cap of the loss; None for none.
        confidence_penalty: gamma of the loss.
        frozen: Whether the gain of the last norm stays as it is.
    """

    name: str
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    confidence_penalty: float = 0.0
    frozen: bool = False

    @property
    def plain(self) -> bool:
        """Whether nothing was added to the loss, so that smoothing can be predicted from the model."""
        return self[1:] == Arm("")[1:]


def arm_of(name: str) -> Arm:
    """Read an arm's name: words among ``b=.1``, ``T=.5``, ``cap=5``, ``penalty=.1`` and ``frozen``.

    Raises:
        ValueError: If a word is no such setting.

    Example:
        >>> arm_of("b=0.1 T=0.5")[1:5]
        (0.1, 0.5, None, 0.0)
    """
    fields: dict[str, float | bool] = {}
    for word in name.split():
        key, equals, value = word.partition("=")
        if word == "frozen":
            fields["frozen"] = True
        elif key in _KEYS and equals:
            fields[_KEYS[key]] = float(value)
        else:
            raise ValueError(f"name must be of words among {', '.join(_KEYS)} with a number, and frozen, got {name!r}.")
    return Arm(name, **fields)  # pyright: ignore[reportArgumentType]


def tuned(
    pretrained: Transformer, sequences: Tensor, arm: Arm, *, epochs: tuple[int, ...], batch: int, step_size: float,
    weight_decay: float, seed: int, targets: Tensor | None = None,
) -> Iterator[tuple[int, Transformer]]:  # fmt: skip
    """Yield the model after each of ``epochs``; the order of the sequences is the same in every arm.

    The step size rises over the first tenth of the steps and is constant after, so that epochs compare.

    Args:
        pretrained: Copied.
        sequences: What to tune on.
        arm: How.
        epochs: After which the model is yielded, ascending.
        batch: Sequences a step.
        step_size: Of AdamW.
        weight_decay: Of the matrices.
        seed: Of the order.
        targets: What is predicted after each token, -100 for nothing; None for the next token everywhere.
    """
    model = copy.deepcopy(pretrained)
    model.norm.weight.requires_grad_(not arm.frozen)
    optimiser = adamw(model, step_size, weight_decay)
    warm_up = max(1, epochs[-1] * -(-len(sequences) // batch) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: min(1.0, (done + 1) / warm_up))
    order = torch.Generator().manual_seed(seed)
    options = {
        "label_smoothing": arm.label_smoothing, "temperature": arm.temperature, "softcap": arm.softcap,
        "confidence_penalty": arm.confidence_penalty,
    }  # fmt: skip
    for epoch in range(1, epochs[-1] + 1):
        for part in torch.randperm(len(sequences), generator=order).split(batch):
            rows = part.to(sequences.device)
            step(model, optimiser, sequences[rows], targets=None if targets is None else targets[rows], **options)
            schedule.step()
        if epoch in epochs:
            yield epoch, model
