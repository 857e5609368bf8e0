"""One tuning on pairs of instruction and response, and what the model is worth before it and after each epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from kernel.extras import pip_install
from kernel.huggingface import fuse_loss, head_scale

from ...calibration import fit_head_temperature
from ...lab.records import config_key
from ...language_models import load_model
from ...language_models.documents import batches
from ...language_models.features import HiddenStates, ModelHead, head_of, hidden_states
from .choice_scores import Asked, ask, choice_lines
from .evaluation import Reading, head_norms, spectrum, vocabulary_scores
from .pair_configs import PairConfig
from .pair_documents import Exam, PairDocuments, documents_of
from .responses import mapped_falls, shared_falls
from .token_files import TokenFile, read_tokens
from .vocabulary import cut_vocabulary

__all__ = ["checked_cross_entropy", "tune_on_pairs"]

_ASKED = (0.1, 0.2)  # b whose effect a tuning without smoothing is asked to predict
_MAPPED = (0.1,)  # b for which maps of the features are solved for as well
_SOLVED = 1024  # tokens that the predictions are solved on: each step is a pass over the head
_KEPT_EVERY = 60.0  # seconds at least between two states of a run: gigabytes each
_BOUNDS = (0.05, 20.0)  # of temperatures


def tune_on_pairs(
    config: PairConfig,
    *,
    model: Path,
    tokens: Path,
    device: str = "cpu",
    checkpoints: Path | None = None,
    falls: bool = True,
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
        falls: Whether the falls that shared changes predict are solved for, which takes as long as the tuning where the
            vocabulary is large; a row without them is complete in all else.

    Returns:
        The config's numbers and ``measurements``. Lines have ``epoch``, ``split`` (``train``, ``fit``, ``scored``),
        ``view``, ``source``, ``reading`` and ``read_at``. Views: ``response`` and ``text`` (next token over the whole
        vocabulary), ``cloze``, ``cloze_norm`` and ``letters`` (options of questions:
        :func:`.choice_scores.choice_lines`), which have an ``exam``: ``along``, the same questions at every epoch, and
        with ``config.whole`` also ``whole``, all of them, before and after.
        Readings: ``as_trained``, with the loss's temperature and cap; ``plain``,
        without them, where they differ; ``post_hoc``, at the temperature that fits the part ``fit``. Before tuning and
        at the end of tunings without smoothing ``response`` and ``text`` also have the falls that shared changes
        predict (:func:`.responses.shared_falls`, at the end :func:`.responses.mapped_falls`), and ``response`` of the
        part ``scored`` has the features' spectrum.

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
        plain = falls and ends and not config.label_smoothing
        measured = _measure(_base(tuned), data, readings, ends=ends, predict=plain, maps=plain and epoch > 0)
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
    with fuse_loss(model, **options, confidence_penalty=config.confidence_penalty):
        for epoch in range(done + 1, config.epochs + 1):
            model.train()
            mixed = [data.train[i] for i in torch.randperm(len(data.train), generator=order).tolist()]
            losses = []
            for batch in batches(mixed, config.batch_size, data.pad):
                b = batch.to(model.device)
                with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=fused):
                    loss = model(input_ids=b.tokens, attention_mask=b.mask, labels=b.labels).loss
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


def _measure(
    model: Any, data: PairDocuments, readings: list[Reading], *, ends: bool, predict: bool, maps: bool
) -> Iterator[dict[str, Any]]:
    """All scores of a model as it stands, one line each."""
    head, cuda = head_of(model), model.device.type == "cuda"
    autocast = torch.bfloat16 if cuda else None
    # The head's products as those of the loss: in float32 they would take a GPU most of the time.
    as_trained = partial(torch.autocast, model.device.type, dtype=torch.bfloat16, enabled=cuda)
    named = {(part, "response"): documents for part, documents in data.responses.items()}
    named |= {("scored", "text"): data.texts} if data.texts else {}
    known = {key: hidden_states(model, documents, pad=data.pad, autocast=autocast) for key, documents in named.items()}
    # a minimum is searched: in float32
    falls = _falls(known, head, readings[0], maps=maps) if predict else {}
    with as_trained():
        post_hoc = _fitted(known["fit", "response"], head, readings[0])
    for (split, view), states in known.items():
        extra = spectrum(states.hidden) if ends and (split, view) == ("scored", "response") else {}
        for reading in (*readings, *([post_hoc] if split == "scored" else ())):
            line = {"split": split, "view": view, "source": "all", "reading": reading.name}
            with as_trained():
                scores = vocabulary_scores(states, head, reading)
            added = {**extra, **falls.get((split, view), {})} if reading is readings[0] else {}
            yield {**line, "read_at": reading.temperature, **scores, **added}
    # The same questions at every epoch, so that a column of them has no jump; all of them apart.
    exams = {"along": data.along} | ({"whole": data.ends} if ends and data.ends is not data.along else {})
    for (exam, asked), reading in product(exams.items(), readings):
        fit, scored = (_asked(model, head, asked[part], data, reading) for part in ("fit", "scored"))
        for line in choice_lines(fit, scored, bins=ends):
            if line["reading"] == "post_hoc" and reading is not readings[0]:
                continue  # one fit is enough
            if line["reading"] == "as_trained":
                line["reading"] = reading.name
            yield {"exam": exam, **line}


def _asked(model: Any, head: ModelHead, exam: Exam, data: PairDocuments, reading: Reading) -> Asked:
    documents = {"options": exam.options, "letters": exam.letters}
    capped = head._replace(softcap=reading.softcap)
    return ask(
        model, capped, exam.questions, documents, letters=data.letters, pad=data.pad, temperature=reading.temperature
    )


def _fitted(known: HiddenStates, head: ModelHead, base: Reading) -> Reading:
    fit = fit_head_temperature(
        [(known.hidden, known.target)], head.weight, linear_bias=head.bias, softcap=base.softcap,
        logit_scale=head.logit_scale, bounds=_BOUNDS,
    )  # fmt: skip
    return Reading("post_hoc", fit.temperature, base.softcap)


def _falls(
    known: dict[tuple[str, str], HiddenStates], head: ModelHead, reading: Reading, *, maps: bool
) -> dict[tuple[str, str], dict[str, float]]:
    """Falls in confidence that shared changes of the features predict, solved on tokens of the pairs tuned on.

    Maps of many unknowns are solved for if asked, on more tokens, and read on those and on the part that is scored.
    """
    if reading.temperature != 1 and (head.bias is not None or reading.softcap is not None):
        return {}  # a temperature is a scale of the logits only where nothing comes between
    train = known["train", "response"]
    rows = torch.linspace(0, len(train.target) - 1, min(_SOLVED, len(train.target))).long()
    seen = HiddenStates(*(x[rows.to(x.device)] for x in train))
    trained = head._replace(softcap=reading.softcap, logit_scale=head.logit_scale / reading.temperature)
    asked = {f"{split} {view}": x for (split, view), x in known.items()}
    found = shared_falls(seen, trained, asked, _ASKED)
    if maps:
        read = {name: x for name, x in asked.items() if not name.startswith("fit ")}
        for name, numbers in mapped_falls(train, trained, read, _MAPPED).items():
            found[name] |= numbers
    return {(name.split()[0], name.split()[1]): numbers for name, numbers in found.items()}
