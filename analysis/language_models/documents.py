"""Text in documents, documents in token batches."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import sysconfig
import zlib
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "IGNORED",
    "Encoded",
    "PaddedDocuments",
    "batches",
    "encode_documents",
    "encode_text",
    "limited",
    "python_text",
    "read_text",
]

IGNORED = -100
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # no bool: a mask is no document
_LINES, _TABLES = (".jsonl", ".ndjson", ".jsonlines"), (".csv", ".tsv", ".parquet", ".arrow")
# Longer ones first: UTF-32's mark begins as that of UTF-16 does.
_MARKS = (
    ("utf-8", codecs.BOM_UTF8),
    ("utf-32-le", codecs.BOM_UTF32_LE),
    ("utf-32-be", codecs.BOM_UTF32_BE),
    ("utf-16-le", codecs.BOM_UTF16_LE),
    ("utf-16-be", codecs.BOM_UTF16_BE),
)
LONGEST = 1600  # characters of a document: about 400 tokens


class Encoded(NamedTuple):
    """Token ids of one document, and which of them are predicted."""

    tokens: list[int]
    labels: list[int]  # -100 where nothing is to be predicted


class PaddedDocuments(NamedTuple):
    """Padded documents."""

    tokens: Tensor  # (n, length) int64
    labels: Tensor  # (n, length) int64
    mask: Tensor  # (n, length) int64, 0 at padding

    def to(self, device: torch.device | str) -> PaddedDocuments:
        """The same elsewhere."""
        return PaddedDocuments(*(x.to(device) for x in self))


def encode_text(tokenizer: Any, text: str) -> Encoded:
    """Encode a document after the beginning-of-sequence token, if there is one; every later token is predicted."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = start + tokenizer(text, add_special_tokens=False)["input_ids"]
    return Encoded(tokens, [IGNORED, *tokens[1:]])


def encode_documents(documents: Iterable[Any], tokenizer: Any, vocab_size: int) -> Iterator[tuple[list[int], bool]]:
    """Yield the token ids of each document, and whether a mark was put before them here."""
    if isinstance(documents, (Mapping, UserDict)):
        raise _no_documents(documents)
    for document in [documents] if isinstance(documents, (str, Tensor)) else documents:
        if isinstance(document, str):
            if tokenizer is None:
                raise TypeError("tokenizer must be given for texts, got None.")
            yield _known(encode_text(tokenizer, document).tokens, vocab_size), tokenizer.bos_token_id is not None
            continue
        if isinstance(document, (Mapping, UserDict)):
            raise _no_documents(document)
        try:
            ids = torch.as_tensor(document)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_documents(document) from error
        if not (ids.numel() == 0 or ids.dtype in _INTEGERS) or ids.ndim not in (1, 2):
            raise TypeError(f"token ids must be integers (length,) or (n, length), got {ids.dtype} {ids.shape}.")
        rows = ids.tolist() if ids.ndim == 2 else [ids.tolist()]
        yield from ((_known(row, vocab_size), False) for row in rows)


def _no_documents(given: object) -> TypeError:
    hint = ": give its input_ids, a list for each document" if isinstance(given, (Mapping, UserDict)) else ""
    return TypeError(f"documents must be texts, lists of token ids or tensors, got {type(given).__name__}{hint}.")


def _known(ids: list[int], vocab_size: int) -> list[int]:
    """The same ids; the base model would read -1 as its last token, and -100 would be left out in silence."""
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise ValueError(f"token ids must be at least 0 and less than {vocab_size}, the vocabulary, got {wrong}.")
    return ids


def limited(
    documents: Iterable[tuple[list[int], bool]], longest: int, skip: int | None, most: int
) -> Iterator[Encoded]:
    """Yield documents, cut to ``longest`` tokens, until so many predictions count; skip those without any."""
    left = most
    for tokens, marked in documents:
        first = 1 + (int(marked) if skip is None else skip)
        kept = tokens[: min(longest, first + left)]
        if len(kept) > first:
            yield Encoded(kept, [IGNORED] * first + kept[first:])
            left -= len(kept) - first
        if not left:
            return


def batches(documents: Sequence[Encoded], size: int, pad: int) -> Iterator[PaddedDocuments]:
    """Yield documents in their order, ``size`` at a time, padded on the right to the longest."""
    for start in range(0, len(documents), size):
        part = documents[start : start + size]
        length = max(len(d.tokens) for d in part)

        def padded(rows: list[list[int]], fill: int, length: int = length) -> Tensor:
            return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

        yield PaddedDocuments(
            padded([d.tokens for d in part], pad),
            padded([d.labels for d in part], IGNORED),
            padded([[1] * len(d.tokens) for d in part], 0),
        )


def cut(text: str, characters: int = LONGEST) -> Iterator[str]:
    r"""Cut a text into pieces of at most so many characters, at the end of a paragraph where there is one.

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


def read_text(path: str | os.PathLike[str]) -> list[str]:
    """Read the documents of a file in UTF-8, or in what its byte-order mark says; unpack a name that ends in ``.gz``.

    The ending, in capitals or not, tells what is read: of ``.jsonl``, ``.ndjson`` and ``.jsonlines`` the field ``text``
    of each line; of ``.json`` that of one object or of each object of a list, a list of texts, or lines as above;
    anything else is a text, in pieces (``cut``).

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is empty, in another encoding, a table (``.csv``, ``.tsv``, ``.parquet``, ``.arrow``), or a
            line or object has no ``text``, or one that is no string.
    """
    path = Path(path)
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    packed = endings[-1:] == [".gz"]
    ending = ([""] + (endings[:-1] if packed else endings))[-1]
    if ending in _TABLES:
        raise ValueError(f"{path} must be text or JSON, got a table: write its texts as lines of a .jsonl file.")
    content = _decoded(path, packed)
    readers = {**dict.fromkeys(_LINES, _lines), ".json": _json}
    texts = readers[ending](path, content) if ending in readers else [content]
    documents = [piece for text in texts for piece in cut(text)]
    if not documents:
        raise ValueError(f"{path} must hold text, got an empty file.")
    return documents


def _decoded(path: Path, packed: bool) -> str:
    """The file as one text with Unix line ends, without its byte-order mark."""
    content = path.read_bytes()
    if packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} must be packed by gzip, got something else or a part: {error}.") from error
    encoding, mark = next((known for known in _MARKS if content.startswith(known[1])), ("utf-8", b""))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got something else: {error}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json(path: Path, content: str) -> list[str]:
    try:
        found = json.loads(content)
    except json.JSONDecodeError:
        return _lines(path, content)  # many a file of lines is called .json
    texts = list[str]()
    for number, item in enumerate(found if isinstance(found, list) else [found], start=1):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise ValueError(
                f"{path} must hold an object with text or a list of texts or of such objects, item {number} is none."
            )
        texts.append(text)
    return texts


def _lines(path: Path, content: str) -> list[str]:
    texts = []
    # JSON may hold line separators of Unicode: lines end at "\n" alone
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"every line of {path} must be a JSON object with text, line {number} is not.") from error
        if not isinstance(text, str):
            raise ValueError(f"text must be a string in every line of {path}, got {text!r:.40} in line {number}.")
        texts.append(text)
    return texts


def python_text() -> list[str]:
    """Read text that comes with Python: topics of its documentation and sources of its standard library, in turn.

    One piece of each topic and of each module, from its beginning (``cut``); pieces under 200 characters are left
    out.
    """
    topics = import_module("pydoc_data.topics").topics
    prose = [next(cut(topics[name]), "") for name in sorted(topics)]
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.glob("[!_]*.py")))
    code = [next(cut(re.sub(r"\A(#.*\n|\s)*", "", source)), "") for source in sources]  # no licence headers
    return [text for text in chain(*zip_longest(prose, code, fillvalue="")) if len(text) > 200]
