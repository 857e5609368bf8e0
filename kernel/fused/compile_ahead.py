"""Launches kernels, and compiles all kernels of a loss side by side before the first of them runs.

The launches of forward and backward are gone through without running a kernel, once for each kind of schedule, which
tells what is needed. Triton compiles a kernel anew for an integer that becomes 1 or a multiple of 16, and for an
address that is a multiple of 16 bytes. Kernels therefore say ``do_not_specialize`` of every number that changes with
the tokens, their ignored share or the workspace, unless it is always a multiple of the tiles (which lets memory be
read in wide pieces), and addresses are aligned: only the first call compiles. Of a tensor only what decides the
compilation is noted down, so that memory is free again as early as in a call that runs.

What all kernels need once comes first, side by side as well: the driver's part, a C program; the hash of Triton's
library (0.6 s for 460 MB), without which no kernel is looked for in the cache folder; and modules of Triton that it
imports late. The passes of the compiler run side by side, too, and end with the one that takes longest: the kernels
that are given the most arguments are the largest, and start first.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = ["compile_ahead", "recording", "run_kernel"]

_recorded: ContextVar[list[_RecordedLaunch] | None] = ContextVar("recorded", default=None)
_known: set[Hashable] = set()


class _RecordedLaunch(NamedTuple):
    kernel: Any
    grid: tuple[Any, ...]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class _Pointer:
    """Stands for a tensor: what Triton looks at before it compiles."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        """Address, of which the alignment counts."""
        return self.address

    @staticmethod
    def ptr_range() -> int:
        """Bytes behind the address, which only the AMD backend asks for."""
        return 2**31 - 1


class _Executor:
    """Runs a compilation in a pool, and that of the host's part of its launch, a C program in some versions."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool

    def submit(self, compile_kernel: Callable[[], Any]) -> Future[Any]:
        """Start one compilation."""

        def work() -> Any:
            kernel = compile_kernel()
            driver: Any = triton.runtime.driver.active
            driver.launcher_cls(kernel.src, kernel.metadata)
            return kernel

        return self.pool.submit(work)


def run_kernel(kernel: Any, grid: tuple[Any, ...], **arguments: Any) -> None:
    """Launch a Triton kernel, every argument by its name; within :func:`compile_ahead` only note it down.

    It runs on the device of its tensors and on the current stream there. Triton takes the current device, which is
    another one where a model lies on several, and whose stream would not wait for what the tensors are made of.
    """
    recorded = _recorded.get()
    if recorded is None:
        device = _other_device(arguments)
        if device is None:
            kernel[grid](**arguments)
        else:
            with torch.cuda.device(device):
                kernel[grid](**arguments)
    else:
        recorded.append(_RecordedLaunch(kernel, grid, {name: _without_memory(x) for name, x in arguments.items()}))


def _other_device(arguments: Mapping[str, Any]) -> torch.device | None:
    """The CUDA device of the tensors if it is not the current one: a context would cost ten times this look."""
    for argument in arguments.values():
        if isinstance(argument, Tensor):
            other = argument.is_cuda and argument.get_device() != torch.cuda.current_device()
            return argument.device if other else None
    return None


def _without_memory(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return _Pointer(argument.dtype, argument.data_ptr())
    if isinstance(argument, TensorDescriptor):
        return replace(argument, base=_without_memory(argument.base))
    return argument


def recording() -> bool:
    """Whether launches are only noted down at the moment: what they would write is undefined."""
    return _recorded.get() is not None


def compile_ahead(key: Hashable, device: torch.device, launches: Callable[[], object]) -> None:
    """Compile what ``launches`` would run, in parallel, unless ``key`` was seen before.

    Args:
        key: What the kernels depend on: nothing that varies from batch to batch.
        device: Device of the launches; nothing is done for the interpreter.
        launches: Goes through the launches; the results of its kernels are undefined.
    """
    if device.type != "cuda" or key in _known:
        return
    _known.add(key)
    # Triton 3.6 changes the filters of warnings, which all threads share, for every node that it compiles: without a
    # copy for the pool, those of the caller would come out of the race changed.
    with torch.cuda.device(device), warnings.catch_warnings(), ThreadPoolExecutor(min(32, _cores())) as pool:
        preparations = [pool.submit(prepare) for prepare in (_driver, _hash_of_triton, _late_imports)]
        recorded = _record(launches)
        recorded.sort(key=_size, reverse=True)
        for preparation in preparations:
            preparation.result()
        # A kernel that does not compile says so at its launch; raised in here, it would leave the mode switched on.
        with triton.AsyncCompileMode(_Executor(pool), ignore_errors=True):  # pyright: ignore[reportArgumentType]
            for kernel, grid, arguments in recorded:
                kernel.warmup(grid=grid, **arguments)


def _cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _driver() -> object:
    return triton.runtime.driver.active


def _hash_of_triton() -> None:
    """Let Triton take the hash that each key of its cache begins with; it remembers it."""
    with contextlib.suppress(AttributeError, OSError):  # no part of its interface: a version may hold it elsewhere
        triton.runtime.cache.triton_key()


def _late_imports() -> None:
    """Import what Triton imports as it looks at the first argument of all, and holds no kernel up for it."""
    with contextlib.suppress(ImportError):
        importlib.import_module("triton.experimental.gluon.nvidia.hopper")


def _size(launch: _RecordedLaunch) -> int:
    """How large a kernel is, beside others: what it is not given it has no code for."""
    return sum(argument is not None for argument in launch.arguments.values())


def _record(launches: Callable[[], object]) -> list[_RecordedLaunch]:
    recorded: list[_RecordedLaunch] = []
    token = _recorded.set(recorded)
    try:
        launches()
    finally:
        _recorded.reset(token)
    return recorded
