"""Saves hidden states and the head of a model for a benchmark: ``python -m analysis.language_models.saved_states``.

The text is Python's documentation and sources, cut into documents of 512 tokens. A run of them is for the measurement
(``hidden`` and ``target``, the token that came), those before and behind it for the order of a vocabulary (``sample``),
but for the one next to it on either side, with which it may share a page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..command import finish, parser_of, whole
from .documents import Encoded, python_text
from .features import head_of, hidden_states
from .loading import load_model
from .packaged import packaged_gemma, packaged_smollm2

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.language_models.saved_states gemma gemma.safetensors
  python -m analysis.language_models.saved_states model.gguf states.safetensors --ids ids.npz --device cuda
"""
_LENGTH = 512
# Rare classes are the most of a vocabulary, and a few thousand tokens hardly tell which of them are rarer.
_SAMPLE = 16384


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the model, write the file and return the exit status."""
    about = (__doc__ or "").partition(": ``")[0] + "."
    parser = parser_of("analysis.language_models.saved_states", about, _EXAMPLES)
    parser.add_argument("model", help="folder, GGUF file, hub name, or gemma or smollm2 for an installed package")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--tokens", type=whole(1), default=12288, help="predicted tokens at most (default 12288)")
    about_sample = f"tokens of other text at most, for an order (default {_SAMPLE})"
    parser.add_argument("--sample", type=whole(1), default=_SAMPLE, help=about_sample)
    parser.add_argument("--ids", type=Path, help="NumPy file with the text's token ids (ids), instead of a tokenizer")
    parser.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    from safetensors.torch import save_file

    packaged = {"gemma": packaged_gemma, "smollm2": packaged_smollm2}
    name = packaged[given.model]() if given.model in packaged else given.model
    name = Path(name) if Path(name).exists() else name
    loaded = load_model(name, with_tokenizer=given.ids is None)
    if given.ids is None:
        most = given.tokens + given.sample + 8 * _LENGTH  # whole documents, and those between the two parts
        text = "\n\n".join(python_text())[: 8 * most]
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        with np.load(given.ids) as stored:
            ids = stored["ids"].tolist()
    start = getattr(loaded.model.config, "bos_token_id", None)
    first = [] if start is None else [start]
    documents = [
        Encoded(first + piece, first + piece) for piece in (ids[i : i + _LENGTH] for i in range(0, len(ids), _LENGTH))
    ]
    predicted = _LENGTH - 1 + len(first)  # of a document
    measured, others = _parts(documents, -(-given.tokens // predicted), -(-given.sample // predicted))
    model = loaded.model.to(given.device)
    states, sample = (hidden_states(model, part, pad=0, batch_size=8) for part in (measured, others))
    tensors = {
        "hidden": states.hidden[: given.tokens].bfloat16(),
        "target": states.target[: given.tokens],
        "sample": sample.hidden[: given.sample].bfloat16(),
        "weight": head_of(model).weight.bfloat16(),
    }
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, given.output)
    for key, asked in (("hidden", given.tokens), ("sample", given.sample)):
        if len(tensors[key]) < asked:
            print(f"warning: the text is short: {key} has {len(tensors[key])} tokens of {asked}", file=sys.stderr)
    sizes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
    print(f"wrote {given.output}: {sizes}, {loaded.name}")
    return 0


def _parts(documents: Sequence[Encoded], number: int, sample: int) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
    """The documents that are measured, ``number`` or what there is, and as many of the sample."""
    begin = -(-number // 8)
    end = begin + number
    measured, others = documents[begin:end], [*documents[: begin - 1], *documents[end + 1 :]]
    if not measured or not others:
        least = end + 2 if begin == 1 else begin + 1  # the sample begins behind the measured ones, or before them
        raise ValueError(
            f"the text must have at least {least} documents of {_LENGTH} tokens to measure up to {number} of them, "
            f"got {len(documents)}."
        )
    return measured, others[:sample]


if __name__ == "__main__":
    sys.exit(main())
