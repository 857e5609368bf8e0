"""The loss inside a model's forward: given labels, hidden states go to the fused loss and no logits are built."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..api import autocast, linear_cross_entropy
from ..reference import compute_dtype
from ..softcap import softcap
from ._architectures import architecture_of, scale_of
from ._heads import linear_head, output_head
from ._installed import current, set_current, uninstall
from ._keywords import OF_THE_HEAD, check_keywords, known_keywords
from ._outputs import field_names, output_class, own_output
from ._passed_by import unwatch

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FusedLoss", "Nll", "part_of"]


class Nll:
    """Sums of the negative log-likelihood (nats) and counts of labels of each row, without smoothing."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []  # (B,) each
        self.counts: list[Tensor] = []


class FusedLoss:
    """A model's fused loss, as made by :func:`fuse_loss`; leaving it as a context manager undoes that.

    It is pickled, saved and copied with its model.

    Attributes:
        model: The causal language model whose forward computes the loss.
        options: Keyword arguments of :func:`kernel.linear_cross_entropy`; ``softcap`` is None for the config's.
        eval_logits: Whether calls with labels in evaluation mode also return logits, which costs their memory.
        losses: While this is a list, each call that computes the loss appends it, without its graph.
    """

    def __init__(self, model: nn.Module, options: dict[str, Any], eval_logits: bool = False) -> None:
        self.model, self.options, self.eval_logits = model, options, eval_logits
        self.architecture = architecture_of(model)  # a spawned worker has no registered ones
        self.output_class = output_class(model)
        self.output_fields = field_names(self.output_class)
        self.loss_function = model.__dict__.get("_loss_function")
        self.former = current(model)
        self.nll: Nll | None = None
        self.losses: list[Tensor] | None = None
        self.known_keywords = known_keywords(model, self.architecture)
        self.removed = False

    def remove(self) -> None:
        """Give the model its own loss back; wrappers put around its forward since (autocast) stay."""
        self.removed = True
        if current(self.model) is self:
            set_current(self.model, None)
        if current(self.model) is None:
            uninstall(self.model)
            unwatch(self.model)

    @contextlib.contextmanager
    def computing(self) -> Iterator[Self]:
        """Inside, the model computes this loss; afterwards what it computed before."""
        before = current(self.model)
        set_current(self.model, self)
        try:
            yield self
        finally:
            set_current(self.model, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if current(self.model) is self and self.former is not None and not self.former.removed:
            set_current(self.model, self.former)
        else:
            self.remove()

    def forward(self, **kwargs: Any) -> Any:
        """The model's outputs for a call with labels: ``loss``, without ``logits`` unless ``eval_logits`` asks."""
        model: Any = self.model
        architecture = self.architecture
        check_keywords(model, architecture, kwargs, self.known_keywords)
        if model.__dict__.get("_loss_function") is not self.loss_function:
            raise ValueError("model.loss_function must be what it was when the model was fused: fuse it again.")
        if model.training:
            kwargs.setdefault("use_cache", False)
        arguments = {name: value for name, value in kwargs.items() if name not in OF_THE_HEAD}
        outputs = architecture.body(model, {**arguments, "return_dict": True})
        hidden = outputs.last_hidden_state
        loss = self.loss(hidden, **{name: kwargs[name] for name in _OF_THE_LOSS if kwargs.get(name) is not None})
        extras = architecture.extras(model, outputs, kwargs)
        if extras.loss is not None:
            loss = loss + extras.loss.to(loss.device)
        if self.losses is not None:
            self.losses.append(loss.detach().clone())  # trainers scale it in place
        logits = self._logits(hidden) if self.eval_logits and not model.training else None
        result = own_output(self.output_class, self.output_fields, outputs, loss=loss, logits=logits, **extras.fields)
        wants_dict = kwargs.get("return_dict")
        if wants_dict is None:
            wants_dict = getattr(model.config, "return_dict", True)
        if wants_dict:
            return result
        # None keeps the place of the logits
        return (loss, logits, *(value for name, value in result.items() if name not in ("loss", "logits")))

    def loss(
        self,
        hidden: Tensor,  # (B, L, D)
        labels: Tensor | None = None,  # (B, L)
        shift_labels: Tensor | None = None,  # (B, L), labels moved by one already
        num_items_in_batch: Tensor | float | None = None,
        ignore_index: int = -100,
    ) -> Tensor:
        """Mean over the labels kept, or their sum over ``num_items_in_batch``; of no items nan, without gradient."""
        if shift_labels is None:
            assert labels is not None
            shift_labels = nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)  # position t predicts t + 1
        scale = scale_of(self.model, self.architecture)
        options = dict(self.options)
        if options["softcap"] is None:
            options["softcap"] = scale.softcap
        elif scale.softcap is not None:
            raise ValueError(
                f"softcap must be None for a model whose config caps at {scale.softcap}, got {options['softcap']}."
            )
        weight, bias = linear_head(self.model)
        hidden, weight, bias = autocast(hidden.to(weight.device), weight, bias)
        common = {
            "input": hidden.to(weight.dtype),  # as a model with a head of another dtype casts
            "linear_weight": weight,
            "target": shift_labels.to(weight.device),
            "linear_bias": None if bias is None else scale.logit_scale * bias,  # the model scales what the head gave
            "logit_scale": scale.logit_scale,
            "ignore_index": ignore_index,
        }
        if self.nll is not None:
            self._read(self.nll, {**common, "softcap": scale.softcap})
        if (order := options.pop("vocabulary_order", None)) is not None:
            common["linear_weight"] = order.rows(weight)
            common["linear_bias"] = None if bias is None else order.rows(common["linear_bias"])
            common["target"] = order.places(common["target"], ignore_index)
        if num_items_in_batch is None:
            return linear_cross_entropy(**common, **options, reduction="mean")
        part = part_of(num_items_in_batch, weight)
        ahead = options["workspace_bytes"] is not None
        if ahead:  # in chunks of tokens, a factor that comes after costs a pass over the gradients, and a rounding
            common["token_weight"] = part.expand(common["target"].shape)
        loss = linear_cross_entropy(**common, **options, reduction="sum")
        return torch.where(part > 0, loss if ahead else part * loss, torch.nan)

    def _read(self, nll: Nll, common: dict[str, Any]) -> None:
        chosen = {name: self.options[name] for name in ("implementation", "workspace_bytes")}
        with torch.no_grad():
            nll.sums.append(linear_cross_entropy(**common, **chosen, reduction="none").sum(-1))
        nll.counts.append((common["target"] != common["ignore_index"]).sum(-1))

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits as the model gives them: with its own scale and cap, whatever the loss was told."""
        scale, head = scale_of(self.model, self.architecture), output_head(self.model)
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(linear_head(self.model)[0].dtype)
        logits = scale.logit_scale * head(hidden)
        return softcap(logits, scale.softcap)


def part_of(number: Tensor | float, like: Tensor) -> Tensor:
    """Return ``1 / number``, of a loss of ``like`` and on its device; 0 of what is not above 0. The host reads nothing.

    Raises:
        TypeError: If ``number`` is neither a number nor a tensor.
        ValueError: If it is a tensor of several.
    """
    if isinstance(number, Tensor):
        if number.numel() != 1:
            raise ValueError(f"num_items_in_batch must be one number, got a tensor of shape {tuple(number.shape)}.")
        number = number.reshape(())
        if number.device.type != "cpu":  # a number of the host goes along with a kernel, where a copy would wait
            number = number.to(like.device)
    elif not isinstance(number, Real):
        raise TypeError(f"num_items_in_batch must be a number or a tensor of one, got {type(number).__name__}.")
    dtype = compute_dtype(like.dtype)
    items = (like.new_ones((), dtype=dtype) * number).to(dtype)
    return torch.where(items > 0, 1 / items, 0)


_OF_THE_LOSS = tuple(inspect.signature(FusedLoss.loss).parameters)[2:]
