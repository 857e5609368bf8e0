"""Ground-truth language models: conditionals that are known exactly, and samples of them.

A teacher gives each of N contexts a distribution over V tokens. It never holds an N x V array: conditionals are made
a block of contexts at a time, so that vocabularies of LLM size fit.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import check_choice, check_count, check_int, check_number

__all__ = [
    "DeterministicTeacher",
    "LogLinearTeacher",
    "Observations",
    "PaddedTeacher",
    "PaddedTeacherConfig",
    "Teacher",
    "TeacherConfig",
    "TeacherKind",
    "make_teacher",
    "random_streams",
]

TeacherKind = Literal["det", "lowrank", "sparse"]
_KINDS = ("det", "lowrank", "sparse")
_BLOCK_ENTRIES = 2**22  # float64 entries of one block of conditionals: 32 MiB


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What a teacher is made of; with ``seed`` it fixes the conditionals and every sample.

    Attributes:
        kind: ``"det"``, one token per context, each token the target of equally many contexts; ``"lowrank"``,
            softmax(A B^T - zipf_exponent log(token + 1)) with Gaussian A, B; ``"sparse"``, lowrank with ``peak`` nats
            added to one random token in a ``peak_fraction`` of the contexts.
        vocab_size: V >= 2.
        n_contexts: N >= 1; for det a multiple of V.
        samples_per_context: Tokens drawn in each context for training; None trains on the conditionals themselves.
            Without effect for det, where a sample is the conditional.
        rank: Columns of A and B.
        logit_std: Standard deviation of the entries of A B^T, in nats.
        zipf_exponent: Slope of the token frequencies.
        peak: Height of the peaks of a sparse teacher, in nats.
        peak_fraction: Share of its contexts with a peak.
        seed: Seed of the data: conditionals, training and held-out samples; the model has a seed of its own.

    Raises:
        TypeError: If a size, count or seed is not an int, or another number is not a Python number.
        ValueError: If a field is outside its range.

    Example:
        >>> TeacherConfig(kind="det", vocab_size=8, n_contexts=12)
        Traceback (most recent call last):
        ValueError: n_contexts must be a multiple of vocab_size = 8 for a det teacher, got 12.
    """

    kind: TeacherKind = "det"
    vocab_size: int = 256
    n_contexts: int = 256
    samples_per_context: int | None = 8
    rank: int = 64
    logit_std: float = 3.0
    zipf_exponent: float = 1.0
    peak: float = 12.0
    peak_fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, _KINDS)
        whole = {"vocab_size": 2, "n_contexts": 1, "samples_per_context": 1, "rank": 1, "seed": 0}
        for name, low in whole.items():
            if name != "samples_per_context" or self.samples_per_context is not None:
                check_int(name, getattr(self, name), low)
        for name in ("logit_std", "zipf_exponent", "peak"):
            check_number(name, getattr(self, name), 0)
        check_number("peak_fraction", self.peak_fraction, 0, 1)
        if self.kind == "det" and self.n_contexts % self.vocab_size:
            raise ValueError(
                f"n_contexts must be a multiple of vocab_size = {self.vocab_size} for a det teacher, "
                f"got {self.n_contexts}."
            )


class Observations(NamedTuple):
    """Weighted (context, token) pairs: the counts of a sample, or the conditionals themselves.

    This is how any target distribution enters a loss that takes token indices: one row per pair, its weight as the
    ``token_weight`` of :func:`kernel.linear_cross_entropy`.
    """

    context: Tensor  # (P,) int64, ascending
    token: Tensor  # (P,) int64
    weight: Tensor  # (P,) float64, positive; counts or probabilities


@dataclass(frozen=True, kw_only=True)
class PaddedTeacherConfig(TeacherConfig):
    """A teacher whose last tokens never occur: the same contexts, samples and difficulty at any vocabulary.

    Attributes:
        dead_tokens: How many of the ``vocab_size`` tokens no context ever has; at least 1, and 2 must be left.

    Raises:
        TypeError: As for :class:`TeacherConfig`.
        ValueError: If the tokens that are left make no teacher.

    Example:
        >>> PaddedTeacherConfig(kind="lowrank", vocab_size=1024, dead_tokens=768).live.vocab_size
        256
    """

    dead_tokens: int

    def __post_init__(self) -> None:
        check_int("dead_tokens", self.dead_tokens, 1)
        check_int("vocab_size", self.vocab_size, self.dead_tokens + 2)
        _ = self.live

    @property
    def live(self) -> TeacherConfig:
        """The teacher of the tokens that occur."""
        fields = {name: getattr(self, name) for name in TeacherConfig.__dataclass_fields__}
        return TeacherConfig(**{**fields, "vocab_size": self.vocab_size - self.dead_tokens})


class Teacher(abc.ABC):
    """Known conditionals p(token | context); shapes in :meth:`conditionals`."""

    n_contexts: int
    vocab_size: int

    @abc.abstractmethod
    def conditionals(self, contexts: slice) -> Tensor:  # (n, V)
        """Conditionals of a block of contexts, float64, each row summing to 1."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Teacher:
        """The same teacher with its tensors elsewhere; conditionals are made where these are."""

    def blocks(self, entries: int = _BLOCK_ENTRIES) -> Iterator[tuple[slice, Tensor]]:
        """All conditionals as (contexts, ``(n, V)``) in blocks of at most that many entries, or of one context."""
        size = max(1, entries // self.vocab_size)
        for start in range(0, self.n_contexts, size):
            part = slice(start, min(start + size, self.n_contexts))
            yield part, self.conditionals(part)

    def sample(self, samples_per_context: int, generator: torch.Generator) -> Observations:
        """Independent draws in each context, counted: at most ``samples_per_context`` pairs a context."""
        check_count("samples_per_context", samples_per_context)
        draws = torch.cat(
            [torch.multinomial(p, samples_per_context, replacement=True, generator=generator) for _, p in self.blocks()]
        )  # (N, samples)
        pair = (torch.arange(self.n_contexts).unsqueeze(-1) * self.vocab_size + draws).flatten()
        distinct, counts = torch.unique(pair, return_counts=True)  # ascending
        return Observations(distinct // self.vocab_size, distinct % self.vocab_size, counts.double())

    def population(self) -> Observations:
        """Every pair of positive probability, weighted by it: training without sampling noise. Meant for small V."""
        parts = []
        for contexts, p in self.blocks():
            context, token = p.nonzero(as_tuple=True)
            parts.append((context + contexts.start, token, p[context, token]))
        return Observations(*(torch.cat(part) for part in zip(*parts, strict=True)))


class DeterministicTeacher(Teacher):
    """One token per context.

    Args:
        tokens: The token of each context, ``(N,)`` int64.
        vocab_size: V.

    Raises:
        TypeError: If ``tokens`` is no int64 tensor or ``vocab_size`` no int.
        ValueError: If a token is outside [0, V), or there is none.
    """

    def __init__(self, tokens: Tensor, vocab_size: int) -> None:
        _check_tokens("tokens", tokens, 0, check_count("vocab_size", vocab_size, 2))
        self.tokens, self.n_contexts, self.vocab_size = tokens, tokens.shape[0], vocab_size

    def conditionals(self, contexts: slice) -> Tensor:
        """One-hot rows ``(n, V)``."""
        tokens = self.tokens[contexts].unsqueeze(-1)
        zeros = torch.zeros(tokens.shape[0], self.vocab_size, dtype=torch.float64, device=tokens.device)
        return zeros.scatter_(-1, tokens, 1.0)

    def to(self, device: torch.device | str) -> DeterministicTeacher:
        """The same teacher on ``device``."""
        return DeterministicTeacher(self.tokens.to(device), self.vocab_size)

    def sample(self, samples_per_context: int, generator: torch.Generator) -> Observations:
        """The token of each context, counted ``samples_per_context`` times; nothing is random."""
        check_count("samples_per_context", samples_per_context)
        count = torch.full((self.n_contexts,), float(samples_per_context), dtype=torch.float64)
        return Observations(torch.arange(self.n_contexts), self.tokens, count)

    def population(self) -> Observations:
        """The token of each context, with weight 1."""
        return self.sample(1, torch.Generator())


class LogLinearTeacher(Teacher):
    """Softmax of low-rank logits plus a token prior, plus peaks.

    Args:
        context_factors: A, ``(N, r)`` float64.
        token_factors: B, ``(V, r)`` float64.
        prior: Log frequency of each token up to a constant, ``(V,)`` float64.
        peak_tokens: Token with a peak in each context, -1 for none, ``(N,)`` int64.
        peak: Height of the peaks in nats.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a number is not finite, or a token is outside [-1, V).
    """

    def __init__(
        self,
        context_factors: Tensor,
        token_factors: Tensor,
        prior: Tensor,
        peak_tokens: Tensor,
        peak: float,
    ) -> None:
        for name, x, axes in (
            ("context_factors", context_factors, 2), ("token_factors", token_factors, 2), ("prior", prior, 1),
        ):  # fmt: skip
            if not isinstance(x, Tensor) or x.dtype != torch.float64:
                raise TypeError(f"{name} must be a float64 tensor, got {getattr(x, 'dtype', type(x).__name__)}.")
            if x.ndim != axes or not x.numel():
                raise ValueError(f"{name} must have {axes} axes and not be empty, got the shape {tuple(x.shape)}.")
            if not x.isfinite().all():
                raise ValueError(f"{name} must be finite, got nan or infinity.")
        (n, rank), v = context_factors.shape, len(token_factors)
        if token_factors.shape[1] != rank or prior.shape != (v,):
            raise ValueError(
                f"token_factors must have shape ({v}, {rank}) and prior ({v},), got {tuple(token_factors.shape)} and "
                f"{tuple(prior.shape)}."
            )
        _check_tokens("peak_tokens", peak_tokens, -1, v)
        if peak_tokens.shape != (n,):
            raise ValueError(f"peak_tokens must have shape ({n},), got {tuple(peak_tokens.shape)}.")
        check_number("peak", peak)
        self.context_factors, self.token_factors, self.prior = context_factors, token_factors, prior
        self.peak_tokens, self.peak = peak_tokens, peak
        self.n_contexts, self.vocab_size = context_factors.shape[0], token_factors.shape[0]

    def conditionals(self, contexts: slice) -> Tensor:
        """softmax(A B^T + prior + peaks), ``(n, V)``."""
        logits = self.context_factors[contexts] @ self.token_factors.T + self.prior
        peaks = self.peak_tokens[contexts].unsqueeze(-1)
        logits.scatter_add_(-1, peaks.clamp_min(0), torch.where(peaks >= 0, self.peak, 0.0).double())
        return logits.softmax(-1)

    def to(self, device: torch.device | str) -> LogLinearTeacher:
        """The same teacher on ``device``."""
        return LogLinearTeacher(
            self.context_factors.to(device),
            self.token_factors.to(device),
            self.prior.to(device),
            self.peak_tokens.to(device),
            self.peak,
        )


class PaddedTeacher(Teacher):
    """Another teacher with tokens after its own that never occur; samples are those of the other."""

    def __init__(self, live: Teacher, dead_tokens: int) -> None:
        self.live, self.dead_tokens = live, check_count("dead_tokens", dead_tokens)
        self.n_contexts, self.vocab_size = live.n_contexts, live.vocab_size + dead_tokens

    def conditionals(self, contexts: slice) -> Tensor:
        """Those of the other teacher, and zeros."""
        return torch.nn.functional.pad(self.live.conditionals(contexts), (0, self.dead_tokens))

    def to(self, device: torch.device | str) -> PaddedTeacher:
        """The same teacher on ``device``."""
        return PaddedTeacher(self.live.to(device), self.dead_tokens)

    def sample(self, samples_per_context: int, generator: torch.Generator) -> Observations:
        """Draws of the other teacher."""
        return self.live.sample(samples_per_context, generator)


def _check_tokens(name: str, tokens: Tensor, low: int, vocab_size: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {getattr(tokens, 'dtype', type(tokens).__name__)}.")
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"{name} must have shape (contexts,), at least one, got {tuple(tokens.shape)}.")
    least, most = int(tokens.min()), int(tokens.max())
    if least < low or most >= vocab_size:
        raise ValueError(f"{name} must be in [{low}, {vocab_size}), got {least if least < low else most}.")


def make_teacher(config: TeacherConfig, generator: torch.Generator) -> Teacher:
    """Make the teacher that ``config`` describes; ``generator`` draws what is random in it.

    Args:
        config: Kind and sizes. Its ``seed`` is not used here: the caller turns it into generators
            (:func:`random_streams`), one for the teacher and one for each sample.
        generator: CPU generator.

    Returns:
        The teacher, on the CPU in float64.

    Example:
        >>> config = TeacherConfig(kind="lowrank", vocab_size=16, n_contexts=4)
        >>> teacher = make_teacher(config, torch.Generator().manual_seed(0))
        >>> teacher.conditionals(slice(0, 4)).sum(-1).round(decimals=12).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    if isinstance(config, PaddedTeacherConfig):
        return PaddedTeacher(make_teacher(config.live, generator), config.dead_tokens)
    n, v = config.n_contexts, config.vocab_size
    if config.kind == "det":
        return DeterministicTeacher(torch.arange(n) % v, v)
    context_factors = torch.randn(n, config.rank, dtype=torch.float64, generator=generator)
    token_factors = torch.randn(v, config.rank, dtype=torch.float64, generator=generator)
    prior = -config.zipf_exponent * torch.arange(1, v + 1, dtype=torch.float64).log()
    peak_tokens = torch.full((n,), -1)
    if config.kind == "sparse":
        peaked = torch.randperm(n, generator=generator)[: round(config.peak_fraction * n)]
        peak_tokens[peaked] = torch.randint(v, (len(peaked),), generator=generator)
    scale = config.logit_std / config.rank**0.5  # entries of A B^T have variance rank
    return LogLinearTeacher(context_factors * scale, token_factors, prior, peak_tokens, config.peak)


def random_streams(seed: int, count: int) -> list[torch.Generator]:
    """Make independent CPU generators for the parts of one experiment, all fixed by one seed.

    What one part draws, however much, changes no other part: more training samples leave teacher and held-out sample
    alone.

    Args:
        seed: At least 0.
        count: How many; the first ones do not depend on it.

    Returns:
        ``count`` generators.

    Example:
        >>> first, _ = random_streams(0, 2)
        >>> bool(torch.rand(1, generator=first) == torch.rand(1, generator=random_streams(0, 3)[0]))
        True
    """
    check_count("seed", seed, 0)
    check_count("count", count, 0)
    children = np.random.SeedSequence(seed).spawn(count)
    return [torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0] >> 1)) for child in children]
