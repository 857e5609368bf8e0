"""A model out of its wrappers, and calls that leave it as it was."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
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
    """Evaluation mode without gradients; afterwards mode, random state, buffers, numbers and hooks are as before."""
    modules = list(model.modules())
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    flat = any(type(m).__name__ == "FullyShardedDataParallel" for m in modules)  # keeps its weights as attributes
    training = [m.training for m in modules]
    buffers = [{k: (b, None if b is None else b.detach().clone()) for k, b in m._buffers.items()} for m in modules]
    plain = [{k: v for k, v in vars(m).items() if _is_plain(k, v) and not flat} for m in modules]
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
        for m, mode, saved, numbers in zip(modules, training, buffers, plain, strict=True):
            m.training = mode
            vars(m).update(numbers)
            _put_back(m, saved)
        for one, before in zip(hooks, kept, strict=True):
            late = {key: hook for key, hook in one.items() if key not in before}  # transformers installs some once
            one.clear()
            one.update(before)
            one.update(late)


def _put_back(module: nn.Module, saved: Mapping[str, tuple[Tensor | None, Tensor | None]]) -> None:
    for name, (buffer, copy) in saved.items():
        module._buffers[name] = buffer
        if buffer is not None and copy is not None and not buffer.is_meta and not torch.equal(buffer, copy):
            buffer.copy_(copy)


def _is_plain(name: str, value: object) -> bool:
    """Whether an attribute is a counter or a cache of the forward: positions of images, lengths seen."""
    mutable = value is None or isinstance(value, (bool, int, float)) or type(value) is Tensor
    return mutable and not name.startswith("_") and name != "training"
