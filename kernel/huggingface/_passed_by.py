"""A warning where a fused model is trained past its fused loss, as TRL's trainers do with a head of their own."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import nn

from ..options import LossOptions
from ._installed import Forward, current, find

__all__ = ["unwatch", "watch"]


class _PassedBy:
    """A hook before the body, which whatever computes a loss has to call; an object, to be pickled with the model."""

    __slots__ = ("model", "warned")

    def __init__(self, model: nn.Module) -> None:
        self.model, self.warned = model, False

    def __call__(self, body: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling() or self.warned or not body.training or find(self.model) is not None:
            return
        fused = current(self.model)  # whose forward was replaced, by one that may call it
        lost = {} if fused is None else {n: x for n, x in fused.options.items() if x != getattr(_PLAIN, n, x)}
        if not lost or _is_calling(Forward.__call__):
            return
        self.warned = True
        warnings.warn(
            f"{type(self.model).__name__} was fused with {', '.join(f'{n}={x}' for n, x in lost.items())}, but is "
            "trained on another loss: its forward was replaced by one with a head of its own, as by TRL's trainers. "
            "Use class SmoothedSFTTrainer(SmoothedLossMixin, SFTTrainer), and remove() this fused loss.",
            stacklevel=2,
        )


def _is_calling(function: Any) -> bool:
    frame = sys._getframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def watch(model: Any) -> None:
    """Warn once where the body of a fused model is run in training for another loss than the fused one."""
    unwatch(model)
    if model.base_model is not model:
        model.base_model.register_forward_pre_hook(_PassedBy(model))


def unwatch(model: Any) -> None:
    """Take the hook of :func:`watch` out."""
    hooks = model.base_model._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, _PassedBy)]:
        del hooks[key]


_PLAIN = LossOptions()
