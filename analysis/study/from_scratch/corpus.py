"""Real text for S12: files and instruction pairs with their digests, divided into what is read and what is measured."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...lab.files import write_atomically
from .language import broad_language

__all__ = ["Corpus", "find_corpus", "prepare", "written"]

_PIECE = 4096  # characters of text that are held out or not, as a whole
_HELD_OUT = 50  # one piece in so many
_PAIRS_HELD_OUT = 5
_NAME = "corpus.json"
_MAGIC = b"\x1f\x8b"  # of gzip, which dictionaries of dictd (.dict.dz) are as well


@dataclass(frozen=True)
class Corpus:
    """What models read.

    Attributes:
        text: Pieces to pretrain on, of all files in a fixed random order, so that any first part is of all of them.
        held_out: Pieces that are measured, likewise.
        pairs: (prompt, response) to tune on.
        pairs_held_out: Those that are measured.
        sources: Name, SHA-256 and size in bytes of each file.
    """

    text: list[str]
    held_out: list[str]
    pairs: list[tuple[str, str]]
    pairs_held_out: list[tuple[str, str]]
    sources: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """SHA-256 of all files' digests."""
        return hashlib.sha256("".join(source["sha256"] for source in self.sources).encode()).hexdigest()


def prepare(texts: Sequence[Path], pairs: Path, folder: Path) -> Corpus:
    """Read the files and note their paths and digests in a folder, where :func:`find_corpus` finds them.

    Args:
        texts: Files of text in UTF-8, plain or packed by gzip (``.dict.dz`` too).
        pairs: JSON lines, plain or packed, of ``instruction``, ``input`` and ``response``.
        folder: Where to note them.

    Raises:
        ValueError: If a file is no such file, or the folder has notes of other files.
        OSError: If a file cannot be read.
    """
    corpus, path = _read(texts, pairs), folder / _NAME
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["digest"] != corpus.digest:
        raise ValueError(f"texts must be those that {folder} was prepared with: give another folder.")
    # from the folder, so that a copy of both finds them
    *found, paired = (os.path.relpath(file.resolve(), folder.resolve()) for file in (*texts, pairs))
    note = {"digest": corpus.digest, "texts": found, "pairs": paired, "sources": corpus.sources}
    write_atomically(path, json.dumps(note, indent=1) + "\n")
    return corpus


def find_corpus(folder: Path | None) -> Corpus:
    """Read the files that a folder was prepared with again.

    Raises:
        FileNotFoundError: If it was not prepared.
        ValueError: If a file has changed.
    """
    if folder is None or not (folder / _NAME).exists():
        raise FileNotFoundError(
            "S12 reads files: python -m analysis.study.from_scratch FILE ... --pairs FILE names them."
        )
    note = json.loads((folder / _NAME).read_text(encoding="utf-8"))
    corpus = _read([folder / file for file in note["texts"]], folder / note["pairs"])
    if corpus.digest != note["digest"]:
        raise ValueError(f"files must be as they were when {folder} was prepared, got other ones.")
    return corpus


def _read(texts: Sequence[Path], pairs: Path) -> Corpus:
    contents = [(file, file.read_bytes()) for file in (*texts, pairs)]
    sources = [
        {"name": file.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for file, content in contents
    ]
    *prose, lines = [_unpacked(file, content) for file, content in contents]
    return _divided(prose, list(_pairs(pairs, lines)), sources)


def _unpacked(file: Path, content: bytes) -> str:
    if content.startswith(_MAGIC):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} must be a whole file of gzip: {error}.") from error
    return content.decode("utf-8", errors="replace")


def _pairs(file: Path, content: str) -> Iterator[tuple[str, str]]:
    done = 0
    try:
        for line in content.splitlines():
            found = json.loads(line)
            given = f"\n{found['input']}" if found["input"] else ""
            yield f"Instruction: {found['instruction']}{given}\nResponse:", f" {found['response']}\n"
            done += 1
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"every line of {file} must be an object with instruction, input and response, line {done + 1} is not."
        ) from error


def _divided(texts: Sequence[str], pairs: list[tuple[str, str]], sources: list[dict[str, Any]]) -> Corpus:
    pieces = [text[start : start + _PIECE] for text in texts for start in range(0, len(text), _PIECE)]
    if len(pieces) < _HELD_OUT or len(pairs) < _PAIRS_HELD_OUT:
        raise ValueError(
            f"texts must fill {_HELD_OUT} pieces of {_PIECE} characters, and pairs be {_PAIRS_HELD_OUT} or more, got "
            f"{len(pieces)} and {len(pairs)}."
        )
    last, pair = _HELD_OUT - 1, _PAIRS_HELD_OUT - 1
    return Corpus(
        _shuffled([piece for number, piece in enumerate(pieces) if number % _HELD_OUT != last]),
        _shuffled(pieces[last::_HELD_OUT]),
        [known for number, known in enumerate(pairs) if number % _PAIRS_HELD_OUT != pair],
        pairs[pair::_PAIRS_HELD_OUT],
        sources,
    )


def _shuffled(pieces: list[str]) -> list[str]:
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
    return [pieces[i] for i in order.tolist()]


def written(characters: int = 250_000) -> Corpus:
    """A text of the project's own, for tests and for a look: words of made-up syllables in the order of a hidden chain.

    It stands for no language; the answers to its instructions are their words turned around.
    """
    generator = torch.Generator().manual_seed(0)
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    pick = torch.randint(len(consonants) * len(vowels), (400, 3), generator=generator).tolist()
    syllable = [c + v for c in consonants for v in vowels]
    words = ["".join(syllable[i] for i in row[: 1 + row[2] % 3]) for row in pick]
    chain = broad_language(24, len(words), successors=3, exponent=1.2, seed=0)
    drawn = chain.draw(characters // 60, 12, generator).tolist()
    sentences = [" ".join(words[i] for i in line).capitalize() + ".\n" for line in drawn]
    pairs = [
        (
            f"Instruction: {' '.join(words[i] for i in line[:3])}\nResponse:",
            f" {' '.join(words[i] for i in line[2::-1])}\n",
        )
        for line in drawn[:200]
    ]
    text = "".join(sentences)
    source = {"name": "written", "sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
    return _divided([text], pairs, [source])
