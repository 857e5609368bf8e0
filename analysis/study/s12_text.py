"""S12: hidden size times vocabulary on real text: transformers from scratch, tuned on instruction pairs.

The trunk of S11 reads the same bytes whatever the vocabulary, a byte-level one trained on them; bits per byte are the
common measure. ``quick`` reads a text that the project writes itself, ``full`` the files that
``python -m analysis.study.from_scratch`` names.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from math import log
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..calibration import option_confidence, score_predictions
from ..checks import check_choice, check_fields, check_number
from ..lab.registry import Experiment, Preset
from ..lab.shared import kept
from ..language_models.features import ModelHead
from ..language_models.scoring import score_tokens
from ..smoothing import activity_index
from .from_scratch.corpus import Corpus, encoded_pairs, find_corpus, token_bytes, tokenizer_of, written
from .from_scratch.grid import MAIN
from .from_scratch.measures import drawn_options, falls, features, states
from .from_scratch.predictions import TEXT
from .from_scratch.pretraining import train
from .from_scratch.transformer import Transformer, Trunk
from .from_scratch.tuning import Arm, arm_of, tuned

__all__ = ["EXPERIMENT", "TextConfig", "compute", "configs"]

_STILL_FALLING = 0.05  # nats over the last tenth of pretraining
_AT_ONCE = 64  # sequences
_B = (0.1,)  # whose effect is predicted


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """One model pretrained on text, and its tunings.

    Attributes:
        vocab_size: V, trained on the text.
        hidden_size: D.
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
        check_fields(self, vocab_size=257, hidden_size=1, seed=0, characters=1, batch=1, examples=1, tuning_batch=1)
        check_fields(self, evaluated=1, asked=4)
        check_choice("source", self.source, ("given", "written"))
        check_number("step_size", self.step_size, 0, open_low=True)
        check_number("tuning_step", self.tuning_step, 0, open_low=True)
        for name in self.arms:
            arm_of(name)


def configs(preset: Preset) -> list[TextConfig]:
    """Vocabularies x hidden sizes x two seeds."""
    if preset == "quick":
        tiny: dict[str, Any] = {
            "source": "written", "trunk": Trunk(layers=2, width=32, heads=2, context=48), "characters": 240_000,
            "batch": 16, "step_size": 3e-3, "examples": 96, "tuning_batch": 16, "tuning_step": 2e-3, "evaluated": 40,
            "asked": 256,
        }  # fmt: skip
        return [
            TextConfig(vocab_size=v, hidden_size=d, seed=seed, **tiny)
            for v, d, seed in product((300, 600), (4, 16), range(2))
        ]
    sizes = product((1024, 8192, 65536), (32, 256), range(2))
    return [TextConfig(vocab_size=v, hidden_size=d, seed=seed) for v, d, seed in sizes]


class _Tokens(NamedTuple):
    """A text in tokens of one vocabulary."""

    tokenizer: str
    text: Tensor  # (n,) int32
    held_out: Tensor


class _Part(NamedTuple):
    """Sequences that are measured: what is predicted after each token, -100 for nothing."""

    sequences: Tensor  # (n, length + 1)
    targets: Tensor  # (n, length)
    options: Tensor  # (N, 4) of the N predicted tokens


def compute(config: TextConfig, *, device: str = "cpu", shared: Path | None = None) -> dict[str, Any]:
    """Train a vocabulary and a model, tune it in every way and measure.

    Args:
        config: Which model and which tunings.
        device: Where to train; on CUDA under bfloat16 autocast with float32 weights.
        shared: Folder where the files are noted, and where tokens are kept.

    Returns:
        Sizes, seeds, ``text_digest`` (of the SHA-256 of all files), ``text_bytes`` (of the files, as they are),
        ``bytes_per_token`` of held-out text, and ``measurements``, one for each arm (``method``), epoch and
        distribution (``"text"`` and ``"pairs"`` held out, ``"train"``, the pairs tuned on): scores of the most probable
        token, ``bits_per_byte``, those among four options, norms and rank of the features, and of tunings without
        smoothing the falls that are predicted.

    Raises:
        FileNotFoundError: If no files were named.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    corpus = written() if config.source == "written" else find_corpus(shared)
    tokenizer, tokens = _tokens(config, corpus, shared)
    width = token_bytes(tokenizer)
    model = Transformer(config.vocab_size, config.hidden_size, config.trunk, seed=1000 + config.seed).to(device)
    batches = list(_batches(config, tokens.text))
    moved = (batch.to(device).long() for batch in batches)
    falling = train(model, moved, len(batches), config.step_size, config.weight_decay)
    data = _data(config, corpus, tokenizer, tokens, device)
    lines = _lines(model, data, width, arm_of("b=0"), config, 0)
    for name in config.arms:
        arm = arm_of(name)
        for epoch, found in tuned(
            model, data["train"].sequences, arm, epochs=config.epochs, batch=config.tuning_batch,
            step_size=config.tuning_step, weight_decay=config.weight_decay, seed=config.seed,
            targets=data["train"].targets,
        ):  # fmt: skip
            lines += _lines(found, data, width, arm, config, epoch)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "source": config.source,
        "data_seed": config.seed,
        "model_seed": 1000 + config.seed,
        "text_digest": corpus.digest,
        "text_bytes": sum(source["bytes"] for source in corpus.sources),
        "bytes_per_token": float(width[tokens.held_out.long()].double().mean()),
        "pretraining_fall": falling,
        "converged": falling <= _STILL_FALLING,
        "measurements": lines,
        "device": device,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def _tokens(config: TextConfig, corpus: Corpus, shared: Path | None) -> tuple[Any, _Tokens]:
    """The text in tokens, made once for each vocabulary."""

    def encoded(tokenizer: Any, pieces: list[str]) -> Tensor:
        ids = [np.array(piece.ids, np.int32) for piece in tokenizer.encode_batch(pieces)]
        return torch.from_numpy(np.concatenate(ids))

    def make() -> _Tokens:
        tokenizer = tokenizer_of(corpus, config.vocab_size, config.characters)
        pieces = corpus.text[: -(-config.characters // len(corpus.text[0]))]
        return _Tokens(tokenizer.to_str(), encoded(tokenizer, pieces), encoded(tokenizer, corpus.held_out))

    def save(made: _Tokens) -> bytes:
        buffer = io.BytesIO()
        torch.save(made._asdict(), buffer)
        return buffer.getvalue()

    def load(content: bytes) -> _Tokens:
        return _Tokens(**torch.load(io.BytesIO(content), weights_only=True))

    key = f"{corpus.digest[:20]}_{config.vocab_size}_{config.characters}"
    tokens = kept(shared, key, make, save, load)
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokens.tokenizer), tokens


def _batches(config: TextConfig, text: Tensor) -> Iterator[Tensor]:
    """Sequences of the text in another order for each seed, each once."""
    blocks = text[: len(text) // (config.trunk.context + 1) * (config.trunk.context + 1)].view(
        -1, config.trunk.context + 1
    )
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(config.seed))
    for part in order[: len(blocks) // config.batch * config.batch].split(config.batch):
        yield blocks[part]


def _data(config: TextConfig, corpus: Corpus, tokenizer: Any, tokens: _Tokens, device: str) -> dict[str, _Part]:
    length, generator = config.trunk.context, torch.Generator().manual_seed(config.seed)
    frequency = torch.bincount(tokens.text.long(), minlength=config.vocab_size).double()
    blocks = tokens.held_out[: len(tokens.held_out) // (length + 1) * (length + 1)].view(-1, length + 1).long()
    text = blocks[: config.evaluated]
    chosen = torch.randperm(len(corpus.pairs), generator=generator)[: config.examples].tolist()
    parts = {
        "text": (text, text[:, 1:]),
        "pairs": encoded_pairs(tokenizer, corpus.pairs_held_out[: config.evaluated], length),
        "train": encoded_pairs(tokenizer, [corpus.pairs[i] for i in chosen], length),
    }
    found = {}
    for name, (sequences, targets) in parts.items():
        options = drawn_options(targets[targets >= 0], frequency, generator)
        found[name] = _Part(sequences.to(device), targets.to(device), options.to(device))
    return found


@torch.no_grad()
def _lines(
    model: Transformer, data: dict[str, _Part], width: Tensor, arm: Arm, config: TextConfig, epoch: int
) -> list[dict[str, Any]]:
    """Measurements of a model after an epoch."""
    head = ModelHead(model.head.detach(), None, 1.0, arm.softcap)
    hidden = {}
    for name, part in data.items():
        seen = [model.hidden(sequences) for sequences in part.sequences[:, :-1].split(_AT_ONCE)]
        hidden[name] = torch.cat(seen)[part.targets >= 0]
    predicted: dict[str, dict[str, float]] = {}
    if epoch and arm.plain:
        pairs = {name: (hidden[name], part.options[:, 0]) for name, part in data.items()}
        seen = (pairs["train"][0][: config.asked], pairs["train"][1][: config.asked])
        with torch.enable_grad():
            predicted = falls(head.weight, seen, pairs, _B, contexts=config.asked // 4)
    return [
        {
            "method": arm.name, "label_smoothing": arm.label_smoothing, "epoch": epoch, "distribution": name,
            **_scores(hidden[name], head, part.options, width, arm.temperature), **features(model, hidden[name]),
            **predicted.get(name, {}),
        }
        for name, part in data.items()
    ]  # fmt: skip


def _scores(hidden: Tensor, head: ModelHead, options: Tensor, width: Tensor, temperature: float) -> dict[str, float]:
    """Scores of predictions over the vocabulary and among four options, and bits per byte."""
    target = options[:, 0]
    found = score_tokens(states(hidden, target), head, temperature=temperature)
    z = (hidden.unsqueeze(1) * head.weight[options]).sum(-1).double()
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    z = (z / temperature).cpu().numpy()
    log_p = z - (found.nll + z[:, 0])[:, None]  # nll = lse - z of the token
    log_p -= np.maximum(np.logaddexp.reduce(log_p, axis=-1, keepdims=True), 0.0)  # lse has the rounding of float32
    asked = option_confidence(log_p)
    losses = (float(found.entropy.mean()), float(found.nll.mean()), float(found.uniform.mean()))
    chosen = score_predictions(asked.confidence, asked.choice == 0)
    whole = score_predictions(found.confidence, found.correct, log1m_confidence=found.log1m_confidence)
    return {
        **{name: whole[name] for name in ("n", "confidence", "accuracy", "rms", "aurc")}, "estimated_ece": whole["ece"],
        **{f"option_{name}": chosen[name] for name in ("confidence", "accuracy", "ece")},
        "bits_per_byte": float(found.nll.sum()) / log(2) / int(width[target.cpu()].sum()),
        "nll": losses[1], "entropy": losses[0], "uniform_cross_entropy": losses[2],
        "activity": float(activity_index(*losses, 0.1)),
    }  # fmt: skip


def _seconds(config: TextConfig, device: str) -> float:
    """Pretraining of some four bytes a token, tunings and measuring, as S11's; not timed on a GPU yet."""
    cuda, trunk = device.startswith("cuda"), config.trunk
    steps = config.characters / 3.5 / trunk.context / config.batch
    steps += len(config.arms) * config.epochs[-1] * config.examples / config.tuning_batch
    weights = 12 * trunk.layers * trunk.width**2 + config.hidden_size * (config.vocab_size + trunk.width)
    operations = 6 * weights * (config.characters / 3.5 + len(config.arms) * 16 * config.examples * trunk.context)
    return 15.0 * cuda + steps * (1.2e-2 if cuda else 5e-3) + operations / (2e14 if cuda else 4e10) + 1.0


EXPERIMENT = Experiment(
    name="S12",
    title="Hidden size times vocabulary on real text: transformers from scratch, tuned on instruction pairs",
    compute=compute,
    configs=configs,
    seconds=_seconds,
    predictions=TEXT,
    columns=("vocab_size", "hidden_size", "source", "data_seed"),
    shares=True,
)
