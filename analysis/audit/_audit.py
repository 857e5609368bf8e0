"""The audit itself: documents through the body of a model, its head read block by block, everything in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kernel.huggingface import check_loss, linear_head

from ..calibration import fit_head_temperature
from ..checks import interval
from ..diagnostics import HeadGeometry
from ..language_models.documents import IGNORED, encode_documents, limited
from ..language_models.features import HiddenStates, ModelHead, head_of, hidden_states
from ..language_models.scoring import TokenScores, score_tokens
from . import _measure as measured
from ._intervals import Documents
from ._measure import Tokens, row
from ._recommendation import NAMES, recommendation
from ._verdict import verdict

LABEL_SMOOTHING = (0.05, 0.1, 0.2)
MAX_TOKENS, MAX_LENGTH = 4096, 256
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

    @property
    def answer(self) -> str:
        """The recommendation without what it rests on: would smoothing act, how far, what to do for calibration."""
        return recommendation(self.table, evidence=False)

    @property
    def recommendation(self) -> str:
        """What follows, in three lines (:func:`recommendation`), as the table has it."""
        return "\n".join(self.table.loc[self.table["part"] == "recommendation", "text"])


def audit_model(
    model: Any,
    documents: Iterable[Any],
    *,
    tokenizer: Any = None,
    label_smoothing: Sequence[float] = LABEL_SMOOTHING,
    max_tokens: int = MAX_TOKENS,
    max_length: int = MAX_LENGTH,
    skip: int | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    source: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Audit:
    r"""Measure a language model's head on a text, its geometry and calibration, and say what smoothing would do to it.

    Logits are those that the model itself would give, z = cap(s h W^T + bias) with the scale and softcap of its config,
    and are never held for more than a block of tokens (:func:`kernel.head_statistics`). What is held: hidden states,
    4 D bytes for each of ``max_tokens``, and a float32 copy of a head of half precision.

    Parts of the table: ``source``; ``model``; ``head`` and ``spectrum`` (:class:`analysis.diagnostics.HeadGeometry`
    of s h against W; with a bias, of (s h, 1) against (W, bias), for which all caps hold); ``prediction`` (means in
    nats); ``smoothing`` (for each b: ``activity``, :func:`analysis.smoothing.activity_index`; ``predicted_fall`` in
    confidence, :func:`analysis.response.clipped_fall`, for features that are free, which a trained model's are not;
    ``slope`` d CE_b / d log T and the ``pull`` b (CE_u - CE) in it; ``asked_gap`` and ``asked_confidence`` of its
    optimum; ``share_above``, of tokens whose gap is larger); ``gap`` (quantiles of log((V - 1) p / (1 - p)), p the
    largest probability); ``cap`` (each bound on it, and whether it lies below what b asks for); ``calibration`` and
    ``reliability`` of the most probable token (15 bins of equal width; ``rms_sorted``: bins of 100); the same by
    ``frequency`` of that token in the other documents and by ``entropy`` of the prediction, in fifths, and by
    ``context``, the number of tokens before the predicted one, in ranges that begin at 1, 8, 32, 128, ...;
    ``temperature`` (the one that fits this text best, and the errors left at it); ``recommendation`` (what follows:
    ``act``, ``at_most`` and ``instead``, the lines of :func:`recommendation`).

    The activity index is about the distribution that it is measured on: a text unlike the one that is to be trained on
    answers another question. Intervals resample documents.

    Args:
        model: Causal language model of an architecture known to :mod:`kernel.huggingface`, or a PEFT model around one
            (its active adapters count).
        documents: Texts, or token ids: lists or tensors ``(length,)`` of one document, or ``(n, length)`` of several,
            without padding: every token is read, and all but a document's first are predicted. The tokenizer's
            beginning-of-sequence token, if it has one, is put before texts.
        tokenizer: For texts.
        label_smoothing: The b to ask about, at least one in (0, 1).
        max_tokens: Predictions that count, after which no further token is read.
        max_length: Tokens of a document after which the rest is left out; at most the model's own limit.
        skip: Predictions at the beginning of each document that do not count. None: 1 for a text that a
            beginning-of-sequence token was put before, 0 else. What follows that token is read from nothing else, and a
            model need not have seen it before plain text: SmolLM2's opens a turn of a chat.
        batch_size: Documents at a time.
        device: Where to; None leaves the model where it is, else it is moved.
        source: Facts for the table, such as name, revision and licence.
        progress: Called with a stage's name, what is done and what there is to do.

    Returns:
        Table and verdict.

    Raises:
        TypeError: If there are texts but no tokenizer, a document is neither text nor tokens (a tokenizer's whole
            output is a dict: give its ``input_ids``, unpadded), the head cannot be read as one matrix (quantised,
            offloaded, sharded, with hooks or an adapter), or the model is a PEFT model of prompt learning.
        ValueError: If a number is out of range, the device is not there, a token id is none of the model's vocabulary,
            no token is left, the architecture is not known, or the model's own loss is another than its head, scale and
            cap give (:func:`kernel.huggingface.check_loss`).
    """
    b = check_options(label_smoothing, max_tokens=max_tokens, max_length=max_length, skip=skip, batch_size=batch_size)
    model = _unwrapped(model)
    head = head_of(model)  # before anything is read: it may be one that cannot be
    check_loss(model)
    longest = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
    texts = encode_documents(documents, tokenizer, head.weight.shape[0])
    encoded = list(limited(texts, longest, skip, max_tokens))
    if not encoded:
        raise ValueError(
            "documents must hold a token to predict, got none: a document needs 2 tokens, a text 2 after the mark that "
            f"is put before it, any skip + 2 (skip is {skip}, and documents are cut to {longest} tokens)."
        )
    if device is not None:
        model = model.to(check_device(device))
    say = progress or (lambda stage, done, total: None)
    head, read = head_of(model), [0]  # again: where the model is now

    def count(done: int) -> None:
        read[0] += done
        say("reading", read[0], len(encoded))

    known = hidden_states(model, encoded, pad=0, batch_size=batch_size, progress=count)
    known = known._replace(hidden=known.hidden.to(head.weight.dtype))
    # labels lie where their tokens do: as many tokens come before each
    context = np.concatenate([np.flatnonzero(np.array(d.labels) != IGNORED) for d in encoded])
    tokens = _tokens(known, context, score_tokens(known, head, progress=partial(say, "head")))
    say("geometry", 0, 1)
    shape = _geometry(known, head)
    say("temperature", 0, 1)
    fit = fit_head_temperature(
        [(known.hidden, known.target)], head.weight, linear_bias=head.bias, softcap=head.softcap,
        logit_scale=head.logit_scale, bounds=_BOUNDS,
    )  # fmt: skip
    fitted = score_tokens(known, head, temperature=fit.temperature, progress=partial(say, "temperature"))
    after = _tokens(known, context, fitted)
    over = Documents(tokens.document)
    rows = [row("source", name, text=str(text)) for name, text in (source or {}).items()]
    rows += _about(model, head, tokens, over, sum(len(d.tokens) - 1 for d in encoded) - len(tokens.nll))
    rows += measured.geometry(shape)
    rows += measured.prediction(tokens, over)
    rows += measured.smoothing(tokens, over, shape, head.softcap, b)
    rows += measured.gaps(tokens, shape.vocab_size)
    rows += measured.calibration(tokens, over)
    rows += measured.groups(tokens, over)
    rows += measured.contexts(tokens, over)
    rows += measured.temperature(fit, after, over)
    lines = recommendation(pd.DataFrame(rows)).split("\n")
    rows += [row("recommendation", name, text=line) for name, line in zip(NAMES, lines, strict=True)]
    table = pd.DataFrame(rows)
    return Audit(table, verdict(table))


def check_options(
    label_smoothing: Sequence[float], *, max_tokens: int, max_length: int, skip: int | None, batch_size: int
) -> list[float]:
    """The b to ask about, each once and in order.

    Raises:
        ValueError: If a number of :func:`audit_model` is out of range.
    """
    asked = interval("label_smoothing", label_smoothing, 0, 1, open_low=True, open_high=True)
    b = [float(x) for x in np.unique(asked)]
    if not b:
        raise ValueError(f"label_smoothing must hold at least one number in (0, 1), got {label_smoothing!r}.")
    left_out = 0 if skip is None else _count("skip", skip, 0)
    _count("max_tokens", max_tokens, 1)
    _count("batch_size", batch_size, 1)
    _count("max_length", max_length, 2 + left_out, " (a token, those skipped, and one to predict)")
    return b


def check_device(device: torch.device | str) -> torch.device:
    """The device, if torch can use it here.

    Raises:
        ValueError: If it cannot.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"device must be one that torch can use here, got {str(device)!r}: {error}.") from error


def _count(name: str, value: object, least: int, why: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{why}, got {value!r}.")
    return value


def _unwrapped(model: Any) -> Any:
    """The language model out of PEFT's wrapper; its adapters lie inside its layers."""
    if not callable(getattr(model, "get_base_model", None)):
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise TypeError("model must not be a PEFT model of prompt learning: its prompt is no part of the base model.")
    return model.get_base_model()


def _tokens(known: HiddenStates, context: NDArray[np.int64], scores: TokenScores) -> Tokens:
    return Tokens(known.document.numpy(), context, known.target.cpu().numpy(), *scores)


def _geometry(known: HiddenStates, head: ModelHead) -> HeadGeometry:
    hidden, weight = head.logit_scale * known.hidden, head.weight
    if head.bias is not None:  # a bias is a column of the weight that meets features of 1
        weight = torch.cat([weight, head.bias.unsqueeze(-1)], dim=-1)
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=-1)
    return HeadGeometry.measure(weight, hidden, known.target)


def _about(
    model: Any, head: ModelHead, tokens: Tokens, documents: Documents, left_out: int
) -> Iterator[dict[str, Any]]:
    yield row("source", "architecture", text=f"{model.config.model_type} ({type(model).__name__})")
    yield row("source", "dtype", text=str(model.dtype).removeprefix("torch."))
    inputs = model.get_input_embeddings().weight
    outputs = linear_head(model)[0]
    for name, value in (
        ("vocab_size", head.weight.shape[0]), ("hidden_size", head.weight.shape[1]), ("logit_scale", head.logit_scale),
        ("softcap", float("nan") if head.softcap is None else head.softcap), ("tied", inputs is outputs),
        ("bias", head.bias is not None), ("tokens", len(tokens.nll)), ("left_out", left_out),
        ("documents", documents.count),
    ):  # fmt: skip
        yield row("model", name, float(value))
