"""A vocabulary in order of frequency: with rare classes side by side, whole tiles of the head carry next to nothing.

Among classes about as frequent, those with like rows of the head share tiles (:mod:`kernel.vocabulary_bands`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .api import autocast_off
from .blocks import block_logits, block_tokens
from .options import LossOptions
from .reference import compute_dtype
from .validation import check_tensor, check_tensors
from .vocabulary_bands import alike_in_bands

__all__ = ["VocabularyOrder", "mean_probabilities", "sort_vocabulary"]


class VocabularyOrder(NamedTuple):
    """Classes by falling frequency. The model stays in its own order, its checkpoints and tied embeddings with it.

    On another device than the head each call moves it; :meth:`to` does so once.

    Attributes:
        permutation: Class at each place ``(V,)``, int64; each class once.
        inverse: Place of each class ``(V,)``, int64: ``permutation.argsort()``, of one that is made by hand, too.
    """

    permutation: Tensor
    inverse: Tensor

    def to(self, device: torch.device | str) -> VocabularyOrder:
        """Return it on a device."""
        return VocabularyOrder(self.permutation.to(device), self.inverse.to(device))

    def rows(self, head: Tensor) -> Tensor:
        """Return a copy of weight ``(V, D)`` or bias ``(V,)`` in this order; its gradient arrives in the model's."""
        if head.shape[0] != self.permutation.shape[0]:
            raise ValueError(f"head must have {self.permutation.shape[0]} rows, got shape {tuple(head.shape)}.")
        permutation = self.permutation.to(head.device)
        if torch.compiler.is_compiling():  # which takes no derivative of one's own in both modes
            return head.index_select(0, permutation)
        return _Rows.apply(head, permutation, self.inverse.to(head.device))

    def places(self, target: Tensor, ignore_index: int = -100) -> Tensor:
        """Return the places of classes ``(...)``, for a loss of :meth:`rows`; ``ignore_index`` stays what it is."""
        kept = (target != ignore_index) & (target >= 0) & (target < self.inverse.shape[0])  # the loss refuses the rest
        return torch.where(kept, self.inverse.to(target.device)[torch.where(kept, target, 0)], target)

    def classes(self, places: Tensor) -> Tensor:
        """Return the classes at places ``(...)``, such as an argmax; negative ones stay what they are."""
        found = self.permutation.to(places.device)[places.clamp(min=0)]
        return torch.where(places >= 0, found, places)


class _Rows(torch.autograd.Function):
    """Rows by a permutation. Their gradient is a gather by the inverse, where index_select's adds to a matrix of 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, permutation: Tensor, inverse: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return rows.index_select(0, permutation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        permutation, inverse = ctx.saved_tensors
        return _Rows.apply(grad, inverse, permutation), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Rows.apply(tangent, *ctx.saved_tensors)


def sort_vocabulary(frequency: Tensor, linear_weight: Tensor | None = None) -> VocabularyOrder:
    """Sort the classes by counts in a text, or by mean probabilities on a sample of it (:func:`mean_probabilities`).

    With the head, classes about as frequent whose rows are alike lie side by side: fewer tiles have to be computed. The
    order stays right while the head changes, and its saving with it as long as rows that were alike are.

    An eighth of the head's rows is copied in float32 at a time. A large head takes minutes on a CPU: move it to a GPU.

    Args:
        frequency: Counts or probabilities ``(V,)``, at least 0; equal ones stay in the order of their classes.
        linear_weight: The head ``(V, D)``, for classes beyond the most frequent 2048; None to sort by frequency alone.

    Raises:
        TypeError: If one is no tensor.
        ValueError: If ``frequency`` is no vector, or has a value that is negative or no number, or ``linear_weight`` is
            no matrix of as many rows or not finite.

    Example:
        >>> order = sort_vocabulary(torch.tensor([2, 0, 5]))
        >>> order.permutation.tolist(), order.places(torch.tensor([2, -100])).tolist()
        ([2, 0, 1], [0, -100])
    """
    check_tensor("frequency", frequency)
    if frequency.ndim != 1 or not len(frequency):
        raise ValueError(f"frequency must have shape (vocab_size,), got {tuple(frequency.shape)}.")
    if not (frequency >= 0).all():
        raise ValueError(f"frequency must be at least 0, got {frequency[~(frequency >= 0)][0].item()}.")
    permutation = frequency.argsort(descending=True, stable=True)
    if linear_weight is not None:
        check_tensor("linear_weight", linear_weight)
        if linear_weight.ndim != 2 or len(linear_weight) != len(frequency):
            raise ValueError(
                f"linear_weight must have shape ({len(frequency)}, hidden_size), got {tuple(linear_weight.shape)}."
            )
        if not linear_weight.detach().isfinite().all():
            raise ValueError("linear_weight must be finite, got infinite entries or entries that are no number.")
        with torch.no_grad(), autocast_off(linear_weight):
            permutation = alike_in_bands(permutation, frequency, linear_weight)
    return VocabularyOrder(permutation, permutation.argsort())


def mean_probabilities(
    input: Tensor,  # (..., D)
    linear_weight: Tensor,  # (V, D)
    *,
    linear_bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Mean of softmax(z) over tokens ``(V,)``, z the logits of :func:`kernel.head_statistics`, in blocks.

    Take ten thousand hidden states of text like that of the training, or more: unlike counts, probabilities also tell
    classes apart that never occur in it, and the more tokens there are the better they order those that are rare.

    Returns:
        Probabilities in float64 for float64 inputs, else float32.

    Example:
        >>> mean_probabilities(torch.zeros(3, 2), torch.ones(4, 2)).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    options = LossOptions(softcap=softcap, logit_scale=logit_scale)
    check_tensors(input, linear_weight, None, linear_bias)
    hidden = input.reshape(-1, input.shape[-1])
    if not len(hidden):
        raise ValueError(f"input must hold at least one token, got shape {tuple(input.shape)}.")
    with torch.no_grad(), autocast_off(input):
        weight = linear_weight.to(compute_dtype(input.dtype))
        bias = None if linear_bias is None else linear_bias.to(weight.dtype)
        total = weight.new_zeros(weight.shape[0])
        for block in hidden.split(block_tokens(len(hidden), weight)):
            z = weight.new_empty(len(block), len(weight))
            block_logits(block.to(weight.dtype), weight, bias, options, z)
            total += z.softmax(-1).sum(0)
        return total / len(hidden)
