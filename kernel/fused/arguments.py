"""What the launches share: the tensors and numbers of a loss, the kept softmax, tensor descriptors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import Launch
from .schedule import Schedule

__all__ = ["Head", "Kept", "Scalars", "describe", "keeps_directly", "kept_views", "may_keep", "tiling"]


class Head(NamedTuple):
    """The tensors of the loss, flattened."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    target: Tensor  # (N,)


class Kept(NamedTuple):
    """Last columns of the softmax, kept by the forward: exp(z - reference)."""

    softmax: Tensor  # (N, kept)
    reference: Tensor  # (1, N) if kept directly, else (kept tiles, N): a tile's peak; float32, bits


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
        """Factors of product, bias and cap; see ``tiles.capped_logits``."""
        log2_e = math.log2(math.e)
        if self.softcap:
            inner = 2 * log2_e / self.softcap
            return self.logit_scale * inner, inner, self.softcap * log2_e / self.temperature
        return self.logit_scale * log2_e / self.temperature, log2_e / self.temperature, 1.0


def keeps_directly(dtype: torch.dtype, scalars: Scalars) -> bool:
    """Whether the kept softmax enters the backward's products as it is (:mod:`kernel.fused.keep`).

    float16 has too few exponents for one reference per token; with z_loss a token's factor may vanish; and under a
    softcap the uniform part of smoothing has a slope of its own in every column.
    """
    return dtype != torch.float16 and not scalars.z_loss and not (scalars.softcap and scalars.label_smoothing)


def may_keep(dtype: torch.dtype, scalars: Scalars) -> bool:
    """Whether a kept softmax determines its logits as far as the backward needs them.

    Where a softcap's slope must be found from the logarithm of the kept value, that value must not underflow: float16
    is out, and so is a cap that allows more than 80 nats between two logits.
    """
    if keeps_directly(dtype, scalars) or not scalars.softcap:
        return True
    return dtype != torch.float16 and 2 * scalars.softcap / scalars.temperature < 80


def kept_views(memory: Tensor, plan: Schedule, n: int, references: int) -> Kept:
    """The arrays of :class:`Kept`: the softmax at the beginning of ``memory``, flat; the references elsewhere."""
    reference = torch.empty(references, n, dtype=torch.float32, device=memory.device)
    return Kept(memory[: n * plan.kept].view(n, plan.kept), reference)


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
