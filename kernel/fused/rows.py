"""Kernels that drop ignored tokens: where each kept token comes from, and the hidden states moved together.

The number of kept tokens stays on the device; every later kernel reads it there and stops early, so nothing waits for
it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import recording, run_kernel
from .launch import blocks

__all__ = [
    "LARGEST_TILE",
    "KeptRows",
    "aligned",
    "index_memory",
    "index_rows",
    "index_size",
    "pack_hidden",
    "rows_in_chunks",
    "with_plain_rows",
]

_INDEX_BLOCK = 4096
_PACK_ROWS, _PACK_COLUMNS = 16, 128
LARGEST_TILE = 256  # rows of any tile of a product
_ALIGN = 4  # integers in 16 bytes


class KeptRows(NamedTuple):
    """Kept tokens, in order. ``packed`` means: by rank among the kept ones."""

    number: Tensor  # (1,) int32, on the device
    outside: Tensor  # (1,) int32: 0, or the number if a kept softmax is to be computed again (:mod:`.keep`)
    source: Tensor  # (N,) int32: row of the input that each packed row came from; behind the kept ones the ignored ones
    position: Tensor | None  # (N,) int32: packed row of each input row, -1 where ignored; None of reordered tokens

    @classmethod
    def within(cls, memory: Tensor, n: int) -> KeptRows:
        """Views of the memory that :func:`index_memory` made, each of them aligned whatever the number of tokens."""
        start, size = 2 * _ALIGN, blocks(n, _ALIGN) * _ALIGN
        source, position = memory[start : start + n], memory[start + size : start + size + n]
        return cls(memory[:1], memory[_ALIGN : _ALIGN + 1], source, position)


def index_size(n: int) -> int:
    """Return how many integers :class:`KeptRows` takes for ``n`` tokens."""
    return 2 * (_ALIGN + blocks(n, _ALIGN) * _ALIGN)


def index_memory(n: int, device: torch.device) -> Tensor:
    """Return memory for the :class:`KeptRows` of ``n`` tokens."""
    return torch.empty(index_size(n), dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["n", "ignore_index", "vocab_size"])
def _index_kernel(
    target,
    count,
    outside,  # (1,) int32, written: 0
    in_range,  # (1,) int32, written if CHECK: whether every kept label is a class
    source,
    position,
    n,
    ignore_index,
    vocab_size,
    CHECK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    seen = 0
    wrong = 0
    for start in range(0, n, BLOCK):
        row = start + tl.arange(0, BLOCK)
        label = tl.load(target + row, mask=row < n, other=0)
        kept = (row < n) & (label != ignore_index)
        rank = seen + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(position + row, tl.where(kept, rank, -1), mask=row < n)
        # of the ignored tokens the first comes last
        tl.store(source + tl.where(kept, rank, n - row + rank), row, mask=row < n)
        seen += tl.sum(kept.to(tl.int32), 0)
        if CHECK:
            wrong += tl.sum((kept & ((label < 0) | (label >= vocab_size))).to(tl.int32), 0)
    tl.store(count, seen)
    tl.store(outside, 0)
    if CHECK:
        tl.store(in_range, tl.where(wrong > 0, 0, 1))


@triton.jit(do_not_specialize=["n"])
def _pack_kernel(
    hidden,  # (N, D), contiguous rows
    packed,
    count,
    source,
    n,
    hidden_size,
    row_stride,
    ALIGNED_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    kept = tl.load(count)
    if tl.program_id(0) * BLOCK_ROWS >= tl.cdiv(kept, ALIGNED_ROWS) * ALIGNED_ROWS:
        return
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    origin = tl.load(source + row, mask=row < kept, other=0).to(tl.int64)
    for start in range(0, hidden_size, BLOCK_COLUMNS):
        column = (start + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
        inside = (column < hidden_size)[None, :]
        offsets = origin[:, None] * row_stride + column[None, :]
        values = tl.load(hidden + offsets, mask=(row < kept)[:, None] & inside, other=0.0)
        tl.store(
            packed + row.to(tl.int64)[:, None] * hidden_size + column[None, :], values, mask=(row < n)[:, None] & inside
        )


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if its address is no multiple of 16 bytes: kernels would be compiled anew for it."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def with_plain_rows(hidden: Tensor) -> Tensor:
    """Return the matrix, or a copy if its rows are not contiguous or lie in those of a wider matrix."""
    plain = hidden.stride(1) == 1 and (hidden.stride(0) - hidden.shape[1]) % 16 == 0 and hidden.data_ptr() % 16 == 0
    return hidden if plain else torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device).copy_(hidden)


def index_rows(
    target: Tensor, ignore_index: int, vocab_size: int | None = None, memory: Tensor | None = None
) -> KeptRows:
    """Ranks of the tokens whose target is not ``ignore_index``; one program, a few microseconds a 4096 tokens.

    With ``vocab_size`` targets outside of it fail a device-side assertion, before any kernel reads what they point to.
    ``memory`` is what :func:`index_memory` returns, for a caller who wants to keep it whole.
    """
    n = target.shape[0]
    rows = KeptRows.within(index_memory(n, target.device) if memory is None else memory, n)
    in_range = None if vocab_size is None else torch.empty(1, dtype=torch.int32, device=target.device)
    run_kernel(
        _index_kernel,
        (1,),
        target=target,
        count=rows.number,
        outside=rows.outside,
        in_range=in_range,
        source=rows.source,
        position=rows.position,
        n=n,
        ignore_index=ignore_index,
        vocab_size=0 if vocab_size is None else vocab_size,
        CHECK=in_range is not None,
        BLOCK=_INDEX_BLOCK,
        num_warps=8,
    )
    if in_range is not None and not recording():
        text = f"target must be in [0, {vocab_size}) or equal ignore_index."
        torch.ops.aten._assert_async.msg(in_range, text)
    return rows


def rows_in_chunks(rows: KeptRows, size: int) -> list[KeptRows]:
    """Cut the packed rows into chunks of ``size``, those of ignored tokens at the end, where chunks have no others."""
    starts = range(0, rows.source.shape[0], size)
    first = torch.arange(0, rows.source.shape[0], size, dtype=torch.int32, device=rows.source.device)
    numbers = torch.zeros(2, len(starts), _ALIGN, dtype=torch.int32, device=rows.source.device)  # and outside
    torch.clamp(rows.number - first, 0, size, out=numbers[0, :, 0])
    counts, outside = numbers.unbind(0)
    return [
        KeptRows(counts[i, :1], outside[i, :1], rows.source[start : start + size], None)
        for i, start in enumerate(starts)
    ]


def pack_hidden(hidden: Tensor, rows: KeptRows, packed: Tensor) -> None:
    """``packed[i] = hidden[rows.source[i]]`` for the kept rows, 0 up to the end of their last tile."""
    n, hidden_size = packed.shape
    run_kernel(
        _pack_kernel,
        (blocks(n, _PACK_ROWS),),
        hidden=hidden,
        packed=packed,
        count=rows.number,
        source=rows.source,
        n=n,
        hidden_size=hidden_size,
        row_stride=hidden.stride(0),
        ALIGNED_ROWS=LARGEST_TILE,
        BLOCK_ROWS=_PACK_ROWS,
        BLOCK_COLUMNS=_PACK_COLUMNS,
    )
