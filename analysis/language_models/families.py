"""Hidden states of documents that begin alike: what they share is read once.

The documents of a family, such as a question followed by each of its options, become one row: what all begin with, then
the rest of each. A token sees what all begin with and its own document, at the positions that it has there, so that its
hidden state is the one in its document alone, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernel.huggingface import architecture_of

from .documents import IGNORED, Encoded
from .features import HiddenStates, groups, hidden_states, in_order

__all__ = ["Row", "arguments", "family_states", "reads_families"]

_SHARED = 0  # segment of what all begin with; those of the documents follow, and padding has none of these
_PADDING = -1
_CLOSE = 2e-3  # share of a hidden state by which it may differ: more than TF32 rounds, less than bfloat16 does


class Row(NamedTuple):
    """Several documents as a row, and where their predictions are read."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    read: list[tuple[int, int, int]]  # place in the row, token to predict, document


def family_states(
    model: Any,
    families: Sequence[Sequence[Encoded]],
    *,
    pad: int,
    batch_size: int = 128,
    batch_tokens: int | None = None,
    autocast: torch.dtype | None = None,
) -> HiddenStates:
    """Return what ``hidden_states`` returns for the documents of all families, one after another.

    What the documents of a family begin with is read once where the model can be told who sees whom
    (:func:`reads_families`); else each document is read by itself.

    Args:
        model: The causal language model.
        families: Documents that begin alike.
        pad: Token to pad with.
        batch_size: Most families at a time.
        batch_tokens: Most tokens at a time, padding included, but one family at least; None for no limit.
        autocast: Dtype of the matrix products; None for that of the weights.
    """
    longest = max(families, key=lambda family: max(len(d.tokens) for d in family))
    if reads_families(model, longest, pad=pad):
        return _family_states(model, families, pad, batch_size, batch_tokens, autocast)
    documents = [document for family in families for document in family]
    options = {"batch_size": batch_size, "batch_tokens": batch_tokens, "autocast": autocast}
    return hidden_states(model, documents, pad=pad, **options)


def reads_families(model: Any, family: Sequence[Encoded], *, pad: int) -> bool:
    """Whether a model makes of a family as one row what it makes of its documents: tried, in its own dtype.

    Attention by FlashAttention takes no mask of this kind; a window shorter than the documents, a recurrent layer or
    positions of the model's own make something else of it.

    Args:
        model: The causal language model.
        family: The one of the longest document, as a window of attention shows in long ones alone.
        pad: Token to pad with.
    """
    if _attention(model) not in ("sdpa", "eager"):
        return False
    try:
        found = _family_states(model, [family], pad, 1, None, None).hidden
    except (TypeError, ValueError, RuntimeError):  # no such argument, or no mask of this shape
        return False
    expected = hidden_states(model, family, pad=pad).hidden
    far = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()
    return float(far) <= max(_CLOSE, math.sqrt(torch.finfo(model.dtype).eps))


def _attention(model: Any) -> str | None:
    return getattr(model.config, "_attn_implementation", None)


@torch.no_grad()
def _family_states(
    model: Any,
    families: Sequence[Sequence[Encoded]],
    pad: int,
    batch_size: int,
    batch_tokens: int | None,
    autocast: torch.dtype | None,
) -> HiddenStates:
    device, training, body = model.device, model.training, architecture_of(model).body
    model.eval()
    rows, first = [], 0
    for family in families:
        rows.append(_row(family, first))
        first += len(family)
    rows.sort(key=lambda row: len(row.tokens))  # little padding
    lengths, found = [len(row.tokens) for row in rows], []
    for start, end in groups(lengths, batch_size, batch_tokens or sum(lengths) * len(lengths)):
        batch = rows[start:end]
        given = arguments(model, batch, pad, autocast)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            hidden = body(model, given).last_hidden_state
        read = torch.tensor([(i, *where) for i, row in enumerate(batch) for where in row.read])  # (n, 4)
        kept = hidden[read[:, 0].to(device), read[:, 1].to(device)]
        found.append((kept.to(torch.promote_types(kept.dtype, torch.float32)), read[:, 2].to(device), read[:, 3]))
    model.train(training)
    return in_order(*(torch.cat(column) for column in zip(*found, strict=True)))


def _row(family: Sequence[Encoded], first: int) -> Row:
    """A family whose documents are numbered from ``first`` on."""
    several = [document.tokens for document in family]
    least, most = min(several), max(several)  # what these begin with, those in between do too
    common = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
    row = Row(list(family[0].tokens[:common]), list(range(common)), [_SHARED] * common, [])
    for number, document in enumerate(family):
        start, rest = len(row.tokens), document.tokens[common:]
        row.tokens.extend(rest)
        row.positions.extend(range(common, common + len(rest)))
        row.segments.extend([number + 1] * len(rest))
        for before, target in enumerate(document.labels[1:]):
            if target != IGNORED:
                place = before if before < common else start + before - common
                row.read.append((place, target, first + number))
    return row


def arguments(model: Any, rows: Sequence[Row], pad: int, autocast: torch.dtype | None) -> dict[str, Any]:
    """What the model is called with: tokens, their positions, and who sees whom ``(n, 1, length, length)``."""
    length = max(len(row.tokens) for row in rows)

    def padded(several: Sequence[list[int]], fill: int) -> Tensor:
        return torch.tensor([one + [fill] * (length - len(one)) for one in several], device=model.device)

    segments = padded([row.segments for row in rows], _PADDING)
    same = segments.unsqueeze(-1) == segments.unsqueeze(-2)
    seen = (same | (segments == _SHARED).unsqueeze(-2)).tril()  # padding too sees something: no row without any
    mask = seen.unsqueeze(1)
    if _attention(model) == "eager":  # adds what it is given to the scores
        dtype = autocast or model.dtype
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return {
        "input_ids": padded([row.tokens for row in rows], pad),
        "position_ids": padded([row.positions for row in rows], 0),
        "attention_mask": mask,
        "use_cache": False,
        "return_dict": True,
    }
