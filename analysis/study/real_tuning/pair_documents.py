"""What one tuning on pairs reads: the documents of its config, in the token ids of its vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...language_models.documents import IGNORED, Encoded
from .choice_scores import letter_documents, option_documents
from .pair_configs import PairConfig
from .token_files import AskedQuestion, TokenFile, TokenPair
from .vocabulary import kept_rows, renumbered

__all__ = ["Exam", "PairDocuments", "documents_of"]

_T = TypeVar("_T")
_SHORTEST = 16  # tokens of a piece of text between tokens that are not read


class Exam(NamedTuple):
    """Questions of one part with their documents."""

    questions: list[AskedQuestion]
    options: list[Encoded]
    letters: list[Encoded]


class PairDocuments(NamedTuple):
    """Everything in the ids of the vocabulary that is kept.

    Attributes:
        kept: Tokens of the model's own vocabulary that are kept.
        train: Pairs tuned on, prompts masked.
        responses: Part -> held-out pairs (and some of those tuned on).
        texts: Ordinary text.
        along: Part -> questions asked at every epoch.
        ends: Part -> questions asked before tuning and at the end.
        letters: Tokens of the letters.
        pad: Token to pad with.
    """

    kept: NDArray[np.int64]
    train: list[Encoded]
    responses: dict[str, list[Encoded]]
    texts: list[Encoded]
    along: dict[str, Exam]
    ends: dict[str, Exam]
    letters: list[int]
    pad: int


def documents_of(known: TokenFile, config: PairConfig) -> PairDocuments:
    """The documents that a config names.

    Raises:
        ValueError: If there are too few pairs, no question of a part, or the vocabulary to keep is too small.
    """
    vocab_size, pad = int(known.facts["vocab_size"]), int(known.facts["pad"])
    letters = [int(i) for i in known.facts["letters"]]
    needed = [pad, *letters]
    shares = known.shares()
    within = np.ones(vocab_size, bool)
    if config.within is not None and config.within < vocab_size:
        within[:] = False
        within[kept_rows(shares, config.within, config.within, needed)] = True
    pairs = [p for p in known.pairs if _inside(within, p.prompt, p.response)]
    questions = [q for q in known.questions if _inside(within, q.prompt, q.lettered, *q.options)]
    texts = _mixed([run for text in known.texts for run in _runs(text, within)])[: config.texts]
    pool = [p for p in pairs if p.part == "train"]
    wanted = config.pairs or len(pool)
    if not pool or wanted > len(pool):
        raise ValueError(f"pairs must be at most the {len(pool)} of the training part that can be read, got {wanted}.")
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(config.seed))[:wanted]
    chosen = [pool[i] for i in drawn.tolist()]
    held = {part: _mixed([p for p in pairs if p.part == part])[: config.held_out] for part in ("fit", "scored")}
    held["train"] = chosen[: config.held_out]
    every = {part: _mixed([q for q in questions if q.part == part]) for part in ("fit", "scored")}
    if lacking := [part for part in ("fit", "scored") if not every[part] or not held[part]]:
        raise ValueError(f"questions and pairs must have some of the part {lacking[0]!r}: give more of them.")
    kept = kept_rows(shares, config.vocabulary, config.within, needed)

    def ids(documents: list[Encoded]) -> list[Encoded]:
        return renumbered(documents, kept, vocab_size)

    def exam(asked: list[AskedQuestion]) -> Exam:
        return Exam(asked, ids(option_documents(asked)), ids(letter_documents(asked, letters)))

    along = {part: exam(list(_first(asked, config.evaluated))) for part, asked in every.items()}
    place = {token: i for i, token in enumerate(kept.tolist())}
    return PairDocuments(
        kept=kept,
        train=ids([_masked(p) for p in chosen]),
        responses={part: ids([_masked(p) for p in several]) for part, several in held.items()},
        texts=ids([Encoded(list(text), [IGNORED, *text[1:]]) for text in texts]),
        along=along,
        ends={part: exam(asked) for part, asked in every.items()} if config.whole else along,
        letters=[place[i] for i in letters],
        pad=place[pad],
    )


def _mixed(documents: Iterable[_T]) -> list[_T]:
    """In an order that says nothing, and is the same for good: files are sorted, by subject or by source."""
    return sorted(documents, key=lambda document: hashlib.sha256(repr(document).encode()).digest())


def _inside(within: NDArray[np.bool_], *several: Sequence[int]) -> bool:
    return bool(within.all()) or all(within[list(ids)].all() for ids in several)


def _runs(text: Sequence[int], within: NDArray[np.bool_]) -> Iterator[tuple[int, ...]]:
    """A text, or what is left of it between tokens that are not read, each after its first token, the start mark."""
    start, *rest = text
    ends = [-1, *np.flatnonzero(~within[rest]).tolist(), len(rest)]
    for first, end in pairwise(ends):
        if end - first - 1 >= (_SHORTEST if len(ends) > 2 else 1):
            yield (start, *rest[first + 1 : end])


def _masked(pair: TokenPair) -> Encoded:
    return Encoded([*pair.prompt, *pair.response], [IGNORED] * len(pair.prompt) + list(pair.response))


def _first(questions: Sequence[AskedQuestion], most: int) -> Iterable[AskedQuestion]:
    """The first so many of each file, of documents that are mixed, over both parts in their shares."""
    seen: dict[str, int] = {}
    for q in questions:
        seen[q.source] = seen.get(q.source, 0) + 1
        if seen[q.source] <= most * (0.25 if q.part == "fit" else 0.75):
            yield q
