"""What the launches share: the tensors and numbers of a loss, what the forward keeps, arguments that recur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..options import LossOptions
from .codes import LARGEST_CAP, Code
from .launch import Launch, precise

__all__ = [
    "BYTES_SERVE",
    "Head",
    "Kept",
    "Scalars",
    "Storage",
    "Tiles",
    "logit_arguments",
    "product_arguments",
    "tiling",
]

Storage = Literal["", "softmax", "code", "byte", "raw"]

BYTES_SERVE = frozenset({torch.bfloat16})  # inputs whose gradients' own rounding hides that of bytes


class Head(NamedTuple):
    """The tensors of the loss, flattened."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    target: Tensor  # (N,)


class Kept(NamedTuple):
    """What the forward keeps of a range of columns, by packed row."""

    start: int  # the first of the columns
    number: int  # strips that they are kept in, one below the other, each of as many rows as tiles of kept tokens have
    columns: Tensor  # (rows of all strips, columns of one): exp(z - reference), codes of z or of p, or raw logits
    # (1 + ..., N): of the target (its logit, or what the cap is taken of), then peaks. One for all columns of a softmax
    # that are kept as they are, and the lse where these are computed again.
    reference: Tensor

    @property
    def width(self) -> int:
        """Columns of a strip."""
        return self.columns.shape[1]

    @property
    def in_bytes(self) -> bool:
        """Whether they are probabilities in one byte each."""
        return self.columns.dtype == torch.uint8


class Held(NamedTuple):
    """What the forward keeps, in the order in which the backward takes it, and the memory that it lies in."""

    kept: tuple[Kept, ...] = ()
    workspace: Tensor | None = None  # flat, for dz once what was kept in it has been used
    gradient: Tensor | None = None  # (V, D), the weight's
    target_logit: Tensor | None = None  # (N,) packed, bits


@dataclass(frozen=True)
class Scalars:
    """The options that the kernels read; ``softcap`` 0 stands for none."""

    label_smoothing: float
    softcap: float
    temperature: float
    logit_scale: float
    z_loss: float
    confidence_penalty: float
    ignore_index: int
    # Rows of the whole head, where only some of them are here (vocab_parallel.fused_slice), with a target of -1 for
    # tokens whose row is elsewhere; 0: all are here.
    whole: int = 0

    @classmethod
    def of(cls, options: LossOptions) -> Scalars:
        """Take them from the options of a loss."""
        return cls(
            options.label_smoothing,
            options.softcap or 0.0,
            options.temperature,
            options.logit_scale,
            options.z_loss,
            options.confidence_penalty,
            options.ignore_index,
        )

    def pack(self) -> tuple[list[float], int]:
        """Return the numbers and ``ignore_index``, as the registered operators take them."""
        *numbers, ignore_index, _ = astuple(self)  # compiled code has no slices
        return numbers, ignore_index

    @classmethod
    def unpack(cls, numbers: Sequence[float], ignore_index: int) -> Scalars:
        """Make the options of what :meth:`pack` returned."""
        label_smoothing, softcap, temperature, logit_scale, z_loss, confidence_penalty = map(float, numbers)
        return cls(label_smoothing, softcap, temperature, logit_scale, z_loss, confidence_penalty, int(ignore_index))

    def gains(self) -> dict[str, float]:
        """Return the factors by which a kernel makes logits of products: see ``logits.logit_argument``."""
        log2_e = math.log2(math.e)
        if self.softcap:
            inner, cap = 2 * log2_e / self.softcap, self.softcap * log2_e / self.temperature
        else:
            inner, cap = log2_e / self.temperature, 1.0
        return {"product_gain": self.logit_scale * inner, "bias_gain": inner, "cap": cap}

    def uniform(self, rows: int) -> float:
        """Return what smoothing gives each class, of ``rows`` that are here."""
        return self.label_smoothing / (self.whole or rows)

    def of_slice(self) -> Scalars:
        """Return those of what a slice tells the others: with smoothing lse less the mean logit, and nothing else."""
        smoothing = 1.0 if self.label_smoothing else 0.0
        return replace(self, label_smoothing=smoothing, z_loss=0.0, confidence_penalty=0.0)

    @property
    def mixed(self) -> bool:
        """True if z_loss or a confidence penalty adds to the cross entropy's gradient of a logit."""
        return self.z_loss > 0 or self.confidence_penalty > 0

    @property
    def code(self) -> Code:
        """The constants by which kept logits are coded in 16 bits."""
        return Code.of(self.softcap, self.temperature)

    def storage(self, dtype: torch.dtype) -> Storage:
        """What the forward keeps for the backward; "" where that would cost accuracy.

        The softmax enters the backward's products as it is (:mod:`.keep`). It cannot in float16, which has too few
        exponents for one reference per token; with z_loss or a confidence penalty, where a token's factor may vanish or
        depends on the logit; nor under a softcap, whose slope it hides. Then logits are kept, from which the backward
        makes dz: raw ones in float32, codes in half precision. No code is as exact as float16 under a softcap, or as
        bfloat16 where a cap allows for more than 80 nats between two logits.
        """
        if dtype != torch.float16 and not self.softcap and not self.mixed:
            return "softmax"
        if dtype == torch.float32:
            return "raw"
        if self.softcap and (dtype == torch.float16 or self.softcap > LARGEST_CAP * self.temperature):
            return ""
        return "code"

    def in_bytes(self, dtype: torch.dtype) -> bool:
        """Whether the softmax may also be kept in one byte (:mod:`.byte_columns`)."""
        return dtype in BYTES_SERVE and not self.softcap


class Tiles:
    """Hands matrices to kernels: as descriptors of tiles, each made once, or as they are.

    Args:
        descriptor: Whether the copy engine loads and stores (``launch.uses_descriptors``).
    """

    def __init__(self, descriptor: bool) -> None:
        self.descriptor = descriptor
        self._made: dict[tuple[Any, ...], TensorDescriptor] = {}

    def __call__(self, matrix: Tensor, rows: int, columns: int) -> Any:
        """Return the matrix in tiles of ``rows x columns``."""
        if not self.descriptor:
            return matrix
        key = (matrix.data_ptr(), matrix.shape, matrix.dtype, rows, columns)
        if key not in self._made:
            self._made[key] = TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])
        return self._made[key]

    def forget(self) -> None:
        """Let go of the matrices, whose memory the descriptors hold."""
        self._made.clear()


def logit_arguments(hidden: Tensor, weight: Tensor, bias: Tensor | None, scalars: Scalars) -> dict[str, Any]:
    """Return what every kernel that makes logits is told: where rows lie and how a product becomes a logit."""
    return {
        "n": hidden.shape[0],
        "hidden_size": hidden.shape[1],
        "hidden_row_stride": hidden.stride(0),
        "weight_row_stride": weight.stride(0),
        "weight_column_stride": weight.stride(1),
        "bias": bias,
        **scalars.gains(),
        "HAS_BIAS": bias is not None,
        "SOFTCAP": scalars.softcap > 0,
        "PRECISE": precise(hidden),
    }


def product_arguments(tiles: Tiles, hidden: Tensor, weight: Tensor, launch: Launch) -> dict[str, Any]:
    """Return the operands of ``tiles.product`` and the sizes of its tiles."""
    return {
        "hidden": tiles(hidden, launch.rows, launch.depth),
        "weight": tiles(weight, launch.columns, launch.depth),
        "vocab_size": weight.shape[0],
        "BLOCK_ROWS": launch.rows,
        "BLOCK_VOCAB": launch.columns,
        "BLOCK_HIDDEN": launch.depth,
        "DESCRIPTOR": tiles.descriptor,
    }


def tiling(launch: Launch, *lacking: str) -> dict[str, Any]:
    """Return the arguments of a matrix-product kernel that do not depend on the tensors, less those that it lacks."""
    found = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "FLATTEN": launch.flatten,
        "PRECISION": "ieee",
        "PARTS": launch.parts,
    }
    return {name: value for name, value in found.items() if name not in lacking}
