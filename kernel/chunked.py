"""The loss and its exact gradients a block of tokens at a time, on any device, without ever holding N x V logits.

Per block of tokens, in one buffer of ``block x V`` that is reused,

    z      = logits after scale, bias, softcap and temperature
    s      = z - max_k z_k                     so that the loss has log-softmax's accuracy
    loss   = log sum_k e^(s_k) - (1 - b) s_y - b mean_k s_k  (+ z_loss lse^2)
    dL/dz  = p (1 + 2 z_loss lse) - q          then through temperature, softcap and scale

For a scalar loss the gradients are formed in the forward, while the block is at hand, and multiplied by the upstream
gradient in the backward. For ``reduction="none"`` the backward recomputes the blocks with each token's own upstream
gradient. Tokens with weight g enter the weight gradient as ``dz^T (g h)``, so g never touches the block. Half-precision
inputs are raised to float32 before any product: this path is the exact one, not the fast one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .options import LossOptions
from .reference import compute_dtype

__all__ = ["loss"]

# Bytes of one block of logits. On the CPU small blocks stay near the caches and large ones make the products efficient;
# 16 MiB was the fastest on the two shapes of paper_figures/data/chunked.csv. On a GPU larger blocks fill the device.
BLOCK_BYTES = {"cpu": 16 * 2**20}
BLOCK_BYTES_ELSEWHERE = 256 * 2**20


class _Gradients(NamedTuple):
    input: Tensor | None  # (N, D)
    linear_weight: Tensor | None  # (V, D)
    linear_bias: Tensor | None  # (V,)


def loss(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (N,)
    linear_bias: Tensor | None,  # (V,)
    token_weight: Tensor | None,  # (N,)
    options: LossOptions,
) -> Tensor:  # () or (N,)
    """The loss of :mod:`kernel.reference`, in blocks.

    Memory: gradients in float32 or float64, one block of logits, two under a softcap.
    """
    return _ChunkedLoss.apply(input, linear_weight, linear_bias, target, token_weight, options, torch.is_grad_enabled())


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
        grad_enabled: bool,
    ) -> Tensor:
        ctx.options, ctx.has_gradients = options, False
        ctx.dtypes = [None if t is None else t.dtype for t in (input, linear_weight, linear_bias)]
        dtype = compute_dtype(input.dtype)
        kept = target != options.ignore_index
        weight = kept.to(dtype) if token_weight is None else torch.where(kept, token_weight.to(dtype), 0)
        total = weight.sum()
        needs = [grad_enabled and n for n in ctx.needs_input_grad[:3]]
        if options.reduction == "none":
            token_loss, _ = _run(input, linear_weight, linear_bias, target, weight, options, [False] * 3)
            ctx.save_for_backward(input, linear_weight, linear_bias, target, weight)
            return token_loss
        # Normalise before the products: gradients then come out final. No weight at all gives zero gradients.
        upstream = weight / torch.where(total > 0, total, 1) if options.reduction == "mean" else weight
        token_loss, gradients = _run(input, linear_weight, linear_bias, target, upstream, options, needs)
        ctx.has_gradients = True
        ctx.save_for_backward(*gradients)
        if options.reduction == "sum":
            return token_loss.sum()
        return torch.where(total > 0, token_loss.sum(), torch.nan)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph=True; a detached gradient would be silently wrong
            raise RuntimeError("The chunked loss has no second derivative; use implementation='reference'.")
        (grad,) = grad_outputs
        if ctx.has_gradients:
            gradients = [None if g is None else grad * g for g in ctx.saved_tensors]
        else:
            input, linear_weight, linear_bias, target, weight = ctx.saved_tensors
            upstream = grad.to(weight.dtype) * weight
            needs = list(ctx.needs_input_grad[:3])
            _, gradients = _run(input, linear_weight, linear_bias, target, upstream, ctx.options, needs)
        # Rounded to the arguments' dtype last, after a loss scale has had its chance to lift small float16 gradients.
        rounded = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (*rounded, None, None, None, None)


def _run(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    linear_bias: Tensor | None,  # (V,)
    target: Tensor,  # (N,)
    upstream: Tensor,  # (N,) weight of each token's loss in the result, 0 where ignored
    options: LossOptions,
    needs: list[bool],  # gradient wanted of input, linear_weight, linear_bias
) -> tuple[Tensor, _Gradients]:
    """Weighted token losses ``(N,)`` and the gradients of their sum, in its dtype; ignored tokens cost nothing."""
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        dtype = upstream.dtype
        kept = target != options.ignore_index
        rows = None if bool(kept.all()) else kept.nonzero().squeeze(-1)
        hidden, labels, g = (t if rows is None else t[rows] for t in (input, target, upstream))
        weight = linear_weight.to(dtype)
        bias = None if linear_bias is None else linear_bias.to(dtype)
        token_loss = torch.empty_like(g)
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if needs[0] else None
        grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if needs[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs[2] else None
        for part, h, dz in _blocks(hidden.to(dtype), weight, bias, labels, token_loss, options, any(needs)):
            if grad_hidden is not None:
                dh = (dz @ weight).mul_((g[part] * (options.logit_scale / options.temperature)).unsqueeze(-1))
                grad_hidden[part] = dh
            if grad_weight is not None:
                scaled = h * (g[part] * (options.logit_scale / options.temperature)).unsqueeze(-1)
                grad_weight.addmm_(dz.T, scaled)
            if grad_bias is not None:
                grad_bias.addmv_(dz.T, g[part] / options.temperature)
        token_loss.mul_(g)
        if rows is not None:
            token_loss = torch.zeros_like(upstream).index_copy_(0, rows, token_loss)
            if grad_hidden is not None:
                grad_hidden = torch.zeros_like(input, dtype=dtype).index_copy_(0, rows, grad_hidden)
        return token_loss, _Gradients(grad_hidden, grad_weight, grad_bias)


def _blocks(
    hidden: Tensor,  # (n, D), kept tokens only
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (n,)
    token_loss: Tensor,  # (n,), written here
    options: LossOptions,
    want_gradient: bool,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Fill ``token_loss`` block by block; yield (rows, their hidden states, d loss / d (raw logits x scale) x T)."""
    n, vocab_size, smoothing = hidden.shape[0], weight.shape[0], options.label_smoothing
    budget = BLOCK_BYTES.get(hidden.device.type, BLOCK_BYTES_ELSEWHERE)
    size = max(1, min(n, budget // (vocab_size * hidden.element_size())))
    # Allocated once: fresh pages for every block cost more than the arithmetic.
    buffer = hidden.new_empty(size, vocab_size)
    slopes = torch.empty_like(buffer) if want_gradient and options.softcap is not None else None
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        h, y = hidden[part], labels[part].unsqueeze(-1)
        z = torch.mm(h, weight.T, out=buffer[: h.shape[0]])
        if options.logit_scale != 1:
            z.mul_(options.logit_scale)
        if bias is not None:
            z.add_(bias)
        slope = None
        if options.softcap is not None:
            z.div_(options.softcap).tanh_()
            if slopes is not None:  # d cap(z) / dz = 1 - tanh^2
                slope = torch.mul(z, z, out=slopes[: h.shape[0]]).neg_().add_(1)
            z.mul_(options.softcap)
        if options.temperature != 1:
            z.div_(options.temperature)
        peak = z.amax(-1, keepdim=True)
        z.sub_(peak)
        out = (smoothing - 1) * z.gather(-1, y)
        if smoothing:
            out -= smoothing * z.mean(-1, keepdim=True)
        total = z.exp_().sum(-1, keepdim=True)
        log_total = total.log()
        out += log_total
        lse = peak + log_total
        if options.z_loss:
            out += options.z_loss * lse.square()
        token_loss[part] = out.squeeze(-1)
        if not want_gradient:
            continue
        lift = 2 * options.z_loss * lse  # d z_loss lse^2 / dz_k = lift p_k
        p_target = z.gather(-1, y) / total
        z.mul_((1 + lift) / total)
        if smoothing:
            z.sub_(smoothing / vocab_size)
        # p_y - q_y first: beside p_y near 1 the share of z_loss would be rounded away.
        z.scatter_(-1, y, p_target - (1 - smoothing + smoothing / vocab_size) + lift * p_target)
        if slope is not None:
            z.mul_(slope)
        yield part, h, z
