"""The loss in fused Triton kernels: what ``implementation="triton"`` runs.

Forward: one persistent kernel sweeps the vocabulary and keeps per-token statistics, never logits (:mod:`.forward`), a
second one joins them (:mod:`.merge`). Backward: strip by strip of the vocabulary, the gradient of the logits in a
workspace (:mod:`.gradient_rows`, :mod:`.tile_gradient`, :mod:`.logit_gradient`), then its products with the hidden
states (:mod:`.weight_gradient`) and with the head (:mod:`.input_gradient`). Ignored tokens are dropped before the first
product (:mod:`.rows`); the number of kept ones stays on the device. Launch parameters are in :mod:`.launch`, the strips
in :mod:`.schedule` (and how much memory they take by default in :mod:`.default_workspace`), the launches in
:mod:`.run_forward`, :mod:`.run_sweep`, :mod:`.run_strip`, :mod:`.run_products` and :mod:`.run_backward`. One call is a
:class:`.call.LossCall`, of which eager code (:mod:`.eager`) and compiled code (:mod:`.operators`) make token losses.
Where a budget allows for it, tokens come in chunks (:mod:`.token_chunks`), each with its forward and backward
(:mod:`.run_chunks`); where they are very many, the backward alone does (:mod:`.backward_chunks`,
:mod:`.run_backward_chunks`). Between chunks sums of the head's gradient are float16 (:mod:`.chunk_sums`).

Importing this package needs no Triton; calling :func:`loss` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradient_tolerance import GradientTolerance
from ..options import LossOptions
from ..reference import reduced
from ..token_statistics import TokenStatistics
from .default_workspace import default_workspace_bytes
from .launch import available

__all__ = ["available", "default_workspace_bytes", "loss"]


def loss(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    linear_bias: Tensor | None,  # (V,)
    token_weight: Tensor | None,  # (N,)
    options: LossOptions,
    *,
    workspace_bytes: int | None = None,
    return_statistics: bool = False,
    told: GradientTolerance | None = None,
) -> tuple[Tensor, TokenStatistics | None]:  # () or (N,), float32
    """The loss of :mod:`kernel.reference`, and statistics if asked for.

    ``told`` learns what became of ``options.gradient_tolerance``.

    Memory beyond the gradients: ``workspace_bytes`` (None: :func:`default_workspace_bytes` of N), float32 ``(N, D)``
    (where tokens are very many less than that) and, where tokens are few, partial sums of the input's gradient, where
    they are many of the weight's; a copy of an input whose rows are not contiguous. With a tolerance also 6 bytes for
    each token and tile of the vocabulary until the loss is let go of, and 8 more in the forward alone; in the backward
    a workspace of at least one tile of all tokens, and of 32 MiB where the head's gradient is not needed or has no room
    for the pilot, Gram matrices of 256 tiles, three or more float32 rows a tile, 4 bytes for each entry of the hidden
    states, and partial sums of the input's gradient.

    Raises:
        ValueError: If :func:`available` names a reason why the kernels cannot run on these tensors.
    """
    if reason := available(input.device, input.dtype):
        raise ValueError(f"implementation='triton' cannot run here: {reason}.")
    if input.shape[0]:
        from .run_chunks import loss_in_chunks  # this and the next two need Triton
        from .run_sparse import Sparse
        from .token_losses import token_losses

        if not (return_statistics or torch.compiler.is_compiling()):
            tensors = input, linear_weight, target, linear_bias, token_weight
            if (value := loss_in_chunks(*tensors, options, workspace_bytes)) is not None:
                return value, None
        sparse = Sparse(options.gradient_tolerance, told) if options.gradient_tolerance else None
        token_loss, statistics, number = token_losses(
            input, linear_weight, target, linear_bias, options, workspace_bytes, return_statistics, sparse
        )
    else:  # no kernel runs on nothing; the sums keep the arguments in the graph, with gradients of zero
        token_loss = (input.sum(-1) + 0 * linear_weight.sum()).float()
        token_loss = token_loss if linear_bias is None else token_loss + 0 * linear_bias.float().sum()
        number = token_loss.new_zeros(1)
        statistics = (
            TokenStatistics._make([*[token_loss] * 3, token_loss.detach(), target]) if return_statistics else None
        )
    if token_weight is not None:
        weight = torch.where(target != options.ignore_index, token_weight.float(), 0)
        return reduced(token_loss * weight, weight, options.reduction), statistics
    if options.reduction == "mean":  # nan and no gradient where no token is kept: none has a row that the kernels read
        return token_loss.sum() / number[0], statistics
    return reduced(token_loss, token_loss, options.reduction), statistics  # whose weights count for a mean alone
