"""Launches of the backward: the gradients, strip by strip of the vocabulary."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .arguments import Head, Kept, Scalars, describe, keeps_directly, tiling
from .compile_ahead import run_kernel
from .input_gradient import CUTS, extra_row_blocks, input_gradient_kernel, unpack_kernel
from .keep import column_sum
from .launch import blocks, launch_table, processors, uses_descriptors
from .logit_gradient import gradient_rows_kernel, kept_strip_kernel, largest_kernel, recomputed_strip_kernel
from .rows import KeptRows, pack_hidden
from .schedule import Schedule
from .weight_gradient import bias_gradient_kernel, weight_gradient_kernel

__all__ = ["backward"]

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def backward(
    head: Head,
    scalars: Scalars,
    upstream: Tensor,  # (N,) float32, input order
    lse: Tensor,  # (N,) packed, bits
    rows: KeptRows,
    plan: Schedule,
    kept: Kept | None,
    needs: tuple[bool, bool, bool],  # input, weight, bias
    weight_gradient: Tensor | None = None,  # (V, D) memory to write to; the kept columns may lie in it
) -> _Gradients:
    """Gradients of ``sum(upstream * token_loss)``; frozen arguments cost nothing."""
    state = _Backward(head, scalars, upstream, lse, rows, kept, needs, weight_gradient)
    direct = kept is not None and keeps_directly(head.hidden.dtype, scalars)
    if kept is not None and direct:
        state.add_kept(plan, kept)
    workspace = head.hidden.new_empty(plan.workspace)
    n = head.hidden.shape[0]
    for part in plan.strips:
        memory, start = workspace, 0
        if part.offset is not None and state.weight_gradient is not None:
            memory, start = state.weight_gradient.view(-1), part.offset
        dz = memory[start : start + n * part.padded].view(n, part.padded)
        columns = _Columns(part.run_start, part.run_columns, part.start - part.run_start, part.padded)
        if part.kept and kept is not None:
            state.convert(dz, kept, part.start, plan.boundary)
        else:
            state.recompute(dz, columns)
        state.add_weight(dz, state.packed, columns, None)
        state.add_bias(dz, columns, None)
        state.add_input(dz, columns, None)
    return state.finish()


class _Columns(NamedTuple):
    """Which columns of the vocabulary a strip stands for, as the kernels take it (:func:`.tiles.merged_strip`)."""

    run_start: int
    run_columns: int
    run_offset: int
    strip_columns: int


class _Backward:
    """Gradients in the making."""

    def __init__(
        self,
        head: Head,
        scalars: Scalars,
        upstream: Tensor,
        lse: Tensor,
        rows: KeptRows,
        kept: Kept | None,
        needs: tuple[bool, bool, bool],
        weight_gradient: Tensor | None,
    ) -> None:
        hidden, weight, bias, target = head
        self.head, self.scalars, self.lse, self.rows = head, scalars, lse, rows
        self.n, self.hidden_size = hidden.shape
        self.vocab_size, device = weight.shape[0], hidden.device
        self.programs = processors(device)
        self.table = launch_table(device, hidden.dtype)
        self.need_input = needs[0]
        self.factor = scalars.logit_scale / scalars.temperature
        # The packed hidden states live where the input's gradient will be written at the very end.
        self.packed = hidden.new_empty(hidden.shape)
        pack_hidden(hidden, rows, self.packed)
        self.accumulator = None
        if self.need_input:
            launch = self.table.input_gradient
            row_blocks, column_blocks = blocks(self.n, launch.rows), blocks(self.hidden_size, launch.columns)
            row_blocks += extra_row_blocks(row_blocks, column_blocks, self.programs)
            self.accumulator = torch.empty(
                row_blocks * launch.rows, self.hidden_size, dtype=torch.float32, device=device
            )
        self.fresh = True  # nothing has been added to the accumulator
        self.weight_gradient = None
        if needs[1]:
            self.weight_gradient = weight.new_empty(weight.shape) if weight_gradient is None else weight_gradient
        self.bias_gradient = weight.new_empty(self.vocab_size) if needs[2] and bias is not None else None

        self.largest = torch.empty(1, dtype=torch.float32, device=device)
        block = min(4096, triton.next_power_of_2(self.n))
        run_kernel(largest_kernel, (1,), upstream, rows.position, self.largest, self.n, BLOCK=block, num_warps=8)
        direct = kept is not None and keeps_directly(hidden.dtype, scalars)
        self.row_scale = torch.empty(self.n, dtype=torch.float32, device=device)
        self.kept_scale = torch.empty(self.n, dtype=torch.float32, device=device) if direct else None
        self.label = torch.empty(self.n, dtype=torch.int32, device=device)
        run_kernel(
            gradient_rows_kernel,
            (blocks(self.n, 1024),),
            upstream,
            self.largest,
            target,
            rows.position,
            lse,
            None if kept is None else kept.reference,
            self.row_scale,
            self.kept_scale,
            self.label,
            self.n,
            DIRECT=direct,
            BLOCK=1024,
        )
        self.descriptor = uses_descriptors(self.packed, weight)
        self.descriptors: dict[tuple[Any, ...], Any] = {}
        self.constants = {
            "SOFTCAP": scalars.softcap > 0,
            "Z_LOSS": scalars.z_loss > 0,
            "BLOCK_VOCAB": self.table.logit_gradient.columns,
        }

    def tiles(self, matrix: Tensor, rows: int, columns: int) -> Any:
        """Descriptor for tiles of ``rows x columns``, made once; where there are none, the matrix itself."""
        if not self.descriptor:
            return matrix
        key = (matrix.data_ptr(), matrix.shape, matrix.dtype, rows, columns)
        if key not in self.descriptors:
            self.descriptors[key] = describe(matrix, rows, columns)
        return self.descriptors[key]

    def recompute(self, dz: Tensor, columns: _Columns) -> None:
        """Write dz of a strip from the logits."""
        weight, bias, launch, scalars = self.head.weight, self.head.bias, self.table.logit_gradient, self.scalars
        run_kernel(
            recomputed_strip_kernel,
            (self.programs,),
            self.tiles(self.packed, launch.rows, launch.depth),
            self.tiles(weight, launch.columns, launch.depth),
            bias,
            self.rows.number,
            self.lse,
            self.row_scale,
            self.label,
            self.tiles(dz, launch.rows, launch.columns // launch.parts),
            self.n,
            self.vocab_size,
            self.hidden_size,
            *columns,
            dz.stride(0),
            self.packed.stride(0),
            weight.stride(0),
            weight.stride(1),
            *scalars.gains(),
            scalars.label_smoothing,
            scalars.z_loss,
            **self.constants,
            HAS_BIAS=bias is not None,
            MASK_VOCAB=columns.run_start + columns.run_columns > self.vocab_size,
            SOFTMAX=False,
            BLOCK_ROWS=launch.rows,
            BLOCK_HIDDEN=launch.depth,
            DESCRIPTOR=self.descriptor,
            PRECISE=self.packed.dtype == torch.float32,
            **tiling(launch),
        )

    def convert(self, dz: Tensor, kept: Kept, start: int, boundary: int) -> None:
        """Write dz of one strip from the kept softmax."""
        per_program = 32 if dz.is_cuda else 8
        run_kernel(
            kept_strip_kernel,
            (blocks(self.n, per_program), dz.shape[1] // self.table.logit_gradient.columns),
            kept.softmax,
            kept.reference,
            self.rows.number,
            self.lse,
            self.row_scale,
            self.label,
            dz,
            self.n,
            self.vocab_size,
            start,
            dz.shape[1],
            boundary,
            kept.softmax.stride(0),
            dz.stride(0),
            1 / self.scalars.gains()[2],
            self.scalars.label_smoothing,
            self.scalars.z_loss,
            **self.constants,
            MASK_VOCAB=start + dz.shape[1] > self.vocab_size,
            PRECISE=dz.dtype == torch.float32,
            ROWS=per_program,
            ALIGNED_ROWS=128,
        )

    def add_kept(self, plan: Schedule, kept: Kept) -> None:
        """Add the products of the kept softmax, which stands for dz (:mod:`kernel.fused.keep`)."""
        columns = _Columns(plan.boundary, plan.kept, 0, plan.kept)
        uniform = self.scalars.label_smoothing / self.vocab_size
        weights = self.row_scale, self.rows.number
        if self.weight_gradient is not None:
            scaled = torch.empty_like(self.packed) if plan.scaled_offset is None else None
            if scaled is None:
                flat = self.weight_gradient.view(-1)
                scaled = flat[plan.scaled_offset : (plan.scaled_offset or 0) + self.packed.numel()].view_as(self.packed)
            pack_hidden(self.head.hidden, self.rows, scaled, self.kept_scale)
            total = column_sum(self.packed, 0, *weights) * uniform if uniform else None
            self.add_weight(kept.softmax, scaled, columns, total)
            self.descriptors.clear()  # they hold the memory
            del scaled
        if self.bias_gradient is not None:
            total = column_sum(self.row_scale.unsqueeze(1), 0, torch.ones_like(self.row_scale), self.rows.number)
            self.add_bias(kept.softmax, columns, total * uniform)
        if self.accumulator is not None:
            total = column_sum(self.head.weight, plan.boundary) * uniform if uniform else None
            self.add_input(kept.softmax, columns, total)

    def add_weight(self, dz: Tensor, hidden: Tensor, columns: _Columns, uniform: Tensor | None) -> None:
        """Write the weight's gradient of the strip: ``dz.T @ hidden``, less ``uniform`` in every row."""
        gradient, launch = self.weight_gradient, self.table.weight_gradient
        if gradient is None:
            return
        run_kernel(
            weight_gradient_kernel,
            (self.programs,),
            self.tiles(dz, launch.depth, launch.rows),
            self.tiles(hidden, launch.depth, launch.columns),
            self.tiles(gradient, launch.rows, launch.columns // launch.parts),
            self.rows.number,
            self.largest,
            uniform,
            self.n,
            self.vocab_size,
            self.hidden_size,
            *columns,
            dz.stride(0),
            hidden.stride(0),
            gradient.stride(0),
            self.factor,
            UNIFORM=uniform is not None,
            BLOCK_VOCAB=launch.rows,
            BLOCK_COLUMNS=launch.columns,
            BLOCK_ROWS=launch.depth,
            ALIGNED_ROWS=self.table.logit_gradient.rows,
            DESCRIPTOR=self.descriptor,
            **tiling(launch),
        )

    def add_bias(self, dz: Tensor, columns: _Columns, uniform: Tensor | None) -> None:
        """Write the bias's gradient of the strip; with ``uniform`` of the kept softmax, whose rows have weights."""
        if self.bias_gradient is None:
            return
        width = min(64, self.table.logit_gradient.columns)
        run_kernel(
            bias_gradient_kernel,
            (blocks(dz.shape[1], width),),
            dz,
            self.bias_gradient,
            self.rows.number,
            self.largest,
            self.kept_scale,
            uniform,
            self.n,
            self.vocab_size,
            *columns,
            dz.stride(0),
            1 / self.scalars.temperature,
            WEIGHTED=uniform is not None,
            ALIGNED_ROWS=self.table.logit_gradient.rows,
            BLOCK_ROWS=64,
            BLOCK_COLUMNS=width,
        )

    def add_input(self, dz: Tensor, columns: _Columns, uniform: Tensor | None) -> None:
        """Add ``dz @ weight`` of the strip; with the kept softmax, which comes first, its rows scaled."""
        if self.accumulator is None:
            return
        weight, launch = self.head.weight, self.table.input_gradient
        scaled = self.fresh and self.kept_scale is not None
        reduce = self.descriptor and launch.reduce
        accumulator = self.accumulator
        run_kernel(
            input_gradient_kernel,
            (self.programs,),
            self.tiles(dz, launch.rows, launch.depth),
            self.tiles(weight, launch.depth, launch.columns),
            self.tiles(accumulator, launch.rows, launch.columns // launch.parts) if reduce else accumulator,
            self.rows.number,
            self.n,
            self.vocab_size,
            self.hidden_size,
            accumulator.shape[0] // launch.rows,
            *columns,
            dz.stride(0),
            weight.stride(0),
            weight.stride(1),
            self.kept_scale,
            self.row_scale,
            uniform,
            FIRST=self.fresh,
            SCALED=scaled,
            UNIFORM=uniform is not None,
            BLOCK_ROWS=launch.rows,
            BLOCK_COLUMNS=launch.columns,
            BLOCK_VOCAB=launch.depth,
            ALIGNED_ROWS=self.table.logit_gradient.rows,
            **CUTS,
            DESCRIPTOR=self.descriptor,
            REDUCE=reduce,
            **tiling(launch),
        )
        self.fresh = False

    def finish(self) -> _Gradients:
        """Round and unpack the input's gradient, into the memory of the packed hidden states."""
        if self.accumulator is not None:
            launch = self.table.input_gradient
            run_kernel(
                unpack_kernel,
                (blocks(self.n, 16),),
                self.accumulator,
                self.packed,
                self.rows.number,
                self.rows.position,
                self.largest,
                self.n,
                self.hidden_size,
                self.factor,
                self.programs,
                self.accumulator.shape[0] // launch.rows,
                BLOCK_ROWS=launch.rows,
                BLOCK_COLUMNS=launch.columns,
                **CUTS,
                ROWS=16,
                COLUMNS=128,
            )
        return self.packed if self.need_input else None, self.weight_gradient, self.bias_gradient
