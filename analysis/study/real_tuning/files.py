"""Files of multiple-choice questions and of instructions with responses: JSON lines as they are published, gzip or not.

Nothing of them is part of the project. Each text is in one part for good, by a hash of it: what temperatures are fitted
on and tuning is stopped by (``"fit"``) is never scored (``"scored"``) nor tuned on (``"train"``).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = ["PARTS", "ChoiceQuestion", "FileFacts", "Pair", "part_of", "read_choices", "read_pairs"]

Part = Literal["train", "fit", "scored"]
PARTS: tuple[Part, ...] = ("train", "fit", "scored")
_QUESTION_SHARES = (0.0, 0.25)  # where "fit" and "scored" begin: a quarter of the questions fits
_PAIR_SHARES = (0.8, 0.87)


class ChoiceQuestion(NamedTuple):
    """A question with options, of which one is right."""

    source: str  # name of the file without endings
    question: str
    options: tuple[str, ...]
    answer: int
    part: Part


class Pair(NamedTuple):
    """An instruction and what was answered to it."""

    source: str
    instruction: str  # with its input, if it has one, on a line of its own
    response: str
    part: Part


class FileFacts(NamedTuple):
    """What a table says of a file that it was made from."""

    name: str
    rows: int
    sha256: str


def part_of(text: str, shares: tuple[float, float]) -> Part:
    """Part of a text, by its SHA-256: ``"train"`` below the first share, ``"fit"`` below the second, else ``"scored"``.

    Example:
        >>> [part_of(f"question {i}", (0.0, 0.25)) for i in range(4)]
        ['scored', 'fit', 'scored', 'scored']
    """
    place = int(hashlib.sha256(text.strip().encode()).hexdigest()[:8], 16) / 16**8
    return "train" if place < shares[0] else "fit" if place < shares[1] else "scored"


def read_choices(paths: Sequence[Path]) -> tuple[list[ChoiceQuestion], list[FileFacts]]:
    """Read questions: ``question``, ``options`` (two or more texts) and ``answer``, the index of the right one.

    White space around a question goes, as lm-evaluation-harness has it. A question that stands in several places, with
    the same options, is read once.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a line is something else; it is named.
    """

    def made(source: str, row: dict[str, Any]) -> ChoiceQuestion:
        question, options, answer = row["question"], row["options"], row["answer"]
        if not isinstance(question, str) or not question.strip():
            raise ValueError("question must be a text that is not empty")
        if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o for o in options):
            raise ValueError("options must be a list of two or more texts, none of them empty")
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
            raise ValueError(f"answer must be the index of an option, got {answer!r}")
        return ChoiceQuestion(source, question.strip(), tuple(options), answer, part_of(question, _QUESTION_SHARES))

    return _read(paths, made, lambda q: (q.question, q.options))


def read_pairs(paths: Sequence[Path]) -> tuple[list[Pair], list[FileFacts]]:
    """Read pairs: ``instruction``, ``response`` and, where there is one, ``input``.

    The part is that of the instruction with its input.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a line is something else; it is named.
    """

    def made(source: str, row: dict[str, Any]) -> Pair:
        parts = [row["instruction"], row.get("input", ""), row["response"]]
        if not all(isinstance(part, str) for part in parts) or not parts[0].strip() or not parts[2].strip():
            raise ValueError("instruction and response must be texts that are not empty, input a text")
        asked = "\n".join(part.strip() for part in parts[:2] if part.strip())
        return Pair(source, asked, parts[2].strip(), part_of(asked, _PAIR_SHARES))

    return _read(paths, made, lambda pair: pair)


def _read(
    paths: Sequence[Path], made: Callable[[str, dict[str, Any]], Any], same: Callable[[Any], Any]
) -> tuple[list[Any], list[FileFacts]]:
    found: dict[Any, Any] = {}
    facts = []
    for path in map(Path, paths):
        content = path.read_bytes()
        count = 0
        for number, line in enumerate(_lines(path, content), start=1):
            try:
                row = made(path.name.partition(".")[0], json.loads(line))
            except KeyError as error:
                raise ValueError(f"line {number} of {path} has no field {error}.") from error
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"line {number} of {path} is not as it must be: {error}.") from error
            found.setdefault(same(row), row)
            count += 1
        if not count:
            raise ValueError(f"{path} must hold a line, got none.")
        facts.append(FileFacts(path.name, count, hashlib.sha256(content).hexdigest()))
    return list(found.values()), facts


def _lines(path: Path, content: bytes) -> Iterator[str]:
    try:
        text = (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be JSON lines in UTF-8, packed where it is called .gz: {error}.") from error
    # JSON may hold line separators of Unicode: lines end at "\n" alone
    yield from (line for line in text.split("\n") if line.strip())
