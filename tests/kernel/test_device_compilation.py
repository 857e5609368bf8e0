"""The kernels compile for GPUs: told without one, as the interpreter accepts what the compiler does not."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys

import pytest
from compiled import DEVICES, ROOT

pytest.importorskip("triton")
SPARSE = "within a tolerance"
# Each brings kinds of kernels that those before it have not.
HOPPER = ["smoothed", "transposed", "capped", SPARSE, "with statistics", "everything", "head statistics"]
FAST = ["smoothed", "transposed", "capped", SPARSE]  # no registers to spare, nor needed
FEW = 32  # bytes beyond the registers of a thread, as another version of the assembler may come to


def compiled(folder, *arguments):
    """What tests/compiled.py prints, in a process without the interpreter and with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests" / "compiled.py"), *arguments],
        env=environment | {"TRITON_CACHE_DIR": str(folder)}, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    print(run.stderr[-4000:])  # where the compiler says why
    assert run.returncode == 0
    return [json.loads(line) for line in run.stdout.splitlines()]


def check(device, found):
    """All compile, and fit the shared memory."""
    assert [kernel for kernel in found if "error" in kernel] == []
    assert [kernel for kernel in found if kernel["shared"] > DEVICES[device].shared_memory] == []


def all_kernels():
    """Those that are launched by losses and by head_statistics."""
    for folder in ("kernel.fused", "kernel.statistics"):
        for module in pkgutil.iter_modules(importlib.import_module(folder).__path__, f"{folder}."):
            for name, thing in vars(importlib.import_module(module.name)).items():
                if name.endswith("_kernel") and hasattr(thing, "fn") and thing.fn.__module__ == module.name:
                    yield f"{module.name}.{name}"


def test_every_kernel_compiles_for_hopper_and_products_stay_in_registers(tmp_path):
    found = compiled(tmp_path, "hopper", *HOPPER)
    check("hopper", found)
    assert {kernel["kernel"] for kernel in found} == set(all_kernels())
    products = [kernel for kernel in found if kernel["call"] in FAST and "PRECISION" in kernel["kinds"]]
    assert len({kernel["kernel"] for kernel in products}) == 9
    assert [kernel for kernel in products if kernel["spilled"] > FEW] == []
    kept = [kernel for kernel in found if kernel["kernel"].endswith("kept_strip_kernel")]
    assert {kernel["kinds"]["SOFTCAP"] for kernel in kept} >= {True}
    assert [kernel for kernel in kept if kernel["spilled"] > FEW] == []


def test_products_compile_for_ampere(tmp_path):
    found = compiled(tmp_path, "ampere", "smoothed", SPARSE, "--products")
    check("ampere", found)
    assert not any(kernel["kinds"]["DESCRIPTOR"] for kernel in found)
