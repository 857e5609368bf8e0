"""Launches of the products of dz: the weight's and the bias's gradient of a strip, and its part of the input's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .arguments import tiling
from .compile_ahead import recording, run_kernel
from .early import begins_early
from .gradients import Gradients
from .input_gradient import input_gradient_kernel
from .last_round import CUTS
from .launch import blocks, weight_splits
from .run_strip import StripColumns
from .weight_gradient import bias_gradient_kernel, join_sums_kernel, weight_gradient_kernel

__all__ = ["add_bias", "add_input", "add_weight"]


def add_weight(
    state: Gradients, dz: Tensor, hidden: Tensor, columns: StripColumns, uniform: Tensor, first_strip: int = 0
) -> None:
    """Write the weight's gradient of the strip: ``dz.T @ hidden``, less ``uniform`` in every row."""
    if state.weight_gradient is None:
        return
    launch, width = state.table.weight_gradient, columns.strip_columns
    splits = weight_splits(state.n, width, state.hidden_size, launch, state.programs)
    if state.into is not None and (state.into.accumulate or state.into.powers is not None):
        _launch_weight(state, dz, hidden, columns, uniform, first_strip, 1)
        return
    for number in (1, max(splits, 2)) if recording() else (splits,):  # the tokens choose between two kernels
        _launch_weight(state, dz, hidden, columns, uniform, first_strip, number)


def _launch_weight(
    state: Gradients, dz: Tensor, hidden: Tensor, columns: StripColumns, uniform: Tensor, first_strip: int, splits: int
) -> None:
    """Launch what :func:`add_weight` needs, the sums over the tokens in ``splits`` pieces."""
    gradient, launch, programs = state.weight_gradient, state.table.weight_gradient, state.programs
    assert gradient is not None
    accumulate = state.into is not None and state.into.accumulate
    powers = None if state.into is None else state.into.powers
    in_cache = accumulate and powers is not None and not powers.last and state.tiles.descriptor and launch.reduce
    if accumulate and not in_cache:  # beside four stages the shared memory has no room for what is there
        launch = replace(launch, stages=min(launch.stages, 3))
    sums = state.piece_memory(splits * columns.strip_columns * state.hidden_size) if splits > 1 else None
    if state.reducing:  # whole rounds of tiles; a fifth of the multiprocessors or more is left to NCCL's channels
        tiles = blocks(columns.strip_columns, launch.rows) * blocks(state.hidden_size, launch.columns) * splits
        programs = blocks(tiles, blocks(tiles, programs - programs // 5))
    strip = _strip(state, dz, columns)
    memory = gradient if powers is None else gradient.view(torch.float16)
    common = {
        "sums": sums,
        "gradient": gradient,
        "scale": state.of.largest,
        "uniform": uniform,
        "splits": splits,
        "hidden_size": state.hidden_size,
        "gradient_row_stride": gradient.stride(0),
        "constant": state.factor,
    }
    run_kernel(
        weight_gradient_kernel,
        (programs,),
        dz=state.tiles(dz, launch.depth, launch.rows),
        hidden=state.tiles(hidden, launch.depth, launch.columns),
        **common | {"gradient": state.tiles(memory, *launch.part)},
        **strip,
        possible=None if powers is None else powers.possible,
        power_shift=0 if powers is None else powers.shift(state.factor),
        last=int(powers is not None and powers.last),
        ACCUMULATE=accumulate,
        IN_FLOAT16=powers is not None,
        REDUCE=in_cache,
        first_strip=first_strip,
        hidden_row_stride=hidden.stride(0),
        BLOCK_VOCAB=launch.rows,
        BLOCK_COLUMNS=launch.columns,
        BLOCK_ROWS=launch.depth,
        PART_VOCAB=launch.part[0],
        PART_COLUMNS=launch.part[1],
        TRANSPOSED=launch.transposed,
        DESCRIPTOR=state.tiles.descriptor,
        **tiling(launch),
        NEXT_EARLY=state.tiles.descriptor and state.table.input_gradient.early,
    )
    if sums is not None:
        del strip["dz_stride"]
        run_kernel(
            join_sums_kernel,
            (blocks(columns.strip_columns, 16) * blocks(state.hidden_size, 128),),
            **common,
            **strip,
            ROWS=16,
            COLUMNS=128,
        )


def add_bias(state: Gradients, dz: Tensor, columns: StripColumns, row_weight: Tensor, uniform: Tensor) -> None:
    """Write the bias's gradient of the strip: the sum of the rows, weighted, less the first of ``uniform``."""
    if state.bias_gradient is None:
        return
    width = min(64, state.table.logit_gradient.columns)
    run_kernel(
        bias_gradient_kernel,
        (blocks(dz.shape[1], width),),
        dz=dz,
        gradient=state.bias_gradient,
        scale=state.of.largest,
        row_weight=row_weight,
        uniform=uniform,
        **_strip(state, dz, columns),
        constant=1 / state.scalars.temperature,
        BLOCK_ROWS=64,
        BLOCK_COLUMNS=width,
        ACCUMULATE=state.into is not None,
    )


def add_input(
    state: Gradients, dz: Tensor, columns: StripColumns, row_factor: Tensor, *, independent: bool = False
) -> None:
    """Add ``dz @ weight`` of the strip, its rows multiplied by ``row_factor``.

    ``independent`` says that the kernel ahead is of the weight's gradient of the same strip (:mod:`.early`).
    """
    accumulator = state.accumulator
    if accumulator is None:
        return
    weight, launch = state.head.weight, state.table.input_gradient
    reduce = state.tiles.descriptor and launch.reduce
    part_rows, part_columns = launch.part
    memory = state.tiles(accumulator, part_rows, part_columns) if reduce else accumulator
    run_kernel(
        input_gradient_kernel,
        (state.programs,),
        dz=state.tiles(dz, launch.rows, launch.depth),
        weight=state.tiles(weight, launch.depth, launch.columns),
        accumulator=memory,
        hidden_size=state.hidden_size,
        memory_blocks=state.memory_blocks,
        **_strip(state, dz, columns),
        weight_row_stride=weight.stride(0),
        weight_column_stride=weight.stride(1),
        row_factor=row_factor,
        BLOCK_ROWS=launch.rows,
        BLOCK_COLUMNS=launch.columns,
        BLOCK_VOCAB=launch.depth,
        PART_ROWS=part_rows,
        PART_COLUMNS=part_columns,
        TRANSPOSED=launch.transposed,
        **CUTS,
        DESCRIPTOR=state.tiles.descriptor,
        REDUCE=reduce,
        independent=int(independent),
        **tiling(launch),
        **begins_early(launch, descriptor=state.tiles.descriptor),
        NEXT_EARLY=state.tiles.descriptor and state.table.logit_gradient.early,
    )


def _strip(state: Gradients, dz: Tensor, columns: StripColumns) -> dict[str, Any]:
    """What the kernels of all three products are told of a strip."""
    return {
        "count": state.number,
        "dz_rows": dz.shape[0],
        "vocab_size": state.vocab_size,
        **columns._asdict(),
        "dz_stride": dz.stride(0),
        "ALIGNED_ROWS": state.table.logit_gradient.rows,
    }
