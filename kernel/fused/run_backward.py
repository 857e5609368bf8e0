"""Launches of the backward: the gradients, strip by strip of the vocabulary."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Head, Kept, Scalars, describe, storage, tiling
from .compile_ahead import run_kernel
from .input_gradient import CUTS, extra_row_blocks, input_gradient_kernel, unpack_kernel
from .keep import column_sum
from .launch import blocks, launch_table, precise, processors, uses_descriptors
from .logit_gradient import gradient_rows_kernel, kept_strip_kernel, largest_kernel, recomputed_strip_kernel
from .rows import KeptRows, pack_hidden
from .schedule import Schedule
from .weight_gradient import bias_gradient_kernel, weight_gradient_kernel

__all__ = ["Upstream", "backward"]

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
_BLOCK = 4096  # tokens that the one program of largest_kernel looks at a time


class Upstream(NamedTuple):
    """Upstream gradients, and what the forward knows of each token."""

    loss: Tensor  # (N,) float32, input order
    statistics: Tensor | None  # (4, N) of log-probability, lse, entropy; the last row is not read
    lse: Tensor  # (N,) packed, bits
    entropy: Tensor | None  # (N,) packed, nats
    rows: KeptRows


def backward(
    head: Head,
    scalars: Scalars,
    upstream: Upstream,
    plan: Schedule,
    kept: Kept | None,
    needs: tuple[bool, bool, bool],  # input, weight, bias
    weight_gradient: Tensor | None = None,  # (V, D) memory to write to; the kept columns may lie in it
) -> _Gradients:
    """Gradients of ``sum(upstream.loss * token_loss)`` and of the statistics alike; frozen arguments cost nothing.

    A softmax that was kept for the products themselves is no use where statistics have upstream gradients: the caller
    then passes a plan that keeps nothing.
    """
    state = _Backward(head, scalars, upstream, kept, needs, weight_gradient)
    if kept is not None and state.direct:
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
        state.add_weight(dz, state.packed, columns, state.zeros)
        state.add_bias(dz, columns, state.ones, state.zeros)
        state.add_input(dz, columns, state.ones)
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
        upstream: Upstream,
        kept: Kept | None,
        needs: tuple[bool, bool, bool],
        weight_gradient: Tensor | None,
    ) -> None:
        hidden, weight, bias, target = head
        self.head, self.scalars, self.lse, self.rows = head, scalars, upstream.lse, upstream.rows
        self.n, self.hidden_size = hidden.shape
        self.vocab_size, device = weight.shape[0], hidden.device
        self.programs = processors(device)
        self.table = launch_table(device, hidden.dtype)
        self.need_input = needs[0]
        self.factor = scalars.logit_scale / scalars.temperature
        # The packed hidden states live where the input's gradient will be written at the very end.
        self.packed = hidden.new_empty(hidden.shape)
        pack_hidden(hidden, self.rows, self.packed)
        self.accumulator = None
        if self.need_input:
            launch = self.table.input_gradient
            row_blocks, column_blocks = blocks(self.n, launch.rows), blocks(self.hidden_size, launch.columns)
            row_blocks += extra_row_blocks(row_blocks, column_blocks, self.programs)
            shape = row_blocks * launch.rows, self.hidden_size
            self.accumulator = torch.zeros(shape, dtype=torch.float32, device=device)
        self.weight_gradient = None
        if needs[1]:
            self.weight_gradient = weight.new_empty(weight.shape) if weight_gradient is None else weight_gradient
        self.bias_gradient = weight.new_empty(self.vocab_size) if needs[2] and bias is not None else None

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        mixed, of_statistics = scalars.mixed or upstream.statistics is not None, upstream.statistics
        self.largest = new(1)
        run_kernel(
            largest_kernel,
            (1,),
            upstream=upstream.loss,
            of_statistics=of_statistics,
            position=self.rows.position,
            largest=self.largest,
            n=self.n,
            STATISTICS=of_statistics is not None,
            BLOCK=_BLOCK,
            num_warps=8,
        )
        # Of all losses whose softmax may be kept as it is, also where it is not: one kernel for both.
        self.direct = storage(hidden.dtype, scalars) == "softmax" and not mixed
        self.row_scale, self.label = new(self.n), new(self.n, dtype=torch.int32)
        self.row_factor = new(self.n) if self.direct else None
        self.mix = new(3, self.n) if mixed else None
        self.ones = torch.ones(self.n, dtype=torch.float32, device=device)
        self.zeros = torch.zeros(self.hidden_size, dtype=torch.float32, device=device)
        self.uniform = self.zeros  # times row_scale, to be subtracted from the input's gradient
        run_kernel(
            gradient_rows_kernel,
            (blocks(self.n, 1024),),
            upstream=upstream.loss,
            of_statistics=of_statistics,
            largest=self.largest,
            target=target,
            position=self.rows.position,
            lse=self.lse,
            entropy=upstream.entropy,
            reference=(self.lse if kept is None else kept.reference) if self.direct else None,
            row_scale=self.row_scale,
            row_factor=self.row_factor,
            mix=self.mix,
            label=self.label,
            n=self.n,
            z_loss=scalars.z_loss,
            confidence_penalty=scalars.confidence_penalty,
            DIRECT=self.direct,
            MIXED=mixed,
            ENTROPY=upstream.entropy is not None,
            STATISTICS=of_statistics is not None,
            BLOCK=1024,
        )
        self.descriptor = uses_descriptors(self.packed, weight)
        self.descriptors: dict[tuple[Any, ...], Any] = {}
        self.constants = {
            "SOFTCAP": scalars.softcap > 0,
            "MIXED": mixed,
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
            hidden=self.tiles(self.packed, launch.rows, launch.depth),
            weight=self.tiles(weight, launch.columns, launch.depth),
            bias=bias,
            count=self.rows.number,
            lse=self.lse,
            row_scale=self.row_scale,
            mix=self.mix,
            label=self.label,
            dz=self.tiles(dz, launch.rows, launch.columns // launch.parts),
            n=self.n,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            **columns._asdict(),
            dz_stride=dz.stride(0),
            hidden_row_stride=self.packed.stride(0),
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            **scalars.gains(),
            label_smoothing=scalars.label_smoothing,
            **self.constants,
            HAS_BIAS=bias is not None,
            MASK_VOCAB=columns.run_start + columns.run_columns > self.vocab_size,
            BLOCK_ROWS=launch.rows,
            BLOCK_HIDDEN=launch.depth,
            DESCRIPTOR=self.descriptor,
            PRECISE=precise(self.packed),
            **tiling(launch),
        )

    def convert(self, dz: Tensor, kept: Kept, start: int, boundary: int) -> None:
        """Write dz of one strip from the kept logits."""
        per_program = 32 if dz.is_cuda else 8
        cap, code = self.scalars.gains()["cap"], self.scalars.code
        run_kernel(
            kept_strip_kernel,
            (blocks(self.n, per_program), dz.shape[1] // self.table.logit_gradient.columns),
            kept=kept.columns,
            reference=kept.reference,
            count=self.rows.number,
            lse=self.lse,
            row_scale=self.row_scale,
            mix=self.mix,
            label=self.label,
            dz=dz,
            n=self.n,
            vocab_size=self.vocab_size,
            strip_start=start,
            boundary=boundary,
            kept_stride=kept.columns.stride(0),
            dz_stride=dz.stride(0),
            cap=cap,
            knee=code.knee,
            offset=code.offset,
            **code.steps(cap),
            label_smoothing=self.scalars.label_smoothing,
            **self.constants,
            CODE=kept.columns.dtype == torch.int16,
            MASK_VOCAB=start + dz.shape[1] > self.vocab_size,
            PRECISE=precise(dz),
            ROWS=per_program,
            ALIGNED_ROWS=128,
        )

    def add_kept(self, plan: Schedule, kept: Kept) -> None:
        """Add the products of the kept softmax, which stands for dz (:mod:`kernel.fused.keep`)."""
        assert self.row_factor is not None
        columns = _Columns(plan.boundary, plan.kept, 0, plan.kept)
        uniform = self.scalars.label_smoothing / self.vocab_size
        if self.weight_gradient is not None:
            scaled = torch.empty_like(self.packed) if plan.scaled_offset is None else None
            if scaled is None:
                flat = self.weight_gradient.view(-1)
                scaled = flat[plan.scaled_offset : (plan.scaled_offset or 0) + self.packed.numel()].view_as(self.packed)
            pack_hidden(self.head.hidden, self.rows, scaled, self.row_factor)
            total = self.zeros
            if uniform:
                total = column_sum(self.packed, 0, self.row_scale, self.rows.number) * uniform
            self.add_weight(kept.columns, scaled, columns, total)
            self.descriptors.clear()  # they hold the memory
            del scaled
        if self.bias_gradient is not None:
            total = column_sum(self.row_scale.unsqueeze(1), 0, self.ones, self.rows.number)
            self.add_bias(kept.columns, columns, self.row_factor, total * uniform)
        if self.accumulator is not None:
            if uniform:
                self.uniform = column_sum(self.head.weight, plan.boundary) * uniform
            self.add_input(kept.columns, columns, self.row_factor)

    def add_weight(self, dz: Tensor, hidden: Tensor, columns: _Columns, uniform: Tensor) -> None:
        """Write the weight's gradient of the strip: ``dz.T @ hidden``, less ``uniform`` in every row."""
        gradient, launch = self.weight_gradient, self.table.weight_gradient
        if gradient is None:
            return
        run_kernel(
            weight_gradient_kernel,
            (self.programs,),
            dz=self.tiles(dz, launch.depth, launch.rows),
            hidden=self.tiles(hidden, launch.depth, launch.columns),
            gradient=self.tiles(gradient, launch.rows, launch.columns // launch.parts),
            count=self.rows.number,
            scale=self.largest,
            uniform=uniform,
            n=self.n,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            **columns._asdict(),
            dz_stride=dz.stride(0),
            hidden_row_stride=hidden.stride(0),
            gradient_row_stride=gradient.stride(0),
            constant=self.factor,
            BLOCK_VOCAB=launch.rows,
            BLOCK_COLUMNS=launch.columns,
            BLOCK_ROWS=launch.depth,
            ALIGNED_ROWS=self.table.logit_gradient.rows,
            DESCRIPTOR=self.descriptor,
            **tiling(launch),
        )

    def add_bias(self, dz: Tensor, columns: _Columns, row_weight: Tensor, uniform: Tensor) -> None:
        """Write the bias's gradient of the strip: the sum of the rows, weighted, less the first of ``uniform``."""
        if self.bias_gradient is None:
            return
        width = min(64, self.table.logit_gradient.columns)
        run_kernel(
            bias_gradient_kernel,
            (blocks(dz.shape[1], width),),
            dz=dz,
            gradient=self.bias_gradient,
            count=self.rows.number,
            scale=self.largest,
            row_weight=row_weight,
            uniform=uniform,
            n=self.n,
            vocab_size=self.vocab_size,
            **columns._asdict(),
            dz_stride=dz.stride(0),
            constant=1 / self.scalars.temperature,
            ALIGNED_ROWS=self.table.logit_gradient.rows,
            BLOCK_ROWS=64,
            BLOCK_COLUMNS=width,
        )

    def add_input(self, dz: Tensor, columns: _Columns, row_factor: Tensor) -> None:
        """Add ``dz @ weight`` of the strip, its rows multiplied by ``row_factor``."""
        accumulator = self.accumulator
        if accumulator is None:
            return
        weight, launch = self.head.weight, self.table.input_gradient
        reduce = self.descriptor and launch.reduce
        run_kernel(
            input_gradient_kernel,
            (self.programs,),
            dz=self.tiles(dz, launch.rows, launch.depth),
            weight=self.tiles(weight, launch.depth, launch.columns),
            accumulator=self.tiles(accumulator, launch.rows, launch.columns // launch.parts) if reduce else accumulator,
            count=self.rows.number,
            n=self.n,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            memory_blocks=accumulator.shape[0] // launch.rows,
            **columns._asdict(),
            dz_stride=dz.stride(0),
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            row_factor=row_factor,
            BLOCK_ROWS=launch.rows,
            BLOCK_COLUMNS=launch.columns,
            BLOCK_VOCAB=launch.depth,
            ALIGNED_ROWS=self.table.logit_gradient.rows,
            **CUTS,
            DESCRIPTOR=self.descriptor,
            REDUCE=reduce,
            **tiling(launch),
        )

    def finish(self) -> _Gradients:
        """Round and unpack the input's gradient, into the memory of the packed hidden states."""
        if self.accumulator is not None:
            launch = self.table.input_gradient
            run_kernel(
                unpack_kernel,
                (blocks(self.n, 16),),
                accumulator=self.accumulator,
                gradient=self.packed,
                count=self.rows.number,
                position=self.rows.position,
                row_scale=self.row_scale,
                uniform=self.uniform,
                scale=self.largest,
                n=self.n,
                hidden_size=self.hidden_size,
                constant=self.factor,
                programs=self.programs,
                memory_blocks=self.accumulator.shape[0] // launch.rows,
                BLOCK_ROWS=launch.rows,
                BLOCK_COLUMNS=launch.columns,
                **CUTS,
                ROWS=16,
                COLUMNS=128,
            )
        return self.packed if self.need_input else None, self.weight_gradient, self.bias_gradient
