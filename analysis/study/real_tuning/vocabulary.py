"""A model with fewer rows in its head: V varied inside one model, all else as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernel.huggingface import head_scale

from ...language_models.documents import Encoded

__all__ = ["cut_vocabulary", "kept_rows", "renumbered"]


def kept_rows(shares: NDArray[Any], size: int | None, most: int | None, needed: list[int]) -> NDArray[np.int64]:
    """Tokens that a cut vocabulary keeps, in order of their ids.

    The most frequent first, so that a smaller vocabulary is part of every larger one; tokens that never occur follow in
    the order of their ids, which is that in which they were learnt.

    Args:
        shares: How frequent each token of the vocabulary is in the documents, by counts or shares ``(V,)``.
        size: How many to keep; 0 for those that occur, None for all.
        most: Only documents of the so many most frequent tokens are read; None for all documents.
        needed: Tokens that are kept in any case: of padding, of letters.

    Raises:
        ValueError: If ``size`` is above V, or below ``most`` or the number of tokens that are needed.
    """
    known = np.array(shares, np.float64)
    known[needed] = known.max(initial=0.0) + 1.0
    order = np.lexsort((np.arange(known.size), -known))
    within = order if most is None else order[:most]
    occurring = within[known[within] > 0]
    if size is None:
        return np.arange(known.size)
    chosen = occurring if size == 0 else order[:size]
    if size > known.size or len(chosen) < len(occurring):
        raise ValueError(
            f"size must be at least {len(occurring)}, the tokens that are read, and at most {known.size}, got {size}."
        )
    return np.sort(chosen)


def renumbered(documents: list[Encoded], kept: NDArray[np.int64], vocab_size: int) -> list[Encoded]:
    """The same documents in the token ids of a cut vocabulary; each must lie within it."""
    if len(kept) == vocab_size:
        return documents
    place = np.full(vocab_size, -1, np.int64)
    place[kept] = np.arange(len(kept))
    found = []
    for document in documents:
        tokens, labels = place[document.tokens], np.array(document.labels)
        if (tokens < 0).any():
            raise ValueError("documents must lie within the tokens that are kept, got one that does not.")
        found.append(Encoded(tokens.tolist(), np.where(labels < 0, labels, place[labels.clip(0)]).tolist()))
    return found


def cut_vocabulary(model: Any, kept: NDArray[np.int64]) -> None:
    """Keep these rows of the input embedding and of the head, which stay tied where they were.

    Raises:
        TypeError: If the embedding or the head is more than a table of rows, or the head has a bias.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    plain = isinstance(inputs, torch.nn.Embedding) and isinstance(outputs, torch.nn.Linear)
    if not plain or outputs.bias is not None:
        raise TypeError(
            f"model must have an Embedding and a Linear head without bias, got {type(inputs).__name__} and "
            f"{type(outputs).__name__}."
        )
    head_scale(model)  # an architecture whose logits are known
    if len(kept) == inputs.num_embeddings:
        return
    rows, tied = torch.as_tensor(kept), inputs.weight is outputs.weight
    inputs.weight = torch.nn.Parameter(inputs.weight.detach()[rows].clone())
    outputs.weight = inputs.weight if tied else torch.nn.Parameter(outputs.weight.detach()[rows].clone())
    inputs.num_embeddings, outputs.out_features, inputs.padding_idx = len(kept), len(kept), None
    model.config.vocab_size = len(kept)
    if hasattr(model, "vocab_size"):
        model.vocab_size = len(kept)
