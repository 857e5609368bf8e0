"""Losses that a Trainer has besides the model's: what would vanish under the fused loss is refused by name."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import torch

__all__ = ["check_classes", "check_options", "check_returned"]

_STEPS = ("compute_loss", "training_step", "prediction_step")
_KNOWN = ("transformers.", "trl.", "kernel.huggingface")
_WAY_OUT = (
    "Put SmoothedLossMixin after it (class C(It, SmoothedLossMixin, Trainer)) and call super().compute_loss there"
)


def check_classes(cls: type, mixin: type) -> None:
    """Refuse classes between the mixin and Trainer that compute a loss: it would not run.

    TRL's SFTTrainer is known: with ``loss_type="nll"`` its loss is the model's.

    Raises:
        TypeError: If there is one, or the mixin is put before no Trainer.
    """
    from transformers import Trainer  # pyright: ignore[reportMissingImports]

    order = cls.__mro__
    if Trainer not in order[order.index(mixin) :]:
        raise TypeError(f"SmoothedLossMixin must stand before a subclass of transformers.Trainer in {cls.__name__}.")
    for between in order[order.index(mixin) + 1 : order.index(Trainer)]:
        known = between.__name__ == "SFTTrainer" and between.__module__.startswith("trl.")
        if "compute_loss" in vars(between) and not known:
            raise TypeError(
                f"{between.__module__}.{between.__qualname__}.compute_loss would not run: SmoothedLossMixin stands "
                f"before it in {cls.__name__} and computes the loss without logits. {_WAY_OUT}."
            )


def check_returned(trainer: Any, mixin: type, given: torch.Tensor, loss: Any) -> None:
    """Refuse a loss of a step that is not the fused one, times the Trainer's own factors.

    Raises:
        ValueError: If it is another: the text names the class whose override may have made it.
    """
    processes, steps = trainer.accelerator.num_processes, getattr(trainer, "current_gradient_accumulation_steps", 1)
    shared = getattr(trainer, "get_tp_size", lambda: 1)()  # processes that see the same batch
    fused, returned = float(given), float(loss)
    if not (math.isfinite(fused) or math.isfinite(returned)):
        return
    for many, parts in itertools.product((1, processes // shared), (1, steps)):
        if math.isclose(returned, fused * many / parts, rel_tol=1e-4, abs_tol=1e-7):
            return
    owners = [cls for cls in type(trainer).__mro__ if cls is not mixin and not cls.__module__.startswith(_KNOWN)]
    overrides = [
        *(f"trainer.{name}" for name in _STEPS if inspect.isroutine(vars(trainer).get(name))),
        *(f"{cls.__module__}.{cls.__qualname__}.{name}" for cls in owners for name in _STEPS if name in vars(cls)),
    ]
    raise ValueError(
        f"{(overrides or ['the forward put around the model'])[0]} must return the fused loss, {fused:.6g}, got "
        f"{returned:.6g}: what it adds or puts in its place is neither smoothed nor part of the loss that is reported "
        "as such. If that is meant, make the trainer with other_terms=True."
    )


def check_options(trainer: Any) -> None:
    """Refuse options of a Trainer that ask for another loss.

    Raises:
        ValueError: If there is one.
    """
    args = trainer.args
    if trainer.compute_loss_func is not None:
        raise ValueError("compute_loss_func must be None: it would need the logits that this trainer never builds.")
    if trainer.label_smoother is not None:
        raise ValueError("label_smoother must be None: it would need the logits that this trainer never builds.")
    loss_type = getattr(args, "loss_type", None)
    if loss_type not in (None, "nll"):
        raise ValueError(f"args.loss_type must be 'nll', the loss that is smoothed, got {loss_type!r}.")
    coefficient = getattr(args, "router_aux_loss_coef", None)
    if coefficient is not None:
        raise ValueError(
            f"args.router_aux_loss_coef must be None, got {coefficient}: the auxiliary loss of experts is the model's "
            "own. Set router_aux_loss_coef and output_router_logits in its config before it is made."
        )
    liger = getattr(args, "liger_kernel_config", None) or {}
    if getattr(args, "use_liger_kernel", False) and liger.get("fused_linear_cross_entropy", True):
        raise ValueError(
            "args.use_liger_kernel must not replace model.forward, whose loss would not be smoothed: set "
            'args.liger_kernel_config={"fused_linear_cross_entropy": False} to keep its other kernels.'
        )
