"""What S11 measures of a model: scores against the known truth, of the vocabulary and of four options, and features.

The distributions of N tokens over V are made block by block, those of the model and of the language alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernel.softcap import softcap as capped

from ...calibration import option_confidence, score_against_truth, score_predictions, tied_accuracy
from ...language_models.features import HiddenStates, ModelHead, feature_spectrum
from ...response import frozen_head_response
from ...smoothing import activity_index
from ..real_tuning.responses import mapped_falls, shared_falls
from .language import Language, Vocabulary
from .transformer import Transformer

__all__ = ["Known", "drawn_options", "falls", "features", "known", "scores", "states"]

_ENTRIES = {"cpu": 2**20, "cuda": 2**25}  # float64 entries of a block of logits
_OTHERS = 3  # options beside the token that came


class Known(NamedTuple):
    """Sequences with what is known of each of their N predicted tokens."""

    sequences: Tensor  # (n, length + 1)
    classes: Tensor  # (N, classes) float64, the distribution of the class
    options: Tensor  # (N, 4), the token that came, then three others
    vocabulary: Vocabulary

    @property
    def target(self) -> Tensor:
        """(N,), the tokens that came."""
        return self.options[:, 0]

    def to(self, device: str) -> Known:
        """The same there."""
        sequences, classes, options = (x.to(device) for x in self[:3])
        return Known(sequences, classes, options, self.vocabulary)


def known(sequences: Tensor, language: Language, vocabulary: Vocabulary, generator: torch.Generator) -> Known:
    """Find out what is known of sequences, filtering where the language is, and draw the options on the CPU.

    The others are different tokens, drawn from the unigram distribution without the token that came.
    """
    before = (sequences[:, :-1] // vocabulary.split).to(language.emission.device)
    classes = language.conditionals(before).flatten(0, 1)
    frequency = vocabulary.spread(language.unigram.cpu().unsqueeze(0)).squeeze(0)
    options = drawn_options(sequences[:, 1:].flatten(), frequency, generator)
    return Known(sequences, classes, options, vocabulary)


def drawn_options(target: Tensor, frequency: Tensor, generator: torch.Generator) -> Tensor:  # (N, 4)
    """The tokens that came, and three others each, different ones drawn from the frequencies without that token."""
    if int((frequency > 0).sum()) <= _OTHERS:
        raise ValueError(f"frequency must be above 0 of more than {_OTHERS} tokens, got {int((frequency > 0).sum())}.")
    cumulative = frequency.cumsum(0)

    def draw(count: int) -> Tensor:
        u = cumulative[-1] * torch.rand(count, generator=generator, dtype=torch.float64)
        return torch.searchsorted(cumulative, u, right=True).clamp_max(len(cumulative) - 1)

    options = target.unsqueeze(-1)
    for _ in range(_OTHERS):
        drawn = draw(len(options))
        while (again := (options == drawn.unsqueeze(-1)).any(-1)).any():
            drawn[again] = draw(int(again.sum()))
        options = torch.cat([options, drawn.unsqueeze(-1)], dim=-1)
    return options


def _rows(vocab_size: int, device: torch.device) -> int:
    return max(1, _ENTRIES[device.type] // vocab_size)


@torch.no_grad()
def scores(
    hidden: Tensor, head: Tensor, batch: Known, *, temperature: float = 1.0, softcap: float | None = None
) -> dict[str, float]:
    """Score what a head says of known tokens.

    Args:
        hidden: Features before each predicted token, ``(N, D)``.
        head: ``(V, D)``.
        batch: What is known.
        temperature: That the capped logits are divided by.
        softcap: Cap of the logits.

    Returns:
        ``confidence``, ``accuracy`` (true probability of the prediction), ``true_ece``, ``context_error``, ``aurc``;
        ``estimated_ece`` and ``rms``, the l1 and l2 errors over the vocabulary with the tokens that came;
        ``option_confidence``, ``option_accuracy`` and ``option_ece``, among four options, and ``truth_option_ece``,
        that of the truth itself, which ``option_ece`` is to be read against: it is not 0, as a token that came is
        likelier than the truth says among others drawn from the unigram distribution, and it grows with V;
        ``truth_confidence``, the mean largest probability of the truth; ``divergence``, the mean KL divergence from the
        truth to the model in nats; ``true_nll``, ``nll`` (of the tokens that came), ``entropy``,
        ``uniform_cross_entropy``, and ``activity``, A at b = .1 on the tokens that came.
    """
    weight, parts = head.double(), []
    size = _rows(len(head), hidden.device)
    for h, q, options in zip(hidden.split(size), batch.classes.split(size), batch.options.split(size), strict=True):
        log_p = (capped(h.double() @ weight.T, softcap) / temperature).log_softmax(-1)
        p, truth = log_p.exp(), batch.vocabulary.spread(q)
        confidence, prediction = p.max(-1)
        surprise = torch.xlogy(truth, truth).sum(-1)
        numbers = [
            confidence.clamp_max(1), tied_accuracy(p, truth), prediction == options[:, 0], truth.amax(-1),
            -surprise, -(truth * log_p).sum(-1), -(p * log_p).sum(-1), -log_p.mean(-1),
        ]  # fmt: skip
        parts.append(
            torch.cat(
                [torch.stack(numbers).double(), log_p.gather(-1, options).T, truth.gather(-1, options).log().T]
            ).cpu()
        )
    sure, accuracy, right, truth, least, true_nll, entropy, uniform, *candidates = torch.cat(parts, dim=1).numpy()
    candidates, of_truth = candidates[: _OTHERS + 1], candidates[_OTHERS + 1 :]
    options, best = (option_confidence(np.stack(four, axis=-1)) for four in (candidates, of_truth))
    sampled = score_predictions(sure, right.astype(bool))
    asked = score_predictions(options.confidence, options.choice == 0)
    truly = score_predictions(best.confidence, best.choice == 0)
    losses = (float(entropy.mean()), float(-candidates[0].mean()), float(uniform.mean()))
    return {
        **score_against_truth(sure, accuracy),
        "estimated_ece": sampled["ece"],
        "rms": sampled["rms"],
        **{f"option_{name}": asked[name] for name in ("confidence", "accuracy", "ece")},
        "truth_option_ece": truly["ece"],
        "truth_confidence": float(truth.mean()),
        "divergence": float((true_nll - least).mean()),
        "true_nll": float(true_nll.mean()),
        "nll": losses[1],
        "entropy": losses[0],
        "uniform_cross_entropy": losses[2],
        "activity": float(activity_index(*losses, 0.1)),
    }


@torch.no_grad()
def features(model: Transformer, hidden: Tensor) -> dict[str, float]:
    """Diversity and norms of features, and norms of the head's rows and of the last gain."""
    norms, rows = hidden.double().norm(dim=-1), model.head.double().norm(dim=-1)
    return {
        **feature_spectrum(hidden),
        "feature_norm_rms": float(norms.square().mean().sqrt()),
        "feature_norm_max": float(norms.max()),
        "head_norm": float(rows.max()),
        "head_norm_rms": float(rows.square().mean().sqrt()),
        "gain_rms": float(model.norm.weight.double().square().mean().sqrt()),
    }


def falls(
    head: Tensor, seen: tuple[Tensor, Tensor], read: dict[str, tuple[Tensor, Tensor]], smoothings: Sequence[float],
    *, contexts: int, mapped: HiddenStates | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Predict from a plain model what smoothing will take, on its own tokens and on others.

    Args:
        head: ``(V, D)`` of the model tuned without smoothing.
        seen: Features and targets of the tokens tuned on.
        read: Name -> features and targets of the tokens whose confidence is asked for.
        smoothings: b.
        contexts: Of the tokens tuned on, that the frozen-head response is solved for: the first ones.
        mapped: Tokens tuned on, of several documents, that maps of many unknowns are solved on; None for none.

    Returns:
        Name -> the numbers of :func:`~analysis.study.real_tuning.responses.shared_falls` and, where asked for, of
        :func:`~analysis.study.real_tuning.responses.mapped_falls`; under ``"train"`` also
        ``frozen_fall_B``, the response P with free features in the ball of the largest norm, and ``frozen_solved``.
    """
    whole = ModelHead(head.detach().float(), None, 1.0, None)
    found: dict[str, dict[str, Any]] = shared_falls(
        states(*seen), whole, {name: states(*pair) for name, pair in read.items()}, smoothings
    )
    if mapped is not None:
        maps = mapped_falls(mapped, whole, {name: states(*pair) for name, pair in read.items()}, smoothings)
        for name, numbers in maps.items():
            found[name] |= numbers
    hidden, target = (x[:contexts] for x in seen)
    response = frozen_head_response(head.detach(), hidden, target, list(smoothings))
    own = found.setdefault("train", {})
    own |= {f"frozen_fall_{b:g}": float(fall) for b, fall in zip(smoothings, response.fall, strict=True)}
    own["frozen_solved"] = float(response.converged.mean())
    return found


def states(hidden: Tensor, target: Tensor, document: Tensor | None = None) -> HiddenStates:
    """Features and targets as :mod:`analysis.language_models` takes them; without documents all are of one."""
    nothing = torch.zeros_like(target)
    return HiddenStates(hidden, target, nothing if document is None else document, nothing.bool(), nothing.bool())
