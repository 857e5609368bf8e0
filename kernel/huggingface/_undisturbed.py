"""A model out of its wrappers, and calls that leave it as it was."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ._installed import of_a_library

__all__ = ["undisturbed", "unwrapped"]


def unwrapped(model: Any) -> Any:
    """The causal language model inside torch.compile, DDP, FSDP and PEFT."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif _is_wrapper(model):
            model = model.module
        elif callable(getattr(model, "get_base_model", None)):
            model = model.get_base_model()
        else:
            return model


def _is_wrapper(model: Any) -> bool:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    return isinstance(model, (DataParallel, DistributedDataParallel, FullyShardedDataParallel))


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards mode, random state, hooks, buffers and attributes are as before.

    Tensors get their numbers back, dicts, lists and sets what they held, new attributes and hooks go. Not seen is what
    lies deeper: tensors changed in place inside of a container, fields of other objects, globals; and of FSDP, which
    keeps its weights as attributes, all but mode, buffers and old hooks.
    """
    modules = list(model.modules())
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    flat = any(type(m).__name__ == "FullyShardedDataParallel" for m in modules)
    training = [m.training for m in modules]
    scopes = [m._buffers for m in modules] + ([] if flat else [vars(m) for m in modules])
    saved = [(scope, dict(scope), _copies(scope)) for scope in scopes]
    hooks = [getattr(m, name) for m in modules for name in ("_forward_pre_hooks", "_forward_hooks")]
    kept = [dict(one) for one in hooks]
    try:
        for one in hooks:
            for key in [key for key, hook in one.items() if not of_a_library(hook)]:
                del one[key]
        for m in modules:
            m.training = False
        with torch.random.fork_rng(sorted(devices)), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for m, mode in zip(modules, training, strict=True):
            m.training = mode
        for scope, before, copies in saved:
            for name in scope.keys() - before.keys():
                del scope[name]
            scope.update(before)
            for name, copied in copies.items():
                _put_back(scope[name], copied)
        for one, before in zip(hooks, kept, strict=True):
            late = {key: hook for key, hook in one.items() if flat and key not in before}
            one.clear()
            one.update(before)
            one.update(late)


def _copies(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of what can change in place, but for the dicts of every module: its hooks, parameters, buffers."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy(value)
        for name, value in scope.items()
        if name not in _OF_ALL
        and (type(value) in _CONTAINERS or (isinstance(value, Tensor) and not (value.is_meta or value.requires_grad)))
    }


def _put_back(value: Any, copied: Any) -> None:
    if isinstance(value, Tensor):
        if not torch.equal(value, copied):
            with torch.no_grad():
                value.copy_(copied)
    else:
        value.clear()
        (value.extend if hasattr(value, "extend") else value.update)(copied)


_OF_ALL = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
