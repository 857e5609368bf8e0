"""Kernel that multiplies gradients by a number that the device knows; by 1 it reads and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_ahead import run_kernel
from .launch import blocks, processors
from .rows import aligned

__all__ = ["scale"]

_BLOCK = 4096
_MOST = 2**30  # elements of a launch: a number that does not fit 32 bits would be another kernel


@triton.jit(do_not_specialize=["elements"])
def _scale_kernel(values, factor, elements, BLOCK: tl.constexpr):
    number = tl.load(factor)
    count = tl.where(number == 1.0, 0, tl.cdiv(elements, BLOCK))
    for index in range(tl.program_id(0).to(tl.int64), count, tl.num_programs(0)):
        offset = index * BLOCK + tl.arange(0, BLOCK)
        inside = offset < elements
        scaled = tl.load(values + offset, mask=inside, other=0.0).to(tl.float32) * number
        tl.store(values + offset, scaled.to(values.dtype.element_ty), mask=inside)


def scale(tensors: Sequence[Tensor | None], factor: Tensor) -> None:
    """Multiply contiguous tensors, those that are not None, in place by ``factor``, a float32 of one element."""
    factor = aligned(factor.reshape(1).to(torch.float32))
    for values in (part for tensor in tensors if tensor is not None for part in tensor.view(-1).split(_MOST)):
        programs, elements = min(8 * processors(values.device), blocks(values.numel(), _BLOCK)), values.numel()
        run_kernel(_scale_kernel, (programs,), values=values, factor=factor, elements=elements, BLOCK=_BLOCK)
