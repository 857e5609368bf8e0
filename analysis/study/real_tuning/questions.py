"""Questions to tune on and to be examined on: multiple choice and short answers, split by fact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...lab.files import write_atomically
from .facts import Fact, facts, ordinary_text, source_table

__all__ = [
    "LETTERS",
    "Question",
    "QuestionSet",
    "build_questions",
    "make_questions",
    "read_questions",
    "write_questions",
]

LETTERS = ("A", "B", "C", "D")
Split = Literal["train", "validation", "test"]
_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.5), ("validation", 0.65), ("test", 1.0))  # cumulative


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question as the model sees it.

    Attributes:
        kind: What is asked (``"capital"``, ``"element symbol"``, ...).
        prompt: The user's message, options included.
        answer: The assistant's: a letter for multiple choice, else the answer itself.
        options: The four options of a multiple choice, in order; empty for a short answer.
        split: ``"train"``, ``"validation"`` or ``"test"``; facts of one key are in one split.
        source: Data package.
    """

    kind: str
    prompt: str
    answer: str
    options: tuple[str, ...]
    split: Split
    source: str


class QuestionSet(NamedTuple):
    """Questions, ordinary text, where they come from, and a hash of all of it."""

    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    sources: dict[str, dict[str, str]]
    digest: str

    def select(self, split: Split, *, choice: bool | None = None) -> list[Question]:
        """Questions of a split; of multiple choice (True), of short answers (False), or both."""
        return [q for q in self.questions if q.split == split and choice in (None, bool(q.options))]


def make_questions(known: Sequence[Fact], seed: int = 0) -> list[Question]:
    """One question for each fact: multiple choice or short answer with equal chance, in a random order.

    Wrong options are answers to other facts of the same kind; a fact whose kind has fewer than four different answers
    becomes a short answer. Splits follow a hash of the fact's key: half train, 15 % validation, 35 % test.

    Example:
        >>> known = [Fact("sum", "made up", f"{i} + 1 =", str(i + 1), f"sum:{i}") for i in range(9)]
        >>> question = next(q for q in make_questions(known) if q.options)
        >>> question.options[LETTERS.index(question.answer)] == str(int(question.prompt[0]) + 1)
        True
    """
    answers: dict[str, list[str]] = {}
    for fact in known:
        answers.setdefault(fact.kind, []).append(fact.answer)
    made = []
    for fact in known:
        draw = random.Random(f"{seed}:{fact.question}")
        others = sorted(set(answers[fact.kind]) - {fact.answer})
        options: tuple[str, ...] = ()
        if draw.random() < 0.5 and len(others) >= len(LETTERS) - 1:
            mixed = [fact.answer, *draw.sample(others, len(LETTERS) - 1)]
            draw.shuffle(mixed)
            options = tuple(mixed)
            lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
            prompt = f"{fact.question}\n{lines}\nAnswer with the letter alone."
            answer = LETTERS[options.index(fact.answer)]
        else:
            prompt, answer = f"{fact.question} Answer in as few words as possible.", fact.answer
        made.append(
            Question(
                kind=fact.kind,
                prompt=prompt,
                answer=answer,
                options=options,
                split=_split(fact.key),
                source=fact.source,
            )
        )
    random.Random(seed).shuffle(made)
    return made


def _split(key: str) -> Split:
    place = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 16**8
    return next(name for name, end in _SHARES if place < end)


def build_questions(seed: int = 0) -> QuestionSet:
    """Questions and text from the installed data packages.

    Raises:
        ImportError: If one is missing.
    """
    return _with_digest(make_questions(facts(), seed), ordinary_text(), source_table())


def _with_digest(questions: Sequence[Question], texts: Sequence[str], sources: dict[str, Any]) -> QuestionSet:
    content = [[dataclasses.asdict(q) for q in questions], list(texts)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return QuestionSet(tuple(questions), tuple(texts), sources, digest)


def write_questions(made: QuestionSet, path: Path) -> None:
    """Write as JSON, whole or not at all."""
    content = {
        "digest": made.digest,
        "sources": made.sources,
        "questions": [dataclasses.asdict(q) for q in made.questions],
        "texts": list(made.texts),
    }
    write_atomically(path, json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def read_questions(path: Path) -> QuestionSet:
    """Read what :func:`write_questions` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such file, or was changed.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        questions = [Question(**{**q, "options": tuple(q["options"])}) for q in content["questions"]]
        read = _with_digest(questions, content["texts"], content["sources"])
        expected = content["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a file of questions, got something else ({error}).") from error
    if read.digest != expected:
        raise ValueError(f"{path} must be as it was written (digest {expected}), got {read.digest}: build it again.")
    return read
