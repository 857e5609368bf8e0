"""A few questions and pairs that the project wrote itself, for tests and for a run that only shows that all works.

Apache-2.0, as the project. They are far too few and too easy to say anything of a model.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...lab.files import write_atomically

__all__ = ["write_sample"]

_WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
_OPPOSITES = {
    "hot": "cold", "up": "down", "light": "dark", "early": "late", "open": "shut", "wet": "dry", "old": "new",
    "loud": "quiet", "fast": "slow", "near": "far", "full": "empty", "high": "low", "soft": "hard", "thick": "thin",
}  # fmt: skip


def write_sample(folder: Path) -> tuple[Path, Path]:
    """Write ``sample_questions.jsonl`` and ``sample_tuning.jsonl`` into a folder, and return both.

    40 questions with four options, and some 150 pairs of instruction and response, in the schema of
    :mod:`analysis.study.real_tuning.files`.
    """
    opposites = list(_OPPOSITES.values())
    questions = []
    for i, (word, opposite) in enumerate(_OPPOSITES.items()):
        options = [opposite, *(opposites[(i + step) % len(opposites)] for step in (3, 5, 8))]
        questions.append((f"What is the opposite of {word}?", options))
    for i in range(26):
        a, b = i % 9 + 1, i // 2 % 7 + 1
        options = [_WORDS[a + b], *(_WORDS[a + b + step] for step in (-1, 1, 3))]
        questions.append((f"How much is {_WORDS[a]} and {_WORDS[b]}, number {i}?", options))
    rows = []
    for i, (question, options) in enumerate(questions):
        turn = i % 4
        turned = options[turn:] + options[:turn]
        rows.append({"question": question, "options": turned, "answer": turned.index(options[0])})
    pairs = [
        {"instruction": f"Count from {_WORDS[i]} to {_WORDS[j]}.", "input": "", "response": " ".join(_WORDS[i : j + 1])}
        for i in range(8)
        for j in range(i + 2, 18, 2)
    ]
    for a, b in _OPPOSITES.items():
        pairs.append({"instruction": "Say the first of these two.", "input": f"{a} {b}", "response": a})
        pairs.append({"instruction": "Say the second of these two.", "input": f"{a} {b}", "response": b})
    pairs += [{"instruction": f"Write {word} in digits.", "response": str(i)} for i, word in enumerate(_WORDS)]
    pairs += [{"instruction": f"Spell {word}.", "response": " ".join(word)} for word in _WORDS]
    for name, lines in (("sample_questions", rows), ("sample_tuning", pairs)):
        write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder / "sample_questions.jsonl", folder / "sample_tuning.jsonl"
