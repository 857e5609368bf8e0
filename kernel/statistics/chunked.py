"""Statistics of the softmax a block of tokens at a time, on any device: two blocks of logits, or 64 tokens and one.

With m the largest logit and n the second largest, s = z - m <= 0, and for a temperature T

    r_k  = exp((z_k - n) / T) for k other than the argmax, 0 there     so that nothing overflows or is lost next to 1
    rest = exp((n - m) / T) sum_k r_k = (1 - p_max) / p_max
    lse  = m / T + log1p(rest)
    log(1 - p_max) = (n - m) / T + log sum_k r_k - log1p(rest)
    entropy        = log1p(rest) - sum_k p_k s_k / T                   a sum of terms of one sign
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import block_logits, block_tokens, spread
from ..options import LossOptions
from ..reference import compute_dtype
from .fields import HeadStatistics, allocate, check_finite

__all__ = ["statistics"]

# Tokens whose product with the head is made at once: with the 16 that a block of 262,144 logits has, BLAS takes nearly
# twice as long for each. All else is made block by block, which stays nearer to the caches.
_PRODUCT_TOKENS = 64


def statistics(
    input: Tensor,  # (N, D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor | None,  # (N,)
    linear_bias: Tensor | None,  # (V,)
    options: LossOptions,
    temperatures: tuple[float, ...],
    top_k: int,
    given: Tensor | None = None,  # (N,)
) -> HeadStatistics:
    """The fields of :class:`kernel.HeadStatistics`, flat.

    ``given`` are logits of the targets, read where a target lies outside of these rows: it counts as before the first
    or after the last of them.
    """
    tokens, rows = input.shape[0], None
    if target is not None:
        kept = target != options.ignore_index
        if not kept.all():  # ignored rows cost nothing
            rows = kept.nonzero().squeeze(-1)
            input, target = input[rows], target[rows]
            given = None if given is None else given[rows]
    (n, vocab_size), dtype, device = (input.shape[0], linear_weight.shape[0]), compute_dtype(input.dtype), input.device
    weight = linear_weight.to(dtype)
    bias = None if linear_bias is None else linear_bias.to(dtype)
    out = allocate(n, len(temperatures), top_k, has_target=target is not None, dtype=dtype, device=device)
    size = block_tokens(n, weight)
    together = min(n, size * max(1, _PRODUCT_TOKENS // max(1, size)))
    logits, scratch = weight.new_empty(together, vocab_size), weight.new_empty(min(size, n), vocab_size)
    for first in range(0, n, max(1, together)):
        several = slice(first, min(first + together, n))
        block_logits(input[several].to(dtype), weight, bias, options, logits[: several.stop - first])
        for start in range(first, several.stop, size):
            part = slice(start, min(start + size, several.stop))
            z, rest = logits[start - first : part.stop - first], scratch[: part.stop - start]
            label, own = (None if t is None else t[part].unsqueeze(-1) for t in (target, given))
            _block(z, rest, label, own, temperatures, part, out)
    check_finite(out.max_logit, out.mean_logit)
    if rows is None:
        return out
    return out._replace(**{name: spread(x, rows, tokens) for name, x in out._asdict().items() if x is not None})


def _block(
    z: Tensor,  # (block, V), overwritten
    scratch: Tensor,  # (block, V)
    label: Tensor | None,  # (block, 1)
    given: Tensor | None,  # (block, 1)
    temperatures: tuple[float, ...],
    part: slice,
    out: HeadStatistics,
) -> None:
    if out.top_logits is not None and out.top_indices is not None:
        top = z.topk(out.top_logits.shape[-1], dim=-1)
        out.top_logits[part], out.top_indices[part] = top.values, top.indices
    peak, argmax = z.max(-1, keepdim=True)  # the first of equal ones
    shift = None
    if label is not None and out.target_logit is not None and out.rank is not None:
        inside = label.clamp(0, z.shape[-1] - 1)
        own = z.gather(-1, inside)
        own = own if given is None else torch.where(inside == label, own, given)
        out.target_logit[part] = own.squeeze(-1)
        out.rank[part] = _rank(z, own, label, scratch)
        shift = own - peak
    s = z.sub_(peak)
    out.max_logit[part], out.argmax[part] = peak.squeeze(-1), argmax.squeeze(-1)
    out.mean_logit[part] = (peak + s.mean(-1, keepdim=True)).squeeze(-1)
    second = s.scatter_(-1, argmax, -torch.inf).amax(-1, keepdim=True)
    s.scatter_(-1, argmax, 0.0)  # as it was
    if s.shape[-1] == 1:
        second.zero_()  # no other class: all r are 0 whatever the reference
    for i, temperature in enumerate(temperatures):
        r = torch.sub(s, second, out=scratch).div_(temperature).exp_().scatter_(-1, argmax, 0.0)
        total = r.sum(-1, keepdim=True)
        square = torch.linalg.vector_norm(r, dim=-1, keepdim=True).square()
        weighted = r.mul_(s).sum(-1, keepdim=True) / temperature  # sum_k r_k s_k / T
        gap = second / temperature
        log_rest = gap + total.log()
        factor, rest = gap.exp(), log_rest.exp()
        log_total = rest.log1p()
        confidence = 1 / (1 + rest)
        values = {
            "lse": peak / temperature + log_total,
            "entropy": log_total - weighted * factor * confidence,
            "participation": (1 + square * factor.square()) * confidence.square(),
            "confidence": confidence,
            "log1m_confidence": log_rest - log_total,
        }
        if shift is not None:
            values["log_probability"] = shift / temperature - log_total
        for name, value in values.items():
            getattr(out, name)[part, i] = value.squeeze(-1)


def _rank(z: Tensor, own: Tensor, label: Tensor, scratch: Tensor) -> Tensor:
    """Logits ``(block,)`` above the target's, and equal ones of a smaller index.

    Comparisons are written as the numbers 0 and 1, whose sum, exact below 2^24 classes in float32, takes a quarter of
    the time that booleans take. Equal logits are rare: only where there are some their indices are looked at.
    """
    inside = (label >= 0) & (label < z.shape[-1])
    others = torch.eq(z, own, out=scratch).sum(-1, keepdim=True) > inside
    above = torch.gt(z, own, out=scratch)
    if others.any():
        earlier = torch.arange(z.shape[-1], device=z.device) < label
        above = above.logical_or_((z == own) & earlier)
    return above.sum(-1).to(torch.int64)
