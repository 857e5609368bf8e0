"""Commands that cut files into a model's tokens, and that compare a model with the one they were cut for."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from ...lab.files import check_writable
from .token_files import TokenFile, encode, file_facts, read_tokens, write_tokens

__all__ = ["encoded", "model_file", "run_check", "run_encode"]

_CLOSE = 0.05  # nats by which the cross entropy on the checked pieces may differ


def model_file(name: str) -> Path:
    """Where a model lies: of a package, or a path that exists.

    Raises:
        FileNotFoundError: If there is neither.
    """
    from ...language_models import packaged_gemma, packaged_smollm2

    packaged = {"gemma": packaged_gemma, "smollm2": packaged_smollm2}
    if name in packaged:
        return packaged[name]()
    if not Path(name).exists():
        raise FileNotFoundError(f"MODEL must be gemma, smollm2, a folder or a GGUF file, got {name}: no such file.")
    return Path(name)


def run_encode(options: argparse.Namespace) -> int:
    """Write the file of token ids, and say what is in it."""
    from ...language_models import python_text, read_text

    check_writable(options.tokens)
    texts = python_text() if options.text == "python" else read_text(Path(options.text))
    text = "documentation and standard library of Python" if options.text == "python" else Path(options.text).name
    known = encoded(
        model_file(options.model),
        options.questions,
        options.tuning,
        texts,
        text,
        options.max_length,
        not options.no_check,
    )
    write_tokens(known, options.tokens)
    parts = Counter(pair.part for pair in known.pairs)
    asked = Counter((q.source, q.part) for q in known.questions)
    print("pairs: " + ", ".join(f"{count} {part}" for part, count in sorted(parts.items())))
    for (source, part), count in sorted(asked.items()):
        print(f"{source}: {count} {part}")
    used = int((known.shares() > 0).sum())
    left_out = known.facts["questions_left_out"]
    print(f"{used} tokens of {known.facts['vocab_size']} occur; {left_out} questions are too long")
    if not options.no_check:
        print(f"cross entropy on the checked pieces: {known.facts['checked_cross_entropy']:.4f} nats")
    print(f"wrote {options.tokens}: {known.digest}")
    return 0


def encoded(
    model: Path,
    questions: Sequence[Path],
    tuning: Sequence[Path],
    texts: Sequence[str],
    text: str,
    max_length: int,
    check: bool,
) -> TokenFile:
    """Everything in a model's tokens.

    Args:
        model: Folder or GGUF file.
        questions: Files of multiple choice.
        tuning: Files of pairs.
        texts: Ordinary text.
        text: What that is, for the record.
        max_length: Tokens of a document.
        check: Whether to measure the model on the pieces that it is to be checked by.
    """
    import transformers  # pyright: ignore[reportMissingImports]

    from ...language_models import load_model
    from .files import read_choices, read_pairs
    from .pair_tuning import checked_cross_entropy

    asked, question_files = read_choices(questions)
    pairs, tuning_files = read_pairs(tuning)
    topics = import_module("pydoc_data.topics").topics
    loaded = load_model(model)
    facts = {
        "model": loaded.name,
        "revision": loaded.revision,
        "quantisation": loaded.quantisation,
        "licence": loaded.licence,
        "vocab_size": loaded.model.get_input_embeddings().num_embeddings,
        "transformers": transformers.__version__,
        "files": {"questions": file_facts(question_files), "tuning": file_facts(tuning_files)},
        "text": text,
        "checked_cross_entropy": None,
    }
    checked = "\n\n".join(topics[name] for name in sorted(topics))[:20_000]
    made = partial(encode, loaded.tokenizer, pairs, asked, texts, checked, max_length=max_length)
    known = made(facts)
    return made({**facts, "checked_cross_entropy": checked_cross_entropy(loaded.model, known)[0]}) if check else known


def run_check(options: argparse.Namespace) -> int:
    """Measure the model on the pieces that it is checked by; 1 where it is not what it was."""
    from ...language_models import load_model
    from .pair_tuning import checked_cross_entropy

    known, path = read_tokens(options.tokens), model_file(options.model)
    loaded = load_model(path, with_tokenizer=False)
    found, accuracy = checked_cross_entropy(loaded.model.to(options.device), known)
    if options.device.startswith("cuda"):
        half, _ = checked_cross_entropy(loaded.model, known, autocast=True)
        print(f"{half:.4f} nats under bfloat16 autocast, as runs are")
    expected = known.facts["checked_cross_entropy"]
    print(
        f"{loaded.name} ({loaded.revision}): {found:.4f} nats, accuracy {accuracy:.3f} on {options.device} in float32"
    )
    if loaded.revision != known.facts["revision"]:
        raise ValueError(f"MODEL must be the one of {options.tokens} ({known.facts['revision']}), got another file.")
    if expected is None:
        print("TOKENS does not say what it was when it was encoded (--no-check)")
        return 1
    close = math.isclose(found, expected, abs_tol=_CLOSE)
    print(f"{'as' if close else 'NOT as'} under transformers {known.facts['transformers']}: {expected:.4f} nats")
    return int(not close)
