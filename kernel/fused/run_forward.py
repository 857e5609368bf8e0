"""Launches of the forward: token losses and statistics, and what the backward needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Head, Kept, Scalars, Tiles
from .compile_ahead import run_kernel
from .gradient_rows import GradientRows
from .keep import store_targets
from .launch import blocks, launch_table, uses_descriptors
from .merge import merge_kernel
from .rows import KeptRows, index_memory, index_rows
from .run_strip import StripColumns, recompute_strip
from .run_sweep import Span, Sweep
from .target_logit import target_logits
from .units import MAX_UNITS

__all__ = ["ForwardResult", "forward"]

_ROWS, _TARGETS = 16, 4  # tokens of a program that joins groups, and of one that gathers targets' rows


class ForwardResult(NamedTuple):
    """What the forward knows of each token; packed means by rank among the kept ones."""

    token_loss: Tensor  # (N,)
    lse: Tensor  # (N,) packed, bits
    entropy: Tensor | None  # (N,) packed, nats
    statistics: Tensor | None  # (4, N): log-probability, lse, entropy, confidence; of a slice its largest logit, too
    argmax: Tensor | None  # (N,) int64
    rows: KeptRows
    row_index: Tensor | None  # their memory, if they were not given
    target_logit: Tensor  # (N,) packed, bits
    packed: Tensor | None  # (N, D) hidden states moved together, if they were


def forward(
    head: Head,
    scalars: Scalars,
    kept: Sequence[Kept] = (),
    *,
    packed: bool,
    return_statistics: bool = False,
    tile_sums: Tensor | None = None,
    chunk: KeptRows | None = None,
    token_loss: Tensor | None = None,
) -> ForwardResult:
    """Compute the losses of all tokens or of a chunk, and what the backward needs of them.

    Args:
        head: Inputs, the rows of ``hidden`` contiguous.
        scalars: Options.
        kept: Where to keep the last columns, those at the end first.
        packed: Move the kept tokens together first, an N x D copy; without it they are gathered as they are loaded.
        return_statistics: Whether to return statistics as well.
        tile_sums: ``(N, tiles or more)`` int64, where what :mod:`.tile_sums` needs of every tile and token is written.
        chunk: The tokens that N counts, where not all of them.
        token_loss: Where the losses go, of all tokens; new memory by default.
    """
    hidden, weight, _, target = head
    vocab_size, device, kind = weight.shape[0], hidden.device, scalars.storage(hidden.dtype)
    launch = launch_table(device, hidden.dtype).forward
    index = None
    if chunk is None:
        index = index_memory(hidden.shape[0], device)
        # Of a slice the targets were checked against the whole head; those elsewhere are read as the first row.
        chunk = index_rows(target, scalars.ignore_index, None if scalars.whole else vocab_size, index)
    rows, n = chunk, chunk.source.shape[0]
    here = head._replace(target=target.clamp(min=0)) if scalars.whole else head
    if packed:
        head = head._replace(hidden=hidden.new_empty(n, hidden.shape[1]))
    target_logit = _write_targets(here, scalars, rows, kept, head.hidden if packed else None)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    tiles = blocks(vocab_size, launch.columns)
    starts = [0, *(run.start // launch.columns for run in reversed(kept)), tiles]
    parts = [Span(*part) for part in zip(starts, starts[1:], [None, *reversed(kept)], strict=False)]
    parts = [part for part in parts if part.end > part.first]
    units = max(MAX_UNITS if device.type == "cuda" else 12, blocks(n, launch.rows))
    want_entropy = return_statistics or scalars.confidence_penalty > 0
    planes = 6 if return_statistics else 4 if want_entropy else 3 if scalars.label_smoothing else 2
    partial = new(len(parts), planes, units * launch.rows)
    sweep = Sweep(head, scalars, rows, packed, partial, want_entropy, return_statistics, tile_sums)
    for i, part in enumerate(parts):
        sweep.run(i, part, rows.number, "" if part.kept is None else "byte" if part.kept.in_bytes else kind)
    found = ForwardResult(
        new(n) if token_loss is None else token_loss,
        new(n),
        new(n) if want_entropy else None,
        new(5 if scalars.whole else 4, n) if return_statistics else None,
        new(n, dtype=torch.int64) if return_statistics else None,
        rows,
        index,
        target_logit,
        head.hidden if packed else None,
    )
    as_they_are = [run for run in kept if not run.in_bytes] if kind == "softmax" else []
    reference = as_they_are[0].reference[0] if as_they_are else target_logit
    # What a softmax that is stored again is made of: the gradient of a loss without target and smoothing.
    ones = new(n)
    again = GradientRows(ones[:1], ones, None, None, new(n, dtype=torch.int32), ones)
    of_loss = scalars.of_slice() if scalars.whole else scalars
    counts = [*(part.end - part.first for part in parts), 0, 0, 0]

    def merge(*, rerun: bool) -> None:
        run_kernel(
            merge_kernel,
            (blocks(n, _ROWS),),
            target_logit=target_logit,
            count=rows.number,
            outside=rows.outside,
            source=rows.source,
            partial=partial,
            partial_stride=partial.stride(1),
            part_stride=partial.stride(0),
            token_loss=found.token_loss,
            lse=found.lse,
            reference=reference,
            ones=again.ones,
            label=again.label,
            entropy=found.entropy,
            statistics=found.statistics,
            argmax=found.argmax,
            n=n,
            vocab_size=vocab_size,
            parts=len(parts),
            first_tiles=counts[0],
            second_tiles=counts[1],
            third_tiles=counts[2],
            fourth_tiles=counts[3],
            rerun=int(rerun),
            label_smoothing=of_loss.label_smoothing,
            z_loss=of_loss.z_loss,
            confidence_penalty=of_loss.confidence_penalty,
            LOGIT_SUM=scalars.label_smoothing > 0,
            ENTROPY=want_entropy,
            ARGMAX=return_statistics,
            LARGEST=scalars.whole > 0,
            BLOCK_ROWS=launch.rows,
            ROWS=_ROWS,
            GROUPS=32,
        )

    merge(rerun=False)
    if as_they_are:
        for i, part in enumerate(parts):
            if part.kept is not None and not part.kept.in_bytes:
                sweep.run(i, part, rows.outside, "")
        merge(rerun=True)
        plain, tiles = replace(scalars, label_smoothing=0.0), Tiles(uses_descriptors(head.hidden, weight))
        for run in as_they_are:
            columns = StripColumns(run.start, run.number * run.width, 0, run.width)
            recompute_strip(head, plain, rows.outside, reference, again, run.columns, columns, tiles)
            if not scalars.whole:  # else the backward does, which knows the whole head's lse
                store_targets(target, rows, target_logit, run, found.lse, scalars.label_smoothing)
    return found


def _write_targets(head: Head, scalars: Scalars, rows: KeptRows, kept: Sequence[Kept], packed: Tensor | None) -> Tensor:
    """Logits of the targets ``(N,)``, packed, in bits; what kept columns are relative to is written for these.

    Columns in bytes are relative to the logit itself, to which a softmax that is kept as it is may not be for ever.
    """
    of_bytes = [run.reference[0] for run in kept if run.in_bytes]
    others = [run.reference[0] for run in kept if run.reference.shape[0] and not run.in_bytes]
    into = of_bytes[0] if of_bytes else None, others[0] if others else None
    logit, argument = target_logits(head, scalars, rows, tokens=_TARGETS, block_hidden=256, into=into, packed=packed)
    for values, memories in ((logit, of_bytes), (argument, others)):
        for memory in memories[1:]:
            if memory.data_ptr() != values.data_ptr():
                memory.copy_(values)
    return logit
