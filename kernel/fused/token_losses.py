"""Token losses of the kernels: an autograd function for eager code, registered operators for compiled code.

Both compute token losses ``(N,)``, to which plain PyTorch applies weights and reduction, and take token-wise upstream
gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..options import LossOptions
from ..token_statistics import TokenStatistics
from .arguments import Scalars
from .eager import EagerLoss
from .operators import BY_DEFAULT, fused_forward
from .rows import KeptRows
from .run_sparse import Sparse

__all__ = ["token_losses"]


def token_losses(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    options: LossOptions,
    workspace_bytes: int | None,
    return_statistics: bool,
    sparse: Sparse | None = None,
) -> tuple[Tensor, TokenStatistics | None, Tensor]:
    """Loss of every token ``(N,)``, without weights and reduction, statistics if asked for, how many are kept ``(1,)``.

    Compiled code computes exact gradients whatever ``sparse`` allows for: that waits for the device once.
    """
    scalars = Scalars.of(options)
    # the kernels read both by their index alone
    target, linear_bias = target.contiguous(), None if linear_bias is None else linear_bias.contiguous()
    tensors = (input, linear_weight, linear_bias, target)
    grad_enabled = torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        needs = grad_enabled and any(t is not None and t.requires_grad for t in tensors[:3])
        numbers, ignore_index = scalars.pack()
        flags = [needs, linear_weight.requires_grad, return_statistics]
        budget = BY_DEFAULT if workspace_bytes is None else workspace_bytes
        found = fused_forward(*tensors, numbers, [ignore_index, budget], flags)
    else:
        token_loss, *statistics, number = EagerLoss.apply(
            *tensors, scalars, workspace_bytes, return_statistics, grad_enabled, sparse
        )
        return token_loss, TokenStatistics._make(statistics) if statistics else None, number
    token_loss, statistics, argmax, _, _, index, *_ = found
    number = KeptRows.within(index, input.shape[0]).number
    if not return_statistics:
        return token_loss, None, number
    *differentiable, confidence = statistics.unbind(0)
    return token_loss, TokenStatistics._make([*differentiable, confidence.detach(), argmax]), number
