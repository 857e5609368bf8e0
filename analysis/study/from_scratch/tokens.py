"""Byte-level tokens of S12, and what is measured in them: the same bytes whatever the vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checks import pip_install
from ...lab.files import write_atomically
from .corpus import Corpus

__all__ = ["encoded_pairs", "excerpts", "fitting", "token_bytes", "tokenizer_in", "tokenizer_of"]

_IGNORED = -100
_START = "\n"  # what measured text is read after: a word of its own at every V


def tokenizer_of(corpus: Corpus, vocab_size: int, most: int) -> Any:
    """Train byte-level pair encoding of exactly V tokens on at most so many characters of the text.

    Tokens of a larger V are those of a smaller one and further ones, so that no text has more of them.

    Raises:
        ValueError: If the text is too short for V.
    """
    try:
        from tokenizers import ByteLevelBPETokenizer, Tokenizer
    except ImportError as error:
        raise ModuleNotFoundError(f"S12 needs tokenizers: {pip_install('huggingface')}") from error
    made = ByteLevelBPETokenizer()
    pieces = corpus.text[: max(1, most // len(corpus.text[0]))]
    made.train_from_iterator(pieces, vocab_size=vocab_size, min_frequency=1, show_progress=False)
    if made.get_vocab_size() != vocab_size:
        raise ValueError(f"text must have {vocab_size} tokens to find, got {made.get_vocab_size()}.")
    return Tokenizer.from_str(made.to_str())


def tokenizer_in(folder: Path | None, corpus: Corpus, vocab_size: int, most: int) -> Any:
    """:func:`tokenizer_of`, from the file of a folder where an earlier call left it; None keeps none."""
    if folder is None:
        return tokenizer_of(corpus, vocab_size, most)
    name = hashlib.sha256(f"1 {corpus.digest} {vocab_size} {most}".encode()).hexdigest()[:20]  # 1: the version
    path = folder / f"tokenizer_{vocab_size}_{name}.json"
    if path.exists():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    made = tokenizer_of(corpus, vocab_size, most)
    write_atomically(path, made.to_str())
    return made


def token_bytes(tokenizer: Any) -> Tensor:  # (V,) int64
    """Bytes that each token stands for: its byte-level form has one character for each."""
    return torch.tensor([len(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())])


def fitting(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], length: int, most: int
) -> list[tuple[str, str]]:  # fmt: skip
    """Pairs of at most ``length`` tokens, responses cut to ``most`` bytes; of the smallest V they fit at each.

    Raises:
        ValueError: If there is none.
    """
    cut = [(prompt, response.encode()[:most].decode(errors="ignore")) for prompt, response in pairs]
    found = [pair for pair in cut if sum(len(tokenizer.encode(part).ids) for part in pair) <= length]
    if not found:
        raise ValueError(f"pairs must be of at most {length} tokens, responses cut to {most} bytes, got none.")
    return found


def excerpts(pieces: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Pieces of text cut to ``most`` bytes, as responses to the end of a line, so that every byte is predicted.

    The beginnings of all pieces come first, then what follows ``most`` characters later.
    """
    starts = range(0, max(map(len, pieces)), most)
    found = [
        piece[start : start + most].encode()[:most].decode(errors="ignore") for start in starts for piece in pieces
    ]
    return [(_START, text) for text in found if text]


def encoded_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], length: int) -> tuple[Tensor, Tensor]:
    """Sequences ``(n, length + 1)`` of prompt and response, and targets ``(n, length)``, -100 but for the response.

    Raises:
        ValueError: If a pair is longer.
    """
    sequences, targets = [], []
    for prompt, response in pairs:
        asked, said = tokenizer.encode(prompt).ids, tokenizer.encode(response).ids
        padding = length + 1 - len(asked) - len(said)
        if padding < 0:
            raise ValueError(f"pairs must be of at most {length + 1} tokens, got one of {length + 1 - padding}.")
        sequences.append(asked + said + [0] * padding)
        targets.append([_IGNORED] * (len(asked) - 1) + said + [_IGNORED] * padding)
    return torch.tensor(sequences), torch.tensor(targets)
