"""A few numbers a token of every slice of a head, joined to what the loss of the whole head is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..options import LossOptions
from ..token_statistics import TokenStatistics
from .agreement import Share

__all__ = ["Joined", "join", "numbers_of"]


def numbers_of(options: LossOptions, return_statistics: bool) -> tuple[str, ...]:
    """Return what each process tells of a token's logits z over its rows, in this order; 0 where it has nothing to say.

    ``lse``, the ``target``'s logit in the process that has its row; for smoothing the ``mean`` logit; for the entropy
    that of its own softmax; for statistics its own ``confidence``, the ``largest`` logit and its class over the whole
    head. Of rows that are all -inf the first three and the largest logit are -inf, entropy and confidence 0.
    """
    names = ["lse", "target"]
    names += ["mean"] if options.label_smoothing else []
    names += ["entropy"] if options.confidence_penalty or return_statistics else []
    return *names, *(("confidence", "largest", "argmax") if return_statistics else ())


class Joined(NamedTuple):
    """What the numbers say of each token over all rows, ``(...)``; None of what was not told."""

    log_probability: Tensor
    lse: Tensor
    mean: Tensor | None
    entropy: Tensor | None
    confidence: Tensor | None
    argmax: Tensor | None  # int64

    def token_loss(self, options: LossOptions) -> Tensor:
        """The loss of each token, without weights."""
        loss = -(1 - options.label_smoothing) * self.log_probability
        if self.mean is not None:
            loss = loss + options.label_smoothing * (self.lse - self.mean)
        if options.confidence_penalty and self.entropy is not None:
            loss = loss - options.confidence_penalty * self.entropy
        return loss + options.z_loss * self.lse.square() if options.z_loss else loss

    def statistics(self, kept: Tensor) -> TokenStatistics | None:
        """The statistics, if all of them were told; nan and -1 of tokens that are not ``kept``."""
        if self.entropy is None or self.confidence is None or self.argmax is None:
            return None
        scores = self.log_probability, self.lse, self.entropy, self.confidence
        scores = (torch.where(kept, score, torch.nan) for score in scores)
        return TokenStatistics._make([*scores, torch.where(kept, self.argmax, -1)])


def join(every: Tensor, names: tuple[str, ...], share: Share) -> Joined:
    """Join the numbers ``(processes, len(names), ...)`` of all slices; differentiable.

    With s_r = exp(lse_r - lse), the probability of the rows of process r, the entropy is sum_r s_r (H_r - log s_r), of
    which no term is negative.
    """
    numbers = dict(zip(names, every.unbind(1), strict=True))
    lse = torch.logsumexp(numbers["lse"], 0)
    mean = entropy = confidence = argmax = None
    if "mean" in numbers:
        # By numbers of the host: a tensor made of them would let it wait for the device.
        parts = zip(share.rows, numbers["mean"].unbind(), strict=True)
        mean = sum((rows / share.vocab_size * part for rows, part in parts), torch.zeros_like(lse))
    if "entropy" in numbers:
        below = (lse - numbers["lse"]).clamp(max=1e4)  # there s_r is 0, and so is s_r log s_r
        entropy = ((-below).exp() * (numbers["entropy"] + below)).sum(0)
    if "largest" in numbers:
        first = numbers["largest"].argmax(0, keepdim=True)  # the first of equal ones, which has the smallest class
        told = (numbers[name].detach().gather(0, first).squeeze(0) for name in ("lse", "confidence", "argmax"))
        of_slice, own, classes = told
        confidence, argmax = own * (of_slice - lse.detach()).exp(), classes.long()
    return Joined(numbers["target"].sum(0) - lse, lse, mean, entropy, confidence, argmax)
