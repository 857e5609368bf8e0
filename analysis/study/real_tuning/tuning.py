"""One tuning: few real questions, several epochs, the fused smoothed loss, and measurements along the way."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from kernel.huggingface import fuse_loss, head_scale

from ...checks import check_fields, check_number
from ...language_models.documents import Encoded, batches, encode_text
from .encoding import encode_question, letter_tokens, load
from .evaluation import Reading, head_norms, measure
from .questions import QuestionSet, read_questions

__all__ = ["PRESETS", "InstructionConfig", "TuningPreset", "configs", "seconds", "tune"]

TuningPreset = Literal["rehearsal", "full"]
_ASKED = (0.1, 0.2)  # b whose effect a tuning without smoothing is asked to predict
PRESETS: tuple[TuningPreset, ...] = ("rehearsal", "full")


@dataclass(frozen=True, kw_only=True)
class InstructionConfig:
    """One tuning run; equal seeds share examples and their order, whatever the loss.

    Attributes:
        model: Name of the model's file or folder.
        questions: Digest of the questions.
        label_smoothing: b of the loss.
        temperature: T of the loss.
        softcap: Cap of the loss; None for the model's own.
        seed: Of the examples and their order.
        examples: Questions tuned on, drawn from the training split.
        epochs: Passes over them.
        batch_size: Questions a step.
        step_size: Of AdamW, after a tenth of the steps of linear warm-up; constant, so that epochs compare.
        evaluated: Most questions of each split and format that are measured.
        texts: Most documents of ordinary text.
    """

    model: str
    questions: str
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    seed: int = 0
    examples: int = 1024
    epochs: int = 8
    batch_size: int = 32
    step_size: float = 1e-4
    evaluated: int = 800
    texts: int = 78

    def __post_init__(self) -> None:
        check_fields(self, seed=0, examples=1, epochs=1, batch_size=1, evaluated=1, texts=0)
        check_number("label_smoothing", self.label_smoothing, 0, 1)
        for name in ("temperature", "softcap", "step_size"):
            if name != "softcap" or self.softcap is not None:
                check_number(name, getattr(self, name), 0, open_low=True)


def configs(model: str, questions: str, preset: TuningPreset) -> list[InstructionConfig]:
    """The runs of a preset: b at T = 1 and no cap for all seeds; then training T and caps, each with b of 0 and .1.

    In the order in which they matter, so that a run that ends early lacks the least. ``full``: 33 runs. ``rehearsal``:
    2 of a few steps, to see that everything works.
    """
    common: dict[str, Any] = {"model": model, "questions": questions}
    if preset == "rehearsal":
        small: dict[str, Any] = {"examples": 8, "epochs": 2, "batch_size": 4, "evaluated": 24, "texts": 2}
        return [InstructionConfig(**common, **small, label_smoothing=b) for b in (0.0, 0.1)]
    if preset != "full":
        raise ValueError(f"preset must be one of {PRESETS}, got {preset!r}.")
    seeds = range(3)
    grid: list[dict[str, Any]] = [{"seed": seed, "label_smoothing": b} for seed in seeds for b in (0.0, 0.1, 0.2)]
    for setting in ({"temperature": 0.5}, {"softcap": 15.0}, {"temperature": 2.0}, {"softcap": 30.0}):
        grid += [{**setting, "seed": seed, "label_smoothing": b} for seed in seeds for b in (0.0, 0.1)]
    return [InstructionConfig(**common, **one) for one in grid]


def seconds(config: InstructionConfig, device: str) -> float:
    """Estimated seconds of one run, for a model of about 135 million weights. Right to a factor of about 2.

    With a GPU one CPU core is the bound, as it launches many small kernels: 145 s of it a run of the full preset were
    measured on the hosts of H200s, about .35 s a step and the rest measurements. On a CPU it is arithmetic: 70 tokens a
    question, 6 operations a weight and token.
    """
    steps = config.epochs * -(-config.examples // config.batch_size)
    times = len(list(_measured_at(config.epochs)))
    documents = 2 * (3 * config.evaluated + min(config.examples, 2 * config.evaluated)) + 5 * config.texts
    if device.startswith("cuda"):
        return steps * 0.35 + times * (2 + documents / 128 * 0.3)
    tokens = 3 * config.epochs * config.examples * 70 + times * documents * 70
    return tokens * 2 * 135e6 / 30e9


def tune(config: InstructionConfig, *, model: Path, questions: Path, device: str = "cpu") -> dict[str, Any]:
    """Tune with the fused loss and measure before the first epoch and after epochs 1, 2, 4, ...

    Args:
        config: What to do; ``config.model`` and ``config.questions`` must fit the two files.
        model: Folder or GGUF file of the model.
        questions: File of questions.
        device: Where to train; on CUDA under bfloat16 autocast with float32 weights.

    Returns:
        The config's numbers and ``measurements``, one for each epoch and line of
        :func:`analysis.study.real_tuning.evaluation.measure`. Readings: ``as_trained``, with the loss's temperature
        and cap; ``plain``, without them, where they differ; ``post_hoc``, at the fitted temperature, before and after
        tuning. Tunings without smoothing also have, as trained, ``scale_fall_B`` and ``gain_fall_B``: the falls that
        shared changes of the features predict, from ``scale_confidence`` and ``gain_confidence``, nan where the plain
        loss has no minimum (:func:`.responses.shared_falls`), and the numbers of :func:`.responses.mapped_falls`.

    Raises:
        ValueError: If a file is another one than the config names, or there are too few training questions.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    known = read_questions(questions)
    if (Path(model).name, known.digest) != (config.model, config.questions):
        raise ValueError(
            f"model and questions must be {config.model} and {config.questions}, got {Path(model).name} and "
            f"{known.digest}."
        )
    pretrained, tokenizer = _loaded(Path(model))
    data, train = _documents(known, tokenizer, config)
    readings = _readings(pretrained, config)
    tuned = copy.deepcopy(pretrained).to(device)
    lines: list[dict[str, Any]] = []
    for epoch, loss in _epochs(tuned, train, tokenizer, config):
        ends = epoch in (0, config.epochs)
        measured = measure(
            tuned,
            data,
            letters=letter_tokens(tokenizer),
            pad=_pad(tokenizer),
            readings=readings,
            post_hoc=ends,
            smoothings=() if config.label_smoothing or not epoch else _ASKED,
        )
        lines += [{"epoch": epoch, "training_loss": loss, **line, **head_norms(tuned)} for line in measured]
    return {
        "model": config.model,
        "questions": config.questions,
        "label_smoothing": config.label_smoothing,
        "temperature": config.temperature,
        "softcap": config.softcap,
        "data_seed": config.seed,
        "examples": config.examples,
        "epochs": config.epochs,
        "measurements": lines,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


@lru_cache(maxsize=1)
def _loaded(model: Path) -> tuple[Any, Any]:
    """Read once in each process; copied for every run."""
    return load(model)


def _pad(tokenizer: Any) -> int:
    return tokenizer.pad_token_id or 0  # any token: it is masked


def _documents(
    known: QuestionSet, tokenizer: Any, config: InstructionConfig
) -> tuple[dict[str, dict[str, list[Encoded]]], list[Encoded]]:
    """What is measured, and what is tuned on."""
    pool = known.select("train")
    if config.examples > len(pool):
        raise ValueError(f"examples must be at most the {len(pool)} training questions, got {config.examples}.")
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(config.seed))[: config.examples]
    chosen = [pool[i] for i in drawn.tolist()]

    def encode(questions: Sequence[Any]) -> list[Encoded]:
        return [encode_question(tokenizer, q) for q in questions[: config.evaluated]]

    data = {
        split: {
            "choice": encode([q for q in asked if q.options]),
            "short": encode([q for q in asked if not q.options]),
        }
        for split, asked in (
            ("train", chosen),
            ("validation", known.select("validation")),
            ("test", known.select("test")),
        )
    }
    data["test"]["text"] = [encode_text(tokenizer, text) for text in known.texts[: config.texts]]
    return data, [encode_question(tokenizer, q) for q in chosen]


def _readings(model: Any, config: InstructionConfig) -> list[Reading]:
    """As the loss reads the logits, and as the model itself does."""
    own = head_scale(model).softcap
    trained = Reading("as_trained", config.temperature, own if config.softcap is None else config.softcap)
    plain = Reading("plain", 1.0, own)
    return [trained] if trained[1:] == plain[1:] else [trained, plain]


def _measured_at(epochs: int) -> Iterator[int]:
    yield from (e for e in range(epochs + 1) if e & (e - 1) == 0 or e == epochs)  # 0, 1, 2, 4, ...


def _epochs(
    model: Any, train: Sequence[Encoded], tokenizer: Any, config: InstructionConfig
) -> Iterator[tuple[int, float | None]]:
    """Train ``model``; at each epoch to be measured, the epoch and the mean training loss of the last one."""
    yield 0, None
    options = {"label_smoothing": config.label_smoothing, "temperature": config.temperature, "softcap": config.softcap}
    fused = model.device.type == "cuda"  # one launch instead of many: launches bound the step
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.step_size, weight_decay=0.0, fused=fused)
    warm_up = max(1, config.epochs * -(-len(train) // config.batch_size) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / warm_up))
    order = torch.Generator().manual_seed(config.seed)
    measured = set(_measured_at(config.epochs))
    with fuse_loss(model, **options):
        for epoch in range(1, config.epochs + 1):
            model.train()
            mixed = [train[i] for i in torch.randperm(len(train), generator=order).tolist()]
            losses = []
            for batch in batches(mixed, config.batch_size, _pad(tokenizer)):
                b = batch.to(model.device)
                with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.device.type == "cuda"):
                    loss = model(input_ids=b.tokens, attention_mask=b.mask, labels=b.labels).loss
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                losses.append(loss.detach())
            if epoch in measured:
                yield epoch, float(torch.stack(losses).mean())
