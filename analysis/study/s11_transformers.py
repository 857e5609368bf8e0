"""S11: hidden size times vocabulary, causally: transformers trained from scratch on a language of known truth.

One trunk, a bottleneck of D in front of the head, V that grows without changing the difficulty; pretrained on a broad
language, then tuned on few sequences of a shifted one. Label smoothing acts in tuning alone, on one pretrained model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..calibration import fit_head_temperature
from ..lab.registry import Experiment
from ..lab.shared import kept, loaded, saved, whole_key
from ..teachers import random_streams
from .from_scratch.grid import (
    TransformerConfig,
    cell_name,
    configs,
    has_more_rows,
    leftover,
    row_seconds,
    solves_maps,
)
from .from_scratch.measures import Known, falls, features, known, scores, states
from .from_scratch.predictions import LANGUAGES
from .from_scratch.pretraining import STILL_FALLING, Languages, pretrain
from .from_scratch.transformer import Transformer
from .from_scratch.tuning import Arm, arm_of, tuned

__all__ = ["EXPERIMENT", "compute"]

_PRETRAINING_VERSION = 1  # of kept models: raise it when the same config pretrains another one
_MEASURED = ("train", "broad", "shifted")
_VALIDATION = 16  # sequences that a temperature is fitted on
_AT_ONCE = 64  # sequences
_TEMPERATURES = (0.05, 20.0)


def compute(config: TransformerConfig, *, device: str = "cpu", shared: Path | None = None) -> dict[str, Any]:
    """Pretrain, or take the model from the folder of what rows share, tune in every way and measure.

    Args:
        config: Which model and which tunings.
        device: Where to train; on CUDA under bfloat16 autocast with float32 weights. Measured in float64.
        shared: Folder where pretrained models are kept; None for none.

    Returns:
        Sizes, seeds, how the text and the vocabulary were made, and ``measurements``, one for each arm (``method``),
        epoch (0, the pretrained model, and those of the config), distribution (``"broad"``, ``"shifted"``, and
        ``"train"``, the sequences tuned on) and reading: ``as_trained``, with the loss's temperature and cap, and at
        the last epoch on shifted sequences ``post_hoc``, at the temperature that fits 16 further ones best. Columns:
        those of :func:`.from_scratch.measures.scores` and :func:`~.from_scratch.measures.features`,
        ``validation_nll``, and of tunings without smoothing the falls that :func:`~.from_scratch.measures.falls`
        predicts.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    world = Languages(config)
    model, falling = _pretrained(config, world, device, shared if has_more_rows(config) else None)
    data = _data(config, world, device)
    # the start of all tunings stands in the row of the plain one
    lines = _lines(model, data, arm_of("b=0"), config, 0) if "b=0" in config.arms else []
    for name in config.arms:
        arm = arm_of(name)
        for epoch, found in tuned(
            model, data["train"].sequences, arm, epochs=config.epochs, batch=config.tuning_batch,
            step_size=config.tuning_step, weight_decay=config.sizes.weight_decay, seed=config.seed,
        ):  # fmt: skip
            lines += _lines(found, data, arm, config, epoch)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "symbols": config.symbols,
        "tied": config.tied,
        "distinct": config.distinct,
        "pretraining_smoothing": config.smoothing,
        "data_seed": config.seed,
        "model_seed": 1000 + config.seed,
        "pretraining_fall": falling,
        "converged": falling <= STILL_FALLING,
        "measurements": lines,
        "device": device,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def _pretrained(
    config: TransformerConfig, world: Languages, device: str, shared: Path | None
) -> tuple[Transformer, float]:
    wanted = config.pretraining
    model = Transformer(wanted.vocab_size, wanted.hidden_size, wanted.sizes.trunk, tied=wanted.tied, seed=0)

    def save(made: tuple[Transformer, float]) -> bytes:
        return saved({"weights": made[0].state_dict(), "falling": made[1]})

    def load(content: bytes) -> tuple[Transformer, float]:
        found = loaded(content, device)
        try:
            model.load_state_dict(found["weights"])
        except (RuntimeError, KeyError) as error:
            raise ValueError("content must be the weights of this model, got others.") from error
        return model.to(device), found["falling"]

    key = f"{whole_key(wanted, _PRETRAINING_VERSION)}_{device}"
    return kept(shared, key, lambda: pretrain(wanted, world, device=device), save, load)


def _data(config: TransformerConfig, world: Languages, device: str) -> dict[str, Known]:
    """What is tuned on and measured, the same on every device, with classes that are the same at every V."""
    streams = iter(random_streams(config.seed, 3 + 3 * 4)[3:])  # the first three are pretraining's
    counts = {"train": config.sequences, "broad": config.evaluated, "shifted": config.evaluated}
    found = {}
    for name, count in {**counts, "validation": _VALIDATION}.items():
        language = world.broad if name == "broad" else world.shifted
        sequences = world.draw(language, count, config.sequence + 1, (next(streams), next(streams)))
        found[name] = known(sequences, language.to(device), world.vocabulary, next(streams)).to(device)
    return found


@torch.no_grad()
def _hidden(model: Transformer, batch: Known) -> Tensor:  # (N, D) float32
    """Features before each predicted token, without autocast."""
    parts = batch.sequences[:, :-1].split(_AT_ONCE)
    return torch.cat([model.hidden(part).flatten(0, 1) for part in parts])


def _lines(
    model: Transformer, data: dict[str, Known], arm: Arm, config: TransformerConfig, epoch: int
) -> list[dict[str, Any]]:
    """Measurements of a model after an epoch."""
    hidden, head = {name: _hidden(model, batch) for name, batch in data.items()}, model.head.detach()
    read = {"temperature": arm.temperature, "softcap": arm.softcap}
    checked = scores(hidden["validation"], head, data["validation"], **read)
    stated = {"method": arm.name, "label_smoothing": arm.label_smoothing, "epoch": epoch}
    stated |= {"training_temperature": arm.temperature, "softcap": arm.softcap, "validation_nll": checked["nll"]}
    predicted: dict[str, dict[str, float]] = {}
    if epoch and arm.plain:
        targets = {name: (hidden[name], data[name].target) for name in _MEASURED}
        seen = (hidden["train"][: config.asked], data["train"].target[: config.asked])
        documents = torch.arange(len(hidden["train"])) // config.sequence
        maps = solves_maps(config) and epoch == config.epochs[-1]
        mapped = states(*targets["train"], documents) if maps else None
        predicted = falls(head, seen, targets, config.predicted, contexts=config.asked // 4, mapped=mapped)
    lines = []
    for name in _MEASURED:
        line = {**stated, "distribution": name, "reading": "as_trained"}
        line |= scores(hidden[name], head, data[name], **read) | features(model, hidden[name])
        lines.append(line | predicted.get(name, {}))
    if epoch == config.epochs[-1]:
        pair = (hidden["validation"], data["validation"].target)
        fit = fit_head_temperature([pair], head, softcap=arm.softcap, bounds=_TEMPERATURES)
        line = {**stated, "distribution": "shifted", "reading": "post_hoc"}
        again = scores(hidden["shifted"], head, data["shifted"], temperature=fit.temperature, softcap=arm.softcap)
        lines.append(line | again)
    return lines


EXPERIMENT = Experiment(
    name="S11",
    title="Hidden size times vocabulary: transformers from scratch on a language of known truth",
    compute=compute,
    configs=configs,
    seconds=row_seconds,
    predictions=LANGUAGES,
    leftover=leftover,
    name_of=cell_name,
    columns=("vocab_size", "hidden_size", "symbols", "tied", "distinct", "pretraining_smoothing", "data_seed"),
    shares=True,
)
