"""Random calls of the fused kernels: few and small ones in the interpreter, 2,000 on a device, which must not compile."""

from __future__ import annotations

from contextlib import nullcontext

import fuzz
import pytest
import torch
from on_device import compiled_kernels

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("kept_in_strips")


CALLS = 160  # in each of the 13 families
CALLS_FORCED = 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device has its own test")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of what keep.py repairs
@pytest.mark.parametrize("index", range(len(fuzz.FAMILIES)))
def test_small_calls_in_the_interpreter(index):
    family = fuzz.FAMILIES[index]
    if family.dtype == torch.bfloat16:  # which the interpreter multiplies wrongly
        family = fuzz.replace(family, dtype=torch.float16)
    draw = fuzz.Draw(family, seed=index, device="cpu", most=(24, 100, 32), tile=32)
    for trial in range(2):
        call = draw.call()
        found = fuzz.errors(call, family)
        assert max(found.values()) <= 1, (trial, found, call.said, call.options)


def many_calls(family, seed, calls, chunk_rows=None):
    """Check random calls on a device; return how many plans had columns in bytes."""
    long = chunk_rows is not None
    sizes = (1400, 3001, 192) if long else (700, 3001, 208)
    draw = fuzz.Draw(family, seed=seed, device="cuda", most=sizes, tile=256, long=long)
    wrong, most, kernels, in_bytes = [], 0.0, 0, 0
    for trial in range(calls):
        call = draw.call(first=(1, 2)[trial] if trial < 2 else 0)
        with fuzz.forced(chunk_rows, trial) if long else nullcontext([]) as plans:
            found = fuzz.errors(call, family)
        in_bytes += any(run.in_bytes for plan in plans for run in plan.kept)
        most = max(most, *found.values())
        if max(found.values()) > 1:
            wrong.append((trial, found, call.said, call.options))
        if trial == 1:
            kernels = compiled_kernels()
    print(f"{family}: {calls} calls, {kernels} kernels, {len(wrong)} wrong, largest error {most:.2f}")
    assert not wrong, wrong[:3]
    assert compiled_kernels() == kernels
    return in_bytes


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("index", range(len(fuzz.FAMILIES)))
def test_many_calls_share_compiled_kernels(index):
    many_calls(fuzz.FAMILIES[index], index, CALLS)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("index", range(len(fuzz.FORCED)))
def test_many_calls_in_bytes_and_in_chunks_of_tokens(index):
    in_bytes = many_calls(fuzz.FORCED[index], 50 + index, CALLS_FORCED, chunk_rows=128)
    assert in_bytes > CALLS_FORCED / 10
