"""Launch parameters of every kernel in one table, with the reason for each, and what a device can run."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache

import torch

__all__ = [
    "TOKENS_OF_A_PIECE",
    "Launch",
    "LaunchTable",
    "available",
    "blocks",
    "launch_table",
    "precise",
    "processors",
    "set_launch_table",
    "uses_descriptors",
    "weight_splits",
]


@dataclass(frozen=True)
class Launch:
    """Tile of one matrix-product kernel: ``rows x columns`` of the result, ``depth`` of the sum per step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    parts: int = 2  # blocks, of columns if not transposed, in which the epilogue stores: fewer need more shared memory
    reduce: bool = False  # add to sums in memory in the L2 cache, by the copy engine (both gradients only)
    early: bool = False  # begin before the kernel ahead has ended (:mod:`.early`; logit and input gradients only)
    folded: bool = False  # another form of a softcap's slope (logits.capped; logit gradient only)
    flatten: bool = (
        True  # fuse the loop over tiles with the loop over the sum: the next tile's loads overlap this one's end
    )
    transposed: bool = False  # compute the tile's transpose: columns along the instruction's rows (both gradients only)

    @property
    def part(self) -> tuple[int, int]:
        """Rows and columns of a part in which the epilogue of a gradient stores."""
        if self.transposed:
            return self.rows // self.parts, self.columns
        return self.rows, self.columns // self.parts


@dataclass(frozen=True)
class LaunchTable:
    """One launch per kernel: logits (N x V), their gradient (N x strip), weight (V x D) and input (N x D) gradients."""

    forward: Launch
    logit_gradient: Launch
    weight_gradient: Launch
    input_gradient: Launch


# 128 x 256 is the largest tile whose float32 accumulators fit the registers of 8 warps; smaller ones are bound by
# shared memory: a 128 x 128 x 64 step moves 80 KiB through it in 512 cycles of the tensor cores, and it serves 128
# bytes a cycle. A stage of depth 64 takes 48 KiB. Four fit beside the half tile that the epilogue stores from, three
# beside a whole one.
_HOPPER_16 = Launch(128, 256, 64, warps=8, stages=3)
_TABLES = {
    ("hopper", 2): LaunchTable(
        forward=replace(_HOPPER_16, stages=4),
        logit_gradient=replace(_HOPPER_16, stages=4, early=True),
        weight_gradient=replace(_HOPPER_16, stages=4, reduce=True),
        input_gradient=replace(_HOPPER_16, reduce=True, early=True),
    ),
    # Products of float32 run on the CUDA cores, in IEEE arithmetic: tile for registers, nothing else matters.
    ("hopper", 4): LaunchTable(*[Launch(64, 64, 32, warps=4, stages=2, flatten=False)] * 4),
    # Ampere and Ada: pointer loads, 99 KiB of shared memory on the consumer cards. Not measured.
    ("ampere", 2): LaunchTable(*[Launch(128, 128, 32, warps=8, stages=3, flatten=False)] * 4),
    ("ampere", 4): LaunchTable(*[Launch(64, 64, 32, warps=4, stages=2, flatten=False)] * 4),
    # The interpreter: small, so that small problems have many tiles.
    ("interpreter", 2): LaunchTable(*[Launch(16, 32, 16, warps=4, stages=1)] * 4),
    ("interpreter", 4): LaunchTable(*[Launch(16, 32, 16, warps=4, stages=1)] * 4),
}
_chosen: dict[tuple[str, int], LaunchTable] = {}


def interpreted() -> bool:
    """Whether Triton's interpreter was asked for, by ``TRITON_INTERPRET=1``."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache  # PyTorch looks it up anew each time, for longer than Triton takes to launch a small kernel
def _major(device: torch.device) -> int:
    """The first number of a CUDA device's compute capability."""
    return torch.cuda.get_device_capability(device)[0]


def _family(device: torch.device) -> str:
    if device.type == "cpu":
        return "interpreter"
    return "hopper" if _major(device) == 9 else "ampere"


def launch_table(device: torch.device, dtype: torch.dtype, hidden_size: int | None = None) -> LaunchTable:
    """Return the launch parameters for inputs of ``dtype`` on ``device``, and of ``hidden_size`` if it is given."""
    key = (_family(device), dtype.itemsize)
    return _chosen[key] if key in _chosen else _fitting(*key, hidden_size)


@cache
def _fitting(family: str, itemsize: int, hidden_size: int | None) -> LaunchTable:
    """Let tiles of both gradients be 256 x 128 and transposed where 128 x 256 would compute more columns.

    They do where the last 256 columns of the hidden size D are at most half full: at D = 640 three tiles compute 768.
    The matrix instruction makes up to 64 x 256 of a product, and reads the fewest bytes of shared memory for each entry
    if it makes 256 columns. A tile of 256 x 128 can only be cut into halves of those, 64 x 128, and moves a fifth more;
    in its transpose D lies along the instruction's rows, and classes or tokens along its columns. So it is as fast as
    a wide one for what it computes, measured on an H200 at D = 576, 640, 896 and 1152, and what it computes less is the
    gain at any D, 128 / D where D is large. For the weight's gradient this is free: strips have whole blocks of 256
    classes. Of the input's, blocks of 256 tokens compute 64 tokens more in vain in the mean than blocks of 128 do,
    which is less than the gain where more than D / 2 tokens are kept.

    Such blocks reach behind the kept tokens, to rows of dz that nothing has written, whose sums nothing reads. numpy
    would warn of such numbers, so that the interpreter's tiles of the input's gradient keep their rows.
    """
    table = _TABLES[family, itemsize]
    if hidden_size is None:
        return table

    def fitting(launch: Launch, rows: int) -> Launch:
        narrow, wide = (blocks(hidden_size, size) * size for size in (launch.rows, launch.columns))
        return replace(launch, rows=rows, columns=launch.rows, transposed=True) if narrow < wide else launch

    weight, tokens = table.weight_gradient, table.input_gradient
    return replace(
        table,
        weight_gradient=fitting(weight, weight.columns),
        input_gradient=fitting(tokens, tokens.rows if family == "interpreter" else tokens.columns),
    )


def set_launch_table(device: torch.device, dtype: torch.dtype, table: LaunchTable | None) -> None:
    """Use another table from now on (see :mod:`kernel.fused.tuner`); None restores the built-in one."""
    key = (_family(device), dtype.itemsize)
    if table is None:
        _chosen.pop(key, None)
    else:
        _chosen[key] = table


def blocks(length: int, size: int) -> int:
    """Return how many blocks of ``size`` cover ``length``."""
    return -(-length // size)


def precise(tensor: torch.Tensor) -> bool:
    """True if logits near 0 keep float32's relative accuracy: those of float32 inputs, and all in the interpreter."""
    return tensor.dtype == torch.float32 or tensor.device.type == "cpu"


@cache
def processors(device: torch.device) -> int:
    """Programs of a persistent kernel: one a multiprocessor; 3 in the interpreter, so that each has several tiles."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


# Tokens for each piece and entry of the hidden size: with 16 the pieces' float32 take at most an eighth of the memory
# of dz in half precision, from which they are made, and writing and reading them an eighth of what dz takes.
TOKENS_OF_A_PIECE = 16


def weight_splits(tokens: int, width: int, hidden_size: int, launch: Launch, processors: int) -> int:
    """Pieces in which the weight's gradient of a strip is summed over the tokens: 1 where there are tiles enough.

    The pieces take ``splits * width * hidden_size`` float32, never more than a tile for each multiprocessor.
    """
    tiles = blocks(width, launch.rows) * blocks(hidden_size, launch.columns)
    return max(min(processors // tiles, tokens // (TOKENS_OF_A_PIECE * hidden_size)), 1)


def uses_descriptors(*tensors: torch.Tensor) -> bool:
    """Whether the copy engine can load and store all of these matrices: Hopper, aligned rows, contiguous columns."""
    if any(t.is_cuda and _major(t.device) != 9 for t in tensors):
        return False
    return all(
        t.stride(1) == 1
        and t.stride(0) >= t.shape[1]
        and t.stride(0) * t.element_size() % 16 == 0
        and t.data_ptr() % 16 == 0
        for t in tensors
    )


def available(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernels cannot run on ``device`` with inputs of ``dtype``, or None if they can."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it takes float16, bfloat16 and float32, got {dtype}"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"it needs compute capability 8.0 or newer, the device has {major}.{minor}"
    if device.type != "cpu":
        return f"it needs a CUDA device, got {device.type!r}"
    if not interpreted():
        return "on the CPU it runs in Triton's interpreter only: set TRITON_INTERPRET=1 before the first use"
    if dtype == torch.bfloat16:
        return "Triton's interpreter multiplies the bit patterns of bfloat16; use float16 or float32 there"
    return None
