"""Compiles what calls launch for a GPU that is not there, as Triton's interpreter accepts what the compiler does not.

``python tests/compiled.py hopper CALL ...`` prints a line of JSON for each kernel; without calls it takes all of them,
which takes minutes. It goes through the code by which a first call on the GPU compiles (:mod:`kernel.fused.compile_call`),
with tensors that have no memory and say that they lie there: each kernel is told what a real call tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[1]


class Device(NamedTuple):
    """What kernels and plans depend on."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # most bytes of a block


# The second is the oldest that the kernels serve, with the memory of those of its family that have the least (8.6, 8.9).
DEVICES = {"hopper": Device((9, 0), 132, 232_448), "ampere": Device((8, 0), 108, 101_376)}
_SMOOTHED = {"label_smoothing": 0.1}
_CAPPED = {"label_smoothing": 0.1, "softcap": 30.0}
_ALL = {**_CAPPED, "z_loss": 1e-4, "confidence_penalty": 0.1, "temperature": 0.5}
# What differs from bfloat16, 1,024 columns of the hidden size, 50,257 classes and gradients of input and weight.
CALLS: dict[str, dict[str, Any]] = {
    "smoothed": {"chunks": True, "options": _SMOOTHED},
    "plain": {"chunks": True},
    "transposed": {"hidden_size": 640, "chunks": True, "options": _SMOOTHED},
    "capped": {"chunks": True, "options": _CAPPED},
    "with statistics": {"statistics": True, "options": _SMOOTHED},
    "capped with statistics": {"statistics": True, "options": _CAPPED},
    "everything": {"bias": True, "statistics": True, "options": _ALL},
    "penalised": {"statistics": True, "options": {"z_loss": 1e-4, "confidence_penalty": 0.1}},
    "biased": {"bias": True, "chunks": True, "options": _SMOOTHED},
    "within a tolerance": {"sparse": True, "options": _SMOOTHED},
    "capped within a tolerance": {"sparse": True, "statistics": True, "options": _CAPPED},
    "transposed within a tolerance": {"hidden_size": 640, "sparse": True},
    "whole tiles": {"vocab_size": 32_768, "chunks": True, "options": _SMOOTHED},
    "odd": {"hidden_size": 1001, "chunks": True, "options": _SMOOTHED},
    "odd, everything": {"hidden_size": 1001, "bias": True, "statistics": True, "options": _ALL},
    "odd within a tolerance": {"hidden_size": 1001, "sparse": True},
    "evaluation": {"needs": (False, False, False), "options": _SMOOTHED},
    "evaluation with statistics": {"needs": (False, False, False), "statistics": True, "options": _CAPPED},
    "frozen": {"needs": (True, False, False), "options": _SMOOTHED},
    "slice": {"whole": 4, "statistics": True, "options": _CAPPED},
    "float16": {"dtype": torch.float16, "options": _SMOOTHED},
    "float16, everything": {"dtype": torch.float16, "bias": True, "statistics": True, "options": _ALL},
    "float16 within a tolerance": {"dtype": torch.float16, "sparse": True},
    "float32": {"dtype": torch.float32, "chunks": True, "options": _SMOOTHED},
    "float32, everything": {"dtype": torch.float32, "bias": True, "statistics": True, "options": _ALL},
    "head statistics": {"temperatures": (0.5, 1.0, 2.0)},
    "head statistics, capped": {"temperatures": (1.0,), "options": {"softcap": 30.0}},
}


class _OnDevice(TorchFunctionMode):
    """Lets tensors of the meta device say that they lie on the GPU, at addresses as aligned as there."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[Any, Callable[..., Any]] = {
            torch.Tensor.device.__get__: lambda x: torch.device("cuda", 0),
            vars(torch._C.TensorBase)["is_cuda"].__get__: lambda x: True,
            torch.Tensor.get_device: lambda x: 0,
            torch.Tensor.data_ptr: lambda x: 2**20 + x.storage_offset() * x.element_size(),
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.told:
            return self.told[function](*args)
        args = ["meta" if isinstance(x, torch.device) else x for x in args]
        kwargs = {name: "meta" if name == "device" else x for name, x in (kwargs or {}).items() if name != "pin_memory"}
        return function(*args, **kwargs)


def use(device: Device) -> None:
    """Let this process compile for the device, and all of it say that it is the current one."""
    import triton
    from triton.backends.compiler import GPUTarget

    major, minor = device.capability
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 10 * major + minor, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda index: 0,
    )
    triton.runtime.driver.set_active(driver)  # pyright: ignore[reportArgumentType]
    event = SimpleNamespace(record=lambda stream: None)
    properties = SimpleNamespace(multi_processor_count=device.multiprocessors)
    told = {
        "get_device_capability": device.capability,
        "get_device_properties": properties,
        "current_device": 0,
        "current_stream": None,
        "Event": event,
    }
    for name, answer in told.items():
        setattr(torch.cuda, name, lambda *given, answer=answer: answer)


def launches(
    *,
    hidden_size: int = 1024,
    vocab_size: int = 50_257,
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = False,
    needs: tuple[bool, bool, bool] | None = None,
    statistics: bool = False,
    sparse: bool = False,
    chunks: bool = False,
    whole: int = 0,
    temperatures: tuple[float, ...] = (),
    options: dict[str, Any] | None = None,
) -> list[Any]:
    """Everything that losses of one kind may launch, or head_statistics if it is given ``temperatures``."""
    from kernel.fused import compile_ahead, compile_call
    from kernel.fused.arguments import Head, Scalars
    from kernel.fused.call import LossCall
    from kernel.fused.launch import launch_table
    from kernel.options import LossOptions
    from kernel.statistics import fused

    with torch.device("meta"), _OnDevice(), torch.no_grad():
        hidden, weight = (torch.empty(rows, hidden_size, dtype=dtype) for rows in (4096, vocab_size))
        linear_bias = torch.empty(vocab_size, dtype=dtype) if bias else None
        target, loss_options = torch.zeros(4096, dtype=torch.int64), LossOptions(**(options or {}))
        if temperatures:
            launch, into = launch_table(hidden.device, dtype).forward, torch.empty(6, 4096, len(temperatures))
            given = hidden, weight, target, linear_bias, None, loss_options, temperatures, launch, into
            results = torch.empty(3, 4096), torch.empty(2, 4096, dtype=torch.int64)
            return compile_ahead._record(lambda: fused._pass(*given, *results))
        scalars = replace(Scalars.of(loss_options), whole=whole * vocab_size)
        call = LossCall(Head(hidden, weight, linear_bias, target), scalars, 0)
        wanted = (True, True, bias) if needs is None else needs
        return compile_ahead._record(lambda: compile_call.every_launch(call, wanted, statistics, sparse, chunks))


def _registers(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of memory to which it moves what they cannot hold."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", told.stdout + told.stderr))
    return int(found["REG"]), int(found["STACK"])


def _compiled(call: str, launch: Any) -> dict[str, Any]:
    """What came of one kernel."""
    kernel, grid, arguments = launch
    kinds = {name: value for name, value in arguments.items() if name.isupper() and isinstance(value, (bool, str))}
    told = {"call": call, "kernel": f"{kernel.__module__}.{kernel.__name__}", "kinds": kinds}
    try:
        compiled = kernel.warmup(grid=grid, **arguments)
    except Exception as error:  # whatever the compiler raises
        return told | {"error": f"{type(error).__name__}: {error}"[:1500]}
    registers, spilled = _registers(compiled.asm["cubin"])
    return told | {"shared": compiled.metadata.shared, "registers": registers, "spilled": spilled}


def main() -> None:
    """Compile each kernel of the calls once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("device", choices=list(DEVICES))
    parser.add_argument("calls", nargs="*", choices=[[], *CALLS], metavar="CALL")
    parser.add_argument("--products", action="store_true", help="only kernels that multiply matrices")
    options = parser.parse_args()
    use(DEVICES[options.device])
    found: dict[str, tuple[str, Any]] = {}
    for call in options.calls or CALLS:
        for launch in launches(**CALLS[call]):
            _, specialised, how = launch.kernel.device_caches[0][-1](**launch.arguments)
            if "PRECISION" in launch.arguments or not options.products:
                kernel = launch.kernel.__module__, launch.kernel.__name__
                found.setdefault(str((kernel, specialised, how)), (call, launch))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for told in pool.map(_compiled, *zip(*found.values(), strict=True)):
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
