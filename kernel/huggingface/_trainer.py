"""Trainers with the fused loss: a mixin for any subclass of transformers' Trainer, TRL's SFTTrainer among them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..extras import pip_install
from ..options import LossOptions
from ._compare import computes
from ._forward import FusedLoss, Nll
from ._fuse import fuse_loss
from ._installed import set_current, unprepare
from ._other_losses import check_classes, check_options, check_returned
from ._undisturbed import unwrapped

__all__ = ["SmoothedLossMixin", "make_trainer"]


class SmoothedLossMixin:
    """Put before a Trainer class: its loss is the model's fused loss, and logits are built only where asked for.

    Label smoothing comes from ``label_smoothing`` or, where that is None, from ``args.label_smoothing_factor``. The
    model computes the smoothed loss inside the trainer's ``compute_loss`` alone: anywhere else, and after ``train()``,
    ``model(input_ids, labels=labels).loss`` is its own. Evaluation reports the smoothed loss as ``eval_loss`` and the
    mean negative log-likelihood of all labels in nats, without smoothing, as ``eval_nll``: its exponential is the
    perplexity. Logits exist only when ``compute_metrics`` or ``predict`` needs them, batch by batch. Models that
    ``model_init`` makes are fused too, and a hyperparameter search may vary ``label_smoothing_factor``. TRL's own
    metrics (token accuracy, entropy) are not computed. One process or DDP; a head sharded by itself (ZeRO stage 3, FSDP
    units around the head) is refused.

    Args:
        *args: As the Trainer's.
        label_smoothing: Overrides ``args.label_smoothing_factor``; for TRL, which deprecates that field.
        loss_options: Further keyword arguments of :func:`kernel.huggingface.fuse_loss`.
        other_terms: Let overrides of ``compute_loss`` before this class, of ``training_step`` or ``prediction_step``,
            and forwards put around the model's, return another number than the fused loss, such as its sum with a term
            of their own. Otherwise each step and batch of an evaluation compares the two, but for the Trainer's own
            factors: the number of processes, and one over the steps of accumulation.
        stay_fused: Let the model compute the smoothed loss outside the trainer as well; ``trainer.fused_loss.remove()``
            undoes it.
        **kwargs: As the Trainer's.

    Raises:
        TypeError: If a class between this one and the Trainer computes a loss of its own, or as
            :func:`kernel.huggingface.fuse_loss`.
        ValueError: If another loss is asked for (``compute_loss_func``, Liger's, TRL's ``loss_type``), several GPUs are
            used through ``DataParallel``, or as :func:`kernel.huggingface.fuse_loss`.

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
        stay_fused: bool = False,
        other_terms: bool = False,
        **kwargs: Any,
    ) -> None:
        check_classes(type(self), SmoothedLossMixin)
        self._label_smoothing, self._loss_options, self._stay_fused = label_smoothing, loss_options or {}, stay_fused
        self._other_terms = other_terms
        self._read: Nll | None = None
        self._given: torch.Tensor | None = None  # by the fused loss to the last compute_loss
        super().__init__(*args, **kwargs)
        trainer: Any = self
        trainer.label_smoother = None  # transformers' own, on logits
        check_options(trainer)
        if trainer.args.n_gpu > 1:
            raise ValueError(
                f"args.n_gpu must be at most 1, got {trainer.args.n_gpu}: DataParallel copies models without their "
                "fused loss. Start one process a GPU with torchrun or accelerate launch."
            )
        self._fuse(trainer.model)

    def _smoothing(self) -> float:
        trainer: Any = self
        return float(trainer.args.label_smoothing_factor if self._label_smoothing is None else self._label_smoothing)

    def _fuse(self, model: Any) -> None:
        """Fuse a model, unless it is the one that has this trainer's loss already."""
        mine = getattr(self, "fused_loss", None)
        if mine is not None and not mine.removed and mine.model is unwrapped(model):
            return
        trainer: Any = self
        unprepare(unwrapped(model))
        with trainer.compute_loss_context_manager():  # autocast, under which some models compute their loss only
            self.fused_loss = fuse_loss(model, label_smoothing=self._smoothing(), **self._loss_options)
        if not self._stay_fused:
            set_current(self.fused_loss.model, self.fused_loss.former)

    def call_model_init(self, trial: Any = None) -> Any:
        """As the Trainer's, which makes a new model for every call of ``train``; fused."""
        parent: Any = super()
        model = parent.call_model_init(trial)
        self._fuse(model)
        return model

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's.

        Raises:
            ValueError: Before the first step, if the loss of a step would not be this trainer's; at a step in which the
                fused loss did not run, or that returned another number (``other_terms``).
        """
        check_options(self)
        parent: Any = super()
        trainer: Any = self
        if trainer.model_init is None and unwrapped(trainer.model) is self.fused_loss.model:
            with trainer.compute_loss_context_manager():
                self._check(computes(trainer.model, self.fused_loss))
        with self._watching("training_step"):
            return parent.train(*args, **kwargs)

    @contextlib.contextmanager
    def _watching(self, name: str) -> Iterator[None]:
        """Inside, the loss that a method returns, all its overrides included, must be the fused one."""
        own = vars(self).get(name)
        setattr(self, name, functools.partial(self._watched, getattr(self, name)))
        try:
            yield
        finally:
            delattr(self, name)
            if own is not None:
                setattr(self, name, own)

    def _watched(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._given = None
        result = step(*args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if loss is not None:  # as of a prediction without labels
            given = self._given
            self._check(given is not None)
            if given is not None and not self._other_terms:
                check_returned(self, SmoothedLossMixin, given, loss)
        return result

    def _check(self, ran: bool) -> None:
        if not ran:
            raise ValueError(
                "model must compute this trainer's fused loss, and did not: its forward was replaced after it was "
                "fused, or compute_loss, or the step around it, was overridden without a call of super(). It would not "
                "be smoothed."
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The fused loss of a batch, normalised by ``num_items_in_batch`` as in the Trainer itself.

        Raises:
            ValueError: If there are no labels, or the model does not compute this trainer's loss (``trainer.model`` was
                set, ``trainer.fused_loss`` removed, ``model.forward`` replaced): its own loss would not be smoothed.
        """
        from transformers import Trainer  # pyright: ignore[reportMissingImports]

        if inputs.get("labels") is None and inputs.get("shift_labels") is None:
            raise ValueError(f"inputs must hold labels, got {sorted(inputs)}.")
        check_options(self)
        fused = self.fused_loss
        trainer: Any = self
        if fused.removed or unwrapped(trainer.accelerator.unwrap_model(model)) is not fused.model:
            raise ValueError(
                "model must be the one that this trainer fused, got another or one whose fused loss was removed: its "
                "own loss has no smoothing. Make a new trainer for it."
            )
        if (wanted := self._smoothing()) != fused.options["label_smoothing"]:  # a trial of a search
            fused.options["label_smoothing"] = LossOptions(wanted).label_smoothing
        fused.losses = []
        try:
            with fused.computing():
                result = Trainer.compute_loss(
                    self,  # pyright: ignore[reportArgumentType]
                    model,
                    inputs,
                    return_outputs=return_outputs,
                    num_items_in_batch=num_items_in_batch,
                )
            self._check(bool(fused.losses))
            self._given = fused.losses[-1]
        finally:
            fused.losses = None
        return result

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As the Trainer's; builds the logits of this batch if they are wanted."""
        fused, parent = self.fused_loss, super()
        before, fused.eval_logits = fused.eval_logits, not prediction_loss_only
        fused.nll = None if self._read is None else Nll()
        try:
            result = parent.prediction_step(model, inputs, prediction_loss_only, ignore_keys)  # pyright: ignore[reportAttributeAccessIssue]
            if self._read is not None and fused.nll is not None and fused.nll.sums:
                trainer: Any = self
                rows = torch.cat(fused.nll.sums), torch.cat(fused.nll.counts)
                sums, counts = trainer.accelerator.gather_for_metrics(rows)
                self._read.sums.append(sums.double().sum())
                self._read.counts.append(counts.sum())
        finally:
            fused.eval_logits, fused.nll = before, None
        return result

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As the Trainer's, with the mean negative log-likelihood of all labels in nats as ``eval_nll``."""
        parent: Any = super()
        self._read = Nll()
        try:
            with self._watching("prediction_step"):
                output = parent.evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            if self._read.sums:
                mean = torch.stack(self._read.sums).sum() / torch.stack(self._read.counts).sum()
                output.metrics[f"{metric_key_prefix}_nll"] = mean.item()
        finally:
            self._read = None
        return output


def make_trainer() -> type:
    """``SmoothedTrainer``: transformers' Trainer with the fused loss.

    Raises:
        ImportError: If transformers or accelerate is not installed.
    """
    try:
        from transformers import Trainer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"SmoothedTrainer needs transformers and accelerate: {pip_install('huggingface')}") from error

    class SmoothedTrainer(SmoothedLossMixin, Trainer): ...

    SmoothedTrainer.__doc__ = (
        "transformers.Trainer with the fused loss; see :class:`kernel.huggingface.SmoothedLossMixin`."
    )
    SmoothedTrainer.__module__ = __name__.rpartition(".")[0]
    SmoothedTrainer.__qualname__ = "SmoothedTrainer"
    return SmoothedTrainer
