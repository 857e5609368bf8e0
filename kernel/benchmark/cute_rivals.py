"""Implementations whose kernels are written in CuTe's Python language: how each is called, and what it cannot do.

Liger-Kernel 0.8.5 and quack 0.6.5 with nvidia-cutlass-dsl 4.7.1. They run in a process of their own
(:mod:`kernel.benchmark.apart`); nothing of them is imported here before it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from .problems import Data
from .rivals import Case, DataLoss, Rival, liger

__all__ = ["cute_rivals"]

_SM90 = "liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90"
_SCALED = "liger_kernel.ops.fused_linear_scaled_cross_entropy"


def cute_rivals() -> list[Rival]:
    """Return them; each chunk that Liger-Kernel and quack offer is a point of its own, of other time and memory."""
    found = [
        Rival(
            f"Liger-Kernel CuTe, {sums} sums, chunk {chunk}",
            lambda case, sums=sums, chunk=chunk: liger(_SUMS[sums], "nvidia-cutedsl")(case, chunk),
            _needs("liger_kernel", "cutlass", "tvm_ffi"),
        )
        for sums in _SUMS
        for chunk in (1, 4, 16, 64)
    ]
    plain = {
        "Liger-Kernel SM90 CuTe": ("liger_kernel", _sm90),
        "Liger-Kernel scaled CE": ("liger_kernel", _scaled),
        **{f"quack scaled-exp, chunk {chunk}": ("quack", _quack(chunk)) for chunk in (1024, 2048, 4096)},
    }
    for name, (module, make) in plain.items():
        refuses = _needs(module, "cutlass", "tvm_ffi", smoothing=False, softcap=False)
        found.append(Rival(name, make, refuses, smooths=False))
    return found


_SUMS: dict[str, torch.dtype | None] = {"bfloat16": None, "float32": torch.float32}


def _needs(*modules: str, smoothing: bool = True, softcap: bool = True) -> Callable[[Case, torch.device], str | None]:
    def refuses(case: Case, device: torch.device) -> str | None:
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        if device.type != "cuda":
            return "needs a CUDA device"
        if case.label_smoothing and not smoothing:
            return "no label smoothing"
        return "no softcap" if case.softcap is not None and not softcap else None

    return refuses


def _sm90(case: Case) -> DataLoss:
    function = importlib.import_module(_SM90).LigerFusedLinearCrossEntropySM90Function
    return lambda data: function.apply(data.hidden, data.weight, data.target)


def _scaled(case: Case) -> DataLoss:
    function = importlib.import_module(_SCALED).LigerFusedLinearScaledCrossEntropyFunction

    def loss(data: Data) -> Tensor:
        found = function.apply(data.hidden, data.weight, data.target)
        return (found[0] if isinstance(found, tuple) else found).mean()  # of every token: none is ignored

    return loss


def _quack(chunk: int) -> Callable[[Case], DataLoss]:
    def make(case: Case) -> DataLoss:
        function = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy

        def loss(data: Data) -> Tensor:
            return function(data.hidden, data.weight, data.target, chunk_size=chunk, use_scaled_exp=True)

        return loss

    return make
