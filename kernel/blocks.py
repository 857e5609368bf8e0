"""Logits of a block of tokens at a time: how many tokens make a block, and its logits, in memory that is used again."""

from __future__ import annotations

import torch
from torch import Tensor

from .options import LossOptions
from .reference import compute_dtype
from .softcap import softcap

__all__ = ["BLOCK_BYTES", "block_logits", "block_tokens", "logits_of", "spread"]

# Bytes of one block of logits. On the CPU small blocks stay near the caches and large ones make the products efficient;
# 16 MiB was the fastest on the two shapes of paper_figures/data/chunked.csv. On a GPU larger blocks fill the device.
BLOCK_BYTES = {"cpu": 16 * 2**20}
_BLOCK_BYTES_ELSEWHERE = 256 * 2**20
_GATHERED = 1024  # tokens whose classes' rows are gathered at a time


def block_tokens(n: int, weight: Tensor) -> int:
    """Return how many of ``n`` tokens make a block whose logits have the dtype of the head ``weight`` ``(V, D)``."""
    budget = BLOCK_BYTES.get(weight.device.type, _BLOCK_BYTES_ELSEWHERE)
    return max(1, min(n, budget // (weight.shape[0] * weight.element_size())))


def block_logits(
    hidden: Tensor,  # (block, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    options: LossOptions,
    out: Tensor,  # (block, V)
    slope: Tensor | None = None,  # (block, V)
) -> None:
    """Write the logits after scale, bias, softcap and temperature to ``out``, and the softcap's slope to ``slope``."""
    torch.mm(hidden, weight.T, out=out)
    if options.logit_scale != 1:
        out.mul_(options.logit_scale)
    if bias is not None:
        out.add_(bias)
    if options.softcap is not None:
        out.div_(options.softcap)
        if slope is not None:  # d cap(z) / dz = 1 / cosh^2: 1 - tanh^2 would cancel
            torch.cosh(out, out=slope).square_().reciprocal_()
        out.tanh_().mul_(options.softcap)
    if options.temperature != 1:
        out.div_(options.temperature)


def logits_of(
    label: Tensor,  # (N,)
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    options: LossOptions,
) -> Tensor:  # (N,)
    """Return each token's logit of one class, after scale, bias and softcap, by the same sum for equal rows."""
    z = hidden.new_empty(label.shape, dtype=compute_dtype(hidden.dtype))
    for h, at, out in zip(hidden.split(_GATHERED), label.split(_GATHERED), z.split(_GATHERED), strict=True):
        torch.sum(h.to(z.dtype) * weight[at].to(z.dtype), -1, out=out)
    z *= options.logit_scale
    return softcap(z if bias is None else z + bias[label].to(z.dtype), options.softcap)


def spread(values: Tensor, rows: Tensor, n: int) -> Tensor:
    """Return values ``(n, ...)`` that are ``values`` at the tokens ``rows``, and nan, or -1 for integers, elsewhere."""
    empty = values.new_full((n, *values.shape[1:]), float("nan") if values.is_floating_point() else -1)
    return empty.index_copy_(0, rows, values)
