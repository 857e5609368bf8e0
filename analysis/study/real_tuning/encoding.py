"""From questions to tokens, and the model that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...language_models import load_model
from ...language_models.documents import IGNORED, Encoded
from .questions import LETTERS, Question

__all__ = ["encode_question", "letter_tokens", "load"]


def load(path: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer from a local folder of safetensors or from a GGUF file; never from a network."""
    loaded = load_model(Path(path))
    return loaded.model, loaded.tokenizer


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


def letter_tokens(tokenizer: Any) -> list[int]:
    """Token of each option letter at the start of an answer.

    Raises:
        ValueError: If a letter is not a single token.
    """
    found = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS]
    if any(len(ids) != 1 for ids in found):
        raise ValueError(f"tokenizer must have one token for each of {LETTERS}, got {found}.")
    return [ids[0] for ids in found]
