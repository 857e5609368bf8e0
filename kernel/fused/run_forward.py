"""Launches of the forward: token losses, and what the backward needs of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import Head, Kept, Scalars, describe, keeps_directly, tiling
from .compile_ahead import run_kernel
from .forward import MAX_UNITS, forward_kernel
from .keep import overflow, target_column_kernel
from .launch import blocks, launch_table, processors, uses_descriptors
from .logit_gradient import recomputed_strip_kernel
from .merge import merge_kernel, target_logit_kernel
from .rows import KeptRows, index_rows, pack_hidden

__all__ = ["forward"]

_ROWS, _TARGETS = 16, 4  # tokens of a program that joins groups, and of one that gathers targets' rows


def forward(head: Head, scalars: Scalars, kept: Kept | None, *, packed: bool) -> tuple[Tensor, Tensor, KeptRows]:
    """Token losses ``(N,)``, lse in bits ``(N,)`` by packed row, and the kept rows.

    Args:
        head: Inputs.
        scalars: Options.
        kept: Where to keep the softmax of the last columns; None keeps nothing.
        packed: Move the kept tokens together first, an N x D copy; without it they are gathered as they are loaded.
    """
    hidden, weight, _, target = head
    n, vocab_size, device = hidden.shape[0], weight.shape[0], hidden.device
    launch = launch_table(device, hidden.dtype).forward
    rows = index_rows(target, scalars.ignore_index, vocab_size)
    target_logit = _target_logit(head, scalars, rows)
    direct = kept is not None and keeps_directly(hidden.dtype, scalars)
    if kept is not None and direct:
        kept.reference.copy_(target_logit)
    source = hidden
    if packed:
        source = hidden.new_empty(hidden.shape)
        pack_hidden(hidden, rows, source)

    tiles = blocks(vocab_size, launch.columns)
    kept_tiles = 0 if kept is None else kept.softmax.shape[1] // launch.columns
    parts = [p for p in [(0, tiles - kept_tiles, False), (tiles - kept_tiles, kept_tiles, True)] if p[1]]
    units = max(MAX_UNITS if device.type == "cuda" else 12, blocks(n, launch.rows))
    stats = 3 if scalars.label_smoothing else 2
    partial = torch.empty(len(parts), stats, units * launch.rows, dtype=torch.float32, device=device)
    sweep = _Sweep(head, scalars, rows, source, packed, partial)
    for part, (first, count, keep) in enumerate(parts):
        sweep.run(part, first, count, rows.number, kept if keep else None, direct=direct)
    token_loss = torch.empty(n, dtype=torch.float32, device=device)
    lse = torch.empty(n, dtype=torch.float32, device=device)

    def merge(again: Tensor | None) -> None:
        run_kernel(
            merge_kernel,
            (blocks(n, _ROWS),),
            target_logit,
            rows.number,
            again,
            rows.position,
            partial,
            partial.stride(1),
            partial.stride(0),
            token_loss,
            lse,
            n,
            vocab_size,
            parts[0][1],
            parts[-1][1],
            scalars.label_smoothing,
            scalars.z_loss,
            LOGIT_SUM=scalars.label_smoothing > 0,
            AGAIN=again is not None,
            PARTS=len(parts),
            BLOCK_ROWS=launch.rows,
            ROWS=_ROWS,
            GROUPS=32,
        )

    merge(None)
    if kept is not None and direct:
        first = tiles - kept_tiles
        again = overflow(lse, kept.reference[0], rows)
        sweep.run(len(parts) - 1, first, kept_tiles, again, None, direct=False)
        merge(again)
        kept.reference.copy_(torch.where(again > 0, lse, kept.reference))
        _store_softmax(head, scalars, source, lse, again, kept, first * launch.columns)
        _store_targets(head, scalars, rows, target_logit, lse, kept, first * launch.columns)
    return token_loss, lse, rows


def _target_logit(head: Head, scalars: Scalars, rows: KeptRows) -> Tensor:
    """Logits of the targets ``(N,)``, packed, in bits."""
    hidden, weight, bias, target = head
    n, hidden_size = hidden.shape
    logit = torch.empty(n, dtype=torch.float32, device=hidden.device)
    run_kernel(
        target_logit_kernel,
        (blocks(n, _TARGETS),),
        hidden,
        weight,
        bias,
        target,
        rows.position,
        logit,
        n,
        hidden_size,
        hidden.stride(0),
        hidden.stride(1),
        weight.stride(0),
        weight.stride(1),
        *scalars.gains(),
        HAS_BIAS=bias is not None,
        SOFTCAP=scalars.softcap > 0,
        PRECISE=hidden.dtype == torch.float32,
        ROWS=_TARGETS,
        BLOCK_HIDDEN=256,
    )
    return logit


class _Sweep:
    """Launches of the forward kernel over ranges of the vocabulary."""

    def __init__(
        self,
        head: Head,
        scalars: Scalars,
        rows: KeptRows,
        source: Tensor,
        packed: bool,
        partial: Tensor,
    ) -> None:
        self.head, self.scalars, self.rows, self.source = head, scalars, rows, source
        self.partial = partial
        by_descriptor = uses_descriptors(source, head.weight)
        if packed:
            self.runs = [("always", by_descriptor, False)]
        elif (
            by_descriptor
        ):  # whether rows must be gathered is known on the device alone: of two launches one does nothing
            self.runs = [("all kept", True, False), ("some ignored", False, True)]
        else:
            self.runs = [("always", False, True)]

    def run(self, part: int, first: int, count: int, number: Tensor, kept: Kept | None, *, direct: bool) -> None:
        """Statistics of ``count`` tiles from ``first`` on, of ``number`` tokens, into ``partial[part]``."""
        weight, bias = self.head.weight, self.head.bias
        (n, hidden_size), vocab_size = self.source.shape, weight.shape[0]
        launch = launch_table(weight.device, weight.dtype).forward
        for run_if, descriptor, gather in self.runs:
            softmax: Any = None if kept is None else kept.softmax
            stride = 0 if kept is None else kept.softmax.stride(0)
            if kept is not None and descriptor:
                softmax = describe(softmax, launch.rows, launch.columns // launch.parts)
            run_kernel(
                forward_kernel,
                (processors(weight.device),),
                describe(self.source, launch.rows, launch.depth) if descriptor else self.source,
                describe(weight, launch.columns, launch.depth) if descriptor else weight,
                bias,
                number,
                self.rows.source,
                self.partial[part],
                self.partial.stride(1),
                softmax,
                None if kept is None or direct else kept.reference,
                None if kept is None or not direct else kept.reference,
                n,
                vocab_size,
                hidden_size,
                count * launch.columns,
                stride,
                first,
                count,
                self.source.stride(0),
                self.source.stride(1),
                weight.stride(0),
                weight.stride(1),
                *self.scalars.gains(),
                HAS_BIAS=bias is not None,
                SOFTCAP=self.scalars.softcap > 0,
                LOGIT_SUM=self.scalars.label_smoothing > 0,
                MASK_VOCAB=(first + count) * launch.columns > vocab_size,
                KEEP=kept is not None,
                DIRECT=direct and kept is not None,
                RUN_IF=run_if,
                BLOCK_ROWS=launch.rows,
                BLOCK_VOCAB=launch.columns,
                BLOCK_HIDDEN=launch.depth,
                DESCRIPTOR=descriptor,
                GATHER=gather,
                PRECISE=weight.dtype == torch.float32,
                **tiling(launch),
            )


def _store_softmax(
    head: Head, scalars: Scalars, source: Tensor, lse: Tensor, number: Tensor, kept: Kept, boundary: int
) -> None:
    """Store exp(z - lse) for the columns from ``boundary`` on and ``number`` tokens: what repairs an overflow."""
    _, weight, bias, _ = head
    (n, hidden_size), vocab_size, device = source.shape, weight.shape[0], source.device
    launch = launch_table(device, source.dtype).logit_gradient
    descriptor = uses_descriptors(source, weight)
    columns = kept.softmax.shape[1]
    run_kernel(
        recomputed_strip_kernel,
        (processors(device),),
        describe(source, launch.rows, launch.depth) if descriptor else source,
        describe(weight, launch.columns, launch.depth) if descriptor else weight,
        bias,
        number,
        lse,
        None,
        None,
        describe(kept.softmax, launch.rows, launch.columns // launch.parts) if descriptor else kept.softmax,
        n,
        vocab_size,
        hidden_size,
        boundary,
        columns,
        0,
        columns,
        kept.softmax.stride(0),
        source.stride(0),
        weight.stride(0),
        weight.stride(1),
        *scalars.gains(),
        0.0,
        0.0,
        HAS_BIAS=bias is not None,
        SOFTCAP=scalars.softcap > 0,
        Z_LOSS=False,
        MASK_VOCAB=boundary + columns > vocab_size,
        SOFTMAX=True,
        BLOCK_ROWS=launch.rows,
        BLOCK_VOCAB=launch.columns,
        BLOCK_HIDDEN=launch.depth,
        DESCRIPTOR=descriptor,
        PRECISE=source.dtype == torch.float32,
        **tiling(launch),
    )


def _store_targets(
    head: Head, scalars: Scalars, rows: KeptRows, target_logit: Tensor, lse: Tensor, kept: Kept, boundary: int
) -> None:
    n = head.hidden.shape[0]
    run_kernel(
        target_column_kernel,
        (blocks(n, 256),),
        kept.softmax,
        head.target,
        rows.position,
        target_logit,
        lse,
        kept.reference,
        n,
        boundary,
        kept.softmax.stride(0),
        1 / scalars.gains()[2],
        scalars.label_smoothing,
        SOFTCAP=scalars.softcap > 0,
        BLOCK=256,
    )
