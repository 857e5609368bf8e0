"""Token losses of a block of tokens at a time, and the gradient of its logits, on any device.

In one buffer of ``block x V`` that is reused,

    z      = logits after scale, bias, softcap and temperature
    s      = z - max_k z_k                     so that the loss has log-softmax's accuracy
    loss   = log sum_k e^(s_k) - (1 - b) s_y - b mean_k s_k  (+ z_loss lse^2 - confidence_penalty H)
    dL/dz  = p (1 + 2 z_loss lse + confidence_penalty (log p + H)) - q     then through temperature, softcap and scale

with b the smoothing, p the softmax of z and q the smoothed target. Upstream gradients of statistics enter dL/dz too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .blocks import block_logits, block_tokens
from .options import LossOptions
from .token_statistics import TokenStatistics

__all__ = ["loss_blocks"]


def loss_blocks(
    hidden: Tensor,  # (n, D), kept tokens only
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (n,)
    token_loss: Tensor,  # (n,), written here
    statistics: TokenStatistics | None,  # of n, written here
    mixed: tuple[Tensor, ...] | None,  # upstream gradients of loss, log-probability, lse and entropy, each (n,)
    options: LossOptions,
    want_gradient: bool,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Fill ``token_loss`` and ``statistics`` block by block; yield the gradient of each block's logits if it is wanted.

    Yields:
        The block's tokens, their hidden states, and d loss / d (raw logits x scale) x temperature ``(block, V)``, in
        memory that the next block overwrites.
    """
    n, vocab_size, smoothing = hidden.shape[0], weight.shape[0], options.label_smoothing
    penalty = options.confidence_penalty
    want_entropy = statistics is not None or mixed is not None or penalty > 0
    size = block_tokens(n, weight)
    # Allocated once: fresh pages for every block cost more than the arithmetic.
    buffer = hidden.new_empty(size, vocab_size)
    slopes = torch.empty_like(buffer) if want_gradient and options.softcap is not None else None
    spare = torch.empty_like(buffer) if want_entropy else None
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        h, y = hidden[part], labels[part].unsqueeze(-1)
        z, slope = buffer[: h.shape[0]], None if slopes is None else slopes[: h.shape[0]]
        block_logits(h, weight, bias, options, z, slope)
        peak, argmax = z.max(-1, keepdim=True) if statistics is not None else (z.amax(-1, keepdim=True), None)
        z.sub_(peak.clamp(min=torch.finfo(z.dtype).min))  # of logits that are all -inf the log-partition is -inf, too
        shift = z.gather(-1, y)
        out = (smoothing - 1) * shift
        if smoothing:
            out -= smoothing * z.mean(-1, keepdim=True)
        p, entropy = z, None
        if spare is None:
            total = z.exp_().sum(-1, keepdim=True)
            log_total = total.log()
        else:  # z stays what it is: the logarithm of p but for a constant
            p = torch.exp(z, out=spare[: h.shape[0]])
            total = p.sum(-1, keepdim=True)
            log_total = total.log()
            z.clamp_(min=-1e4)  # there p is 0, whose logarithm nothing asks for
            entropy = log_total - torch.bmm(p.unsqueeze(1), z.unsqueeze(2)).squeeze(2) / total
            out -= penalty * entropy
        out += log_total
        lse = peak + log_total
        if options.z_loss:
            out += options.z_loss * lse.square()
        token_loss[part] = out.squeeze(-1)
        if statistics is not None and entropy is not None and argmax is not None:
            fields = (shift - log_total, lse, entropy, 1 / total, argmax)
            for field, values in zip(statistics, fields, strict=True):
                field[part] = values.squeeze(-1)
        if not want_gradient:
            continue
        lift = 2 * options.z_loss * lse  # d z_loss lse^2 / dz_k = lift p_k
        p_target = p.gather(-1, y) / total
        g, at_target = 1.0, 0.0
        if entropy is None:
            z.mul_((1 + lift) / total)
        else:  # dH / dz_k = -p_k (log p_k + H)
            bend = penalty
            if mixed is not None:
                g, at_target, of_lse, of_entropy = (t[part].unsqueeze(-1) for t in mixed)
                lift, bend = g * lift + of_lse - at_target, g * penalty - of_entropy
            z.add_(entropy - log_total).mul_(bend).add_(lift)
            lift = z.gather(-1, y)
            z.add_(g).mul_(p.div_(total))
        if smoothing:
            z.sub_(g * smoothing / vocab_size)
        # p_y - q_y first: beside p_y near 1 the share of z_loss would be rounded away.
        own = g * (p_target - (1 - smoothing + smoothing / vocab_size)) + lift * p_target + at_target
        z.scatter_(-1, y, own)
        if slope is not None:
            z.mul_(slope)
        yield part, h, z
