"""One tuning on pairs of instruction and response, and what the model is worth before it and after each epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kernel.extras import pip_install
from kernel.huggingface import fuse_loss, head_scale

from ...lab.records import config_key
from ...language_models import load_model
from ...language_models.documents import Encoded, batches
from ...language_models.families import reads_families
from ...language_models.packing import packed
from .evaluation import Reading, head_norms
from .pair_configs import PairConfig
from .pair_documents import PairDocuments, documents_of
from .pair_measures import kept_before, measure
from .token_files import TokenFile, read_tokens
from .vocabulary import cut_vocabulary

__all__ = ["checked_cross_entropy", "tune_on_pairs"]

_KEPT_EVERY = 60.0  # seconds at least between two states of a run: gigabytes each


def tune_on_pairs(
    config: PairConfig,
    *,
    model: Path,
    tokens: Path,
    device: str = "cpu",
    checkpoints: Path | None = None,
    falls: bool = True,
    shared: Path | None = None,
) -> dict[str, Any]:
    """Tune with the fused loss, and measure before the first epoch and after each.

    Args:
        config: What to do; ``config.model`` and ``config.tokens`` must fit the two files.
        model: Folder or GGUF file of the model.
        tokens: File of token ids.
        device: Where to train; on CUDA under bfloat16 autocast with float32 weights.
        checkpoints: Folder in which the state after an epoch is kept until the run ends, at most once a minute: a run
            that was stopped goes on from there. Three times the weights in size, and twice that while it is written
            (3.2 GB for Gemma-3-270M). None for none.
        falls: Whether runs without smoothing on all documents solve for the falls that shared changes predict, which
            takes as long as the tuning where the vocabulary is large; a row without them is complete in all else.
        shared: Folder in which what is measured before tuning is kept for the runs of other losses and seeds, which
            find the same (:func:`.pair_measures.kept_before`); None for none.

    Returns:
        The config's numbers and ``measurements``. Lines have ``epoch``, ``split`` (``train``, ``fit``, ``scored``),
        ``view``, ``source``, ``reading`` and ``read_at``. Views: ``response`` and ``text`` (next token over the whole
        vocabulary), ``cloze``, ``cloze_norm`` and ``letters`` (options of questions:
        :func:`.choice_scores.choice_lines`), which have an ``exam``: ``along``, the same questions at every epoch, and
        with ``config.whole`` also ``whole``, all of them, before and after.
        Readings: ``as_trained``, with the loss's temperature and cap; ``plain``,
        without them, where they differ; ``post_hoc``, at the temperature that fits the part ``fit``. Before tuning and
        at the end of tunings without smoothing on all documents ``response`` and ``text`` also have the falls that
        shared changes predict (:func:`.responses.shared_falls`, at the end :func:`.responses.mapped_falls`), and
        ``response`` of the part ``scored`` has the features' spectrum.

    Raises:
        ValueError: If a file is another one than the config names, or holds too little.
    """
    wall, cpu, measuring = time.perf_counter(), time.process_time(), 0.0
    known = _read(Path(tokens))
    if (Path(model).name, known.digest) != (config.model, config.tokens):
        raise ValueError(
            f"model and tokens must be {config.model} and {config.tokens}, got {Path(model).name} and {known.digest}."
        )
    pretrained, revision = _loaded(Path(model))
    if revision != known.facts["revision"]:
        raise ValueError(f"model must be the one of tokens ({known.facts['revision']}), got {model} ({revision}).")
    data = documents_of(known, config)
    tuned = copy.deepcopy(pretrained)
    cut_vocabulary(tuned, data.kept)
    tuned = _adapted(tuned, config).to(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)  # of the run that this process made before
    readings = _readings(tuned, config)
    lines: list[dict[str, Any]] = []
    place = None if checkpoints is None else Path(checkpoints) / f"{config_key(config)}.pt"
    for epoch, loss in _epochs(tuned, data, config, lines, place):
        start, ends = time.perf_counter(), epoch in (0, config.epochs)
        plain = falls and ends and config.within is None and not config.label_smoothing
        keep = None if epoch else kept_before(config, shared, device)
        measured = measure(_base(tuned), data, readings, ends=ends, predict=plain, maps=plain and epoch > 0, keep=keep)
        norms = head_norms(_base(tuned))
        lines += [{"epoch": epoch, "training_loss": loss, **line, **norms} for line in measured]
        measuring += time.perf_counter() - start
    if place is not None:
        for path in (place, _unfinished(place)):
            path.unlink(missing_ok=True)
    return {
        **{name: getattr(config, name) for name in _SET},
        "rows": len(data.kept),
        "data_seed": config.seed,
        "pairs": len(data.train),
        "measurements": lines,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "measuring_seconds": measuring,  # of wall_seconds
        "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.startswith("cuda") else None,
    }


_SET = (
    "model", "tokens", "label_smoothing", "temperature", "softcap", "confidence_penalty", "vocabulary", "within",
    "lora", "weight_decay", "step_size", "epochs",
)  # fmt: skip


@torch.no_grad()
def checked_cross_entropy(model: Any, known: TokenFile, *, autocast: bool = False) -> tuple[float, float]:
    """Cross entropy in nats and accuracy on the pieces of the file that a model is checked on, in float32 or not."""
    total, right, count = 0.0, 0, 0
    for ids in known.checked:
        tokens = torch.tensor([ids], device=model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
            logits, target = model(tokens).logits[0, :-1].float(), tokens[0, 1:]
        total += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        right, count = right + int((logits.argmax(-1) == target).sum()), count + len(target)
    return total / count, right / count


@lru_cache(maxsize=1)
def _read(tokens: Path) -> TokenFile:
    """Read once in each process."""
    return read_tokens(tokens)


@lru_cache(maxsize=1)
def _loaded(model: Path) -> tuple[Any, str]:
    """The model and its revision, read once in each process; copied for every run."""
    loaded = load_model(model, with_tokenizer=False)
    return loaded.model, loaded.revision


def _adapted(model: Any, config: PairConfig) -> Any:
    """With adapters on every linear layer but the head, which alone are trained then."""
    if not config.lora:
        return model
    try:
        from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"adapters need peft: {pip_install('gemma')}") from error
    torch.manual_seed(config.seed)
    options = LoraConfig(r=config.lora, lora_alpha=2 * config.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, options)


def _base(model: Any) -> Any:
    """The model out of PEFT's wrapper; its adapters lie inside its layers."""
    return model.get_base_model() if callable(getattr(model, "get_base_model", None)) else model


def _readings(model: Any, config: PairConfig) -> list[Reading]:
    own = head_scale(_base(model)).softcap
    trained = Reading("as_trained", config.temperature, own if config.softcap is None else config.softcap)
    plain = Reading("plain", 1.0, own)
    return [trained] if trained[1:] == plain[1:] else [trained, plain]


def _epochs(
    model: Any, data: PairDocuments, config: PairConfig, lines: list[dict[str, Any]], place: Path | None
) -> Iterator[tuple[int, float | None]]:
    """Train; at each epoch that is to be measured, its number and mean training loss. ``lines`` grow meanwhile."""
    fused = model.device.type == "cuda"
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=config.step_size, weight_decay=config.weight_decay, fused=fused)
    warm_up = max(1, config.epochs * -(-len(data.train) // config.batch_size) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / warm_up))
    order = torch.Generator().manual_seed(config.seed)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    done, kept = _resumed(place, parts, order, lines), time.monotonic()
    if done is None:
        yield 0, None
        done = 0
    options = {"label_smoothing": config.label_smoothing, "temperature": config.temperature, "softcap": config.softcap}
    inputs = _inputs(model, data, config.batch_size)
    with fuse_loss(model, **options, confidence_penalty=config.confidence_penalty):
        for epoch in range(done + 1, config.epochs + 1):
            model.train()
            mixed = [data.train[i] for i in torch.randperm(len(data.train), generator=order).tolist()]
            losses = []
            for given in inputs(mixed):
                with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=fused):
                    loss = model(**given).loss
                optimiser.zero_grad()
                (config.temperature * loss).backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimiser.step()
                schedule.step()
                losses.append(loss.detach())
            yield epoch, float(torch.stack(losses).mean())
            if place is not None and epoch < config.epochs and time.monotonic() - kept >= _KEPT_EVERY:
                _keep(place, parts, order, epoch, lines)
                kept = time.monotonic()


def _inputs(
    model: Any, data: PairDocuments, batch_size: int
) -> Callable[[Sequence[Encoded]], Iterator[dict[str, Any]]]:
    """What makes of documents what the model is called with: packed where it can be told who sees whom."""
    if reads_families(_base(model), sorted(data.train, key=lambda d: len(d.tokens))[-2:], pad=data.pad):
        autocast = torch.bfloat16 if model.device.type == "cuda" else None
        return lambda several: (
            packed(model, several[start : start + batch_size], data.pad, autocast)
            for start in range(0, len(several), batch_size)
        )
    return lambda several: (
        {"input_ids": b.tokens, "attention_mask": b.mask, "labels": b.labels}
        for b in (batch.to(model.device) for batch in batches(several, batch_size, data.pad))
    )


def _unfinished(place: Path) -> Path:
    """Where a state is written first: one name, so that what a killed process left is overwritten."""
    return place.with_suffix(".unfinished")


def _keep(place: Path, parts: dict[str, Any], order: torch.Generator, epoch: int, lines: list[dict[str, Any]]) -> None:
    """Write the state after an epoch, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(place)
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, "order": order.get_state(), "epoch": epoch, "lines": lines}, unfinished)
    unfinished.replace(place)


def _resumed(
    place: Path | None, parts: dict[str, Any], order: torch.Generator, lines: list[dict[str, Any]]
) -> int | None:
    """The epoch that a stopped run had finished, with everything as it was then; None for a new run."""
    if place is None or not place.exists():
        return None
    state = torch.load(place, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    order.set_state(state["order"])
    lines += state["lines"]
    return state["epoch"]
