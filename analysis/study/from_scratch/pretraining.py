"""Pretraining on the broad language: what is shared by all tunings of one model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...checks import check_choice, check_fields, check_flag, check_number
from ...teachers import random_streams
from .language import Language, Vocabulary, broad_language, shifted_language
from .transformer import Transformer, Trunk

__all__ = ["STILL_FALLING", "Languages", "PretrainingConfig", "Sizes", "adamw", "pretrain", "step", "train"]

STILL_FALLING = 0.05  # nats over the last tenth of pretraining, as in S7
_CHUNK = 8192  # sequences drawn at a time
_WARM_UP = 0.05  # share of the steps
_CLIP = 1.0  # largest norm of a gradient
_TENTH = 10


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the language and of the trunk: the same in every cell of a grid.

    Attributes:
        trunk: The transformer without hidden size and vocabulary.
        states: Of the chain.
        classes: Emitted; the least V.
        successors: Of each state.
        exponent: Zipf exponent of the emissions.
        split_exponent: Of the tokens of a class.
        sharpness: Power of the transitions of the shifted language.
        shifted_exponent: Zipf exponent of its emissions.
        batch: Sequences a step.
        step_size: Largest of AdamW; 5 % warm-up, then a cosine to 0.
        weight_decay: Of the matrices.
    """

    trunk: Trunk = field(default_factory=Trunk)
    states: int = 256
    classes: int = 256
    successors: int = 4
    exponent: float = 2.5
    split_exponent: float = 2.0
    sharpness: float = 3.0
    shifted_exponent: float = 3.5
    batch: int = 64
    step_size: float = 1e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, states=1, classes=2, successors=1, batch=1)
        check_number("step_size", self.step_size, 0, open_low=True)
        check_number("weight_decay", self.weight_decay, 0)


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """One pretrained model.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        symbols: How V exceeds the classes: ``"live"``, each class split into V / classes tokens; ``"dead"``, by tokens
            that never occur.
        tied: Whether embedding and head are one matrix of width D.
        tokens: Read in training.
        distinct: Tokens of the text, read again and again; 0 for as many as are read.
        smoothing: Label smoothing in pretraining.
        seed: Of language and texts; the model's is 1000 + seed.
        sizes: What is the same in a grid.
    """

    vocab_size: int
    hidden_size: int
    symbols: Literal["live", "dead"] = "live"
    tied: bool = False
    tokens: int = 20_000_000
    distinct: int = 0
    smoothing: float = 0.0
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)

    def __post_init__(self) -> None:
        check_fields(self, vocab_size=2, hidden_size=1, tokens=self.sequence * self.sizes.batch, distinct=0, seed=0)
        check_choice("symbols", self.symbols, ("live", "dead"))
        check_flag("tied", self.tied)
        check_number("smoothing", self.smoothing, 0, 1)
        classes = self.sizes.classes
        if self.vocab_size < classes or (self.symbols == "live" and self.vocab_size % classes):
            raise ValueError(f"vocab_size must be a multiple of the {classes} classes, got {self.vocab_size}.")

    @property
    def sequence(self) -> int:
        """Tokens predicted in one sequence."""
        return self.sizes.trunk.context

    @property
    def steps(self) -> int:
        """Of training."""
        return self.tokens // (self.sequence * self.sizes.batch)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens."""
        classes, exponent = self.sizes.classes, self.sizes.split_exponent
        if self.symbols == "dead":
            return Vocabulary(classes=classes, exponent=exponent, dead=self.vocab_size - classes)
        return Vocabulary(classes=classes, exponent=exponent, split=self.vocab_size // classes)


class Languages:
    """Broad and shifted language of a seed, and the tokens of a vocabulary."""

    def __init__(self, config: PretrainingConfig) -> None:
        sizes = config.sizes
        self.vocabulary = config.vocabulary
        self.broad = broad_language(
            sizes.states, sizes.classes, successors=sizes.successors, exponent=sizes.exponent, seed=config.seed
        )
        self.shifted = shifted_language(
            self.broad, sharpness=sizes.sharpness, exponent=sizes.shifted_exponent, seed=1000 + config.seed
        )

    def draw(
        self, language: Language, count: int, length: int, generators: tuple[torch.Generator, torch.Generator]
    ) -> Tensor:  # (count, length) int64
        """Sequences of tokens: classes from the first generator, so that they are the same at every V."""
        return self.vocabulary.draw(language.draw(count, length, generators[0]), generators[1])


def pretrain(config: PretrainingConfig, world: Languages, *, device: str = "cpu") -> tuple[Transformer, float]:
    """Train on the broad language.

    Returns:
        The model, and by how much its mean loss still fell over the last tenth of the steps, in nats.
    """
    model = Transformer(
        config.vocab_size, config.hidden_size, config.sizes.trunk, tied=config.tied, seed=1000 + config.seed
    ).to(device)
    sizes, batches = config.sizes, _batches(config, world, device)
    return model, train(model, batches, config.steps, sizes.step_size, sizes.weight_decay, smoothing=config.smoothing)


def train(
    model: Transformer, batches: Iterable[Tensor], steps: int, step_size: float, weight_decay: float, *,
    smoothing: float = 0.0,
) -> float:  # fmt: skip
    """Train on batches of sequences, with a warm-up and a cosine; by how much the loss still fell at the end."""
    optimiser = adamw(model, step_size, weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, step_size, total_steps=steps + 1, pct_start=_WARM_UP, cycle_momentum=False, final_div_factor=1e9
    )
    losses = []
    for batch in batches:
        losses.append(step(model, optimiser, batch, label_smoothing=smoothing))
        schedule.step()
    course = torch.stack(losses).cpu()
    tenth = max(1, len(course) // _TENTH)
    return float(course[-2 * tenth : -tenth].mean() - course[-tenth:].mean())


def step(model: Transformer, optimiser: torch.optim.Optimizer, sequences: Tensor, **options: Any) -> Tensor:
    """One step down the loss of these sequences; the loss before."""
    optimiser.zero_grad()
    loss = model.loss(sequences, **options)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimiser.step()
    return loss.detach()


def adamw(model: Transformer, step_size: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW as language models are trained: betas of .9 and .95, gains without decay."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    gains = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=step_size, betas=(0.9, 0.95), fused=model.head.is_cuda)


def _batches(config: PretrainingConfig, world: Languages, device: str) -> Iterator[Tensor]:
    """``steps`` batches of sequences, new ones or a text read again and again in another order each time."""
    seeds = [stream.initial_seed() for stream in random_streams(config.seed, 3)]
    classes, symbols, order = (torch.Generator(device).manual_seed(seed) for seed in seeds)
    language, batch, left = world.broad.to(device), config.sizes.batch, config.steps

    def drawn(count: int) -> Tensor:
        parts = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]
        return torch.cat([world.draw(language, part, config.sequence + 1, (classes, symbols)) for part in parts])

    text = drawn(max(batch, config.distinct // config.sequence)) if config.distinct else None
    while left:
        pool = drawn(min(_CHUNK // batch * batch or batch, left * batch)) if text is None else text
        if text is not None:
            pool = pool[torch.randperm(len(pool), generator=order, device=device)]
        whole = [part for part in pool.split(batch) if len(part) == batch][:left]
        yield from whole
        left -= len(whole)
