"""A training step of a whole model with its own loss and the fused one: ``python -m kernel.benchmark.training_step``.

A random Llama of SmolLM2-135M's shape (hidden 576, vocabulary 49152, 30 layers), forward and backward, under bfloat16
autocast on a GPU. Writes peak memory and time to a table and a description of the machine beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..huggingface import fuse_loss
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .measure import peak_bytes, turn
from .tables import Report

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.training_step --output paper_figures/data/training_step.csv   the committed table again
  python -m kernel.benchmark.training_step --device cpu --tokens 512 --scale 8 --rounds 2 --output /tmp/table.csv
"""
_SEQUENCE = 2048
# (name, label smoothing, fused): transformers smooths the labels of full logits.
_LOSSES = (
    ("model's own", 0.0, False),
    ("transformers LabelSmoother", 0.1, False),
    ("kernel.huggingface", 0.0, True),
    ("kernel.huggingface", 0.1, True),
)


def _model(scale: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(49152 // scale, 64),
        hidden_size=64 * max(9 // scale, 1),
        intermediate_size=max(1536 // scale, 64),
        num_hidden_layers=max(30 // scale, 1),
        num_attention_heads=max(9 // scale, 1),
        num_key_value_heads=3 if scale == 1 else 1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def _step(model: Any, tokens: Tensor, label_smoothing: float, fused: bool) -> Callable[[], Tensor]:
    """Forward and backward; gradients stay allocated, as an optimiser with ``set_to_none=False`` would leave them."""
    from transformers.trainer_pt_utils import LabelSmoother  # pyright: ignore[reportMissingImports]

    device = tokens.device.type

    def step() -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            if label_smoothing and not fused:
                outputs = model(input_ids=tokens, use_cache=False)
                loss = LabelSmoother(epsilon=label_smoothing)(outputs, tokens, shift_labels=True)
            else:
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return step


def _measure(tokens: Tensor, scale: int, rounds: int) -> Iterator[dict[str, object]]:
    model = _model(scale).to(tokens.device).train()
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        for name, label_smoothing, fused in _LOSSES:
            step = _step(model, tokens, label_smoothing, fused)
            with fuse_loss(model, label_smoothing=label_smoothing) if fused else nullcontext():
                loss = step().item()  # also compiles, and allocates the gradients
                peak = peak_bytes(step, tokens.device)
                times = [turn(step, tokens.device, before=step).ms for _ in range(rounds)]
            yield {
                "loss": name,
                "label_smoothing": label_smoothing,
                "checkpointing": checkpointing,
                "tokens": tokens.numel(),
                "vocab_size": model.config.vocab_size,
                "hidden_size": model.config.hidden_size,
                "layers": model.config.num_hidden_layers,
                "value": round(loss, 5),
                "peak_mib": None if peak is None else round(peak / 2**20, 1),
                "ms": round(statistics.median(times), 2),
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.training_step", __doc__, _EXAMPLES)
    parser.add_argument("--tokens", type=whole(2), default=16384, help="tokens a step (default: %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed steps of each loss (default: %(default)s)")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide the model's sizes by this, for a trial")
    add_places(parser, "training_step")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given)
    length = min(_SEQUENCE, given.tokens)
    generator = torch.Generator().manual_seed(0)
    vocab_size = max(49152 // given.scale, 64)
    tokens = torch.randint(vocab_size, (given.tokens // length, length), generator=generator).to(device)
    config = {"tokens": given.tokens, "rounds": given.rounds, "scale": given.scale}
    config |= {"autocast": "bfloat16" if device.type == "cuda" else None}
    output = output_of(given, "training_step")
    with Report(output, command=command, config=config, device=device) as report:
        measured = _measure(tokens, given.scale, given.rounds)
        for row in tqdm(measured, total=2 * len(_LOSSES), unit="row", disable=None):
            report.add(row)
            tqdm.write(str(row))
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
