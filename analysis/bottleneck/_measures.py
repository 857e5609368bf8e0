"""What a trained head does, measured against the teacher it was trained on, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..calibration import calibration_error, score_against_truth, tied_accuracy
from ..smoothing import activity_index, effectiveness_ratio
from ..teachers import Observations, Teacher
from ._head import SoftmaxBottleneck

REFERENCE_SMOOTHING = 0.1  # the b for which rho and A of a head trained without smoothing are stated
_N_BINS = 15
_ENTRIES = {"cpu": 2**22, "cuda": 2**25}  # float64 logits of one block of contexts


class _PerContext(NamedTuple):
    """Statistics of each context's prediction p and true conditional q; all ``(N,)`` float64 but the first."""

    prediction: Tensor  # int64, argmax p
    confidence: Tensor  # max p
    accuracy: Tensor  # q at argmax p, its mean over tokens of equal counts that tie for it
    entropy: Tensor  # H(p)
    true_nll: Tensor  # -sum q log p
    true_entropy: Tensor  # H(q)
    uniform_nll: Tensor  # lse - mean logit
    best: Tensor  # max q
    target_gap: Tensor  # effective gap of argmax q


def _statistics(z: Tensor, q: Tensor, counts: Tensor) -> _PerContext:
    """Statistics of logits, true conditionals and what was trained on, all ``(n, V)``."""
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    confidence, prediction = p.max(-1)
    best, target = q.max(-1)
    z_target = z.gather(-1, target.unsqueeze(-1))
    others = z.scatter(-1, target.unsqueeze(-1), -torch.inf)
    return _PerContext(
        prediction=prediction,
        confidence=confidence,
        accuracy=tied_accuracy(p, q, counts=counts),
        entropy=-(p * log_p).sum(-1),
        true_nll=-(q * log_p).sum(-1),
        true_entropy=-torch.xlogy(q, q).sum(-1),
        uniform_nll=-log_p.mean(-1),
        best=best,
        # log[(V-1) p / (1-p)] without forming 1 - p
        target_gap=z_target.squeeze(-1) - others.logsumexp(-1) + np.log(z.shape[-1] - 1),
    )


@torch.no_grad()
def _measured(head: SoftmaxBottleneck, contexts: slice, q: Tensor, training: Observations) -> _PerContext:
    """Statistics of a block of contexts, made where the head lives."""
    context, token, weight = _of_block(training, contexts, q.device)
    counts = torch.zeros_like(q).index_put_((context - contexts.start, token), weight)
    return _PerContext(*(values.cpu() for values in _statistics(head.logits(contexts).to(q.device), q, counts)))


def _of_block(observations: Observations, contexts: slice, device: torch.device) -> Observations:
    """The pairs of a block of contexts: they are ascending."""
    ends = torch.tensor([contexts.start, contexts.stop])
    low, high = torch.searchsorted(observations.context, ends).tolist()
    return Observations(*(part[low:high].to(device) for part in observations))


def measure(
    head: SoftmaxBottleneck, teacher: Teacher, training: Observations, held_out: Observations
) -> dict[str, float]:
    """Measure a trained head against its teacher: confidence, errors and the quantities of the theory.

    Contexts count equally; where the theory asks for means over the training distribution (what the loss saw), this is
    said. Entropies and losses in nats, errors as fractions.

    Returns:
        - ``confidence``: mean max p.
        - ``accuracy``, ``best_accuracy``: true probability of the predicted and of the best token. Where tokens that
          were seen equally often tie for the prediction up to 1 %, ``accuracy`` is their mean
          (:func:`analysis.calibration.tied_accuracy`); ``true_ece``, ``context_error`` and ``aurc`` follow it.
        - ``min_target_probability``: smallest p of a context's most likely token, the quantity that A2 bounds for det.
        - ``logit_gap``: mean effective gap log[(V-1) p / (1-p)] of that token.
        - ``true_ece``: 15 equal bins of confidence, accuracies from the known conditionals: what ``estimated_ece``
          estimates from the held-out sample. ``context_error``: mean ``|confidence - true accuracy|`` without bins, an
          upper bound that counts errors of single contexts even where they cancel.
        - ``true_nll``, ``true_entropy``, ``held_out_nll``: -E_q log p, its least value H(q), and its estimate.
        - ``aurc``: area under the risk-coverage curve; a risk is 1 minus the true probability of the prediction.
        - ``entropy``, ``cross_entropy``, ``uniform_cross_entropy``: H, CE (unsmoothed) and CE_u = lse - mean z on the
          training distribution. ``activity_index``: C4 from these three.
        - ``norm_product``: max ||h|| max ||w|| of the trained head.
        - ``effectiveness_ratio``: rho (C1, C2) of the norm budget; of ``norm_product`` where norms are free.
          It and ``activity_index`` take the config's label smoothing, or .1 for a head trained without.
    """
    config = head.config
    device = head.raw_weight.device
    parts = teacher.to(device).blocks(_ENTRIES[device.type])
    blocks = [_measured(head, contexts, q, training) for contexts, q in parts]
    per = _PerContext(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
    confidence, accuracy = per.confidence.clamp_max(1).numpy(), per.accuracy.numpy()
    counts = held_out.weight.long()
    correct = per.prediction[held_out.context] == held_out.token
    seen = torch.zeros(teacher.n_contexts, dtype=torch.float64).index_add_(0, training.context, training.weight)
    seen /= seen.sum()
    entropy, uniform = (seen @ per.entropy).item(), (seen @ per.uniform_nll).item()
    cross_entropy = _mean_nll(head, training)
    smoothing = config.label_smoothing or REFERENCE_SMOOTHING
    budget = head.norm_product() if config.norm_budget is None else config.norm_budget
    rho = effectiveness_ratio(
        budget * config.logit_scale,
        config.teacher.vocab_size,
        smoothing,
        temperature=config.temperature,
        softcap=config.softcap,
    )
    return {
        **score_against_truth(confidence, accuracy),
        "best_accuracy": per.best.mean().item(),
        "min_target_probability": float(per.target_gap.sub(np.log(config.teacher.vocab_size - 1)).sigmoid().min()),
        "logit_gap": per.target_gap.mean().item(),
        "estimated_ece": calibration_error(
            per.confidence[held_out.context].repeat_interleave(counts),
            correct.repeat_interleave(counts),
            n_bins=_N_BINS,
        ),
        "true_nll": per.true_nll.mean().item(),
        "true_entropy": per.true_entropy.mean().item(),
        "held_out_nll": _mean_nll(head, held_out),
        "entropy": entropy,
        "cross_entropy": cross_entropy,
        "uniform_cross_entropy": uniform,
        "activity_index": float(activity_index(entropy, cross_entropy, uniform, smoothing)),
        "norm_product": head.norm_product(),
        "effectiveness_ratio": float(rho),
    }


@torch.no_grad()
def _mean_nll(head: SoftmaxBottleneck, observations: Observations) -> float:
    """Mean -log p over observed pairs, without smoothing; contexts in blocks, as the pairs are ascending."""
    vocab_size, device, total = head.config.teacher.vocab_size, head.raw_weight.device, 0.0
    size = max(1, _ENTRIES[device.type] // vocab_size)
    for start in range(0, head.config.teacher.n_contexts, size):
        contexts = slice(start, start + size)
        log_p = head.logits(contexts).log_softmax(-1)
        context, token, weight = _of_block(observations, contexts, log_p.device)
        total -= (weight * log_p[context - start, token]).sum().item()
    return total / observations.weight.sum().item()
