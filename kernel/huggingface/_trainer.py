"""Trainers with the fused loss: a mixin for any subclass of transformers' Trainer, TRL's SFTTrainer among them."""

from __future__ import annotations

from typing import Any

from ..options import LossOptions
from ._forward import FusedLoss
from ._fuse import fuse_loss
from ._fuse import fused as active_loss

__all__ = ["SmoothedLossMixin", "make_trainer"]


class SmoothedLossMixin:
    """Put before a Trainer class: its loss is the model's fused loss, and logits are built only where asked for.

    Label smoothing comes from ``label_smoothing`` or, where that is None, from ``args.label_smoothing_factor``.
    Evaluation reports the same loss; logits exist there only when ``compute_metrics`` or ``predict`` needs them, batch
    by batch. Models that ``model_init`` makes are fused too, and a hyperparameter search may vary
    ``label_smoothing_factor``. The model stays fused afterwards: ``trainer.fused_loss.remove()`` undoes it. TRL's own
    metrics (token accuracy, entropy) are not computed. One process or DDP; a head sharded by itself (ZeRO stage 3, FSDP
    units around the head) is not supported.

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
        self._label_smoothing, self._loss_options = label_smoothing, loss_options or {}
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if trainer.compute_loss_func is not None:
            raise ValueError("compute_loss_func must be None: it would need the logits that this trainer never builds.")
        if trainer.args.n_gpu > 1:
            raise ValueError(
                f"args.n_gpu must be at most 1, got {trainer.args.n_gpu}: DataParallel copies models without their "
                "fused loss. Start one process a GPU with torchrun or accelerate launch."
            )
        trainer.label_smoother = None  # transformers' own, on logits
        self._fuse(trainer.model)

    def _smoothing(self) -> float:
        trainer: Any = self
        return float(trainer.args.label_smoothing_factor if self._label_smoothing is None else self._label_smoothing)

    def _fuse(self, model: Any) -> None:
        """Fuse a model, unless it is the one that has this trainer's loss already."""
        mine = getattr(self, "fused_loss", None)
        if mine is None or active_loss(model) is not mine:
            self.fused_loss = fuse_loss(model, label_smoothing=self._smoothing(), **self._loss_options)

    def call_model_init(self, trial: Any = None) -> Any:
        """As the Trainer's, which makes a new model for every call of ``train``; fused."""
        parent: Any = super()
        model = parent.call_model_init(trial)
        self._fuse(model)
        return model

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The fused loss of a batch, normalised by ``num_items_in_batch`` as in the Trainer itself.

        Raises:
            ValueError: If there are no labels, or the model does not have this trainer's loss (``trainer.model`` was
                set, ``trainer.fused_loss`` removed): its own loss would not be smoothed.
        """
        from transformers import Trainer  # pyright: ignore[reportMissingImports]

        if inputs.get("labels") is None and inputs.get("shift_labels") is None:
            raise ValueError(f"inputs must hold labels, got {sorted(inputs)}.")
        trainer: Any = self
        if active_loss(trainer.accelerator.unwrap_model(model)) is not self.fused_loss:
            raise ValueError(
                "model must be the one that this trainer fused, got another or one whose fused loss was removed: its "
                "own loss has no smoothing. Make a new trainer for it."
            )
        if (wanted := self._smoothing()) != self.fused_loss.options["label_smoothing"]:  # a trial of a search
            self.fused_loss.options["label_smoothing"] = LossOptions(wanted).label_smoothing
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
