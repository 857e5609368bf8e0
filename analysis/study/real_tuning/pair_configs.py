"""Which tunings on pairs there are, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ...checks import check_fields, check_number

__all__ = ["TIERS", "PairConfig", "Tier", "configs", "seconds"]

Tier = Literal["smoke", "1", "2", "3"]
TIERS: tuple[Tier, ...] = ("smoke", "1", "2", "3")
# Of the vocabulary: what is read, all, two sizes in between; a run that ends early has the ends.
_SIZES: tuple[int | None, ...] = (0, None, 65536, 16384)
WITHIN = 12288  # documents of the so many most frequent tokens are read in all four


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """One tuning on pairs of instruction and response; equal seeds share pairs and their order, whatever the loss.

    Attributes:
        model: Name of the model's file or folder.
        tokens: Digest of the file of token ids.
        label_smoothing: b of the loss.
        temperature: T of the loss, which is T CE(z / T), so that the step at small z does not depend on it.
        softcap: Cap of the loss; None for the model's own.
        confidence_penalty: gamma of the loss, for the entropy that is subtracted.
        vocabulary: Rows of the head that are kept: 0 for the tokens of the documents, None for all.
        within: Only documents of the so many most frequent tokens; None for all documents.
        lora: Rank of the adapters on every linear layer but the head; 0 tunes all weights.
        weight_decay: Of AdamW.
        step_size: Of AdamW, after a tenth of the steps of linear warm-up; constant, so that epochs compare.
        seed: Of the pairs and their order.
        pairs: Tuned on, drawn from those of the training part; 0 for all of it.
        epochs: Passes over them.
        batch_size: Pairs a step.
        evaluated: Most questions of each file that are asked along the way.
        whole: Whether all questions are asked before tuning and after the last epoch.
        held_out: Most responses of each part that are measured.
        texts: Most pieces of ordinary text.
    """

    model: str
    tokens: str
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    confidence_penalty: float = 0.0
    vocabulary: int | None = None
    within: int | None = None
    lora: int = 0
    weight_decay: float = 0.0
    step_size: float = 2e-5
    seed: int = 0
    pairs: int = 1024
    epochs: int = 8
    batch_size: int = 32
    evaluated: int = 1000
    whole: bool = False
    held_out: int = 300
    texts: int = 78

    def __post_init__(self) -> None:
        check_fields(self, seed=0, pairs=0, epochs=1, batch_size=1, evaluated=1, held_out=1, texts=0, lora=0)
        check_number("label_smoothing", self.label_smoothing, 0, 1)
        for name in ("confidence_penalty", "weight_decay"):
            check_number(name, getattr(self, name), 0)
        for name in ("temperature", "softcap", "step_size"):
            if name != "softcap" or self.softcap is not None:
                check_number(name, getattr(self, name), 0, open_low=True)


def configs(model: str, tokens: str, vocab_size: int, tier: Tier) -> list[PairConfig]:
    """The tunings of a tier, so that a run that ends early lacks the least.

    ``"1"``: b of 0 and .1, three seeds; and the same with the vocabulary cut, on documents that fit into the smallest,
    where the model's vocabulary is larger than these. ``"2"``: b = .2, confidence penalties, training temperatures
    and a cap. ``"3"``: step sizes, LoRA, weight decay, all pairs. ``"smoke"``: two of a few steps, on the CPU.

    Raises:
        ValueError: If there is no such tier.
    """
    common: dict[str, Any] = {"model": model, "tokens": tokens}
    if tier == "smoke":
        small: dict[str, Any] = {"pairs": 16, "epochs": 2, "batch_size": 4, "evaluated": 24, "held_out": 8, "texts": 2}
        return [PairConfig(**common, **small, vocabulary=0, label_smoothing=b) for b in (0.0, 0.1)]
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {TIERS}, got {tier!r}.")
    cells = {"1": _first(vocab_size), "2": _second(), "3": _third()}[tier]
    return [PairConfig(**common, **cell) for cell in cells]


def _pairs_of(**setting: Any) -> Iterator[dict[str, Any]]:
    for seed in range(3):
        for b in (0.0, 0.1):
            yield {**setting, "seed": seed, "label_smoothing": b}


def _first(vocab_size: int) -> Iterator[dict[str, Any]]:
    yield from _pairs_of(whole=True)
    if vocab_size > 65536:
        for size in _SIZES:
            yield from _pairs_of(vocabulary=size, within=WITHIN)


def _second() -> Iterator[dict[str, Any]]:
    yield from ({"label_smoothing": 0.2, "seed": seed} for seed in range(3))
    for gamma in (0.05, 0.2):
        yield from ({"confidence_penalty": gamma, "seed": seed} for seed in range(3))
    for setting in ({"temperature": 0.5}, {"temperature": 0.25}, {"softcap": 30.0}):
        yield from _pairs_of(**setting)


def _third() -> Iterator[dict[str, Any]]:
    for rate in (8e-5, 5e-6):
        yield from _pairs_of(step_size=rate)
    yield from _pairs_of(lora=16, step_size=2e-4)
    yield from _pairs_of(weight_decay=0.1)
    yield from _pairs_of(pairs=0)


def seconds(config: PairConfig, device: str, vocab_size: int, questions: int) -> float:
    """Estimated seconds of one tuning of 100 million weights and a head, to a factor of 2 or 3.

    On a GPU one of four at once: on an H200 256 steps of Gemma-3-270M took 75 to 100 s then, and measurements as much
    as the tuning where all questions are asked at the ends.
    """
    pairs = config.pairs or 5000
    steps = config.epochs * -(-pairs // config.batch_size)
    asked = min(questions, 5 * config.evaluated) * (config.epochs - 1) + 2 * (
        questions if config.whole else min(questions, 5 * config.evaluated)
    )
    measured = 3 * config.held_out * 100 * (config.epochs + 1)  # tokens
    if device.startswith("cuda"):
        return steps * 0.4 + asked * 5 / 1200 * 0.3 + measured / 20_000
    rows = vocab_size if config.vocabulary is None else config.vocabulary or 2000
    each = 2 * (1e8 + 640 * rows) / 3e10  # of a token forwards
    return each * (3 * config.epochs * pairs * 100 + asked * 5 * 60 + 5 * measured)
