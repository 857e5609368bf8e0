"""Launches the kernels: token losses and what the backward needs of them, then the gradients strip by strip."""

# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# (a Triton kernel is launched by indexing it with a grid)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .forward import MAX_UNITS, forward_kernel
from .input_gradient import MAX_CUTS, extra_row_blocks, input_gradient_kernel, unpack_kernel
from .launch import Launch, launch_table, processors, uses_descriptors
from .logit_gradient import gradient_rows_kernel, kept_strip_kernel, recomputed_strip_kernel
from .merge import merge_kernel
from .rows import KeptRows, index_rows, pack_hidden
from .schedule import Schedule, Strip
from .weight_gradient import bias_gradient_kernel, weight_gradient_kernel

__all__ = ["Head", "Kept", "Scalars", "backward", "forward", "kept_views", "may_keep"]


class Head(NamedTuple):
    """The tensors of the loss, flattened."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    target: Tensor  # (N,)


class Kept(NamedTuple):
    """Columns of the softmax kept by the forward."""

    softmax: Tensor  # (N, kept): exp(z - peak of its tile)
    peak: Tensor  # (kept tiles, N) float32, bits


@dataclass(frozen=True)
class Scalars:
    """The options that the kernels read; ``softcap`` 0 stands for none."""

    label_smoothing: float
    softcap: float
    temperature: float
    logit_scale: float
    z_loss: float
    ignore_index: int

    def gains(self) -> tuple[float, float, float]:
        """Factors of product, bias and cap; see :func:`kernel.fused.tiles.capped_logits`."""
        log2_e = math.log2(math.e)
        if self.softcap:
            inner = 2 * log2_e / self.softcap
            return self.logit_scale * inner, inner, self.softcap * log2_e / self.temperature
        return self.logit_scale * log2_e / self.temperature, log2_e / self.temperature, 1.0


def may_keep(dtype: torch.dtype, scalars: Scalars) -> bool:
    """Whether a kept softmax determines its logits as far as the backward needs them.

    Under a softcap the slope needs z itself, from the logarithm of the kept value, which therefore must not underflow:
    float16 is out, and so is a cap that allows more than 80 nats between two logits.
    """
    return not scalars.softcap or (dtype != torch.float16 and 2 * scalars.softcap / scalars.temperature < 80)


def kept_views(memory: Tensor, plan: Schedule, n: int, tile: int) -> Kept:
    """The arrays of :class:`Kept`: the softmax in ``memory``, flat, where the plan puts it; the peaks elsewhere."""
    start = plan.kept_offset or 0
    peak = torch.empty(plan.kept // tile, n, dtype=torch.float32, device=memory.device)
    return Kept(memory[start : start + n * plan.kept].view(n, plan.kept), peak)


def _descriptor(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, columns])


def _tiled(launch: Launch) -> dict[str, Any]:
    return {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "FLATTEN": launch.flatten,
        "PRECISION": "ieee",
        "PARTS": launch.parts,
    }


def forward(head: Head, scalars: Scalars, kept: Kept | None, *, packed: bool) -> tuple[Tensor, Tensor, KeptRows]:
    """Token losses ``(N,)``, lse in bits ``(N,)`` by packed row, and the kept rows.

    Args:
        head: Inputs.
        scalars: Options.
        kept: Where to keep the softmax of the first columns; None keeps nothing.
        packed: Move the kept tokens together first, an N x D copy; without it they are gathered as they are loaded.
    """
    hidden, weight, bias, target = head
    (n, hidden_size), vocab_size, device = hidden.shape, weight.shape[0], hidden.device
    launch = launch_table(device, hidden.dtype).forward
    rows = index_rows(target, scalars.ignore_index)
    if packed:
        source = hidden.new_empty(n, hidden_size)
        pack_hidden(hidden, rows, source)
        # Whether rows were dropped is known on the device alone; packed rows are right in both cases.
        runs = [("always", uses_descriptors(source, weight), False)]
    else:
        source = hidden
        by_descriptor = uses_descriptors(hidden, weight)
        runs = (
            [("all kept", True, False), ("some ignored", False, True)] if by_descriptor else [("always", False, True)]
        )

    tiles = triton.cdiv(vocab_size, launch.columns)
    kept_tiles = 0 if kept is None else min(tiles, kept.peak.shape[0])
    parts = [p for p in [(0, kept_tiles, True), (kept_tiles, tiles - kept_tiles, False)] if p[1]]
    units = max(MAX_UNITS if device.type == "cuda" else 12, triton.cdiv(n, launch.rows))
    stats = 3 if scalars.label_smoothing else 2
    partial = torch.empty(len(parts), stats, units * launch.rows, dtype=torch.float32, device=device)
    product_gain, bias_gain, cap = scalars.gains()
    constants = {"HAS_BIAS": bias is not None, "SOFTCAP": scalars.softcap > 0, "LOGIT_SUM": scalars.label_smoothing > 0}
    for part, (first, count, keep) in enumerate(parts):
        for run_if, descriptor, gather in runs:
            softmax: Any = None if kept is None else kept.softmax
            if keep and descriptor:
                softmax = _descriptor(softmax, launch.rows, launch.columns // launch.parts)
            forward_kernel[(processors(device),)](
                _descriptor(source, launch.rows, launch.depth) if descriptor else source,
                _descriptor(weight, launch.columns, launch.depth) if descriptor else weight,
                bias,
                rows.number,
                rows.source,
                partial[part],
                partial.stride(1),
                softmax,
                kept and kept.peak,
                n,
                vocab_size,
                hidden_size,
                kept.softmax.shape[1] if kept else 0,
                kept.softmax.stride(0) if kept else 0,
                first,
                count,
                source.stride(0),
                source.stride(1),
                weight.stride(0),
                weight.stride(1),
                product_gain,
                bias_gain,
                cap,
                **constants,
                MASK_VOCAB=vocab_size % launch.columns != 0,
                KEEP=keep,
                RUN_IF=run_if,
                MAX_UNITS=units,
                BLOCK_ROWS=launch.rows,
                BLOCK_VOCAB=launch.columns,
                BLOCK_HIDDEN=launch.depth,
                DESCRIPTOR=descriptor,
                GATHER=gather,
                PRECISE=hidden.dtype == torch.float32,
                **_tiled(launch),
            )
    token_loss = torch.empty(n, dtype=torch.float32, device=device)
    lse = torch.empty(n, dtype=torch.float32, device=device)
    merge_rows = 16
    merge_kernel[(triton.cdiv(n, merge_rows),)](
        hidden,
        weight,
        bias,
        target,
        rows.number,
        rows.source,
        rows.position,
        partial,
        partial.stride(1),
        partial.stride(0),
        token_loss,
        lse,
        n,
        vocab_size,
        hidden_size,
        parts[0][1],
        parts[-1][1],
        hidden.stride(0),
        hidden.stride(1),
        weight.stride(0),
        weight.stride(1),
        product_gain,
        bias_gain,
        cap,
        scalars.label_smoothing,
        scalars.z_loss,
        **constants,
        PRECISE=hidden.dtype == torch.float32,
        PARTS=len(parts),
        MAX_UNITS=units,
        BLOCK_ROWS=launch.rows,
        ROWS=merge_rows,
        BLOCK_HIDDEN=128,
    )
    return token_loss, lse, rows


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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``sum(upstream * token_loss)``; frozen arguments cost nothing."""
    hidden, weight, bias, target = head
    (n, hidden_size), vocab_size, device = hidden.shape, weight.shape[0], hidden.device
    table = launch_table(device, hidden.dtype)
    need_input, need_weight, need_bias = needs
    need_bias = need_bias and bias is not None

    # The packed hidden states live where the input's gradient will be written at the very end.
    packed = hidden.new_empty(n, hidden_size)
    pack_hidden(hidden, rows, packed)
    accumulator = None
    if need_input:
        launch = table.input_gradient
        row_blocks, column_blocks = triton.cdiv(n, launch.rows), triton.cdiv(hidden_size, launch.columns)
        row_blocks += extra_row_blocks(row_blocks, column_blocks, processors(device))
        accumulator = torch.empty(row_blocks * launch.rows, hidden_size, dtype=torch.float32, device=device)
    if need_weight and weight_gradient is None:
        weight_gradient = weight.new_empty(vocab_size, hidden_size)
    bias_gradient = weight.new_empty(vocab_size) if need_bias else None

    magnitude = torch.where(rows.position >= 0, upstream.abs(), 0).amax()
    largest = torch.where(magnitude > 0, magnitude, 1)
    row_scale = torch.empty(n, dtype=torch.float32, device=device)
    label = torch.empty(n, dtype=torch.int32, device=device)
    gradient_rows_kernel[(triton.cdiv(n, 1024),)](
        upstream, largest, target, rows.position, row_scale, label, n, BLOCK=1024
    )
    workspace = hidden.new_empty(plan.workspace)
    descriptor = uses_descriptors(packed, weight)
    for part in plan.strips:
        start, padded = part.start, part.padded
        strip = _place(part, n, workspace, weight_gradient)
        _strip(
            head,
            scalars,
            packed,
            lse,
            rows,
            row_scale,
            label,
            strip,
            start,
            padded,
            kept if part.kept else None,
            descriptor,
        )
        if need_weight and weight_gradient is not None:
            launch = table.weight_gradient
            weight_gradient_kernel[(processors(device),)](
                _descriptor(strip, launch.depth, launch.rows) if descriptor else strip,
                _descriptor(packed, launch.depth, launch.columns) if descriptor else packed,
                _descriptor(weight_gradient, launch.rows, launch.columns // launch.parts)
                if descriptor
                else weight_gradient,
                rows.number,
                largest,
                n,
                vocab_size,
                hidden_size,
                start,
                padded,
                strip.stride(0),
                packed.stride(0),
                weight_gradient.stride(0),
                scalars.logit_scale / scalars.temperature,
                BLOCK_VOCAB=launch.rows,
                BLOCK_COLUMNS=launch.columns,
                BLOCK_ROWS=launch.depth,
                DESCRIPTOR=descriptor,
                **_tiled(launch),
            )
        if bias_gradient is not None:
            bias_gradient_kernel[(triton.cdiv(padded, 64),)](
                strip,
                bias_gradient,
                rows.number,
                largest,
                vocab_size,
                start,
                padded,
                strip.stride(0),
                1 / scalars.temperature,
                BLOCK_ROWS=64,
                BLOCK_COLUMNS=64,
            )
        if accumulator is not None:
            launch = table.input_gradient
            reduce = descriptor and launch.reduce
            input_gradient_kernel[(processors(device),)](
                _descriptor(strip, launch.rows, launch.depth) if descriptor else strip,
                _descriptor(weight, launch.depth, launch.columns) if descriptor else weight,
                _descriptor(accumulator, launch.rows, launch.columns // launch.parts) if reduce else accumulator,
                rows.number,
                n,
                vocab_size,
                hidden_size,
                start,
                padded,
                strip.stride(0),
                weight.stride(0),
                weight.stride(1),
                FIRST=start == 0,
                BLOCK_ROWS=launch.rows,
                BLOCK_COLUMNS=launch.columns,
                BLOCK_VOCAB=launch.depth,
                MAX_CUTS=MAX_CUTS,
                DESCRIPTOR=descriptor,
                REDUCE=reduce,
                **_tiled(launch),
            )
    if accumulator is not None:
        launch = table.input_gradient
        unpack_kernel[(triton.cdiv(n, 16),)](
            accumulator,
            packed,
            rows.number,
            rows.position,
            largest,
            n,
            hidden_size,
            scalars.logit_scale / scalars.temperature,
            processors(device),
            BLOCK_ROWS=launch.rows,
            BLOCK_COLUMNS=launch.columns,
            MAX_CUTS=MAX_CUTS,
            ROWS=16,
            COLUMNS=128,
        )
    return packed if need_input else None, weight_gradient if need_weight else None, bias_gradient


def _place(part: Strip, n: int, workspace: Tensor, gradient: Tensor | None) -> Tensor:
    """Memory of one strip of dz, ``(N, padded)``."""
    memory, start = workspace, 0
    if part.offset is not None and gradient is not None:
        memory, start = gradient.view(-1), part.offset
    return memory[start : start + n * part.padded].view(n, part.padded)


def _strip(
    head: Head,
    scalars: Scalars,
    packed: Tensor,
    lse: Tensor,
    rows: KeptRows,
    row_scale: Tensor,
    label: Tensor,
    strip: Tensor,
    start: int,
    columns: int,
    kept: Kept | None,
    descriptor: bool,
) -> None:
    """Write dz of one strip."""
    _, weight, bias, _ = head
    (n, hidden_size), vocab_size, device = packed.shape, weight.shape[0], packed.device
    launch = launch_table(device, packed.dtype).logit_gradient
    product_gain, bias_gain, cap = scalars.gains()
    constants = {
        "SOFTCAP": scalars.softcap > 0,
        "Z_LOSS": scalars.z_loss > 0,
        "MASK_VOCAB": start + columns > vocab_size,
        "BLOCK_VOCAB": launch.columns,
    }
    if kept is not None:
        per_program = 32 if device.type == "cuda" else 8
        kept_strip_kernel[(triton.cdiv(n, per_program), columns // launch.columns)](
            kept.softmax,
            kept.peak,
            rows.number,
            lse,
            row_scale,
            label,
            strip,
            n,
            vocab_size,
            start,
            columns,
            kept.softmax.stride(0),
            strip.stride(0),
            1 / cap,
            scalars.label_smoothing,
            scalars.z_loss,
            **constants,
            ROWS=per_program,
            ALIGNED_ROWS=128,
        )
        return
    recomputed_strip_kernel[(processors(device),)](
        _descriptor(packed, launch.rows, launch.depth) if descriptor else packed,
        _descriptor(weight, launch.columns, launch.depth) if descriptor else weight,
        bias,
        rows.number,
        lse,
        row_scale,
        label,
        _descriptor(strip, launch.rows, launch.columns // launch.parts) if descriptor else strip,
        n,
        vocab_size,
        hidden_size,
        start,
        columns,
        strip.stride(0),
        packed.stride(0),
        weight.stride(0),
        weight.stride(1),
        product_gain,
        bias_gain,
        cap,
        scalars.label_smoothing,
        scalars.z_loss,
        **constants,
        HAS_BIAS=bias is not None,
        BLOCK_ROWS=launch.rows,
        BLOCK_HIDDEN=launch.depth,
        DESCRIPTOR=descriptor,
        PRECISE=packed.dtype == torch.float32,
        **_tiled(launch),
    )
