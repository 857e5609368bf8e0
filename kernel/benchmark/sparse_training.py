"""A tiny model trained with dense and with sparse gradients, on text: ``python -m kernel.benchmark.sparse_training``.

Predicts the next word of Python's documentation from the three before it: their embeddings, one hidden layer, a linear
head over the words in order of frequency. Each seed trains with exact gradients and within a tolerance, smoothed and
not, from the same start and in the same order of batches; the table has the loss, without smoothing, on the last tenth
of the text, over all words and over rare ones, which occur at most three times in what was trained on. "change" is the
largest of a seed's, "spread" the standard deviation over seeds of the exact runs.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .. import GradientTolerance, linear_cross_entropy
from .command import add_places, finish, output_of, parser_of, typed, whole
from .tables import Report

__all__ = ["main", "train", "words"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.sparse_training --output /tmp/sparse_training.csv     minutes, no GPU
  python -m kernel.benchmark.sparse_training --steps 20 --seeds 1 --output /tmp/sparse_training.csv
"""
_CONTEXT, _SIZE, _BATCH, _RARE = 3, 32, 1024, 3
TOLERANCES, SMOOTHINGS = (0.0, 0.03), (0.0, 0.1)


def words(vocab_size: int) -> Tensor:
    """Python's documentation as numbers of words, the most frequent first; the last number is for all other words."""
    topics = import_module("pydoc_data.topics").topics
    text = re.findall(r"\w+|[^\w\s]", "\n".join(topics[name] for name in sorted(topics)))
    known = {word: i for i, (word, _) in enumerate(Counter(text).most_common(vocab_size - 1))}
    return torch.tensor([known.get(word, vocab_size - 1) for word in text])


class _TokenModel(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, _SIZE)
        self.layers = nn.Sequential(nn.Linear(_CONTEXT * _SIZE, 128), nn.GELU(), nn.Linear(128, _SIZE))
        self.head = nn.Parameter(torch.randn(vocab_size, _SIZE) / _SIZE**0.5)

    def forward(self, context: Tensor) -> Tensor:
        return self.layers(self.embedding(context).flatten(1))


def train(
    text: Tensor, vocab_size: int, *, smoothing: float, tolerance: float, seed: int, steps: int
) -> dict[str, float]:
    """Train one model; return its losses in nats and the mean share of active tiles of both gradients."""
    torch.manual_seed(seed)
    model = _TokenModel(vocab_size)
    context, target = text.unfold(0, _CONTEXT + 1, 1).split((_CONTEXT, 1), 1)
    target = target.squeeze(1)
    border = len(target) * 9 // 10
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    told, shares = GradientTolerance(tolerance), []
    for _ in range(steps):
        batch = torch.randint(border, (_BATCH,))
        options = {"label_smoothing": smoothing, "implementation": "chunked", "gradient_tolerance": told}
        loss = linear_cross_entropy(model(context[batch]), model.head, target[batch], **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append((told.input_active, told.weight_active))
    with torch.no_grad():
        hidden = model(context[border:])
        unseen = linear_cross_entropy(hidden, model.head, target[border:], reduction="none", implementation="chunked")
    rare = torch.bincount(target[:border], minlength=vocab_size)[target[border:]] <= _RARE
    active = [statistics.fmean(column) for column in zip(*shares, strict=True)]
    return {
        "loss": unseen.mean().item(),
        "rare_loss": unseen[rare].mean().item(),
        "input_active": active[0],
        "weight_active": active[1],
    }


def _rows(vocab_size: int, steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    text = words(vocab_size)
    for smoothing in SMOOTHINGS:
        exact: list[dict[str, float]] = []
        for tolerance in TOLERANCES:
            options: dict[str, Any] = {"smoothing": smoothing, "tolerance": tolerance, "steps": steps}
            found = [train(text, vocab_size, **options, seed=seed) for seed in range(seeds)]
            exact = exact or found

            def column(name: str, of: list[dict[str, float]] = found) -> list[float]:
                return [one[name] for one in of]

            row: dict[str, Any] = {"label_smoothing": smoothing, "tolerance": tolerance, "seeds": seeds}
            for name in ("loss", "rare_loss"):
                before = column(name, exact)
                row[name] = f"{statistics.fmean(column(name)):.4f}"
                changes = [a - b for a, b in zip(column(name), before, strict=True)]
                row[f"{name}_change"] = f"{max(changes, key=abs):+.4f}"  # the largest of a seed
                row[f"{name}_spread"] = f"{statistics.stdev(before) if seeds > 1 else 0:.4f}"
            for name in ("input_active", "weight_active"):
                row[name] = f"{statistics.fmean(column(name)):.3f}"
            yield row


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.sparse_training", __doc__, _EXAMPLES)
    parser.add_argument("--vocab-size", type=whole(2), default=4096, help="words (default 4096)")
    parser.add_argument("--steps", type=whole(1), default=120, help="of training, of 1024 words each (default 120)")
    parser.add_argument("--seeds", type=whole(1), default=3, help="runs of each setting (default 3)")
    add_places(parser, "sparse_training", device=False)
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    output = output_of(given, "sparse_training")
    config = {"vocab_size": given.vocab_size, "steps": given.steps, "seeds": given.seeds}
    seeds = list(range(given.seeds))
    with Report(output, command=command, config=config, device=torch.device("cpu"), seeds=seeds) as report:
        for row in _rows(given.vocab_size, given.steps, given.seeds):
            report.add(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
