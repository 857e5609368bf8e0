"""The world of S7: texts of known distribution, a shifted corner of it to tune on, and a model with a trained trunk."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernel import linear_cross_entropy

__all__ = ["FEATURES_IN", "Contexts", "Model", "World"]

FEATURES_IN = 24  # width of what the model sees of a context
_TEACHER_RANK = 32


class Contexts(NamedTuple):
    """Contexts with one token each and the known conditionals of that token."""

    inputs: Tensor  # (n, FEATURES_IN) float32
    tokens: Tensor  # (n,) int64
    conditionals: Tensor  # (n, V) float64


class World:
    """Broad contexts x ~ N(0, I) and shifted ones around a distant centre, each with a known conditional of the token.

    Broad: softmax of smooth random functions of x, logit std ``logit_std``, under a Zipf prior. Shifted ("the
    instruction format"): half the variance of its logits from the broad functions, which pretraining has learnt, half
    from new ones, sharpened to ``sharpness`` times the spread without a prior, so that the answer is nearly determined
    and few examples teach most of it. Both are continuous: contexts never repeat, and what a model says of new ones is
    generalisation.

    Args:
        vocab_size: V.
        seed: Of the functions.
        logit_std: Spread of the broad logits, in nats.
        sharpness: Spread of the shifted logits over ``logit_std``.
        shift: Distance of the shifted centre, in standard deviations of x.
    """

    def __init__(
        self, vocab_size: int, seed: int, *, logit_std: float = 2.5, sharpness: float = 4.0, shift: float = 2.0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.vocab_size, self.spread = vocab_size, (logit_std, sharpness * logit_std)
        centre = normal(FEATURES_IN)
        self.centre = shift * centre / centre.norm()
        self.inner = [normal(FEATURES_IN, _TEACHER_RANK) / FEATURES_IN**0.5 for _ in range(2)]
        self.outer = [normal(_TEACHER_RANK, vocab_size) / (0.45 * _TEACHER_RANK) ** 0.5 for _ in range(2)]
        self.prior = -torch.arange(1, vocab_size + 1, dtype=torch.float64).log()

    def draw(self, count: int, *, shifted: bool, generator: torch.Generator) -> Contexts:
        """New contexts with a sampled token each."""
        x = torch.randn(count, FEATURES_IN, generator=generator, dtype=torch.float64)
        broad, new = (torch.tanh(x @ inner) @ outer for inner, outer in zip(self.inner, self.outer, strict=True))
        if shifted:
            logits = self.spread[1] * (broad + new) / 2**0.5
            x = x + self.centre
        else:
            logits = self.spread[0] * broad + self.prior
        conditionals = logits.softmax(-1)
        tokens = torch.multinomial(conditionals, 1, generator=generator).squeeze(-1)
        return Contexts(x.float(), tokens, conditionals)


class Model(nn.Module):
    """Perceptron trunk, RMSNorm with a gain, linear head: the last layers of a language model in small.

    Args:
        vocab_size: V.
        hidden_size: D, of the features that the head sees.
        width: Of the trunk's two layers.
        dropout: Rate after each trunk layer, while training.
        seed: Of the first values.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, width: int = 128, dropout: float = 0.0, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(FEATURES_IN, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, hidden_size)
        self.norm = nn.RMSNorm(hidden_size)
        self.head = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for layer in (self.first, self.second, self.last):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
                layer.bias.zero_()
            self.head.copy_(0.5 * torch.randn(self.head.shape, generator=generator) / hidden_size**0.5)

    def hidden(self, inputs: Tensor) -> Tensor:  # (n, D)
        """Features of contexts."""
        x = self.dropout(torch.tanh(self.first(inputs)))
        x = x + self.dropout(torch.tanh(self.second(x)))
        return self.norm(self.last(x))

    def loss(self, inputs: Tensor, tokens: Tensor, **options: Any) -> Tensor:
        """Mean loss in nats through :func:`kernel.linear_cross_entropy`."""
        return linear_cross_entropy(self.hidden(inputs), self.head, tokens, **options)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:  # (n, V)
        """Logits in float64, without dropout."""
        training = self.training
        self.eval()
        hidden = self.hidden(inputs)
        self.train(training)
        return hidden.double() @ self.head.double().T
