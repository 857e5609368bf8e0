"""A refusal where a Trainer takes the labels out of a batch, so that a fused model would never see them."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ._undisturbed import unwrapped

__all__ = ["check_labels_were_not_taken"]


def check_labels_were_not_taken(model: Any) -> None:
    """Refuse a call without labels that transformers' Trainer makes for a loss of its own on the logits of ``model``.

    Its ``compute_loss`` pops the labels where ``label_smoothing_factor`` or ``compute_loss_func`` is given; the call
    itself then looks like one of an inference. Graphs that torch.compile makes are not looked into.

    Raises:
        ValueError: If it is such a call.
    """
    module = sys.modules.get("transformers.trainer")
    if module is None or torch.compiler.is_compiling():
        return
    code = module.Trainer.compute_loss.__code__
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    trainer = None if frame is None else frame.f_locals.get("self")
    if trainer is None or unwrapped(trainer.model) is not model:  # another model that a loss calls, as of a teacher
        return
    if trainer.label_smoother is not None:
        factor = trainer.args.label_smoothing_factor
        asked, way = f"args.label_smoothing_factor must be 0, got {factor}", "Leave the factor at 0"
    elif trainer.compute_loss_func is not None:
        asked, way = "compute_loss_func must be None, got a function", "Leave it out"
    else:
        return
    raise ValueError(
        f"{asked}: {type(model).__name__} was fused, and with it this Trainer takes the labels away and computes a "
        f"loss of its own from full logits, so that the fused loss would never run. {way}, as the model smooths by "
        "fuse_loss(model, label_smoothing=...), or use kernel.huggingface.SmoothedTrainer on a model that is not fused."
    )
