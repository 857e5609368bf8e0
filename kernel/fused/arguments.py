"""What the launches share: the tensors and numbers of a loss, what the forward keeps, tensor descriptors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .codes import LARGEST_CAP, Code
from .launch import Launch
from .schedule import Schedule

__all__ = ["Head", "Kept", "Scalars", "Storage", "describe", "kept_views", "reference_rows", "storage", "tiling"]

Storage = Literal["", "softmax", "code", "raw"]


class Head(NamedTuple):
    """The tensors of the loss, flattened."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    target: Tensor  # (N,)


class Kept(NamedTuple):
    """What the forward keeps of the last columns, by packed row."""

    columns: Tensor  # (N, kept): exp(z - reference), codes of z, or raw logits
    reference: Tensor  # (1 + kept tiles, N): of the target (its logit, or what the cap is taken of), then tiles' peaks


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

    def pack(self) -> tuple[list[float], int]:
        """As the registered operators take them."""
        *numbers, ignore_index = astuple(self)
        return numbers, ignore_index

    @classmethod
    def unpack(cls, numbers: Sequence[float], ignore_index: int) -> Scalars:
        """From :meth:`pack`."""
        label_smoothing, softcap, temperature, logit_scale, z_loss, confidence_penalty = map(float, numbers)
        return cls(label_smoothing, softcap, temperature, logit_scale, z_loss, confidence_penalty, int(ignore_index))

    def gains(self) -> dict[str, float]:
        """Arguments of a kernel that makes logits of products: see ``tiles.logit_argument``."""
        log2_e = math.log2(math.e)
        if self.softcap:
            inner, cap = 2 * log2_e / self.softcap, self.softcap * log2_e / self.temperature
        else:
            inner, cap = log2_e / self.temperature, 1.0
        return {"product_gain": self.logit_scale * inner, "bias_gain": inner, "cap": cap}

    @property
    def mixed(self) -> bool:
        """Whether the gradient of a logit has other parts than the cross entropy's."""
        return self.z_loss > 0 or self.confidence_penalty > 0

    @property
    def code(self) -> Code:
        """Constants of the code of kept logits."""
        return Code.of(self.softcap, self.temperature)


def storage(dtype: torch.dtype, scalars: Scalars) -> Storage:
    """What the forward keeps for the backward; "" where that would cost accuracy.

    The softmax enters the backward's products as it is (:mod:`.keep`). It cannot in float16, which has too few
    exponents for one reference per token; with z_loss or a confidence penalty, where a token's factor may vanish or
    depends on the logit; nor under a softcap, whose slope it hides. Then logits are kept, from which the backward makes
    dz: raw ones in float32, codes in half precision. No code is as exact as float16 under a softcap, or as bfloat16
    where a cap allows for more than 80 nats between two logits.
    """
    if dtype != torch.float16 and not scalars.softcap and not scalars.mixed:
        return "softmax"
    if dtype == torch.float32:
        return "raw"
    if scalars.softcap and (dtype == torch.float16 or scalars.softcap > LARGEST_CAP * scalars.temperature):
        return ""
    return "code"


def reference_rows(kind: Storage, scalars: Scalars, plan: Schedule, columns: int) -> int:
    """Rows of :class:`Kept`'s reference for tiles of ``columns``."""
    if not plan.kept or kind == "raw":
        return 0
    return 1 + (plan.kept // columns if kind == "code" and not scalars.softcap else 0)


def kept_views(memory: Tensor, kind: Storage, plan: Schedule, n: int, references: int) -> Kept:
    """The arrays of :class:`Kept`: columns at the beginning of ``memory``, flat; the references elsewhere."""
    reference = torch.empty(references, n, dtype=torch.float32, device=memory.device)
    columns = memory[: n * plan.kept]
    return Kept((columns.view(torch.int16) if kind == "code" else columns).view(n, plan.kept), reference)


def describe(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Tensor descriptor for tiles of ``rows x columns``."""
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, columns])


def tiling(launch: Launch) -> dict[str, Any]:
    """Arguments of a matrix-product kernel that do not depend on the tensors."""
    return {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "FLATTEN": launch.flatten,
        "PRECISION": "ieee",
        "PARTS": launch.parts,
    }
