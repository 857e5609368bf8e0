"""The result of head_statistics: its fields, their allocation, and what is refused."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["HeadStatistics", "allocate", "check_finite"]


class HeadStatistics(NamedTuple):
    """What :func:`head_statistics` returns; p = softmax(z / T), z the logits after the cap.

    Attributes:
        lse: log sum_k exp(z_k / T) in nats ``(..., temperatures)``.
        entropy: -sum_k p_k log p_k in nats ``(..., temperatures)``.
        participation: sum_k p_k^2, one over the effective number of classes ``(..., temperatures)``.
        log_probability: log p of the target in nats ``(..., temperatures)``, or None without a target.
        confidence: max_k p_k ``(..., temperatures)``.
        log1m_confidence: log(1 - confidence) without cancellation ``(..., temperatures)``.
        max_logit: max_k z_k ``(...)``.
        argmax: Its index, the first on ties, int64 ``(...)``; -1 where ignored.
        target_logit: z of the target ``(...)``, or None.
        mean_logit: mean_k z_k ``(...)``; lse - mean_logit / T is the cross entropy to the uniform distribution.
        rank: Classes ranked before the target, int64 ``(...)``, or None; 0 exactly where the target is the argmax, -1
            where ignored. Equal logits rank in order of their index; on a GPU the target's logit is summed in another
            order than the others, so that logits equal but for their last bits may count on either side.
        top_logits: The ``top_k`` largest logits in descending order ``(..., top_k)``, or None.
        top_indices: Their classes, int64 ``(..., top_k)``, or None; -1 where ignored.
    """

    lse: Tensor
    entropy: Tensor
    participation: Tensor
    log_probability: Tensor | None
    confidence: Tensor
    log1m_confidence: Tensor
    max_logit: Tensor
    argmax: Tensor
    target_logit: Tensor | None
    mean_logit: Tensor
    rank: Tensor | None
    top_logits: Tensor | None
    top_indices: Tensor | None


def allocate(
    n: int, temperatures: int, top_k: int, *, has_target: bool, dtype: torch.dtype, device: torch.device
) -> HeadStatistics:
    """Return fields of ``n`` tokens whose memory is not initialised."""

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(n, *shape, dtype=dtype, device=device)

    return HeadStatistics(
        lse=new(temperatures),
        entropy=new(temperatures),
        participation=new(temperatures),
        log_probability=new(temperatures) if has_target else None,
        confidence=new(temperatures),
        log1m_confidence=new(temperatures),
        max_logit=new(),
        argmax=new(dtype=torch.int64),
        target_logit=new() if has_target else None,
        mean_logit=new(),
        rank=new(dtype=torch.int64) if has_target else None,
        top_logits=new(top_k) if top_k else None,
        top_indices=new(top_k, dtype=torch.int64) if top_k else None,
    )


def check_finite(max_logit: Tensor, mean_logit: Tensor, ignored: Tensor | None = None) -> None:
    """Raise a ValueError for logits that are not finite; on other devices than the CPU fail a device-side assertion."""
    good = torch.isfinite(max_logit) & torch.isfinite(mean_logit)
    good = (good if ignored is None else good | ignored).all()
    text = "input, linear_weight and linear_bias must give finite logits"
    if max_logit.device.type == "cpu":
        if not good:
            raise ValueError(f"{text}, got nan or infinity.")
    else:
        torch.ops.aten._assert_async.msg(good, f"{text}.")
