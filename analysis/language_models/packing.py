"""Documents of a batch packed into fewer rows: the losses of padded ones, with less padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .documents import IGNORED, Encoded
from .families import Row, arguments

__all__ = ["packed"]


def packed(model: Any, documents: Sequence[Encoded], pad: int, autocast: torch.dtype | None = None) -> dict[str, Any]:
    """Return what a model is called with to predict documents, several in a row, each seeing itself alone.

    Rows are as long as the longest document; the longest come first, each into the first row that has room. The first
    token of a document is not predicted, as in a row of its own.

    Args:
        model: A model that can be told who sees whom (:func:`.families.reads_families`).
        documents: What it reads.
        pad: Token to pad with.
        autocast: Dtype that the model is called under; None for that of its weights.
    """
    longest = max(len(d.tokens) for d in documents)
    rows: list[tuple[Row, list[int]]] = []
    for document in sorted(documents, key=lambda d: len(d.tokens), reverse=True):
        n = len(document.tokens)
        row, labels = next((r for r in rows if len(r[0].tokens) + n <= longest), (None, []))
        if row is None:
            row = Row([], [], [], [])
            rows.append((row, labels))
        row.segments.extend([max(row.segments, default=0) + 1] * n)
        row.tokens.extend(document.tokens)
        row.positions.extend(range(n))
        labels.extend([IGNORED, *document.labels[1:]])
    filled = [labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]
    given = arguments(model, [row for row, _ in rows], pad, autocast)
    return {**given, "labels": torch.tensor(filled, device=model.device)}
