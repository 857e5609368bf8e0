"""Trainers with the fused loss: a mixin for any subclass of transformers' Trainer, TRL's SFTTrainer among them."""

from __future__ import annotations

from typing import Any

from ._forward import FusedLoss, fuse_loss

__all__ = ["SmoothedLossMixin", "make_trainer"]


class SmoothedLossMixin:
    """Put before a Trainer class: its loss is the model's fused loss, and logits are built only where asked for.

    Label smoothing comes from ``label_smoothing`` or, where that is None, from ``args.label_smoothing_factor``.
    Evaluation reports the same loss; logits exist there only when ``compute_metrics`` or ``predict`` needs them, batch
    by batch. The model stays fused afterwards: ``trainer.fused_loss.remove()`` undoes it. TRL's own metrics (token
    accuracy, entropy) are not computed. One process or DDP; a head sharded by itself (ZeRO stage 3, FSDP units around
    the head) is not supported.

    Args:
        *args: As the Trainer's.
        label_smoothing: Overrides ``args.label_smoothing_factor``; for TRL, which deprecates that field.
        loss_options: Further keyword arguments of :func:`kernel.huggingface.fuse_loss`.
        **kwargs: As the Trainer's.

    Raises:
        ValueError: If ``compute_loss_func`` is given, several GPUs are used through ``DataParallel``, or as
            :func:`kernel.huggingface.fuse_loss`.

    Example:
        >>> trl = __import__("pytest").importorskip("trl")
        >>> class SmoothedSFTTrainer(SmoothedLossMixin, trl.SFTTrainer): ...
    """

    fused_loss: FusedLoss

    def __init__(
        self,
        *args: Any,
        label_smoothing: float | None = None,
        loss_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func must be None: it would need the logits that this trainer never builds.")
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if trainer.args.n_gpu > 1:
            raise ValueError(
                f"args.n_gpu must be at most 1, got {trainer.args.n_gpu}: DataParallel copies models without their "
                "fused loss. Start one process a GPU with torchrun or accelerate launch."
            )
        if label_smoothing is None:
            label_smoothing = float(trainer.args.label_smoothing_factor)
        trainer.label_smoother = None  # transformers' own, on logits
        self.fused_loss = fuse_loss(trainer.model, label_smoothing=label_smoothing, **(loss_options or {}))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The fused loss of a batch, normalised by ``num_items_in_batch`` as in the Trainer itself."""
        from transformers import Trainer  # pyright: ignore[reportMissingImports]

        if inputs.get("labels") is None and inputs.get("shift_labels") is None:
            raise ValueError(f"inputs must hold labels, got {sorted(inputs)}.")
        return Trainer.compute_loss(
            self,  # pyright: ignore[reportArgumentType]
            model,
            inputs,
            return_outputs=return_outputs,
            num_items_in_batch=num_items_in_batch,
        )

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As the Trainer's; builds the logits of this batch if they are wanted."""
        before, self.fused_loss.eval_logits = self.fused_loss.eval_logits, not prediction_loss_only
        try:
            parent: Any = super()
            return parent.prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.fused_loss.eval_logits = before


def make_trainer() -> type:
    """``SmoothedTrainer``: transformers' Trainer with the fused loss.

    Raises:
        ImportError: If transformers or accelerate is not installed.
    """
    try:
        from transformers import Trainer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "SmoothedTrainer needs transformers and accelerate: pip install 'confidence-ceiling[huggingface]'"
        ) from error

    class SmoothedTrainer(SmoothedLossMixin, Trainer): ...

    SmoothedTrainer.__doc__ = (
        "transformers.Trainer with the fused loss; see :class:`kernel.huggingface.SmoothedLossMixin`."
    )
    SmoothedTrainer.__module__ = __name__.rpartition(".")[0]
    SmoothedTrainer.__qualname__ = "SmoothedTrainer"
    return SmoothedTrainer
