"""Text in documents, documents in token batches."""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "Encoded", "batches", "encode_text", "python_text", "read_text"]

IGNORED = -100
LONGEST = 1600  # characters of a document: about 400 tokens


class Encoded(NamedTuple):
    """Token ids of one document, and which of them are predicted."""

    tokens: list[int]
    labels: list[int]  # -100 where nothing is to be predicted


class Batch(NamedTuple):
    """Padded documents."""

    tokens: Tensor  # (n, length) int64
    labels: Tensor  # (n, length) int64
    mask: Tensor  # (n, length) int64, 0 at padding

    def to(self, device: torch.device | str) -> Batch:
        """The same elsewhere."""
        return Batch(*(x.to(device) for x in self))


def encode_text(tokenizer: Any, text: str) -> Encoded:
    """A document after the beginning-of-sequence token, if there is one; every later token is predicted."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = start + tokenizer(text, add_special_tokens=False)["input_ids"]
    return Encoded(tokens, [IGNORED, *tokens[1:]])


def batches(documents: Sequence[Encoded], size: int, pad: int) -> Iterator[Batch]:
    """Documents in their order, ``size`` at a time, padded on the right to the longest."""
    for start in range(0, len(documents), size):
        part = documents[start : start + size]
        length = max(len(d.tokens) for d in part)

        def padded(rows: list[list[int]], fill: int, length: int = length) -> Tensor:
            return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

        yield Batch(
            padded([d.tokens for d in part], pad),
            padded([d.labels for d in part], IGNORED),
            padded([[1] * len(d.tokens) for d in part], 0),
        )


def cut(text: str, characters: int = LONGEST) -> Iterator[str]:
    r"""The text in pieces of at most so many characters, cut at the end of a paragraph where there is one.

    Example:
        >>> list(cut("one\n\ntwo\n\nthree", 9))
        ['one\n\ntwo', 'three']
    """
    rest = text.strip()
    while rest:
        end = len(rest)
        if end > characters:
            end = rest.rfind("\n\n", 1, characters + 1)
            end = end if end > 0 else characters
        yield rest[:end].rstrip()
        rest = rest[end:].lstrip("\n")


def read_text(path: Path) -> list[str]:
    """Documents of a file: the field ``text`` of each line of a .jsonl file, else the file in pieces (``cut``).

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is empty, no UTF-8, or a line of a .jsonl file has no ``text``.
    """
    content = path.read_text(encoding="utf-8")
    texts = [content]
    if path.suffix == ".jsonl":
        try:
            texts = [str(json.loads(line)["text"]) for line in content.splitlines() if line.strip()]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"every line of {path} must be a JSON object with text, got something else.") from error
    documents = [piece for text in texts for piece in cut(text)]
    if not documents:
        raise ValueError(f"{path} must hold text, got an empty file.")
    return documents


def python_text() -> list[str]:
    """Real text that comes with Python: topics of its documentation and sources of its standard library, in turn.

    One piece of each topic and of each module, from its beginning (``cut``); pieces under 200 characters are left
    out.
    """
    topics = import_module("pydoc_data.topics").topics
    prose = [next(cut(topics[name]), "") for name in sorted(topics)]
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.glob("[!_]*.py")))
    code = [next(cut(re.sub(r"\A(#.*\n|\s)*", "", source)), "") for source in sources]  # no licence headers
    return [text for text in chain(*zip_longest(prose, code, fillvalue="")) if len(text) > 200]
