"""The cells of S12, and what a row costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from ...checks import check_choice, check_fields, check_number
from ...lab.registry import Preset
from .grid import MAIN
from .transformer import Trunk
from .tuning import arm_of

__all__ = ["TextConfig", "configs", "row_seconds"]

_BYTES = {True: 3.5, False: 2.0}  # of a token, of large vocabularies and of those below 1024, for estimates
_ENCODED = 3e6  # characters in tokens a second, likewise


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """One model pretrained on text, and its tunings.

    Attributes:
        vocab_size: V, trained on the text.
        least: The smallest V of the grid: what is measured and tuned on are the pairs and text that fit there.
        hidden_size: D.
        most_bytes: That responses, and pieces of held-out text, are cut to.
        seed: Of the order of text and pairs; the model's is 1000 + seed.
        source: ``"given"``, the files that the run was prepared with; ``"written"``, the project's own.
        trunk: The transformer without hidden size and vocabulary.
        characters: Read in pretraining, once.
        batch: Sequences a step.
        step_size: Largest of AdamW in pretraining.
        weight_decay: Of the matrices.
        arms: How it is tuned.
        examples: Pairs tuned on.
        epochs: After which it is measured, ascending.
        tuning_batch: Pairs a step.
        tuning_step: Of AdamW in tuning.
        evaluated: Sequences of held-out text, and held-out pairs, that are measured.
        asked: Tokens tuned on that predictions are solved for; those of free features take a quarter of them.
    """

    vocab_size: int
    hidden_size: int
    least: int = 1024
    most_bytes: int = 128
    seed: int = 0
    source: Literal["given", "written"] = "given"
    trunk: Trunk = field(default_factory=Trunk)
    characters: int = 60_000_000
    batch: int = 64
    step_size: float = 1e-3
    weight_decay: float = 0.1
    arms: tuple[str, ...] = MAIN
    examples: int = 1024
    epochs: tuple[int, ...] = (2, 16)
    tuning_batch: int = 32
    tuning_step: float = 3e-4
    evaluated: int = 200
    asked: int = 2048

    def __post_init__(self) -> None:
        check_fields(self, least=257, most_bytes=1, vocab_size=self.least, hidden_size=1, seed=0, characters=1)
        check_fields(self, batch=1, examples=1, tuning_batch=1, evaluated=1, asked=4)
        check_choice("source", self.source, ("given", "written"))
        check_number("step_size", self.step_size, 0, open_low=True)
        check_number("tuning_step", self.tuning_step, 0, open_low=True)
        for name in self.arms:
            arm_of(name)


def configs(preset: Preset) -> list[TextConfig]:
    """Vocabularies x hidden sizes x seeds: two in ``quick``, three in ``full``."""
    if preset == "quick":
        tiny: dict[str, Any] = {
            "source": "written", "least": 300, "most_bytes": 40, "characters": 240_000,
            "trunk": Trunk(layers=2, width=32, heads=2, context=48),
            "batch": 16, "step_size": 3e-3, "examples": 96, "tuning_batch": 16, "tuning_step": 2e-3, "evaluated": 40,
            "asked": 256,
        }  # fmt: skip
        return [
            TextConfig(vocab_size=v, hidden_size=d, seed=seed, **tiny)
            for v, d, seed in product((300, 600), (4, 16), range(2))
        ]
    sizes = product((1024, 8192, 65536), (32, 256), range(3))
    return [TextConfig(vocab_size=v, hidden_size=d, seed=seed) for v, d, seed in sizes]


def row_seconds(config: TextConfig, device: str) -> float:
    """Encoding the text, pretraining, tunings and measuring, as S11's; not timed alone on a GPU."""
    cuda, trunk = device.startswith("cuda"), config.trunk
    read = config.characters / _BYTES[config.vocab_size >= 1024]
    seen = len(config.arms) * config.epochs[-1] * config.examples
    steps = read / trunk.context / config.batch + seen / config.tuning_batch
    weights = 12 * trunk.layers * trunk.width**2 + config.hidden_size * (config.vocab_size + trunk.width)
    operations = 6 * weights * (read + seen * trunk.context)
    training = steps * (1.2e-2 if cuda else 5e-3) + operations / (2e14 if cuda else 4e10)
    return 1.0 + config.characters / _ENCODED + 15.0 * cuda + training
