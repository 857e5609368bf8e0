"""S12: hidden size times vocabulary on real text: transformers from scratch, tuned on instruction pairs.

The trunk of S11 reads the same bytes whatever the vocabulary, a byte-level one trained on them; bits per byte are the
common measure. ``quick`` reads a text that the project writes itself, ``full`` the files that
``python -m analysis.study.from_scratch`` names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernel.softcap import softcap as capped

from ..calibration import option_confidence, score_predictions
from ..lab.registry import Experiment
from ..lab.shared import kept, loaded, saved
from ..language_models.features import ModelHead
from ..language_models.scoring import score_tokens
from ..smoothing import activity_index
from .from_scratch.corpus import Corpus, find_corpus, written
from .from_scratch.grid import MAPPED_FROM
from .from_scratch.measures import drawn_options, falls, features, states
from .from_scratch.predictions import TEXT
from .from_scratch.pretraining import STILL_FALLING, train
from .from_scratch.text_grid import TextConfig, configs, row_seconds
from .from_scratch.tokens import encoded_pairs, excerpts, fitting, token_bytes, tokenizer_in
from .from_scratch.transformer import Transformer
from .from_scratch.tuning import Arm, arm_of, tuned

__all__ = ["EXPERIMENT", "compute"]

_TOKENS_VERSION = 1  # of kept text: raise it when the same config makes other tokens
_AT_ONCE = 64  # sequences
_B = (0.1,)  # whose effect is predicted


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
        ``bytes_per_token`` of the held-out text that is measured, and ``measurements``, one for each arm (``method``),
        epoch and distribution (``"text"`` and ``"pairs"`` held out, ``"train"``, the pairs tuned on): scores of the
        most probable token, ``bits_per_byte`` over ``bytes``, the same at every V, those among four options, norms and
        rank of the features, and of tunings without smoothing the falls that are predicted.

    Raises:
        FileNotFoundError: If no files were named.
        ValueError: If fewer pairs fit into the context than are to be tuned on.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    corpus = written() if config.source == "written" else find_corpus(shared)
    tokenizer, least = (tokenizer_in(shared, corpus, v, config.characters) for v in (config.vocab_size, config.least))
    text, width = _encoded(config, corpus, tokenizer, shared), token_bytes(tokenizer)
    model = Transformer(config.vocab_size, config.hidden_size, config.trunk, seed=1000 + config.seed).to(device)
    batches = list(_batches(config, text))
    moved = (batch.to(device).long() for batch in batches)
    falling = train(model, moved, len(batches), config.step_size, config.weight_decay)
    data = _data(config, corpus, (tokenizer, least), text, device)
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
        "bytes_per_token": float(width[data["text"].options[:, 0].cpu()].double().mean()),
        "pretraining_fall": falling,
        "converged": falling <= STILL_FALLING,
        "measurements": lines,
        "device": device,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def _encoded(config: TextConfig, corpus: Corpus, tokenizer: Any, shared: Path | None) -> Tensor:  # (n,) int32
    """The text to pretrain on in tokens, made once for each vocabulary."""

    def make() -> Tensor:
        pieces = corpus.text[: -(-config.characters // len(corpus.text[0]))]
        ids = [np.array(piece.ids, np.int32) for piece in tokenizer.encode_batch(pieces)]
        return torch.from_numpy(np.concatenate(ids))

    key = f"{corpus.digest[:20]}_{config.vocab_size}_{config.characters}_{_TOKENS_VERSION}"
    return kept(shared, key, make, lambda made: saved({"text": made}), lambda content: loaded(content)["text"])


def _batches(config: TextConfig, text: Tensor) -> Iterator[Tensor]:
    """Sequences of the text in another order for each seed, each once."""
    blocks = text[: len(text) // (config.trunk.context + 1) * (config.trunk.context + 1)].view(
        -1, config.trunk.context + 1
    )
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(config.seed))
    for part in order[: len(blocks) // config.batch * config.batch].split(config.batch):
        yield blocks[part]


def _data(
    config: TextConfig, corpus: Corpus, tokenizers: tuple[Any, Any], text: Tensor, device: str
) -> dict[str, _Part]:  # fmt: skip
    """What is measured and tuned on: the same bytes at every V, those that fit at the smallest."""
    (tokenizer, least), length = tokenizers, config.trunk.context
    generator = torch.Generator().manual_seed(config.seed)
    frequency = torch.bincount(text.long(), minlength=config.vocab_size).double()

    def fit(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return fitting(least, pairs, length, config.most_bytes)

    pairs = fit(corpus.pairs)
    if len(pairs) < config.examples:
        raise ValueError(
            f"pairs must be {config.examples} or more of at most {length} tokens at V = {config.least}, responses cut "
            f"to {config.most_bytes} bytes, got {len(pairs)} of {len(corpus.pairs)}."
        )
    chosen = torch.randperm(len(pairs), generator=generator)[: config.examples].tolist()
    parts = {
        "text": fit(excerpts(corpus.held_out, config.most_bytes))[: config.evaluated],
        "pairs": fit(corpus.pairs_held_out)[: config.evaluated],
        "train": [pairs[i] for i in chosen],
    }
    found = {}
    for name, part in parts.items():
        sequences, targets = encoded_pairs(tokenizer, part, length)
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
        maps = config.asked >= MAPPED_FROM and epoch == config.epochs[-1]
        documents = (data["train"].targets >= 0).nonzero()[:, 0]
        mapped = states(*pairs["train"], documents) if maps else None
        with torch.enable_grad():
            predicted = falls(head.weight, seen, pairs, _B, contexts=config.asked // 4, mapped=mapped)
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
    size = int(width[target.cpu()].sum())
    found = score_tokens(states(hidden, target), head, temperature=temperature)
    z = capped((hidden.unsqueeze(1) * head.weight[options]).sum(-1).double(), head.softcap)
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
        "bytes": size, "bits_per_byte": float(found.nll.sum()) / log(2) / size,
        "nll": losses[1], "entropy": losses[0], "uniform_cross_entropy": losses[2],
        "activity": float(activity_index(*losses, 0.1)),
    }  # fmt: skip


EXPERIMENT = Experiment(
    name="S12",
    title="Hidden size times vocabulary on real text: transformers from scratch, tuned on instruction pairs",
    compute=compute,
    configs=configs,
    seconds=row_seconds,
    predictions=TEXT,
    columns=("vocab_size", "hidden_size", "source", "data_seed"),
    shares=True,
)
