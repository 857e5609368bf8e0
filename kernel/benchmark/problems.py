"""Heads of real sizes with hidden states whose logits are as peaked as a trained model's, or both read from a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..vocabulary_order import VocabularyOrder, mean_probabilities, sort_vocabulary

__all__ = ["SHAPES", "Data", "Shape", "make_data", "read_both_orders", "read_states"]


@dataclass(frozen=True)
class Shape:
    """Tokens N, vocabulary V and hidden size D of a head."""

    name: str
    n: int
    vocab_size: int
    hidden_size: int
    plain: bool = False  # measured without softcap and with gradients alone

    def divided(self, by: int) -> Shape:
        """The shape with N, V and D divided, each at least 2: a trial's."""
        return replace(self, **{name: max(getattr(self, name) // by, 2) for name in ("n", "vocab_size", "hidden_size")})


SHAPES = (
    Shape("Gemma-2-2B", 8192, 256000, 2304),
    Shape("Llama-3-8B", 4096, 128256, 4096),
    Shape("Qwen2.5-0.5B", 16384, 151936, 896),
    Shape("SmolLM2-135M", 16384, 49152, 576),
    Shape("GPT-2", 8192, 50257, 768),
    Shape("Gemma-3-270M", 12288, 262144, 640, plain=True),
    Shape("Qwen2.5-7B", 6000, 152064, 3584, plain=True),
    Shape("Qwen3-8B", 8192, 151936, 4096, plain=True),
    Shape("V 248320, D 2048", 16384, 248320, 2048, plain=True),
    Shape("V 262144, D 4096", 8192, 262144, 4096, plain=True),
)


@dataclass(frozen=True)
class Data:
    """Inputs of one problem; hidden states and head are leaves that require gradients."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    target: Tensor  # (N,)


def make_data(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Data:
    """Zipf-distributed targets, a unigram prior in the logits, and evidence for the target that varies by token.

    One direction of the hidden space holds the centred log frequency of each word; the others are random, with logits
    of standard deviation 1.5. The target's logit gains 6 nats on average, with a spread of 3: the cross-entropy comes
    out near 3 nats.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, generator=generator)

    frequency = 1 / torch.arange(1, shape.vocab_size + 1, device=device, dtype=torch.float32)
    target = torch.multinomial(frequency, shape.n, replacement=True, generator=generator)
    weight = normal(shape.vocab_size, shape.hidden_size) / shape.hidden_size**0.5
    evidence = 6 + 3 * normal(shape.n, 1)
    hidden = 1.5 * normal(shape.n, shape.hidden_size)
    hidden += evidence * weight[target] / weight[target].square().sum(-1, keepdim=True)
    balance = shape.hidden_size**0.25  # between the scales of the two factors of the prior
    weight[:, 0] = (frequency.log() - frequency.log().mean()) / balance
    hidden[:, 0] = balance
    return Data(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target)


def read_states(path: Path, tokens: int, device: torch.device) -> tuple[Data, Data]:
    """Read hidden states and head; return them with the vocabulary sorted, and as they are.

    The file is safetensors with ``hidden`` (n, D), ``weight`` (V, D), ``target`` (n,) and, for the order, ``sample``
    (m, D), hidden states of other text.

    Raises:
        ImportError: If safetensors is not installed.
        ValueError: If a tensor is missing.
    """
    return read_both_orders(path, tokens, device)[:2]


def read_both_orders(path: Path, tokens: int, device: torch.device) -> tuple[Data, Data, VocabularyOrder]:
    """As :func:`read_states`, with the order that makes the first of the second."""
    from safetensors.torch import load_file

    found = load_file(path)
    if missing := {"hidden", "weight", "target", "sample"} - found.keys():
        raise ValueError(
            f"{path} must hold hidden, weight, target and sample; {', '.join(sorted(missing))} is missing."
        )
    hidden, weight, target, sample = (found[name].to(device) for name in ("hidden", "weight", "target", "sample"))
    times = -(-tokens // len(hidden))
    hidden, target = hidden.repeat(times, 1)[:tokens], target.long().repeat(times)[:tokens]
    order = sort_vocabulary(mean_probabilities(sample.float(), weight.float()), weight)

    def leaf(t: Tensor) -> Tensor:
        return t.detach().contiguous().clone().requires_grad_()

    own_order = Data(leaf(hidden), leaf(weight), target)
    return Data(own_order.hidden, leaf(order.rows(weight)), order.places(target)), own_order, order
