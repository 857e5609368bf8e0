"""Whether a tokenizer that was rebuilt from a GGUF file cuts text as the file's own pieces say.

transformers rebuilds a tokenizer from the lists of a GGUF file, by rules that differ between its versions. Version 5.17
made one of Gemma 3's file that cuts "assert" into three pieces, where the file has it as one; nothing failed, and the
cross entropy of the model rose from 2.75 to 4.5 nats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .gguf_files import GgufFacts

__all__ = ["check_tokenizer", "known_words"]

_NORMAL = 1  # type of a piece that is neither a mark, nor a byte, nor unused
_WORD = re.compile(r"[▁Ġ]([a-z]{4,})")  # as SentencePiece and byte-level BPE write a space before a word
_WORDS = 400  # asked for, spread over the vocabulary
_MOST_CUT = 0.05  # share of them that may be cut: some pieces of a trained vocabulary are never reached
_TEXT = "Text, with  spaces:\n\tx = [1.5, 'two'] + \"three\"  # café\n\nA second (short) paragraph; it ends here."


def known_words(facts: GgufFacts) -> dict[str, int]:
    """Words of small letters that the file has as one piece with the space before them, and the piece's id.

    Example:
        >>> known_words(GgufFacts({"tokenizer.ggml.tokens": ["<s>", "▁word", "▁Name", "▁an", "Ġother"]}, {}))
        {'word': 1, 'other': 4}
    """
    pieces: Sequence[str] = facts.fields.get("tokenizer.ggml.tokens", ())
    kinds: Sequence[int] = facts.fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(pieces))
    found = {}
    for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        word = _WORD.fullmatch(piece) if kind == _NORMAL else None
        if word:
            found[word[1]] = i
    return found


def check_tokenizer(tokenizer: Any, facts: GgufFacts, name: str, version: str) -> None:
    """Refuse a tokenizer that cuts words which its file has whole, or that does not give a text back.

    A file that has no word of :func:`known_words` as one piece is checked by the latter alone.

    Args:
        tokenizer: As it was rebuilt from the file.
        facts: What the file says.
        name: Of the file, for the message.
        version: Of transformers, for the message.

    Raises:
        OSError: If more than 5 % of some hundred words of the file come out cut, or as another piece; or a text of
            words, numbers, code and spaces is another one after it was encoded and decoded.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    words = list(known_words(facts).items())
    asked = words[:: max(1, len(words) // _WORDS)]
    cut = [(word, i) for word, i in asked if encode(f"the {word}")[-1:] != [i]]
    why = ""
    if len(cut) > _MOST_CUT * len(asked):
        word = cut[0][0]
        pieces = tokenizer.convert_ids_to_tokens(encode(f"the {word}"))
        why = f"{len(cut)} of {len(asked)} words that the file has as one piece come out otherwise, 'the {word}' as "
        why += f"{pieces}"
    else:
        back = tokenizer.decode(encode(_TEXT), clean_up_tokenization_spaces=False)
        if back.strip(" ") != _TEXT:  # some put a space before a text
            why = f"{_TEXT!r} comes back as {back!r}"
    if why:
        raise OSError(
            f"the tokenizer of {name} must cut text as the file's own pieces say, but transformers {version} rebuilds "
            f"it so that {why}. Use another version of transformers, or make token ids under one that passes, and "
            "bring them along (python -m analysis.real_tuning encode)."
        )
