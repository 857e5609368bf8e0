"""The audit itself: documents through the body of a model, its head read block by block, everything in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kernel import head_statistics

from .._validation import interval
from ..calibration import fit_head_temperature
from ..diagnostics import HeadGeometry
from . import _measure as measured
from ._documents import IGNORED, Encoded, encode_text
from ._features import Features, Head, features, head_of
from ._intervals import Documents
from ._measure import Tokens, row
from ._verdict import verdict

__all__ = ["Audit", "audit_model"]

LABEL_SMOOTHING = (0.05, 0.1, 0.2)
_BLOCK = 1024  # tokens of one call of head_statistics, so that progress shows
_BOUNDS = (0.05, 20.0)  # of the temperature


class Audit(NamedTuple):
    """What :func:`audit_model` found.

    Attributes:
        table: One line for each number: ``part``, ``name``, ``group`` (b, bin, fifth, rank or empty), ``value``,
            ``low`` and ``high`` (95 %, over documents; Wilson intervals in a reliability table), ``text``.
        verdict: The same in sentences.
    """

    table: pd.DataFrame
    verdict: str


def audit_model(
    model: Any,
    documents: Iterable[Any],
    *,
    tokenizer: Any = None,
    label_smoothing: Sequence[float] = LABEL_SMOOTHING,
    max_tokens: int = 4096,
    max_length: int = 512,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    source: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Audit:
    r"""Geometry and calibration of a causal language model's head on a text, and what label smoothing would do to it.

    Logits are those that the model itself would give, z = cap(s h W^T + bias) with the scale and softcap of its config,
    and are never held for more than a block of tokens (:func:`kernel.head_statistics`). What is held: hidden states,
    4 D bytes for each of ``max_tokens``, and a float32 copy of a head of half precision.

    Parts of the table: ``source``; ``model``; ``head`` and ``spectrum`` (:class:`analysis.diagnostics.HeadGeometry` of
    s h against W; with a bias, of (s h, 1) against (W, bias), for which all caps hold); ``prediction`` (means in
    nats); ``smoothing`` (for each b: ``activity``, :func:`analysis.smoothing.activity_index`; ``slope`` d CE_b / d log
    T and the ``pull`` b (CE_u - CE) in it; ``asked_gap`` and ``asked_confidence`` of its optimum; ``share_above``, of
    tokens whose gap is larger); ``gap`` (quantiles of log((V - 1) p / (1 - p)), p the largest probability); ``cap``
    (each bound on it, and whether it lies below what b asks for); ``calibration`` and ``reliability`` of the most
    probable token (15 bins of equal width; ``rms_sorted``: bins of 100); the same by ``frequency`` of the target
    in the text and by ``entropy`` of the prediction, in fifths; ``temperature`` (the one that fits this text best, and
    the errors left at it).

    The activity index is about the distribution that it is measured on: a text unlike the one that is to be trained on
    answers another question. Intervals resample documents.

    Args:
        model: Causal language model of an architecture known to :mod:`kernel.huggingface`.
        documents: Texts, or token ids: lists or tensors ``(length,)`` of one document, or ``(n, length)`` of several.
            Texts start with the beginning-of-sequence token, if the tokenizer has one. All tokens but the first are
            predicted.
        tokenizer: For texts.
        label_smoothing: The b to ask about, in (0, 1).
        max_tokens: Predicted tokens after which no further one is read.
        max_length: Tokens of a document after which the rest is left out; at most the model's own limit.
        batch_size: Documents at a time.
        device: Where to; None leaves the model where it is, else it is moved.
        source: Facts for the table, such as name, revision and licence.
        progress: Called with a stage's name, what is done and what there is to do.

    Returns:
        Table and verdict.

    Raises:
        TypeError: If there are texts but no tokenizer, or a document is neither text nor tokens.
        ValueError: If a number is out of range, no token is left, or the architecture is not known.
    """
    b = [float(x) for x in interval("label_smoothing", list(label_smoothing), 0, 1, open_low=True)]
    for name, value in (("max_tokens", max_tokens), ("max_length", max_length), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    longest = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
    encoded = list(_limited(_encoded(documents, tokenizer, longest), max_tokens))
    if not encoded:
        raise ValueError("documents must hold at least one of two tokens, got none.")
    if device is not None:
        model = model.to(device)
    say = progress or (lambda stage, done, total: None)
    head, read = head_of(model), [0]

    def count(done: int) -> None:
        read[0] += done
        say("reading", read[0], len(encoded))

    known = features(model, encoded, pad=0, batch_size=batch_size, progress=count)
    known = known._replace(hidden=known.hidden.to(head.weight.dtype))
    tokens = _tokens(known, head, 1.0, say, "head")
    say("geometry", 0, 1)
    shape = _geometry(known, head)
    say("temperature", 0, 1)
    fit = fit_head_temperature(
        [(known.hidden, known.target)], head.weight, linear_bias=head.bias, softcap=head.softcap,
        logit_scale=head.logit_scale, bounds=_BOUNDS,
    )  # fmt: skip
    after = _tokens(known, head, fit.temperature, say, "temperature")
    over = Documents(tokens.document)
    rows = [row("source", name, text=str(text)) for name, text in (source or {}).items()]
    rows += _about(model, head, tokens, over)
    rows += measured.geometry(shape)
    rows += measured.prediction(tokens, over)
    rows += measured.smoothing(tokens, over, shape, head.softcap, b)
    rows += measured.gaps(tokens, shape.vocab_size)
    rows += measured.calibration(tokens, over)
    rows += measured.groups(tokens, over)
    rows += measured.temperature(fit, after, over)
    table = pd.DataFrame(rows)
    return Audit(table, verdict(table))


def _encoded(documents: Iterable[Any], tokenizer: Any, longest: int) -> Iterator[list[int]]:
    """Token ids of each document, cut to the limit; those without a token to predict are left out."""
    for document in [documents] if isinstance(documents, (str, Tensor)) else documents:
        if isinstance(document, str):
            if tokenizer is None:
                raise TypeError("tokenizer must be given for texts, got None.")
            found = [encode_text(tokenizer, document).tokens]
        else:
            try:
                ids = torch.as_tensor(document)
            except (TypeError, ValueError, RuntimeError) as error:
                kind = type(document).__name__
                raise TypeError(f"documents must be texts, lists of token ids or tensors, got {kind}.") from error
            if ids.is_floating_point() or ids.ndim not in (1, 2):
                raise TypeError(f"token ids must be integers (length,) or (n, length), got {ids.dtype} {ids.shape}.")
            found = ids.reshape(-1, ids.shape[-1]).tolist()
        yield from (tokens[:longest] for tokens in found if len(tokens) > 1)


def _limited(documents: Iterable[list[int]], most: int) -> Iterator[Encoded]:
    """Documents until so many tokens are predicted; the last one is cut."""
    left = most
    for tokens in documents:
        kept = tokens[: left + 1]
        yield Encoded(kept, [IGNORED, *kept[1:]])
        left -= len(kept) - 1
        if not left:
            return


def _tokens(known: Features, head: Head, temperature: float, say: Callable[..., object], stage: str) -> Tokens:
    parts = []
    for start in range(0, len(known.target), _BLOCK):
        part = slice(start, start + _BLOCK)
        stats = head_statistics(
            known.hidden[part], head.weight, known.target[part], linear_bias=head.bias, softcap=head.softcap,
            logit_scale=head.logit_scale, temperatures=(temperature,),
        )  # fmt: skip
        assert stats.log_probability is not None
        assert stats.rank is not None
        columns = (
            stats.entropy[:, 0], -stats.log_probability[:, 0], stats.lse[:, 0] - stats.mean_logit / temperature,
            stats.confidence[:, 0], stats.log1m_confidence[:, 0],
        )  # fmt: skip
        parts.append((*(x.double().cpu().numpy() for x in columns), (stats.rank == 0).cpu().numpy()))
        say(stage, min(start + _BLOCK, len(known.target)), len(known.target))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Tokens(known.document.numpy(), known.target.cpu().numpy(), *joined)


def _geometry(known: Features, head: Head) -> HeadGeometry:
    hidden, weight = head.logit_scale * known.hidden, head.weight
    if head.bias is not None:  # a bias is a column of the weight that meets features of 1
        weight = torch.cat([weight, head.bias.unsqueeze(-1)], dim=-1)
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=-1)
    return HeadGeometry.measure(weight, hidden, known.target)


def _about(model: Any, head: Head, tokens: Tokens, documents: Documents) -> Iterator[dict[str, Any]]:
    yield row("source", "architecture", text=f"{model.config.model_type} ({type(model).__name__})")
    yield row("source", "dtype", text=str(model.dtype).removeprefix("torch."))
    inputs = model.get_input_embeddings().weight
    outputs = model.get_output_embeddings().weight
    for name, value in (
        ("vocab_size", head.weight.shape[0]), ("hidden_size", head.weight.shape[1]), ("logit_scale", head.logit_scale),
        ("softcap", float("nan") if head.softcap is None else head.softcap), ("tied", inputs is outputs),
        ("bias", head.bias is not None), ("tokens", len(tokens.nll)), ("documents", documents.count),
    ):  # fmt: skip
        yield row("model", name, float(value))
