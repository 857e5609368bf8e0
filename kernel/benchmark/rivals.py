"""The implementations compared: how each is called, and what it cannot do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import linear_cross_entropy
from ..fused import available
from ..fused.launch import LaunchTable, launch_table, set_launch_table
from .problems import Data

__all__ = ["FRONTIER_GIB", "VARIANTS", "Case", "DataLoss", "Rival", "liger", "ours", "rivals"]

DataLoss = Callable[[Data], Tensor]
FRONTIER_GIB = (0.25, 0.5, 1, 2, 3)  # workspaces between the default and what keeps everything


@dataclass(frozen=True)
class Case:
    """What is computed: smoothing, softcap, share of tokens ignored, and whether both gradients are wanted."""

    label_smoothing: float = 0.1
    softcap: float | None = None
    ignored: float = 0.0
    gradients: bool = True


@dataclass(frozen=True)
class Rival:
    """One implementation. ``refuses`` gives the reason why it does not run a case, or None."""

    name: str
    make: Callable[[Case], DataLoss]
    refuses: Callable[[Case, torch.device], str | None]
    workspace_bytes: int | None = None  # of ours; None: the default
    smooths: bool = True
    frontier: bool = False  # a point between two others of the same implementation, measured on the first case alone
    variants: tuple[Any, ...] = field(default=())  # arguments of make besides the case, of which the fastest counts


def _eager(upcast: bool) -> Callable[[Case], DataLoss]:
    def make(case: Case) -> DataLoss:
        def loss(data: Data) -> Tensor:
            z = data.hidden @ data.weight.T
            z = z.float() if upcast else z
            if case.softcap is not None:  # as users write it: kernel.softcap's exact slope takes time and memory
                z = case.softcap * torch.tanh(z / case.softcap)
            return F.cross_entropy(z, data.target, label_smoothing=case.label_smoothing)

        return loss

    return make


def _compiled(case: Case) -> DataLoss:
    torch.compiler.reset()
    return torch.compile(_eager(upcast=True)(case))


# Other launches of our kernels, measured beside their own: what may hold fewer numbers at a time under a softcap.
VARIANTS: dict[str, Callable[[LaunchTable], LaunchTable]] = {
    "folded": lambda table: replace(table, logit_gradient=replace(table.logit_gradient, folded=True)),
    "four parts": lambda table: replace(
        table, forward=replace(table.forward, parts=4), logit_gradient=replace(table.logit_gradient, parts=4)
    ),
}


def _package(
    implementation: Any, workspace_bytes: int | None = None, variant: str | None = None
) -> Callable[[Case], DataLoss]:
    options: dict[str, Any] = {} if workspace_bytes is None else {"workspace_bytes": workspace_bytes}

    def make(case: Case) -> DataLoss:
        def loss(data: Data) -> Tensor:
            device, dtype = data.hidden.device, data.hidden.dtype
            if implementation == "triton":
                set_launch_table(device, dtype, None)  # that of this loss and of its backward
            if variant is not None:
                set_launch_table(device, dtype, VARIANTS[variant](launch_table(device, dtype, data.hidden.shape[1])))
            return linear_cross_entropy(
                data.hidden,
                data.weight,
                data.target,
                label_smoothing=case.label_smoothing,
                softcap=case.softcap,
                implementation=implementation,
                **options,
            )

        return loss

    return make


def _torch_chunked(case: Case) -> DataLoss:
    options = importlib.import_module("torch.nn.modules.linear_cross_entropy_options").LinearCrossEntropyOptions()
    function = F.linear_cross_entropy  # pyright: ignore[reportAttributeAccessIssue]
    return lambda data: function(data.hidden, data.weight, data.target, options=options)


def liger(accum_dtype: torch.dtype | None, row_kernel: str | None = None) -> Callable[..., DataLoss]:
    """Liger-Kernel's loss by the dtype of its sums and the name of its row kernel; a maker also takes the chunk."""

    def make(case: Case, chunk: int = 1) -> DataLoss:
        function = importlib.import_module("liger_kernel.ops").LigerFusedLinearCrossEntropyFunction
        names = list(importlib.import_module("inspect").signature(function.forward).parameters)[1:]
        values = {
            "ignore_index": -100,
            "lse_square_scale": 0.0,
            "label_smoothing": case.label_smoothing,
            "reduction": "mean",
            "softcap": case.softcap,
            "return_z_loss": False,
            "accum_dtype": accum_dtype,
            "use_token_scaling": False,
            "return_token_accuracy": False,
            "return_predicted_tokens": False,
            "chunk_mem_const": chunk,
            "ce_impl": row_kernel,
        }

        def loss(data: Data) -> Tensor:
            given = {"_input": data.hidden, "weight": data.weight, "target": data.target, **values}
            result = function.apply(*(given.get(name) for name in names))
            return result[0] if isinstance(result, tuple) else result

        return loss

    return make


def _cce(filter_eps: str | None) -> Callable[[Case], DataLoss]:
    def make(case: Case) -> DataLoss:
        function = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        return lambda data: function(
            data.hidden, data.weight, data.target, softcap=case.softcap, filter_eps=filter_eps, impl="cce"
        )

    return make


def _never(case: Case, device: torch.device) -> None:
    return None


def _needs(
    module: str, *, smoothing: bool = True, loss_only: bool = True
) -> Callable[[Case, torch.device], str | None]:
    def refuses(case: Case, device: torch.device) -> str | None:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"not installed: {error}"
        if device.type != "cuda":
            return "needs a CUDA device"
        if case.label_smoothing and not smoothing:
            return "no label smoothing"
        return None

    return refuses


def _needs_torch(case: Case, device: torch.device) -> str | None:
    if not hasattr(F, "linear_cross_entropy"):
        return f"not in torch {torch.__version__}"
    if case.label_smoothing or case.softcap:
        return "its chunked path has neither label smoothing nor softcap"
    return None


def _needs_triton(case: Case, device: torch.device) -> str | None:
    return available(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def ours(name: str, workspace_bytes: int | None, *, frontier: bool = False) -> Rival:
    """Return ours with a workspace, or with the default one."""
    return Rival(
        f"triton, {name}", _package("triton", workspace_bytes), _needs_triton, workspace_bytes, frontier=frontier
    )


def rivals(keep_all_bytes: int, variants: Sequence[str] = ()) -> list[Rival]:
    """Return every implementation.

    Args:
        keep_all_bytes: The workspace in which ours keeps all of the problem's logits.
        variants: Names in ``VARIANTS``, each measured with the default workspace too.
    """
    budgets = {"default": None, "32 MiB": 32 * 2**20, "all kept": keep_all_bytes}
    return [
        *(ours(name, size) for name, size in budgets.items()),
        *(ours(f"{size:g} GiB", int(size * 2**30), frontier=True) for size in FRONTIER_GIB),
        *(Rival(f"triton, default, {k}", _package("triton", None, k), _needs_triton) for k in variants),
        Rival("chunked", _package("chunked"), _never),
        Rival("eager", _eager(upcast=False), _never),
        Rival("eager, float32 logits", _eager(upcast=True), _never),
        Rival("torch.compile", _compiled, _never),
        Rival("torch, chunked", _torch_chunked, _needs_torch),
        Rival("Liger-Kernel", liger(None), _needs("liger_kernel")),
        Rival("Liger-Kernel, float32 sums", liger(torch.float32), _needs("liger_kernel"), variants=(1, 4, 16)),
        Rival("cut-cross-entropy, filter", _cce("high"), _needs("cut_cross_entropy", smoothing=False), smooths=False),
        Rival("cut-cross-entropy, exact", _cce(None), _needs("cut_cross_entropy", smoothing=False), smooths=False),
    ]
