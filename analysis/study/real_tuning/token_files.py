r"""Everything that a tuning reads, in token ids: made once under a tokenizer that was checked, and carried elsewhere.

A machine that has an older transformers, or no network, needs the model's weights and this file. Formats:

    pair        "Instruction: ...\nResponse:" and " ..." with the end mark, of which the latter is predicted
    cloze       "Question: ...\nAnswer:" and " option" for each option, as lm-evaluation-harness asks ARC and PIQA
    letters     "Question: ...\nA. ...\nB. ...\nAnswer:" and " A", " B", ...

each after the start mark, if the model has one.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...lab.files import write_atomically
from .files import PARTS, ChoiceQuestion, FileFacts, Pair

__all__ = ["LETTERS", "AskedQuestion", "TokenFile", "TokenPair", "encode", "read_tokens", "write_tokens"]

LETTERS = ("A", "B", "C", "D", "E", "F", "G", "H")
CHECKED, CHECKED_LENGTH = 6, 256  # pieces of Python's documentation on which a model is checked
_VERSION = 1
_PLACE = ("checked_cross_entropy", "transformers")  # facts that may differ where the same is encoded again
Ids = tuple[int, ...]


@dataclass(frozen=True)
class TokenPair:
    """A pair in token ids."""

    part: str
    prompt: Ids
    response: Ids


@dataclass(frozen=True)
class AskedQuestion:
    """A question in token ids.

    Attributes:
        source: Its file.
        part: ``"fit"`` or ``"scored"``.
        answer: Index of the right option.
        prompt: Of the cloze.
        options: Of each option, after the prompt.
        characters: Length of each option's text, by which its log-likelihood is normalised.
        lettered: Prompt that lists the options under letters.
    """

    source: str
    part: str
    answer: int
    prompt: Ids
    options: tuple[Ids, ...]
    characters: tuple[int, ...]
    lettered: Ids


@dataclass(frozen=True)
class TokenFile:
    """Token ids of pairs, questions, ordinary text and the pieces that a model is checked on.

    Attributes:
        facts: JSON values: ``model``, ``revision`` and ``vocab_size`` of the model whose tokenizer it was, ``pad``,
            ``letters`` (token of each letter after a prompt), ``transformers`` (version), ``files``, ``text``, and
            ``checked_cross_entropy`` on ``checked``, in nats, nan where it was not measured.
        digest: Of all of it but where it was encoded, the last fact and the version of transformers: to encode the same
            elsewhere leaves the rows of runs valid.
    """

    pairs: tuple[TokenPair, ...]
    questions: tuple[AskedQuestion, ...]
    texts: tuple[Ids, ...]
    checked: tuple[Ids, ...]
    facts: Mapping[str, Any]
    digest: str

    def shares(self) -> NDArray[np.float64]:
        """How much of what is read each token of the vocabulary is ``(V,)``: the mean of its shares.

        Of pairs, of questions and of texts, so that the largest of these does not decide what a cut vocabulary keeps.
        """
        size = int(self.facts["vocab_size"])
        parts = ((self.pairs, (), ()), ((), self.questions, ()), ((), (), self.texts))
        counts = [np.bincount(_flattened(*part, ())[0], minlength=size) for part in parts]
        return np.mean([count / max(1, count.sum()) for count in counts], axis=0)


def encode(
    tokenizer: Any,
    pairs: Sequence[Pair],
    questions: Sequence[ChoiceQuestion],
    texts: Sequence[str],
    checked: str,
    facts: Mapping[str, Any],
    *,
    max_length: int = 512,
) -> TokenFile:
    """Cut everything into tokens.

    Args:
        tokenizer: Of the model.
        pairs: To tune on, and to hold out.
        questions: To ask.
        texts: Ordinary text.
        checked: Text of which the first pieces are what a model is checked on.
        facts: More than ``pad`` and ``letters``, see :class:`TokenFile`.
        max_length: Tokens after which a pair, and a text, ends; a question longer than that, lettered, is left out.

    Raises:
        ValueError: If a letter after a prompt is not one token of its own, or a question has more options than letters.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def all_ids(several: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(several), add_special_tokens=False)["input_ids"] if several else []

    letters = all_ids([f" {letter}" for letter in LETTERS])
    if any(len(ids) != 1 for ids in letters) or len({ids[0] for ids in letters}) < len(LETTERS):
        raise ValueError(f"tokenizer must have one token for each of {LETTERS} after a space, got {letters}.")
    most = max((len(q.options) for q in questions), default=0)
    if most > len(LETTERS):
        raise ValueError(f"questions must have at most {len(LETTERS)} options, got one of {most}.")
    asked = all_ids([f"Instruction: {pair.instruction}\nResponse:" for pair in pairs])
    answered = all_ids([f" {pair.response}" for pair in pairs])
    made_pairs = tuple(
        TokenPair(pair.part, tuple(start + prompt), tuple((response + end)[: max(1, max_length - len(prompt))]))
        for pair, prompt, response in zip(pairs, asked, answered, strict=True)
        if len(prompt) < max_length
    )
    cloze = all_ids([f"Question: {q.question}\nAnswer:" for q in questions])
    lettered = all_ids([_lettered(q) for q in questions])
    options = iter(all_ids([f" {option}" for q in questions for option in q.options]))
    made_questions = []
    for q, prompt, listed in zip(questions, cloze, lettered, strict=True):
        of_q = tuple(tuple(next(options)) for _ in q.options)
        if len(listed) < max_length and all(len(prompt) + len(option) < max_length for option in of_q):
            made_questions.append(
                AskedQuestion(
                    q.source, q.part, q.answer, tuple(start + prompt), of_q, tuple(map(len, q.options)),
                    tuple(start + listed),
                )
            )  # fmt: skip
    joined = all_ids([checked])[0]
    pieces = [joined[i : i + CHECKED_LENGTH] for i in range(0, len(joined), CHECKED_LENGTH)]
    return _made(
        made_pairs,
        tuple(made_questions),
        tuple(tuple((start + ids)[:max_length]) for ids in all_ids(texts) if len(ids) > 1),
        tuple(tuple(start + ids) for ids in pieces[:CHECKED] if len(ids) > 1),
        {
            **facts,
            "pad": tokenizer.pad_token_id or 0,  # any token: it is masked
            "letters": [ids[0] for ids in letters],
            "max_length": max_length,
            "questions_left_out": len(questions) - len(made_questions),
        },
    )


def _lettered(question: ChoiceQuestion) -> str:
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))
    return f"Question: {question.question}\n{lines}\nAnswer:"


def _flattened(
    pairs: Sequence[TokenPair], questions: Sequence[AskedQuestion], texts: Sequence[Ids], checked: Sequence[Ids]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All ids in a row, and the lengths that cut them: pairs, questions, texts, checked."""
    rows: list[Ids] = []
    for pair in pairs:
        rows += (pair.prompt, pair.response)
    for q in questions:
        rows += (q.prompt, q.lettered, *q.options)
    rows += (*texts, *checked)
    flat = np.fromiter((i for row in rows for i in row), np.int32)
    return flat, np.array([len(row) for row in rows], np.int32)


def _made(
    pairs: tuple[TokenPair, ...],
    questions: tuple[AskedQuestion, ...],
    texts: tuple[Ids, ...],
    checked: tuple[Ids, ...],
    facts: Mapping[str, Any],
) -> TokenFile:
    lasting = {name: value for name, value in facts.items() if name not in _PLACE}
    arrays = _arrays(pairs, questions, texts, checked, lasting)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return TokenFile(pairs, questions, texts, checked, dict(facts), digest.hexdigest()[:16])


def _arrays(
    pairs: Sequence[TokenPair],
    questions: Sequence[AskedQuestion],
    texts: Sequence[Ids],
    checked: Sequence[Ids],
    facts: Mapping[str, Any],
) -> dict[str, NDArray[Any]]:
    flat, lengths = _flattened(pairs, questions, texts, checked)
    sources = sorted({q.source for q in questions})
    known = {**facts, "version": _VERSION, "sources": sources, "texts": len(texts), "checked": len(checked)}
    return {
        "ids": flat,
        "lengths": lengths,
        "pair_part": np.array([PARTS.index(pair.part) for pair in pairs], np.int8),  # pyright: ignore
        "question": np.array(
            [(sources.index(q.source), PARTS.index(q.part), q.answer, len(q.options)) for q in questions],  # pyright: ignore
            np.int16,
        ).reshape(-1, 4),
        "characters": np.array([c for q in questions for c in q.characters], np.int32),
        "facts": np.frombuffer(json.dumps(known, sort_keys=True).encode(), np.uint8),
    }


def write_tokens(made: TokenFile, path: Path) -> None:
    """Write as ``.npz``, whole or not at all; equal contents give equal bytes."""
    arrays = _arrays(made.pairs, made.questions, made.texts, made.checked, made.facts)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.save(one, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, one.getvalue(), compresslevel=9)
    write_atomically(path, file.getvalue())


def read_tokens(path: Path) -> TokenFile:
    """Read what :func:`write_tokens` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such file, or one of another version.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in packed.files}
        facts = json.loads(arrays["facts"].tobytes())
        if facts.pop("version") != _VERSION:
            raise ValueError("another version of the project wrote it")
        return _parsed(arrays, facts)
    except (KeyError, ValueError, IndexError, StopIteration, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{path} must be a file of python -m analysis.real_tuning encode, got something else ({error})."
        ) from error


def _parsed(arrays: Mapping[str, NDArray[Any]], facts: dict[str, Any]) -> TokenFile:
    flat, ends = arrays["ids"].tolist(), np.cumsum(arrays["lengths"]).tolist()
    rows = iter([tuple(flat[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)])
    pairs = tuple(TokenPair(PARTS[part], next(rows), next(rows)) for part in arrays["pair_part"].tolist())
    sources, characters = facts.pop("sources"), iter(arrays["characters"].tolist())
    questions = []
    for source, part, answer, count in arrays["question"].tolist():
        prompt, lettered = next(rows), next(rows)
        options = tuple(next(rows) for _ in range(count))
        lengths = tuple(next(characters) for _ in range(count))
        questions.append(AskedQuestion(sources[source], PARTS[part], answer, prompt, options, lengths, lettered))
    texts = tuple(next(rows) for _ in range(facts.pop("texts")))
    checked = tuple(next(rows) for _ in range(facts.pop("checked")))
    return _made(pairs, tuple(questions), texts, checked, facts)


def file_facts(files: Sequence[FileFacts]) -> list[dict[str, Any]]:
    """As JSON values."""
    return [file._asdict() for file in files]
