"""Questions with options, asked of a model: log-likelihoods of the options, and how calibrated the choices are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from ...calibration import fit_temperature, reliability_table, score_predictions
from ...language_models.documents import IGNORED, Encoded
from ...language_models.families import family_states
from ...language_models.features import HiddenStates, ModelHead
from ...language_models.scoring import score_tokens
from .token_files import AskedQuestion

__all__ = ["VIEWS", "Asked", "ask", "choice_lines", "letter_documents", "option_documents"]

# Cloze: log-likelihood of each option; per character, as acc_norm; letters: logit of each letter.
VIEWS = ("cloze", "cloze_norm", "letters")
_RESAMPLES, _BINS = 400, 15
_BATCH_TOKENS = 65536  # 3 GB of a GPU with Gemma-3-270M
_FAR = 1e4  # nats below the best: no probability at any temperature of the search


class Asked(NamedTuple):
    """What a model made of questions.

    Attributes:
        logits: View -> what the options' probabilities are proportional to the exponential of ``(n, K)``, -inf where a
            question has fewer options.
        answer: Index of the right option ``(n,)``.
        source: Name of the file of each.
    """

    logits: dict[str, NDArray[np.float64]]
    answer: NDArray[np.int64]
    source: NDArray[Any]

    def take(self, rows: NDArray[Any]) -> Asked:
        """Some of the questions."""
        return Asked({view: z[rows] for view, z in self.logits.items()}, self.answer[rows], self.source[rows])


def option_documents(questions: Sequence[AskedQuestion]) -> list[Encoded]:
    """One document for each option of each question, of which the option is predicted."""
    return [
        Encoded([*q.prompt, *option], [IGNORED] * len(q.prompt) + list(option))
        for q in questions
        for option in q.options
    ]


def letter_documents(questions: Sequence[AskedQuestion], letters: Sequence[int]) -> list[Encoded]:
    """One document for each question, of which the letter of the right option is predicted."""
    return [
        Encoded([*q.lettered, letters[q.answer]], [IGNORED] * len(q.lettered) + [letters[q.answer]]) for q in questions
    ]


def ask(
    model: Any,
    head: ModelHead,
    questions: Sequence[AskedQuestion],
    documents: Mapping[str, Sequence[Encoded]],
    *,
    letters: Sequence[int],
    pad: int,
    temperature: float = 1.0,
    batch_size: int | None = None,
) -> Asked:
    """Ask a model each question in three ways.

    Args:
        model: The causal language model.
        head: Its head, with the softcap that it is read with.
        questions: To ask.
        documents: ``"options"`` and ``"letters"`` of the questions, in the model's token ids.
        letters: Tokens of the letters, in the model's token ids.
        pad: Token to pad with.
        temperature: That the logits of the vocabulary are divided by.
        batch_size: Documents at a time; None for 128 on the CPU, and on CUDA, where launches bound short ones, for as
            many as have 65536 tokens.

    Returns:
        Logits of the options: summed log-likelihoods (``cloze``), these over the number of characters
        (``cloze_norm``), and the letters' log-probabilities (``letters``).
    """
    cuda = model.device.type == "cuda"
    autocast = torch.bfloat16 if cuda else None
    size = batch_size or (_BATCH_TOKENS if cuda else 128)
    count = [len(q.options) for q in questions]
    options = iter(documents["options"])
    families = [
        [*(next(options) for _ in range(n)), letter] for n, letter in zip(count, documents["letters"], strict=True)
    ]
    states = family_states(
        model, families, pad=pad, batch_size=size, batch_tokens=_BATCH_TOKENS, autocast=autocast
    )  # what a question begins with is read once
    known, seen = _apart(states, count)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast is not None):
        scores = score_tokens(known, head, temperature=temperature)
    summed = np.zeros(sum(count))
    np.add.at(summed, known.document.cpu().numpy(), -scores.nll)
    characters = np.array([c for q in questions for c in q.characters])
    shape = (len(questions), max(count))
    logits = {view: np.full(shape, -np.inf) for view in VIEWS}
    row, column = np.repeat(np.arange(len(count)), count), np.concatenate([np.arange(n) for n in count])
    logits["cloze"][row, column] = summed
    logits["cloze_norm"][row, column] = summed / characters
    rows = torch.as_tensor(list(letters)[: shape[1]], device=seen.hidden.device)
    own = head._replace(weight=head.weight[rows], bias=None if head.bias is None else head.bias[rows])
    z = own.logit_scale * seen.hidden @ own.weight.T + (0.0 if own.bias is None else own.bias)
    if own.softcap is not None:
        z = own.softcap * torch.tanh(z / own.softcap)
    of_letters = z.double().cpu().numpy() / temperature
    logits["letters"][row, column] = of_letters[row, column]
    answer = np.array([q.answer for q in questions])
    return Asked(logits, answer, np.array([q.source for q in questions]))


def _apart(states: HiddenStates, count: Sequence[int]) -> tuple[HiddenStates, HiddenStates]:
    """Those of options, numbered one after another, and of letters, of families of so many options and a letter."""
    ends = torch.tensor(count).cumsum(0) + torch.arange(len(count))  # of families: where their letter is
    letter = torch.isin(states.document, ends)
    options, letters = (HiddenStates(*(x[rows.to(x.device)] for x in states)) for rows in (~letter, letter))
    number = options.document - torch.searchsorted(ends, options.document)
    return options._replace(document=number), letters


def choice_lines(fitted_on: Asked, scored: Asked, *, bins: bool, seed: int = 0) -> list[dict[str, Any]]:
    """Scores of the choices, for each view, file and reading: as they are, and at the temperature that fits others.

    Args:
        fitted_on: Questions whose answers the temperature of each view is fitted to.
        scored: Questions that are scored.
        bins: Whether to add the reliability tables and bootstrap intervals.
        seed: Of the bootstrap over questions.

    Returns:
        Lines of ``view``, ``source`` (a file, or ``"all"``), ``reading`` (``as_trained``, ``post_hoc``), ``read_at``
        (the temperature) and scores; with ``bins``, ``accuracy_low`` to ``ece_high`` (95 %), and lines with ``bin``.
        The interval of the ECE is the basic one, from 0, as resamples add their own noise to the error, so that their
        quantiles lie too high: 2 ECE less these may end below the ECE, which then is that noise alone.
    """
    lines = []
    for view in VIEWS:
        fit = _temperature(fitted_on.logits[view], fitted_on.answer) if len(fitted_on.answer) else float("nan")
        for reading, temperature in (("as_trained", 1.0), ("post_hoc", fit)):
            if not np.isfinite(temperature):
                continue
            log_p = log_softmax(scored.logits[view] / temperature, axis=-1)
            for source in ("all", *sorted(set(scored.source.tolist()))):
                rows = np.ones(len(log_p), bool) if source == "all" else scored.source == source
                named = {"split": "scored", "view": view, "source": source, "reading": reading, "read_at": temperature}
                lines += _scored(named, log_p[rows], scored.answer[rows], bins, seed)
    return lines


def _temperature(logits: NDArray[np.float64], answer: NDArray[np.int64]) -> float:
    finite = np.where(np.isfinite(logits), logits, logits.max(-1, keepdims=True) - _FAR)
    return fit_temperature(finite, answer, bounds=(1e-4, 100.0), allow_probabilities=True).temperature


def _scored(
    named: Mapping[str, Any], log_p: NDArray[np.float64], answer: NDArray[np.int64], bins: bool, seed: int
) -> list[dict[str, Any]]:
    choice, confidence = log_p.argmax(-1), np.exp(log_p.max(-1)).clip(0, 1)
    correct = choice == answer
    nll = float(-log_p[np.arange(len(answer)), answer].mean())
    line = {**named, **score_predictions(confidence, correct), "nll": nll}
    if not bins:
        return [line]
    n = len(answer)
    often = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(np.float64)
    place = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    excess = np.eye(_BINS)[place] * (confidence - correct)[:, None]
    ece = float(np.abs(excess.sum(0)).sum() / n)
    basic = 2 * ece - np.quantile(np.abs(often @ excess).sum(-1) / n, [0.975, 0.025])
    for name, (low, high) in (
        ("accuracy", np.quantile(often @ correct / n, [0.025, 0.975])),
        ("ece", basic.clip(0.0)),
    ):
        line[f"{name}_low"], line[f"{name}_high"] = float(low), float(high)
    table = reliability_table(confidence, correct).to_dict("records")
    return [line] + [
        {**named, "bin": place, "n": int(row["n"]), "confidence": row["confidence"], "accuracy": row["accuracy"]}
        for place, row in enumerate(table, start=1)
        if row["n"]
    ]
