"""Heads that are DTensors: their rows in this process and the group that holds the others."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch
import torch.distributed as dist

__all__ = ["local_parts"]

_WAY_OUT = "Redistribute it, or pass its full_tensor()."


def local_parts(group: Any, linear_weight: Any, linear_bias: Any, **others: Any) -> tuple[Any, ...]:
    """Take the rows of this process and the group of a head that is sharded by rows; leave plain tensors as they are.

    Args:
        group: The caller's ``process_group``.
        linear_weight: Head ``(V, D)``.
        linear_bias: Bias ``(V,)`` or None.
        **others: Tensors that are the same in every process, or None.

    Returns:
        Process group, or None for a head in one piece; weight, bias and ``others`` in their order, as plain tensors.

    Raises:
        TypeError: For a DTensor beside a head that is none.
        ValueError: For placements other than rows over one mesh dimension, or another group than the mesh's.
    """
    tensors: dict[str, Any] = {"linear_weight": linear_weight, "linear_bias": linear_bias, **others}
    if torch.compiler.is_compiling():
        return group, *tensors.values()
    module: Any = sys.modules.get("torch.distributed.tensor")  # takes .8 s to import; no DTensor exists without it
    if module is None:
        return group, *tensors.values()
    found = {name for name, t in tensors.items() if isinstance(t, module.DTensor)}
    if not found:
        return group, *tensors.values()
    if "linear_weight" not in found:
        name = next(name for name in tensors if name in found)
        raise TypeError(f"{name} must be a plain tensor where linear_weight is one, got a DTensor: use its to_local().")
    mesh = linear_weight.device_mesh
    for name, tensor in tensors.items():
        if name in found:
            _check(name, tensor, mesh, name in ("linear_weight", "linear_bias"), module)
            tensors[name] = tensor.to_local()
    own, ranks = mesh.get_group(), mesh.mesh.tolist()
    if dist.get_process_group_ranks(own) != ranks:
        raise ValueError(f"linear_weight must lie on a mesh of ascending ranks, got {ranks}.")
    if group is not None and dist.get_process_group_ranks(group) != ranks:
        raise ValueError(
            f"process_group must be None or hold the processes {ranks} of linear_weight's mesh, got "
            f"{dist.get_process_group_ranks(group)}."
        )
    return group or own, *tensors.values()


def _check(name: str, tensor: Any, mesh: Any, by_rows: bool, module: Any) -> None:
    if tensor.device_mesh != mesh:
        raise ValueError(f"{name} must lie on linear_weight's mesh {mesh}, got {tensor.device_mesh}.")
    if mesh.ndim != 1:
        _refuse(name, f"over a mesh of {mesh.ndim} dimensions")
    (placement,) = tensor.placements
    if by_rows and not (type(placement) is module.Shard and placement.dim == 0):
        _refuse(name, f"with placement {placement!r}")
    if not by_rows and not placement.is_replicate():
        raise ValueError(f"{name} must be the same in every process, Replicate(), got {placement!r}. {_WAY_OUT}")


def _refuse(name: str, what: str) -> NoReturn:
    raise ValueError(
        f"{name} must be a plain tensor or a DTensor sharded by rows, Shard(dim=0), over a mesh of one dimension, got "
        f"one {what}. {_WAY_OUT}"
    )
