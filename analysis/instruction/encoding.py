"""From questions and text to token batches, and the model from a local folder or GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .questions import LETTERS, Question

__all__ = ["Batch", "Encoded", "batches", "encode_question", "encode_text", "letter_tokens", "load"]

IGNORED = -100


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


def load(path: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer from a local folder of safetensors or from a GGUF file; never from a network.

    Raises:
        ImportError: If transformers is missing, or gguf for a GGUF file.
        OSError: If there is no model at ``path``.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("a model needs transformers: pip install 'confidence-ceiling[instruction]'") from error
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"model must be a folder or a GGUF file, got {path}, which does not exist.")
    folder, options = path, {"local_files_only": True}
    if path.is_file():
        folder, options = path.parent, {**options, "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=path.is_dir(), **options)
    return model.eval(), tokenizer


def encode_question(tokenizer: Any, question: Question) -> Encoded:
    """The chat up to the answer, then the answer and the end of its turn, which alone are predicted.

    The end of the turn is what the chat template puts there: the end-of-sequence token that a tokenizer read from a
    GGUF file claims to have differs between versions of transformers.

    Raises:
        ValueError: If the chat with the answer does not begin with the chat that asks for it.
    """
    asked = [{"role": "user", "content": question.prompt}]
    answered = [*asked, {"role": "assistant", "content": question.answer}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(
            f"the chat template must put the answer after its generation prompt {prompt!r}, got {whole!r}."
        )
    given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(whole[len(prompt) :].rstrip(), add_special_tokens=False)["input_ids"]
    return Encoded(given + answer, [IGNORED] * len(given) + answer)


def encode_text(tokenizer: Any, text: str) -> Encoded:
    """A document after the beginning-of-sequence token, if there is one; every later token is predicted."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = start + tokenizer(text, add_special_tokens=False)["input_ids"]
    return Encoded(tokens, [IGNORED, *tokens[1:]])


def letter_tokens(tokenizer: Any) -> list[int]:
    """Token of each option letter at the start of an answer.

    Raises:
        ValueError: If a letter is not a single token.
    """
    found = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS]
    if any(len(ids) != 1 for ids in found):
        raise ValueError(f"tokenizer must have one token for each of {LETTERS}, got {found}.")
    return [ids[0] for ids in found]


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
