"""The language of S11: a hidden Markov chain whose next token has a distribution that is known exactly, at any V.

States emit *classes*; a vocabulary says which tokens a class has. Everything that memory and difficulty depend on
happens between classes, so that V can grow without changing it: by splitting each class into symbols of known weights,
or by tokens that never occur. The distribution of a token is that of its class times its weight within the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_fields, check_int, check_number

__all__ = ["Language", "Vocabulary", "broad_language", "shifted_language"]

_NOISE = 2.0  # std of what moves a class in a state's order, in units of the logarithm of its rank


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens of classes: class c has the tokens c * split to (c + 1) * split - 1; dead tokens come last.

    Attributes:
        classes: Number of classes.
        split: Live tokens of each class.
        exponent: Of the Zipf weights within a class.
        dead: Tokens that never occur.

    Example:
        >>> words = Vocabulary(classes=2, split=2, exponent=1.0, dead=1)
        >>> words.size, words.weights().tolist()
        (5, [0.6666666666666666, 0.3333333333333333])
        >>> words.spread(torch.tensor([[0.6, 0.4]], dtype=torch.float64)).round(decimals=3).tolist()
        [[0.4, 0.2, 0.267, 0.133, 0.0]]
    """

    classes: int
    split: int = 1
    exponent: float = 2.0
    dead: int = 0

    def __post_init__(self) -> None:
        check_fields(self, classes=1, split=1, dead=0)
        check_number("exponent", self.exponent, 0)

    @property
    def size(self) -> int:
        """V."""
        return self.classes * self.split + self.dead

    def weights(self) -> Tensor:  # (split,)
        """Probability of each token within its class."""
        weights = torch.arange(1, self.split + 1, dtype=torch.float64) ** -self.exponent
        return weights / weights.sum()

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens of these classes, of the same shape."""
        if self.split == 1:
            return classes
        u = torch.rand(classes.shape, generator=generator, device=classes.device, dtype=torch.float64)
        bounds = self.weights().cumsum(0)[:-1].to(classes.device)
        return classes * self.split + torch.searchsorted(bounds, u, right=True)

    def spread(self, classes: Tensor) -> Tensor:  # (n, V)
        """Distributions of tokens from those of classes ``(n, classes)``: for a block of contexts."""
        live = (classes.unsqueeze(-1) * self.weights().to(classes)).flatten(-2)
        return torch.nn.functional.pad(live, (0, self.dead))


class Language:
    """A stationary hidden Markov chain over S states that emit classes.

    Args:
        transition: ``(S, S)``, rows sum to 1.
        emission: ``(S, classes)``, rows sum to 1.

    Raises:
        ValueError: If rows are no distributions or shapes do not fit.
    """

    def __init__(self, transition: Tensor, emission: Tensor) -> None:
        states = len(transition)
        if transition.shape != (states, states) or emission.ndim != 2 or len(emission) != states:
            raise ValueError(
                "transition and emission must have the shapes (S, S) and (S, classes), got "
                f"{tuple(transition.shape)} and {tuple(emission.shape)}."
            )
        for name, rows in (("transition", transition), ("emission", emission)):
            if not ((rows >= 0).all() and torch.allclose(rows.sum(-1), torch.ones(states, dtype=rows.dtype))):
                raise ValueError(f"{name} must have rows of at least 0 that sum to 1.")
        self.transition, self.emission = transition.double(), emission.double()
        self.start = _stationary(self.transition)

    @property
    def unigram(self) -> Tensor:  # (classes,)
        """Probability of each class anywhere."""
        return self.start @ self.emission

    def to(self, device: str | torch.device) -> Language:
        """The same language with its tensors there."""
        moved = object.__new__(Language)
        for name in ("transition", "emission", "start"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def draw(self, count: int, length: int, generator: torch.Generator) -> Tensor:  # (count, length) int64
        """Sequences of classes, each from the stationary start, on the device of the generator."""
        device = generator.device
        start, transition, emission = (
            x.cumsum(-1).to(device) for x in (self.start.unsqueeze(0), self.transition, self.emission)
        )
        drawn = torch.empty(count, length, dtype=torch.int64, device=device)
        u = torch.rand(2, length, count, 1, generator=generator, device=device, dtype=torch.float64)
        state = _inverse(start.expand(count, -1), u[0, 0])
        for t in range(length):
            if t:
                state = _inverse(transition[state], u[0, t])
            drawn[:, t] = _inverse(emission[state], u[1, t])
        return drawn

    def conditionals(self, classes: Tensor) -> Tensor:  # (n, length, classes) float64
        """Distribution of the class that follows each prefix of sequences ``(n, length)``, by forward filtering.

        With belief a_t over states given the first t classes, a_t is proportional to (a_{t-1} A) * E[:, c_t], and the
        next class has a_t A E.
        """
        seen = self.emission.T[classes]  # (n, length, S)
        belief, following = self.start, self.emission.new_empty(*classes.shape, self.emission.shape[1])
        for t in range(classes.shape[1]):
            belief = belief * seen[:, t]
            belief = belief / belief.sum(-1, keepdim=True) @ self.transition
            following[:, t] = belief @ self.emission
        return following


def _inverse(cumulative: Tensor, u: Tensor) -> Tensor:
    """The first place where the cumulative sum passes u, ``(n,)``; rounding must not lead past the end."""
    return torch.searchsorted(cumulative.contiguous(), u, right=True).squeeze(-1).clamp_max(cumulative.shape[-1] - 1)


def _stationary(transition: Tensor) -> Tensor:
    """Distribution that the chain keeps: a least-squares solution of a A = a that sums to 1."""
    states = len(transition)
    system = torch.cat([transition.T - torch.eye(states, dtype=torch.float64), torch.ones(1, states).double()])
    wanted = torch.zeros(states + 1, 1, dtype=torch.float64)
    wanted[-1] = 1
    found = torch.linalg.lstsq(system, wanted, driver="gelsd").solution.squeeze(-1).clamp_min(0)
    return found / found.sum()


def broad_language(states: int, classes: int, *, successors: int, exponent: float, seed: int) -> Language:
    """The language of pretraining.

    Each state has ``successors`` states to go to, among them the next one of a ring, so that all are reached, with
    probabilities uniform on the simplex. It emits classes by a Zipf law over an order of its own: the common order,
    each class moved at random, so that frequent classes are frequent in most states.

    Args:
        states: S.
        classes: Number of classes.
        successors: Of each state.
        exponent: Of the Zipf law.
        seed: Of everything random.
    """
    for name, value in (("states", states), ("classes", classes), ("successors", successors)):
        check_int(name, value, 1)
    generator = torch.Generator().manual_seed(seed)
    transition = torch.zeros(states, states, dtype=torch.float64)
    for state in range(states):
        others = torch.randperm(states, generator=generator)[: successors - 1]
        chosen = torch.cat([others, torch.tensor([(state + 1) % states])])
        weight = -torch.rand(successors, generator=generator, dtype=torch.float64).clamp_min(1e-12).log()
        transition[state].index_add_(0, chosen, weight / weight.sum())
    return Language(transition, _emissions(_orders(states, classes, generator), exponent))


def shifted_language(broad: Language, *, sharpness: float, exponent: float, seed: int) -> Language:
    """The language of tuning: the same states and successors, nearly determined, and half of it new.

    Transitions are those of ``broad`` to the power ``sharpness``; every other state has a new order of classes, the
    others keep theirs; the Zipf law is steeper.

    Args:
        broad: The language of pretraining.
        sharpness: At least 1.
        exponent: Of the Zipf law.
        seed: Of the new orders.
    """
    check_number("sharpness", sharpness, 1)
    states, classes = broad.emission.shape
    transition = broad.transition**sharpness
    order = broad.emission.argsort(dim=-1, descending=True, stable=True)
    order[::2] = _orders(states, classes, torch.Generator().manual_seed(seed))[::2]
    return Language(transition / transition.sum(-1, keepdim=True), _emissions(order, exponent))


def _orders(states: int, classes: int, generator: torch.Generator) -> Tensor:  # (S, classes)
    """Classes of each state, the most frequent first."""
    common = torch.arange(1, classes + 1, dtype=torch.float64).log()
    moved = common + _NOISE * torch.randn(states, classes, generator=generator, dtype=torch.float64)
    return moved.argsort(dim=-1)


def _emissions(order: Tensor, exponent: float) -> Tensor:
    """Zipf probabilities in these orders."""
    check_number("exponent", exponent, 0)
    weight = torch.arange(1, order.shape[1] + 1, dtype=torch.float64) ** -exponent
    return torch.zeros(order.shape, dtype=torch.float64).scatter_(1, order, (weight / weight.sum()).expand(order.shape))
