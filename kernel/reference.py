"""The definition of the loss in plain PyTorch: the specification that every other implementation is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from .options import LossOptions, Reduction
from .softcap import softcap
from .token_statistics import TokenStatistics

__all__ = ["compute_dtype", "logits", "loss", "reduced"]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits and sums are held: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def logits(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    linear_bias: Tensor | None,  # (V,)
    options: LossOptions,
) -> Tensor:  # (N, V), float32 or float64
    """Logits after scale, bias, softcap and temperature, in that order."""
    dtype = compute_dtype(input.dtype)
    z = options.logit_scale * (input.to(dtype) @ linear_weight.to(dtype).T)
    if linear_bias is not None:
        z = z + linear_bias.to(dtype)
    return softcap(z, options.softcap) / options.temperature


def loss(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    linear_bias: Tensor | None,  # (V,)
    token_weight: Tensor | None,  # (N,)
    options: LossOptions,
    *,
    return_statistics: bool = False,
) -> tuple[Tensor, TokenStatistics | None]:  # () or (N,)
    """The loss from the full N x V logits, and statistics if asked for; autograd gives the gradients."""
    vocab_size, smoothing = linear_weight.shape[0], options.label_smoothing
    kept = target != options.ignore_index
    # An ignored row may hold anything: a nan there would reach the weight's gradient as 0 x nan.
    z = logits(torch.where(kept.unsqueeze(-1), input, 0), linear_weight, linear_bias, options)
    log_p = torch.log_softmax(z, dim=-1)
    log_p_target = log_p.gather(-1, torch.where(kept, target, 0).unsqueeze(-1)).squeeze(-1)
    # -sum_k q_k log p_k  with  q_k = (1 - smoothing) [k = target] + smoothing / V
    token_loss = -(1 - smoothing) * log_p_target
    if smoothing:  # a logit of -inf, such as a masked token's, costs nothing where nothing asks for it
        token_loss = token_loss - (smoothing / vocab_size) * log_p.sum(-1)
    statistics = None
    if options.confidence_penalty or return_statistics:
        entropy = _entropy(log_p)
        if options.confidence_penalty:
            token_loss = token_loss - options.confidence_penalty * entropy
        if return_statistics:
            confidence, argmax = (x.squeeze(-1) for x in log_p.detach().max(-1, keepdim=True))
            scores = log_p_target, torch.logsumexp(z, dim=-1), entropy, confidence.exp()
            scores = (torch.where(kept, score, torch.nan) for score in scores)
            statistics = TokenStatistics._make([*scores, torch.where(kept, argmax, -1)])
    if options.z_loss:
        token_loss = token_loss + options.z_loss * torch.logsumexp(z, dim=-1).square()
    weight = kept.to(z.dtype) if token_weight is None else torch.where(kept, token_weight.to(z.dtype), 0)
    return reduced(torch.where(kept, token_loss, 0) * weight, weight, options.reduction), statistics


def reduced(token_loss: Tensor, weight: Tensor, reduction: Reduction) -> Tensor:
    """Return the weighted token losses ``(N,)``, their sum, or the sum divided by that of the weights ``(N,)``."""
    if reduction == "none":
        return token_loss
    if reduction == "sum":
        return token_loss.sum()
    total = weight.sum()
    # No weight at all: the value is torch's nan, the gradient zero rather than 0 / 0.
    return torch.where(total > 0, token_loss.sum() / torch.where(total > 0, total, 1), torch.nan)


def _entropy(log_p: Tensor) -> Tensor:
    """-sum_k p_k log p_k, to which classes of probability 0 add nothing, nor to its gradient."""
    p = log_p.exp()
    return -(p * torch.where(p > 0, log_p, 0)).sum(-1)
