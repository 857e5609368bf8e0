"""The loss and its exact gradients a block of tokens at a time, on any device, without ever holding N x V logits.

A block's token losses and the gradient of its logits come from :mod:`kernel.block_losses`; here are the products with
that, and what a backward keeps.

For a scalar loss the gradients are formed in the forward, while the block is at hand, and multiplied by the upstream
gradient in the backward. For ``reduction="none"``, and where statistics have upstream gradients, the backward
recomputes the blocks with each token's own. Tokens with weight g enter the weight gradient as ``dz^T (g h)``, so g
never touches the block. Half-precision inputs are raised to float32 before any product: this path is the exact one,
not the fast one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .block_losses import loss_blocks
from .blocks import spread
from .gradient_tolerance import GradientTolerance
from .options import LossOptions
from .reference import compute_dtype
from .sparse_products import SparseProducts
from .token_statistics import TokenStatistics

__all__ = ["loss"]


def loss(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    linear_bias: Tensor | None,  # (V,)
    token_weight: Tensor | None,  # (N,)
    options: LossOptions,
    *,
    return_statistics: bool = False,
    told: GradientTolerance | None = None,
) -> tuple[Tensor, TokenStatistics | None]:  # () or (N,)
    """The loss of :mod:`kernel.reference`, in blocks, and statistics if asked for.

    Memory: gradients in float32 or float64, one block of logits, another under a softcap and another for the entropy.
    ``told`` learns what became of ``options.gradient_tolerance``.
    """
    flags = return_statistics, torch.is_grad_enabled()
    found = _ChunkedLoss.apply(input, linear_weight, linear_bias, target, token_weight, options, told, *flags)
    return (found[0], TokenStatistics._make(found[1:])) if return_statistics else (found, None)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        token_weight: Tensor | None,
        options: LossOptions,
        told: GradientTolerance | None,
        return_statistics: bool,
        grad_enabled: bool,
    ) -> Tensor | tuple[Tensor, ...]:
        ctx.options, ctx.told = options, told
        ctx.set_materialize_grads(False)
        ctx.dtypes = [None if t is None else t.dtype for t in (input, linear_weight, linear_bias)]
        dtype = compute_dtype(input.dtype)
        kept = target != options.ignore_index
        weight = kept.to(dtype) if token_weight is None else torch.where(kept, token_weight.to(dtype), 0)
        total = weight.sum()
        # Normalise before the products: gradients then come out final. No weight at all gives zero gradients.
        upstream = weight / torch.where(total > 0, total, 1) if options.reduction == "mean" else weight
        ahead = options.reduction != "none"
        needs = [grad_enabled and ahead and n for n in ctx.needs_input_grad[:3]]
        if told is not None and options.gradient_tolerance and grad_enabled and not ahead:
            told.await_backward(*ctx.needs_input_grad[:2])
        arguments = (input, linear_weight, linear_bias, target)
        value, statistics, gradients = _run(
            *arguments, upstream, options, needs, want_statistics=return_statistics, told=told
        )
        ctx.gradients = len(gradients) if ahead else 0
        again = (*arguments, upstream) if return_statistics or not ahead else ()
        ctx.save_for_backward(*gradients[: ctx.gradients], *again)
        if options.reduction == "sum":
            value = value.sum()
        elif options.reduction == "mean":
            value = torch.where(total > 0, value.sum(), torch.nan)
        if statistics is None:
            return value
        ctx.mark_non_differentiable(statistics.confidence, statistics.argmax)
        return value, *statistics

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph=True; a detached gradient would be silently wrong
            raise RuntimeError("The chunked loss has no second derivative; use implementation='reference'.")
        grad, *of_statistics = grad_outputs
        saved, again = ctx.saved_tensors[: ctx.gradients], ctx.saved_tensors[ctx.gradients :]
        if saved and all(g is None for g in of_statistics):
            gradients = [None if g is None or grad is None else grad * g for g in saved]
        else:
            input, linear_weight, linear_bias, target, weight = again
            upstream = torch.zeros_like(weight) if grad is None else grad.to(weight.dtype) * weight
            mixed = None
            if any(g is not None for g in of_statistics):
                others = (torch.zeros_like(weight) if g is None else g.to(weight.dtype) for g in of_statistics[:3])
                mixed = (upstream, *others)
            needs = list(ctx.needs_input_grad[:3])
            arguments = (input, linear_weight, linear_bias, target, upstream)
            _, _, gradients = _run(*arguments, ctx.options, needs, mixed=mixed, told=ctx.told)
        # Rounded to the arguments' dtype last, after a loss scale has had its chance to lift small float16 gradients.
        rounded = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (*rounded, None, None, None, None, None, None)


def _run(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    linear_bias: Tensor | None,  # (V,)
    target: Tensor,  # (N,)
    upstream: Tensor,  # (N,) weight of each token's loss in the result, 0 where ignored
    options: LossOptions,
    needs: list[bool],  # gradient wanted of input, linear_weight, linear_bias
    *,
    want_statistics: bool = False,
    mixed: tuple[Tensor, ...] | None = None,  # upstream gradients of loss, log-probability, lse and entropy, each (N,)
    told: GradientTolerance | None = None,
) -> tuple[Tensor, TokenStatistics | None, tuple[Tensor | None, ...]]:
    """Weighted token losses ``(N,)``, statistics, and the gradients of the losses' sum, in its dtype.

    With ``mixed`` gradients of the sum of everything in it. Ignored tokens cost nothing.
    """
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        dtype = upstream.dtype
        kept = target != options.ignore_index
        rows = None if bool(kept.all()) else kept.nonzero().squeeze(-1)
        hidden, labels, g = (t if rows is None else t[rows] for t in (input, target, upstream))
        if mixed is not None:
            mixed = tuple(t if rows is None else t[rows] for t in mixed)
            g = torch.ones_like(g)  # dz holds every weight
        weight = linear_weight.to(dtype)
        bias = None if linear_bias is None else linear_bias.to(dtype)
        token_loss = torch.empty_like(g)
        statistics = None
        if want_statistics:
            statistics = TokenStatistics._make([*(torch.empty_like(g) for _ in range(4)), torch.empty_like(labels)])
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if needs[0] else None
        grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if needs[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs[2] else None
        hidden = hidden.to(dtype)
        scale = (g * (options.logit_scale / options.temperature)).unsqueeze(-1)
        products = None
        if options.gradient_tolerance and any(needs[:2]):
            products = SparseProducts(
                hidden, weight, labels, scale, options.gradient_tolerance, grad_hidden, grad_weight
            )
        sweep = partial(loss_blocks, hidden, weight, bias, labels, token_loss, statistics, mixed, options, any(needs))
        for part, h, dz in sweep():
            if grad_bias is not None:
                grad_bias.addmv_(dz.T, g[part] / options.temperature)
            if products is not None:
                products.add(part, dz)
                continue
            if grad_hidden is not None:
                grad_hidden[part] = (dz @ weight).mul_(scale[part])
            if grad_weight is not None:
                grad_weight.addmm_(dz.T, h * scale[part])
        if products is not None:
            if not products.complete():
                for part, _, dz in sweep():
                    products.add_missing(part, dz)
            if told is not None:
                told.record(products.of_input, products.of_weight)
        token_loss.mul_(g)
        if rows is not None:
            token_loss = torch.zeros_like(upstream).index_copy_(0, rows, token_loss)
            if statistics is not None:
                statistics = TokenStatistics._make(spread(x, rows, target.shape[0]) for x in statistics)
            if grad_hidden is not None:
                grad_hidden = torch.zeros_like(input, dtype=dtype).index_copy_(0, rows, grad_hidden)
        return token_loss, statistics, (grad_hidden, grad_weight, grad_bias)
