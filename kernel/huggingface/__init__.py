"""The loss where language models are trained: Hugging Face models and Trainers, without ever building the logits.

Two ways in. Change the base class and nothing else::

    from kernel.huggingface import SmoothedTrainer            # instead of transformers.Trainer

    SmoothedTrainer(model, TrainingArguments(..., label_smoothing_factor=0.1), train_dataset=...).train()

or give the model itself the loss, for any loop or Trainer that hands labels to the model::

    fuse_loss(model, label_smoothing=0.1)
    model(input_ids, labels=input_ids).loss.backward()

For TRL: ``class SmoothedSFTTrainer(SmoothedLossMixin, SFTTrainer): ...``.

Why no ``Trainer(compute_loss_func=...)``: that function is handed the model's outputs, and with them the logits that
are not to exist. The model's forward is the one place that every wrapper (autocast, DDP, PEFT, checkpointing) passes
through, so the loss sits there. This module imports without transformers; using it needs the extra ``huggingface``.
"""

from __future__ import annotations

from typing import Any

from ._architectures import (
    Architecture,
    Extras,
    HeadScale,
    architecture_of,
    head_scale,
    known_architectures,
    register_architecture,
)
from ._auxiliary import balanced_body, load_balance
from ._compare import check_loss
from ._forward import FusedLoss
from ._fuse import fuse_loss, fused
from ._heads import linear_head
from ._trainer import SmoothedLossMixin, make_trainer

__all__ = [
    "Architecture",
    "Extras",
    "FusedLoss",
    "HeadScale",
    "SmoothedLossMixin",
    "SmoothedTrainer",  # pyright: ignore[reportUnsupportedDunderAll]
    "architecture_of",
    "balanced_body",
    "check_loss",
    "fuse_loss",
    "fused",
    "head_scale",
    "known_architectures",
    "linear_head",
    "load_balance",
    "register_architecture",
]


def __getattr__(name: str) -> Any:
    if name == "SmoothedTrainer":
        globals()[name] = make_trainer()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
