"""What the gradient of the logits needs of each token: upstream gradients, divided by the largest, in packed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Head, Kept, Scalars
from .compile_ahead import run_kernel
from .launch import blocks
from .rows import KeptRows, aligned

__all__ = ["GradientRows", "Upstream", "gathered", "gradient_rows", "largest_of"]

_LN2 = tl.constexpr(0.6931471805599453)
_BLOCK = 4096  # tokens that the one program of largest_kernel looks at a time


class Upstream(NamedTuple):
    """Upstream gradients, and what the forward knows of each token."""

    loss: Tensor  # (N,) float32, input order
    statistics: Tensor | None  # (3, N) or more rows, of which the first are read: log-probability, lse, entropy
    lse: Tensor  # (N,) packed, bits
    entropy: Tensor | None  # (N,) packed, nats
    rows: KeptRows
    of_entropy: bool = True  # whether the entropy may have an upstream gradient, if statistics do
    largest: Tensor | None = None  # (1,) what they are divided by, where that is known


def gathered(
    of_loss: Tensor | None,
    of_statistics: Tensor | Sequence[Tensor | None] | None,
    lse: Tensor,
    entropy: Tensor | None,
    index: Tensor,
) -> Upstream:
    """Return upstream gradients as the kernels read them; None is the gradient of an output that is not used."""
    of_loss = torch.zeros_like(lse) if of_loss is None else aligned(of_loss.contiguous())
    of_entropy = True
    if of_statistics is not None and not isinstance(of_statistics, Tensor):
        of_entropy = of_statistics[2] is not None
        used = any(g is not None for g in of_statistics)
        zeros = torch.zeros_like(lse)
        of_statistics = torch.stack([zeros if g is None else g for g in of_statistics]) if used else None
    of_statistics = None if of_statistics is None else aligned(of_statistics.contiguous())
    return Upstream(of_loss, of_statistics, lse, entropy, KeptRows.within(index, lse.shape[0]), of_entropy)


class GradientRows(NamedTuple):
    """Factors and labels of the kept tokens, packed."""

    largest: Tensor  # (1,) what the upstream gradients are divided by
    row_scale: Tensor  # (N,) the loss's, divided
    row_factor: Tensor | None  # (N,) of the kept softmax, where that enters the products as it is
    mix: Tensor | None  # (3, N) of the other parts of the gradient, if it has any
    label: Tensor  # (N,) int32
    ones: Tensor  # (N,)


@triton.jit(do_not_specialize=["n"])
def largest_kernel(
    upstream,  # (N,) input order
    of_statistics,  # (3, N) input order, if STATISTICS
    count,  # (1,)
    source,  # (N,)
    largest,  # (1,) written: the largest magnitude of the kept tokens, 1 if that is 0
    n,
    STATISTICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the upstream gradients are divided by; one program."""
    row_count = tl.load(count)
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, row_count, BLOCK):
        row = start + tl.arange(0, BLOCK)
        kept = row < row_count
        origin = tl.load(source + row, mask=kept, other=0)
        most = tl.maximum(most, tl.abs(tl.load(upstream + origin, mask=kept, other=0.0)))
        if STATISTICS:
            for j in tl.static_range(3):
                most = tl.maximum(most, tl.abs(tl.load(of_statistics + j * n + origin, mask=kept, other=0.0)))
    magnitude = tl.max(most, 0)
    tl.store(largest, tl.where(magnitude > 0, magnitude, 1.0))


@triton.jit(do_not_specialize=["n"])
def gradient_rows_kernel(
    upstream,  # (N,) input order
    of_statistics,  # (3, N) input order, if STATISTICS
    largest,  # (1,) of the kernel above
    target,  # (N,)
    count,  # (1,)
    source,  # (N,)
    lse,  # (N,) packed, bits
    entropy,  # (N,) packed, nats, if ENTROPY
    reference,  # (N,) packed, bits, if DIRECT
    row_scale,  # (N,) packed, written
    row_factor,  # (N,) packed, written if DIRECT: factor of the kept softmax
    mix,  # (3, N) packed, written if MIXED: A, B per bit of log p, and C
    label,  # (N,) packed int32, written
    ones,  # (N,) packed, written
    n,
    z_loss,
    confidence_penalty,
    DIRECT: tl.constexpr,
    MIXED: tl.constexpr,
    ENTROPY: tl.constexpr,
    STATISTICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Move what the backward needs of each kept token to packed order.

    With g, l, s and h the upstream gradients of loss, log-probability, log-partition and entropy H,

        A = 2 z_loss lse g - l + s + B H,    B = confidence_penalty g - h,    C = l

    The kept softmax is multiplied by (g + A) exp(reference - lse), where B is 0.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = row < tl.load(count)
    origin = tl.load(source + row, mask=valid, other=0)
    divisor = tl.load(largest)
    g = tl.load(upstream + origin, mask=valid, other=0.0) / divisor
    tl.store(row_scale + row, g, mask=valid)
    bits = tl.load(lse + row, mask=valid, other=0.0)
    of_softmax = g
    if MIXED:
        plain = g * (2.0 * z_loss * _LN2 * bits)
        bend = g * confidence_penalty
        own = g * 0.0
        if STATISTICS:
            own = tl.load(of_statistics + origin, mask=valid, other=0.0) / divisor
            plain += tl.load(of_statistics + n + origin, mask=valid, other=0.0) / divisor - own
            bend -= tl.load(of_statistics + 2 * n + origin, mask=valid, other=0.0) / divisor
        if ENTROPY:
            plain += bend * tl.load(entropy + row, mask=valid, other=0.0)
        of_softmax += plain
        tl.store(mix + row, plain, mask=valid)
        tl.store(mix + n + row, bend * _LN2, mask=valid)
        tl.store(mix + 2 * n + row, own, mask=valid)
    if DIRECT:
        to_lse = tl.load(reference + row, mask=valid, other=0.0) - bits
        tl.store(row_factor + row, of_softmax * tl.exp2(to_lse), mask=valid)
    tl.store(label + row, tl.load(target + origin, mask=valid, other=0).to(tl.int32), mask=valid)
    tl.store(ones + row, tl.full((BLOCK,), 1.0, tl.float32), mask=valid)


def largest_of(loss: Tensor, statistics: Tensor | None, rows: KeptRows) -> Tensor:
    """What upstream gradients are divided by, ``(1,)``: their largest magnitude."""
    largest = torch.empty(1, dtype=torch.float32, device=loss.device)
    run_kernel(
        largest_kernel,
        (1,),
        upstream=loss,
        of_statistics=statistics,
        count=rows.number,
        source=rows.source,
        largest=largest,
        n=rows.source.shape[0],
        STATISTICS=statistics is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )
    return largest


def gradient_rows(head: Head, scalars: Scalars, upstream: Upstream, kept: Kept | None) -> GradientRows:
    """Compute them for the kept tokens."""
    rows, of_statistics, device = upstream.rows, upstream.statistics, head.target.device
    n = rows.source.shape[0]

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    mixed = scalars.mixed or of_statistics is not None
    # Of all losses whose softmax may be kept as it is, also where it is not: one kernel for both.
    direct = scalars.storage(head.hidden.dtype) == "softmax"
    made = GradientRows(
        largest=largest_of(upstream.loss, of_statistics, rows) if upstream.largest is None else upstream.largest,
        row_scale=new(n),
        row_factor=new(n) if direct else None,
        mix=new(3, n) if mixed else None,
        label=new(n, dtype=torch.int32),
        ones=new(n),
    )
    run_kernel(
        gradient_rows_kernel,
        (blocks(n, 1024),),
        upstream=upstream.loss,
        of_statistics=of_statistics,
        largest=made.largest,
        target=head.target,
        count=rows.number,
        source=rows.source,
        lse=upstream.lse,
        entropy=upstream.entropy,
        reference=(upstream.lse if kept is None else kept.reference) if direct else None,
        row_scale=made.row_scale,
        row_factor=made.row_factor,
        mix=made.mix,
        label=made.label,
        ones=made.ones,
        n=n,
        z_loss=scalars.z_loss,
        confidence_penalty=scalars.confidence_penalty,
        DIRECT=direct,
        MIXED=mixed,
        ENTROPY=upstream.entropy is not None,
        STATISTICS=of_statistics is not None,
        BLOCK=1024,
    )
    return made
