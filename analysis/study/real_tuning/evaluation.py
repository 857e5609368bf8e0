"""What a tuned model is worth: accuracy, calibration, selective prediction and features, on questions and on text.

Only hidden states at predicting positions are kept; logits exist block by block inside :func:`kernel.head_statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernel.softcap import softcap as capped

from ...calibration import fit_head_temperature, fit_temperature, option_confidence, score_predictions
from ...language_models.documents import Encoded
from ...language_models.features import HiddenStates, ModelHead, feature_spectrum, head_of, hidden_states
from ...language_models.scoring import score_tokens
from ...smoothing import activity_index
from .responses import mapped_falls, shared_falls

_PREDICTED = ("letter", "tokens", "text")

__all__ = ["Reading", "head_norms", "measure", "spectrum", "vocabulary_scores"]


class Reading(NamedTuple):
    """How logits are read: z = logit_scale h W^T + bias, capped, over the temperature."""

    name: str
    temperature: float = 1.0
    softcap: float | None = None


def _take(known: HiddenStates, rows: Tensor) -> HiddenStates:
    return HiddenStates(*(x[rows.to(x.device)] for x in known))


def vocabulary_scores(known: HiddenStates, head: ModelHead, reading: Reading) -> dict[str, float]:
    """Scores of the most probable token of the whole vocabulary, and what the activity index needs."""
    found = score_tokens(known, head._replace(softcap=reading.softcap), temperature=reading.temperature)
    entropy, nll, uniform = (float(x.mean()) for x in (found.entropy, found.nll, found.uniform))
    return {
        **score_predictions(found.confidence, found.correct, log1m_confidence=found.log1m_confidence),
        "nll": nll,
        "entropy": entropy,
        "uniform_cross_entropy": uniform,
        "activity": float(activity_index(entropy, nll, uniform, 0.1)),
    }


def _letter_logits(
    known: HiddenStates, head: ModelHead, letters: Sequence[int], softcap: float | None
) -> Tensor:  # (n, 4)
    rows = torch.tensor(letters, device=known.hidden.device)
    z = head.logit_scale * (known.hidden @ head.weight[rows].T)
    if head.bias is not None:
        z = z + head.bias[rows]
    return capped(z, softcap)


def _options(known: HiddenStates, head: ModelHead, letters: Sequence[int], reading: Reading) -> dict[str, float]:
    """Scores of the most probable of the four letters, renormalised over them."""
    log_p = (_letter_logits(known, head, letters, reading.softcap).double() / reading.temperature).log_softmax(-1).cpu()
    result = option_confidence(log_p.numpy())
    target = (known.target.cpu().unsqueeze(-1) == torch.tensor(letters)).int().argmax(-1)
    nll = -log_p.gather(-1, target.unsqueeze(-1)).mean().item()
    return {**score_predictions(result.confidence, result.choice == target.numpy()), "nll": nll}


def spectrum(hidden: Tensor) -> dict[str, float]:
    """Diversity of features, and the root mean square of their norms."""
    rms = float(hidden.double().norm(dim=-1).square().mean().sqrt())
    return {**feature_spectrum(hidden), "feature_norm_rms": rms}


def measure(
    model: Any,
    data: Mapping[str, Mapping[str, Sequence[Encoded]]],
    *,
    letters: Sequence[int],
    pad: int,
    readings: Sequence[Reading],
    post_hoc: bool,
    smoothings: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """All scores of a model as it stands.

    Args:
        model: The causal language model.
        data: Split (``"test"``, ``"train"``, ``"validation"``) -> ``"choice"``, ``"short"`` or ``"text"`` -> documents.
        letters: Tokens of the option letters.
        pad: Token to pad with.
        readings: How the logits are read; the first is the one that the post-hoc temperature is fitted under.
        post_hoc: Whether to fit one temperature for each view of questions on the validation questions and to read the
            test questions with it, and text with that of the short answers.
        smoothings: b whose effect shared changes of the features predict from this model, tuned without smoothing
            (:func:`.responses.shared_falls`, :func:`.responses.mapped_falls`), on the tokens of the questions tuned on;
            read as the first reading says.

    Returns:
        One line for each split, view and reading. Views: ``options`` (letters renormalised over the four), ``letter``
        (the letter among the vocabulary), ``tokens`` (tokens of short answers, without the end of the turn), ``first``
        (the first of them), ``text``. Test lines of ``letter`` and ``tokens`` also have the features' :func:`spectrum`.
    """
    head = head_of(model)
    autocast = torch.bfloat16 if model.device.type == "cuda" else None
    seen = {
        (split, name): hidden_states(model, documents, pad=pad, autocast=autocast)
        for split, parts in data.items()
        for name, documents in parts.items()
        if documents
    }
    views = {key: view for key, known in seen.items() for key, view in _views(*key, known)}
    falls = _shared(views, head, readings[0], smoothings)
    lines = []
    for (split, view), known in views.items():
        read = [*readings]
        if post_hoc and split == "test":
            fitted_on = views[("validation", "tokens" if view == "text" else view)]
            read.append(_fitted(view, fitted_on, head, letters, readings[0]))
        extra = spectrum(known.hidden) if split == "test" and view in ("letter", "tokens") else {}
        for reading in read:
            made = (
                _options(known, head, letters, reading)
                if view == "options"
                else vocabulary_scores(known, head, reading)
            )
            if reading is readings[0]:
                made |= falls.get((split, view), {})
            lines.append(
                {"split": split, "view": view, "reading": reading.name, "read_at": reading.temperature, **made, **extra}
            )
    return lines


def _shared(
    views: Mapping[tuple[str, str], HiddenStates], head: ModelHead, reading: Reading, smoothings: Sequence[float]
) -> dict[tuple[str, str], dict[str, float]]:
    """Falls that shared changes predict, fitted on letters and short answers of the questions tuned on."""
    seen = [views["train", view] for view in ("letter", "tokens") if ("train", view) in views]
    if not smoothings or not seen:
        return {}
    if reading.temperature != 1 and (head.bias is not None or reading.softcap is not None):
        return {}  # a temperature is a scale of the logits only where nothing comes between
    known = HiddenStates(*(torch.cat(column) for column in zip(*seen, strict=True)))
    asked = {f"{split} {view}": states for (split, view), states in views.items() if view in _PREDICTED}
    trained = head._replace(softcap=reading.softcap, logit_scale=head.logit_scale / reading.temperature)
    falls = shared_falls(known, trained, asked, smoothings)
    read = {name: states for name, states in asked.items() if not name.startswith("validation ")}
    for name, numbers in mapped_falls(known, trained, read, smoothings).items():
        falls[name] |= numbers
    return {(name.split()[0], name.split()[1]): numbers for name, numbers in falls.items()}


def _views(split: str, name: str, known: HiddenStates) -> list[tuple[tuple[str, str], HiddenStates]]:
    if name == "choice":
        letter = _take(known, known.first)
        return [((split, "options"), letter), ((split, "letter"), letter)]
    if name == "short":
        return [((split, "tokens"), _take(known, ~known.last)), ((split, "first"), _take(known, known.first))]
    return [((split, "text"), known)]


def _fitted(view: str, known: HiddenStates, head: ModelHead, letters: Sequence[int], base: Reading) -> Reading:
    """The reading ``base`` at the temperature that fits the validation questions best."""
    if view == "options":
        z = _letter_logits(known, head, letters, base.softcap).cpu() / base.temperature
        target = (known.target.cpu().unsqueeze(-1) == torch.tensor(letters)).int().argmax(-1)
        factor = fit_temperature(z, target).temperature
        return Reading("post_hoc", base.temperature * factor, base.softcap)
    # Streamed over the vocabulary; the cap comes before any temperature, so base.temperature only rescales.
    fit = fit_head_temperature(
        [(known.hidden, known.target)],
        head.weight,
        linear_bias=head.bias,
        softcap=base.softcap,
        logit_scale=head.logit_scale,
        bounds=(0.05, 20.0),
    )
    return Reading("post_hoc", fit.temperature, base.softcap)


def head_norms(model: Any) -> dict[str, float]:
    """Largest and root-mean-square norm of the head's rows."""
    norms = np.asarray(head_of(model).weight.double().norm(dim=-1).cpu())
    return {"head_norm": float(norms.max()), "head_norm_rms": float(np.sqrt((norms**2).mean()))}
