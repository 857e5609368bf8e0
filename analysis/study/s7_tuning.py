"""S7: instruction tuning in small: pretrain on a broad distribution, tune on few repeated examples of a shifted one."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..checks import check_fields, check_number, check_numbers
from ..lab.registry import Experiment, Prediction, Preset
from ..teachers import random_streams
from .s7_measures import mean_nll, measured
from .s7_world import Contexts, Model, World

__all__ = ["EXPERIMENT", "TuningConfig", "configs", "tune"]

_BATCH = 64  # contexts a step of tuning

PREDICTIONS = (
    Prediction(
        claim="K1",
        verdict="supported",
        statement="Tuning without smoothing raises the true ECE on both distributions above that of the pretrained "
        "model on the broad one, and it grows from the first epoch to the last.",
    ),
    Prediction(
        claim="K2",
        verdict="supported",
        statement="At the last epoch b = .1 has a lower true ECE on new shifted contexts than b = 0. On ECE alone "
        "early stopping or a temperature fitted afterwards does as well.",
    ),
    # of the confidence penalty, a rival that was added when all the others had been run
    Prediction(
        claim="K2",
        verdict="supported",
        statement="At (V, D) = (1024, 64), on new shifted contexts at the last epoch, a confidence penalty of .2 "
        "lowers the true ECE by more than b = .1 does, one of .05 by more than 0 and by less than b = .1. A "
        "temperature fitted to the plain model afterwards ends below both. Both change the accuracy by less than .02.",
    ),
    Prediction(
        claim="K8",
        verdict="not decided",
        statement="No expectation: measure effective rank and smallest singular values of the features against b, "
        "and their correlation with the true ECE on shifted contexts at equal epochs.",
    ),
    Prediction(
        claim="K9",
        verdict="supported",
        statement="b = .1 changes the accuracy on new shifted contexts by less than .02 and narrows the gap between "
        "training and held-out NLL, at the last epoch.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """One pretrained model and all its tunings; equal seeds share world, pretraining and tuning examples.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        seed: Of the data; the model's is 1000 + seed.
        smoothings: b of the tunings.
        pretraining_steps: Adam steps on new broad contexts, 512 each.
        examples: Shifted contexts tuned on, with one token each.
        epochs: Passes over them.
        step_size: Of Adam in tuning; pretraining takes .003 with a cosine.
        weight_decay: Decoupled decay of the run called ``weight_decay``; 0 for no such run.
        dropout: Rate of the run called ``dropout``; 0 for no such run.
        evaluated: New contexts of each distribution that measurements are made on.
        penalties: gamma of the tunings with a confidence penalty, called ``penalty=GAMMA``.
    """

    vocab_size: int
    hidden_size: int
    seed: int = 0
    smoothings: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    pretraining_steps: int = 800
    examples: int = 512
    epochs: int = 32
    step_size: float = 1e-3
    weight_decay: float = 0.3
    dropout: float = 0.2
    evaluated: int = 1500
    penalties: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, vocab_size=2, hidden_size=1, seed=0, pretraining_steps=1, examples=1, epochs=1, evaluated=1)
        check_numbers("smoothings", self.smoothings, 0, 1)
        check_numbers("penalties", self.penalties, 0)
        check_number("step_size", self.step_size, 0, open_low=True)
        check_number("weight_decay", self.weight_decay, 0)
        check_number("dropout", self.dropout, 0, 1)


def tune(config: TuningConfig, *, device: str = "cpu") -> dict[str, Any]:
    """Pretrain once, tune with every method, measure along the way.

    Returns:
        Sizes, seeds and ``measurements``, one for each method, epoch (powers of 2, and 0, the pretrained model),
        distribution (``"broad"``, ``"shifted"``, and ``"train"``, the examples tuned on) and reading: ``as_trained``;
        on shifted contexts of smoothed runs also ``inverted``, and of all runs at the last epoch ``post_hoc``, the
        temperature that fits 256 further shifted examples best. Columns: ``confidence``, ``accuracy`` (true probability
        of the prediction), ``true_ece`` (15 bins, known accuracies), ``context_error``, ``estimated_ece`` (sampled
        tokens), ``true_nll``, ``nll`` (sampled tokens), ``aurc``, ``validation_nll`` (the 256 examples; what early
        stopping looks at), and of the features ``effective_rank`` (exp of the spectrum's entropy), ``smallest_share``
        (share of the variance in the smaller half of the spectrum), ``head_norm`` (largest row) and
        ``feature_norm_max``. ``reliability``, for the pretrained model and at the last epoch: the filled bins of
        ``true_ece``, lowest first, as ``count:mean confidence:mean true accuracy`` joined by ``;``.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    streams = random_streams(config.seed, 5)
    world = World(config.vocab_size, config.seed)
    model = Model(config.vocab_size, config.hidden_size, seed=1000 + config.seed).to(device)
    falling = _pretrain(model, world, config, streams[0], device)
    data = {
        "train": world.draw(config.examples, shifted=True, generator=streams[1]),
        "broad": world.draw(config.evaluated, shifted=False, generator=streams[2]),
        "shifted": world.draw(config.evaluated, shifted=True, generator=streams[3]),
    }
    validation = world.draw(256, shifted=True, generator=streams[4])
    lines = []
    for method in _methods(config):
        for epoch, tuned in _tuned(model, data["train"], config, method, device):
            known = {"method": method.name, "label_smoothing": method.label_smoothing, "epoch": epoch}
            known["validation_nll"] = mean_nll(tuned.logits(validation.inputs.to(device)).cpu(), validation)
            lines += measured(tuned, data, validation, known, device, last=epoch == config.epochs)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "data_seed": config.seed,
        "model_seed": 1000 + config.seed,
        "pretraining_fall": falling,
        "converged": falling <= 0.05,
        "measurements": lines,
        "device": device,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def _pretrain(model: Model, world: World, config: TuningConfig, stream: torch.Generator, device: str) -> float:
    """Train on new broad contexts; by how much the mean loss still fell over the last tenth, in nats."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.pretraining_steps)
    losses = []
    for _ in range(config.pretraining_steps):
        batch = world.draw(512, shifted=False, generator=stream)
        optimiser.zero_grad()
        loss = model.loss(batch.inputs.to(device), batch.tokens.to(device))
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    course = torch.stack(losses).cpu()
    tenth = max(1, config.pretraining_steps // 10)
    return float(course[-2 * tenth : -tenth].mean() - course[-tenth:].mean())


class _Method(NamedTuple):
    """What one tuning differs in from the others."""

    name: str
    label_smoothing: float = 0.0
    confidence_penalty: float = 0.0
    weight_decay: float = 0.0
    dropout: float = 0.0


def _methods(config: TuningConfig) -> list[_Method]:
    """The tunings of one pretrained model."""
    listed = [_Method(f"b={b:g}", label_smoothing=b) for b in config.smoothings]
    if config.weight_decay:
        listed.append(_Method("weight_decay", weight_decay=config.weight_decay))
    if config.dropout:
        listed.append(_Method("dropout", dropout=config.dropout))
    return listed + [_Method(f"penalty={gamma:g}", confidence_penalty=gamma) for gamma in config.penalties]


def _tuned(
    pretrained: Model, train: Contexts, config: TuningConfig, method: _Method, device: str
) -> Iterator[tuple[int, Model]]:
    """The model after 0, 1, 2, 4, ... epochs; the order of the examples is the same for every method."""
    model = copy.deepcopy(pretrained)
    model.dropout.p = method.dropout
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.step_size, weight_decay=method.weight_decay)
    order = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)  # of dropout
    inputs, tokens = train.inputs.to(device), train.tokens.to(device)
    yield 0, model
    for epoch in range(1, config.epochs + 1):
        for part in torch.randperm(len(tokens), generator=order).split(_BATCH):
            rows = part.to(device)
            optimiser.zero_grad()
            loss = model.loss(
                inputs[rows],
                tokens[rows],
                label_smoothing=method.label_smoothing,
                confidence_penalty=method.confidence_penalty,
            )
            loss.backward()
            optimiser.step()
        if epoch & (epoch - 1) == 0 or epoch == config.epochs:
            yield epoch, model


def configs(preset: Preset) -> list[TuningConfig]:
    """Hidden sizes x vocabularies x seeds; and in one size the same pretrained models with a confidence penalty."""
    if preset == "quick":
        sizes = ((128, 16), (128, 64), (512, 16), (512, 64))
        return [TuningConfig(vocab_size=v, hidden_size=d, seed=seed) for v, d in sizes for seed in range(3)]
    sizes = [*((v, d) for v in (256, 1024) for d in (8, 64, 256)), (4096, 64)]
    large: dict[str, Any] = {"pretraining_steps": 2500, "examples": 1024, "epochs": 32, "evaluated": 3000}
    penalised = {"smoothings": (), "weight_decay": 0.0, "dropout": 0.0, "penalties": (0.05, 0.2)}
    cells = [{"vocab_size": v, "hidden_size": d, **large} for v, d in sizes]
    cells.append({"vocab_size": 1024, "hidden_size": 64, **large, **penalised})
    return [TuningConfig(**cell, seed=seed) for cell in cells for seed in range(5)]


def _seconds(config: TuningConfig, device: str) -> float:
    """Pretraining steps x 512 contexts, tunings x epochs x examples, and measurements in float64."""
    v, d, cuda = config.vocab_size, config.hidden_size, device.startswith("cuda")
    weights = v * d + 128 * (128 + 24 + d)
    tunings = len(_methods(config))
    contexts = 512 * config.pretraining_steps + tunings * config.epochs * config.examples
    steps = config.pretraining_steps + tunings * config.epochs * config.examples / _BATCH
    teacher = 512 * config.pretraining_steps * v * 100 / 5e9  # the conditionals of new contexts, on the CPU
    measured = tunings * (2 + np.log2(config.epochs)) * (2 * config.evaluated + config.examples) * v * 60 / 1e9
    return float(
        contexts * weights * 6 / (1e13 if cuda else 3e10) + steps * (3e-3 if cuda else 1e-3) + teacher + measured
    )


EXPERIMENT = Experiment(
    name="S7",
    title="Instruction tuning in small: what it does to calibration, and what smoothing does about it",
    compute=tune,
    configs=configs,
    seconds=_seconds,
    predictions=PREDICTIONS,
    gpu=False,
)
