"""Heads that are DTensors: their rows in this process and the group that holds the others."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from .agreement import check_group

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
        Process group, or None for a head in one piece; None, or what is wrong with a tensor or its group, to be raised
        where the group's other processes learn of it; weight, bias and ``others`` in their order, as plain tensors.

    Raises:
        TypeError: For a group that is none, and, where no group is known, a DTensor beside a head that is none.
        ValueError: For a head over a mesh of several dimensions, where no group is known.
    """
    tensors: dict[str, Any] = {"linear_weight": linear_weight, "linear_bias": linear_bias, **others}
    # Importing the module takes .8 s; no DTensor exists without it.
    module: Any = None if torch.compiler.is_compiling() else sys.modules.get("torch.distributed.tensor")
    found = set() if module is None else {name for name, t in tensors.items() if isinstance(t, module.DTensor)}
    given, mesh = group, linear_weight.device_mesh if "linear_weight" in found else None
    if mesh is None or mesh.ndim != 1:
        check_group(group)
        mesh = None
    else:  # the mesh's own, which all have, also where some pass none or a wrong one
        group = mesh.get_group()
    if not found:
        return group, None, *tensors.values()
    try:
        if mesh is not None:
            _check_ranks(given, group, mesh.mesh.tolist())
        tensors.update(_local(tensors, found, module))
    except (TypeError, ValueError) as error:
        if group is None:
            raise
        return group, error, *tensors.values()
    return group, None, *tensors.values()


def _local(tensors: dict[str, Any], found: set[str], module: Any) -> dict[str, Any]:
    if "linear_weight" not in found:
        name = next(name for name in tensors if name in found)
        raise TypeError(f"{name} must be a plain tensor where linear_weight is one, got a DTensor: use its to_local().")
    mesh = tensors["linear_weight"].device_mesh
    names = [name for name in tensors if name in found]
    for name in names:
        _check(name, tensors[name], mesh, name in ("linear_weight", "linear_bias"), module)
    return {name: tensors[name].to_local() for name in names}


def _check_ranks(given: Any, own: Any, ranks: list[int]) -> None:
    check_group(given)
    if dist.get_process_group_ranks(own) != ranks:
        raise ValueError(f"linear_weight must lie on a mesh of ascending ranks, got {ranks}.")
    if given is not None and dist.get_process_group_ranks(given) != ranks:
        raise ValueError(
            f"process_group must be None or hold the processes {ranks} of linear_weight's mesh, got "
            f"{dist.get_process_group_ranks(given)}."
        )


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
