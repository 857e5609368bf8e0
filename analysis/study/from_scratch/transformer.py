"""A small transformer with a bottleneck in front of its head: one trunk for every hidden size and vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernel import linear_cross_entropy

from ...checks import check_fields

__all__ = ["Transformer", "Trunk", "autocast_of"]


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Everything of a transformer but hidden size and vocabulary.

    Attributes:
        layers: Blocks of attention and perceptron.
        width: Of the residual stream.
        heads: Of attention.
        context: Most tokens read.
    """

    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 128

    def __post_init__(self) -> None:
        check_fields(self, layers=1, width=1, heads=1, context=1)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads = {self.heads}, got {self.width}.")


class _Block(nn.Module):
    """Attention to what came before, and a perceptron, each behind an RMSNorm."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.heads = trunk.heads
        self.before_attention = nn.RMSNorm(trunk.width)
        self.attention_in = nn.Linear(trunk.width, 3 * trunk.width, bias=False)
        self.attention_out = nn.Linear(trunk.width, trunk.width, bias=False)
        self.before_perceptron = nn.RMSNorm(trunk.width)
        self.perceptron_in = nn.Linear(trunk.width, 4 * trunk.width, bias=False)
        self.perceptron_out = nn.Linear(4 * trunk.width, trunk.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (n, length, width)
        joined = self.attention_in(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(seen.transpose(1, 2).flatten(-2))
        return x + self.perceptron_out(F.gelu(self.perceptron_in(self.before_perceptron(x))))


class Transformer(nn.Module):
    """Embedding, blocks, RMSNorm with a learned gain, a linear map to D, a head ``(V, D)`` without bias.

    Args:
        vocab_size: V.
        hidden_size: D, of the features that the head sees.
        trunk: The rest.
        tied: Whether the embedding is the head's rows, of width D, mapped to the width of the trunk.
        seed: Of the first values; those of the trunk depend on it alone.
    """

    def __init__(self, vocab_size: int, hidden_size: int, trunk: Trunk, *, tied: bool = False, seed: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(trunk.context, trunk.width))
        self.blocks = nn.ModuleList(_Block(trunk) for _ in range(trunk.layers))
        self.norm = nn.RMSNorm(trunk.width)
        self.bottleneck = nn.Linear(trunk.width, hidden_size, bias=False)
        self.head = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.embedding = None if tied else nn.Parameter(torch.empty(vocab_size, trunk.width))
        self.widening = nn.Linear(hidden_size, trunk.width, bias=False) if tied else None
        self._start(trunk, seed)

    @torch.no_grad()
    def _start(self, trunk: Trunk, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def fill(weight: Tensor, scale: float) -> None:
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))

        fill(self.position, 0.02)
        for name, weight in self.blocks.named_parameters():
            if weight.ndim == 2:  # what is added to the residual stream starts smaller the more is added
                fill(weight, weight.shape[1] ** -0.5 * ((2 * trunk.layers) ** -0.5 if "_out" in name else 1.0))
        fill(self.bottleneck.weight, trunk.width**-0.5)
        fill(self.head, 0.02)
        if self.embedding is not None:
            fill(self.embedding, 0.02)
        if self.widening is not None:
            fill(self.widening.weight, self.widening.in_features**-0.5)

    def hidden(self, tokens: Tensor) -> Tensor:  # (n, length, D)
        """Features after each token of sequences ``(n, length)``."""
        if self.embedding is not None:
            x = F.embedding(tokens, self.embedding)
        else:
            assert self.widening is not None
            x = self.widening(F.embedding(tokens, self.head))
        x = x + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.bottleneck(self.norm(x))

    def loss(self, sequences: Tensor, targets: Tensor | None = None, **options: Any) -> Tensor:
        """Mean loss of every token of ``(n, length + 1)`` but the first, through :func:`kernel.linear_cross_entropy`.

        On a GPU under bfloat16 autocast, by the fused kernels. ``targets``: others, ``(n, length)``, -100 for none.
        """
        targets = sequences[:, 1:] if targets is None else targets
        with autocast_of(sequences.device):
            return linear_cross_entropy(self.hidden(sequences[:, :-1]), self.head, targets, **options)


def autocast_of(device: torch.device) -> torch.autocast:
    """Bfloat16 on a GPU, nothing elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
