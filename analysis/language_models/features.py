"""The last hidden states of a model where it predicts something, and the head that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernel.huggingface import architecture_of, head_scale, linear_head

from .documents import IGNORED, Encoded, batches

__all__ = ["HiddenStates", "ModelHead", "feature_spectrum", "groups", "head_of", "hidden_states", "in_order"]


class HiddenStates(NamedTuple):
    """The last hidden states of a model where it predicts a token, with the token that came and its document."""

    hidden: Tensor  # (n, D) float32
    target: Tensor  # (n,) int64
    document: Tensor  # (n,) int64, index of the document
    first: Tensor  # (n,) bool, whether it is the document's first predicted token
    last: Tensor  # (n,) bool


class ModelHead(NamedTuple):
    """How a model makes logits: z = logit_scale h W^T + bias, then its cap; the bias is scaled already."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    logit_scale: float
    softcap: float | None


def head_of(model: Any) -> ModelHead:
    """Return the head of a model: weight, bias, scale and cap, in float32 at least and detached from autograd.

    Raises:
        TypeError: If the head cannot be read as one matrix (:func:`kernel.huggingface.linear_head`): quantised,
            offloaded, with hooks or an adapter around it.
        ValueError: If the architecture's scales are not known to :mod:`kernel.huggingface`.
    """
    scale, (weight, bias) = head_scale(model), linear_head(model)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    bias = None if bias is None else scale.logit_scale * bias.detach().to(dtype)  # the model scales what its head gave
    return ModelHead(weight.detach().to(dtype), bias, scale.logit_scale, scale.softcap)


@torch.no_grad()
def hidden_states(
    model: Any,
    documents: Sequence[Encoded],
    *,
    pad: int,
    batch_size: int = 128,
    batch_tokens: int | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], object] | None = None,
) -> HiddenStates:
    """Run a model over documents and return the hidden states in front of its head, one for each predicted token.

    Args:
        model: The causal language model; its base model alone runs.
        documents: What it reads.
        pad: Token to pad with.
        batch_size: Most documents at a time.
        batch_tokens: Most tokens at a time, padding included, but one document at least; None for no limit.
        autocast: Dtype of the matrix products; None for that of the weights.
        progress: Called with the number of documents after each batch.
    """
    device, training, body = model.device, model.training, architecture_of(model).body
    model.eval()
    found = []
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].tokens))  # little padding
    position = torch.tensor(order)
    lengths = [len(documents[i].tokens) for i in order]
    for start, end in groups(lengths, batch_size, batch_tokens or sum(lengths) * len(lengths)):
        (batch,) = batches([documents[i] for i in order[start:end]], end - start, pad)
        b = batch.to(device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            given = {"input_ids": b.tokens, "attention_mask": b.mask, "use_cache": False, "return_dict": True}
            hidden = body(model, given).last_hidden_state
        labels = b.labels[:, 1:]
        row, column = (labels != IGNORED).nonzero(as_tuple=True)
        kept = hidden[row, column]
        states = kept.to(torch.promote_types(kept.dtype, torch.float32))
        found.append((states, labels[row, column], position[start + row.cpu()]))
        if progress is not None:
            progress(len(b.tokens))
    model.train(training)
    return in_order(*(torch.cat(column) for column in zip(*found, strict=True)))


def in_order(hidden: Tensor, target: Tensor, document: Tensor) -> HiddenStates:
    """The hidden states by document, those of one in the order in which they are given."""
    back = torch.argsort(document, stable=True)
    document = document[back]
    change, edge = document[1:] != document[:-1], torch.ones(min(1, len(document)), dtype=torch.bool)
    hidden, target = (x[back.to(x.device)] for x in (hidden, target))
    return HiddenStates(hidden, target, document, torch.cat([edge, change]), torch.cat([change, edge]))


def groups(lengths: Sequence[int], most: int, tokens: int) -> Iterator[tuple[int, int]]:
    """First and end of each group of documents in the order of their lengths."""
    start = 0
    for end, longest in enumerate(lengths):
        if end - start == most or (end > start and longest * (end - start + 1) > tokens):
            yield start, end
            start = end
    if lengths:
        yield start, len(lengths)


def feature_spectrum(hidden: Tensor) -> dict[str, float]:
    """Measure how diverse features ``(n, D)`` are, by the spectrum of their covariance in float64.

    Returns:
        ``effective_rank``, exp of the spectrum's entropy, and ``smallest_share``, the share of the variance that lies
        in the smaller half of the spectrum.
    """
    values = torch.linalg.eigvalsh(torch.cov(hidden.double().T)).clamp_min(0).cpu()  # ascending
    share = values / values.sum()
    return {
        "effective_rank": float(torch.exp(-torch.xlogy(share, share).sum())),
        "smallest_share": float(share[: len(share) // 2].sum()),
    }
