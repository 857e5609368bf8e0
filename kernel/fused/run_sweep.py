"""Launches of the forward kernel: statistics of a range of the vocabulary's tiles, which may also be kept."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .arguments import Head, Kept, Scalars, Storage, Tiles, logit_arguments, product_arguments, tiling
from .compile_ahead import run_kernel
from .forward import forward_kernel
from .launch import blocks, launch_table, processors, uses_descriptors
from .plan import peaks_of
from .rows import KeptRows

__all__ = ["Span", "Sweep"]

_WIDTH = 32  # columns of the arrays in which the largest logit of a tile is looked for


class Span(NamedTuple):
    """Tiles of the vocabulary that one launch sweeps, and where they are kept."""

    first: int
    end: int
    kept: Kept | None


class Sweep:
    """Launches of the forward kernel over ranges of the vocabulary.

    Args:
        head: Inputs, the rows of ``hidden`` contiguous.
        scalars: Options.
        rows: Kept tokens.
        packed: Whether ``hidden`` holds them alone, moved together; else they are gathered as they are loaded.
        partial: ``(spans, planes, units x rows of a tile)`` float32, where statistics are written; 6 planes hold all.
        want_entropy: Whether the fourth of these is wanted.
        want_argmax: Whether the fifth and the sixth are: the largest logit and its class.
        tile_sums: ``(N, tiles or more)`` int64, written for :mod:`.tile_sums`; None if that is not wanted.
    """

    def __init__(
        self,
        head: Head,
        scalars: Scalars,
        rows: KeptRows,
        packed: bool,
        partial: Tensor,
        want_entropy: bool,
        want_argmax: bool,
        tile_sums: Tensor | None,
    ) -> None:
        self.head, self.scalars, self.rows, self.partial = head, scalars, rows, partial
        self.wanted = {"ENTROPY": want_entropy, "ARGMAX": want_argmax, "TILE_SUMS": tile_sums is not None}
        self.tile_sums = tile_sums
        by_descriptor = uses_descriptors(head.hidden, head.weight)
        if packed:
            self.runs = [("always", Tiles(by_descriptor), False)]
        elif by_descriptor:
            # whether rows must be gathered is known on the device alone: of two launches one does nothing
            self.runs = [("all kept", Tiles(True), False), ("some ignored", Tiles(False), True)]
        else:
            self.runs = [("always", Tiles(False), True)]

    def run(self, index: int, part: Span, number: Tensor, keep: Storage) -> None:
        """Statistics of a part's tiles, of ``number`` tokens, into ``partial[index]``."""
        kept, count = part.kept if keep else None, part.end - part.first
        (hidden, weight, bias, target), scalars = self.head, self.scalars
        launch = launch_table(weight.device, weight.dtype).forward
        stored = 1 if keep == "byte" else launch.parts  # column blocks of a tile
        tiles_end = blocks(weight.shape[0], launch.columns) * launch.columns
        for run_if, tiles, gather in self.runs:
            run_kernel(
                forward_kernel,
                (processors(weight.device),),
                count=number,
                source=self.rows.source,
                target=target if keep in ("softmax", "byte") else None,
                partial=self.partial[index],
                partial_stride=self.partial.stride(1),
                kept=None if kept is None else tiles(kept.columns, launch.rows, launch.columns // stored),
                reference=None if kept is None else kept.reference,
                tile_sums=self.tile_sums,
                tile_stride=0 if self.tile_sums is None else self.tile_sums.shape[1],
                kept_rows=0 if kept is None else kept.columns.shape[0],
                kept_stride=0 if kept is None else kept.width,
                first_tile=part.first,
                tile_count=count,
                **logit_arguments(hidden, weight, bias, scalars),
                **scalars.code._asdict(),
                LOGIT_SUM=scalars.label_smoothing > 0,
                # of all kept columns alike: no kernel more
                MASK_VOCAB=(tiles_end if keep else part.end * launch.columns) > weight.shape[0],
                **self.wanted,
                KEEP=keep,
                PIECES=stored if keep == "code" and scalars.softcap else 1,
                PEAKS=peaks_of(launch.columns) if keep == "byte" else 1,
                RUN_IF=run_if,
                GATHER=gather,
                WIDTH=min(_WIDTH, launch.columns // 4),
                **product_arguments(tiles, hidden, weight, launch),
                **tiling(launch),
            )
