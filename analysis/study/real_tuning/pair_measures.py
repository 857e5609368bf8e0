"""All that is measured of a model tuned on pairs, as it stands; before tuning once for all runs that begin alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ...calibration import fit_head_temperature
from ...lab.shared import kept, whole_key
from ...language_models.features import HiddenStates, ModelHead, head_of, hidden_states
from .choice_scores import Asked, ask, choice_lines
from .evaluation import Reading, spectrum, vocabulary_scores
from .pair_configs import PairConfig
from .pair_documents import Exam, PairDocuments
from .responses import mapped_falls, shared_falls

__all__ = ["Keep", "Lines", "kept_before", "measure"]

_ASKED = (0.1, 0.2)  # b whose effect a tuning without smoothing is asked to predict
_MAPPED = (0.1,)  # b for which maps of the features are solved for as well
_SOLVED = 1024  # tokens that the predictions are solved on: each step is a pass over the head
_BOUNDS = (0.05, 20.0)  # of temperatures
_VERSION = 1  # of what is kept: to be raised where the same config is measured otherwise before tuning
# What a model is before tuning does not depend on how it will be tuned, nor on what: adapters begin at 0.
_OF_TUNING = (
    "label_smoothing", "confidence_penalty", "lora", "weight_decay", "step_size", "seed", "pairs", "epochs",
    "batch_size",
)  # fmt: skip
_TUNED_ON = ("train", "response")

Lines: TypeAlias = list[dict[str, Any]]
Keep: TypeAlias = Callable[[Callable[[], Lines]], Lines]
States: TypeAlias = dict[tuple[str, str], HiddenStates]


def kept_before(config: PairConfig, shared: Path | None, device: str) -> Keep:
    """What makes lines, or finds those that another run of the same model, vocabulary and documents has kept.

    Args:
        config: Of a run. What belongs to its tuning alone does not enter.
        shared: Folder of what is kept; None keeps nothing.
        device: Under CUDA products are rounded otherwise.
    """
    plain = {f.name: f.default for f in dataclasses.fields(config) if f.name in _OF_TUNING}
    key = f"{whole_key(dataclasses.replace(config, **plain), _VERSION)}_{device.partition(':')[0]}"

    def keep(make: Callable[[], Lines]) -> Lines:
        return kept(shared, key, make, lambda lines: json.dumps(lines).encode(), json.loads)

    return keep


def measure(
    model: Any,
    data: PairDocuments,
    readings: list[Reading],
    *,
    ends: bool,
    predict: bool,
    maps: bool,
    keep: Keep | None = None,
) -> Lines:
    """All scores of a model as it stands, one line each.

    Args:
        model: The causal language model.
        data: What it is measured on.
        readings: How its logits are read; the first is the loss's own.
        ends: Whether it is measured before tuning or at the end: with the spectrum of its features, and all questions.
        predict: Whether the falls that a scale and a gain predict are solved for.
        maps: Whether those of maps of many unknowns are, too.
        keep: Makes or finds the lines that do not depend on what is tuned on; None to make them.
    """
    head, known = head_of(model), States()

    def states(key: tuple[str, str]) -> HiddenStates:
        if key not in known:
            autocast = torch.bfloat16 if model.device.type == "cuda" else None
            known[key] = hidden_states(model, named[key], pad=data.pad, autocast=autocast)
        return known[key]

    named = {(part, "response"): documents for part, documents in data.responses.items()}
    named |= {("scored", "text"): data.texts} if data.texts else {}

    def common() -> Lines:
        found = {key: states(key) for key in named if key != _TUNED_ON}
        with _as_trained(model):
            post_hoc = _fitted(found["fit", "response"], head, readings[0])
        lines = [line for key in found for line in _token_lines(model, key, found[key], head, readings, post_hoc, ends)]
        return lines + list(_exam_lines(model, head, data, readings, ends))

    lines = _token_lines(model, _TUNED_ON, states(_TUNED_ON), head, readings, None, ends)
    lines += common() if keep is None else keep(common)
    if predict:  # a minimum is searched: in float32
        falls = _falls({key: states(key) for key in named}, head, readings[0], maps=maps)
        for line in lines:
            if "exam" not in line and line["reading"] == readings[0].name:
                line |= falls.get((line["split"], line["view"]), {})
    return lines


def _as_trained(model: Any) -> torch.autocast:
    """The head's products as those of the loss: in float32 they would take a GPU most of the time."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.device.type == "cuda")


def _token_lines(
    model: Any,
    key: tuple[str, str],
    states: HiddenStates,
    head: ModelHead,
    readings: list[Reading],
    post_hoc: Reading | None,
    ends: bool,
) -> Lines:
    """Scores of the next token over the whole vocabulary."""
    split, view = key
    extra = spectrum(states.hidden) if ends and key == ("scored", "response") else {}
    lines = []
    for reading in (*readings, *([post_hoc] if post_hoc is not None and split == "scored" else ())):
        with _as_trained(model):
            scores = vocabulary_scores(states, head, reading)
        line = {"split": split, "view": view, "source": "all", "reading": reading.name, "read_at": reading.temperature}
        lines.append({**line, **scores, **(extra if reading is readings[0] else {})})
    return lines


def _exam_lines(
    model: Any, head: ModelHead, data: PairDocuments, readings: list[Reading], ends: bool
) -> Iterable[dict[str, Any]]:
    """The same questions at every epoch, so that a column of them has no jump; all of them apart."""
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
    known: Mapping[tuple[str, str], HiddenStates], head: ModelHead, reading: Reading, *, maps: bool
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
