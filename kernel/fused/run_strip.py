"""Launches that write dz, the gradient of the logits of a strip: from the logits themselves or from what was kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Head, Kept, Scalars, Tiles, logit_arguments, product_arguments, tiling
from .byte_columns import decoded_strip_kernel
from .compile_ahead import run_kernel
from .early import begins_early
from .gradient_rows import GradientRows
from .launch import blocks, launch_table, precise, processors
from .logit_gradient import kept_strip_kernel, recomputed_strip_kernel
from .plan import peaks_of

_CONVERT_ROWS = 16  # of a program that makes dz of what was kept: of twice as many registers spill under a softcap
_DECODE_ROWS, _DECODE_WARPS = 8, 2  # of a program that makes dz of bytes: 3.6 TB/s on an H200, the most of seven pairs

__all__ = ["StripColumns", "convert_kept", "decode_kept", "recompute_strip"]


class StripColumns(NamedTuple):
    """Which columns of the vocabulary a strip stands for, as the kernels take it (``tiles.merged_strip``)."""

    run_start: int
    run_columns: int
    run_offset: int
    strip_columns: int


def recompute_strip(
    head: Head,  # its hidden states packed
    scalars: Scalars,
    number: Tensor,  # (1,) rows
    lse: Tensor,  # (N,) packed, bits
    rows: GradientRows,
    dz: Tensor,  # (rows of one or several strips, strip)
    columns: StripColumns,
    tiles: Tiles,
    *,
    independent: bool = False,
) -> None:
    """Write dz of a strip from the logits, computed once more.

    ``independent`` says that the kernel ahead is a product of the strip before (:mod:`.early`).
    """
    hidden, weight, bias, _ = head
    launch = launch_table(hidden.device, hidden.dtype).logit_gradient
    run_kernel(
        recomputed_strip_kernel,
        (processors(hidden.device),),
        count=number,
        lse=lse,
        row_scale=rows.row_scale,
        mix=rows.mix,
        label=rows.label,
        dz=tiles(dz, launch.rows, launch.columns // launch.parts),
        dz_rows=dz.shape[0],
        **columns._asdict(),
        dz_stride=dz.stride(0),
        **logit_arguments(hidden, weight, bias, scalars),
        label_smoothing=scalars.label_smoothing,
        uniform=scalars.uniform(weight.shape[0]),
        MIXED=rows.mix is not None,
        FOLDED=launch.folded,
        MASK_VOCAB=columns.run_start + columns.run_columns > weight.shape[0],
        independent=int(independent),
        **product_arguments(tiles, hidden, weight, launch),
        **tiling(launch),
        **begins_early(launch, descriptor=tiles.descriptor),
    )


def convert_kept(
    head: Head,
    scalars: Scalars,
    number: Tensor,
    lse: Tensor,
    rows: GradientRows,
    dz: Tensor,
    kept: Kept,
    start: int,
    columns: int,
) -> None:
    """Write dz of ``columns`` kept columns from ``start`` on, whole tiles; ``dz`` may be the kept columns' memory."""
    n, vocab_size = head.hidden.shape[0], head.weight.shape[0]
    launch = launch_table(dz.device, dz.dtype).logit_gradient
    per_program = _CONVERT_ROWS if dz.is_cuda else 8
    cap, code = scalars.gains()["cap"], scalars.code
    run_kernel(
        kept_strip_kernel,
        (blocks(dz.shape[0] // (columns // dz.shape[1]), per_program), columns // launch.columns),
        kept=kept.columns,
        reference=kept.reference,
        count=number,
        lse=lse,
        row_scale=rows.row_scale,
        mix=rows.mix,
        label=rows.label,
        dz=dz,
        dz_rows=dz.shape[0],
        n=n,
        vocab_size=vocab_size,
        strip_start=start,
        boundary=kept.start,
        kept_stride=kept.columns.stride(0),
        dz_stride=dz.stride(0),
        cap=cap,
        knee=code.knee,
        offset=code.offset,
        **code.steps(cap),
        label_smoothing=scalars.label_smoothing,
        uniform=scalars.uniform(vocab_size),
        CODE=kept.columns.dtype == torch.int16,
        SOFTCAP=scalars.softcap > 0,
        MIXED=rows.mix is not None,
        MASK_VOCAB=vocab_size % launch.columns > 0,  # of all kept columns alike: no kernel more
        BLOCK_VOCAB=launch.columns,
        PRECISE=precise(dz),
        ROWS=per_program,
        ALIGNED_ROWS=launch.rows,
    )


def decode_kept(
    head: Head,
    scalars: Scalars,
    number: Tensor,
    lse: Tensor,
    rows: GradientRows,
    dz: Tensor,  # (N, columns)
    kept: Kept,
    start: int,
) -> None:
    """Write dz of the strip from ``start`` on, whole tiles of columns that were kept in bytes."""
    vocab_size = head.weight.shape[0]
    launch = launch_table(dz.device, dz.dtype).logit_gradient
    per_program = _DECODE_ROWS if dz.is_cuda else 16
    run_kernel(
        decoded_strip_kernel,
        (dz.shape[1] // launch.columns, blocks(dz.shape[0], per_program)),
        kept=kept.columns,
        reference=kept.reference,
        count=number,
        lse=lse,
        row_scale=rows.row_scale,
        mix=rows.mix,
        label=rows.label,
        dz=dz,
        dz_rows=dz.shape[0],
        n=head.hidden.shape[0],
        vocab_size=vocab_size,
        strip_start=start,
        boundary=kept.start,
        kept_stride=kept.columns.stride(0),
        dz_stride=dz.stride(0),
        label_smoothing=scalars.label_smoothing,
        uniform=scalars.uniform(vocab_size),
        MIXED=rows.mix is not None,
        MASK_VOCAB=vocab_size % launch.columns > 0,  # of all kept columns alike: no kernel more
        PEAKS=peaks_of(launch.columns),
        BLOCK_VOCAB=launch.columns,
        ROWS=per_program,
        ALIGNED_ROWS=launch.rows,
        PACKED=dz.is_cuda,
        num_warps=_DECODE_WARPS,
    )
