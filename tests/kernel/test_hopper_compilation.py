"""The forward kernel compiles for Hopper: told without a GPU, as the interpreter accepts what the compiler does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
# Sweeps of bfloat16: what is kept, with a softcap, entropy and most likely class, sums of tiles, by the copy engine.
SWEEPS = [
    ("", False, False, False, True),
    ("", True, False, False, True),
    ("", False, False, True, True),
    ("", True, True, False, True),
    ("", False, True, False, False),
    ("softmax", False, False, False, True),
    ("softmax", False, True, False, True),
    ("byte", False, False, False, True),
    ("byte", False, True, False, True),
    ("code", False, False, False, True),
    ("code", True, False, False, True),
    ("code", True, True, False, True),
]
SCRIPT = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernel.fused.forward import forward_kernel
from kernel.fused.launch import _TABLES

launch = _TABLES["hopper", 2].forward
for keep, softcap, statistics, sums, descriptor in {sweeps!r}:
    stored = 1 if keep == "byte" else launch.parts
    constants = dict(
        HAS_BIAS=False, SOFTCAP=softcap, LOGIT_SUM=True, MASK_VOCAB=True, ENTROPY=statistics, ARGMAX=statistics,
        KEEP=keep, TILE_SUMS=sums, RUN_IF="always", BLOCK_ROWS=launch.rows, BLOCK_VOCAB=launch.columns,
        BLOCK_HIDDEN=launch.depth, PARTS=launch.parts, PIECES=launch.parts if keep == "code" and softcap else 1,
        PEAKS=4 if keep == "byte" else 1, DESCRIPTOR=descriptor, GATHER=False, FLATTEN=launch.flatten,
        PRECISION="ieee", PRECISE=False, WIDTH=64, bias=None,
    )
    kept = {{"softmax": "bf16", "byte": "u8", "code": "i16"}}.get(keep)
    tiles = dict(
        hidden=("bf16", launch.rows, launch.depth), weight=("bf16", launch.columns, launch.depth),
        kept=(kept, launch.rows, launch.columns // stored),
    )
    types = {{
        name: f"tensordesc<{{kind}}[{{rows}},{{columns}}]>" if descriptor else f"*{{kind}}"
        for name, (kind, rows, columns) in tiles.items()
    }}
    types |= dict(count="*i32", source="*i32", target="*i64", partial="*fp32", reference="*fp32", tile_sums="*i64")
    types |= dict.fromkeys(("product_gain", "bias_gain", "cap", "knee", "ratio", "offset", "gain"), "fp32")
    absent = [] if keep else ["kept", "reference"]
    absent += [] if keep in ("softmax", "byte") else ["target"]
    constants |= dict.fromkeys(absent + ([] if sums else ["tile_sums"]))
    names = forward_kernel.arg_names
    signature = {{name: "constexpr" if name in constants else types.get(name, "i32") for name in names}}
    aligned = {{(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}}
    fixed = {{(i,): constants[name] for i, name in enumerate(names) if name in constants}}
    source = ASTSource(forward_kernel, signature, fixed, aligned)
    compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=launch.warps, num_stages=launch.stages))
    print(keep, softcap, statistics, sums, descriptor)
"""


def test_sweeps_compile(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT.format(sweeps=SWEEPS)],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert run.stdout.splitlines() == [" ".join(map(str, sweep)) for sweep in SWEEPS], run.stderr[-2000:]
