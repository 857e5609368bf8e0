"""Sums that the copy engine adds to memory: with an emulation of it, since Triton's interpreter has none."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from chunks import exact_of_kept, float16_errors
from helpers import free_launches, ours, problem, value_and_gradients

from kernel.fused import launch

pytest.importorskip("triton")
calls, chunk_times, run_products = (
    importlib.import_module(f"kernel.fused.{name}") for name in ("call", "chunk_times", "run_products")
)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the devices of other tests have a copy engine")
ROWS = 16  # tokens of a chunk


def reducing(monkeypatch, reduce):
    """Let the interpreter's tables add both gradients by the copy engine, or in registers."""
    table = launch._TABLES["interpreter", 2]
    told = {name: replace(getattr(table, name), reduce=reduce) for name in ("weight_gradient", "input_gradient")}
    monkeypatch.setitem(launch._TABLES, ("interpreter", 2), replace(table, **told))
    launch._fitting.cache_clear()


@pytest.fixture
def launches(monkeypatch):
    """Cuts tokens into chunks, lets the interpreter's tables add as Hopper's do, and notes what each kernel is told."""
    from triton.runtime import interpreter

    def create_descriptor_reduce(self, kind, descriptor, value, indices):
        assert "ADD" in str(kind).upper()
        addresses, mask = descriptor.materialize_pointers(indices)
        before = self.create_masked_load(addresses, mask, None, None, None, False)
        assert before.data.dtype == value.data.dtype
        total = interpreter.TensorHandle(np.add(before.data, value.data), value.dtype)
        self.create_masked_store(addresses, total, mask, None, None)

    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_descriptor_reduce", create_descriptor_reduce, raising=False)
    reducing(monkeypatch, True)
    monkeypatch.setattr(calls.LossCall, "serves_chunks", lambda *_: True)
    monkeypatch.setattr(calls.LossCall, "chunks", lambda _: chunk_times.Chunks(ROWS))
    noted, run_kernel = [], run_products.run_kernel

    def noting(kernel, grid, **arguments):
        noted.append((kernel.fn.__name__, arguments))
        run_kernel(kernel, grid, **arguments)

    monkeypatch.setattr(run_products, "run_kernel", noting)
    with free_launches():
        yield noted
    launch._fitting.cache_clear()


def of_weight(noted):
    """Whether the copy engine adds, launch by launch of the weight's gradient, and whether sums are rounded in it."""
    return [(told["REDUCE"], bool(told["last"])) for name, told in noted if name == "weight_gradient_kernel"]


@pytest.mark.parametrize("workspace_bytes", [0, 9000])
@pytest.mark.parametrize(
    ("shape", "kinds", "options"),  # of 16 and 40 columns tiles of both gradients are transposed
    [
        ((96, 130, 40), {"bias": True, "ignored": 0.6}, {"label_smoothing": 0.1}),
        ((80, 200, 24), {"weighted": True, "ignored": 0.3}, {"softcap": 3.0}),
        ((49, 37, 16), {}, {"label_smoothing": 0.1, "confidence_penalty": 0.3}),
    ],
    ids=["smoothed", "capped", "penalised"],
)
def test_sums_of_the_copy_engine_are_as_near_to_float64(shape, kinds, options, workspace_bytes, launches):
    args = problem(*shape, seed=1, **kinds)
    exact = exact_of_kept(args, **options)
    errors, got = float16_errors(args, exact, workspace_bytes=workspace_bytes, **options)
    assert max(errors) < 8e-4
    adds = of_weight(launches)
    assert any(reduce for reduce, _ in adds)
    again = value_and_gradients(ours, args.to(torch.float16), workspace_bytes=workspace_bytes, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, again[:3], strict=True))


@pytest.mark.parametrize("shape", [(96, 130, 40), (80, 200, 24)], ids=["transposed", "wide"])
def test_the_copy_engine_adds_what_registers_add(shape, launches, monkeypatch):
    args = problem(*shape, seed=1, bias=True, ignored=0.3).to(torch.float16)
    options = {"label_smoothing": 0.1, "workspace_bytes": 9000}
    found = []
    for reduce in (True, False):
        reducing(monkeypatch, reduce)
        launches.clear()
        found.append(value_and_gradients(ours, args, **options))
        assert any(by_engine for by_engine, _ in of_weight(launches)) == reduce
    (*added, weight), (*summed, weight_summed) = ([*of[:2], *of[3:], of[2]] for of in found)
    assert all(torch.equal(a, b) for a, b in zip(added, summed, strict=True)), "float32 in the same order"
    apart, weight_summed = (weight.float() - weight_summed.float()).abs(), weight_summed.float().abs()
    assert (apart <= 2**-9 * weight_summed.amax(0)).all()  # parts of float16 are rounded before they are added
    assert 0 < apart.norm() < 5e-4 * weight_summed.norm()


def test_all_chunks_but_the_first_and_the_last_are_added_by_the_copy_engine(launches):
    args = problem(80, 40, 16, seed=1).to(torch.float16)
    value_and_gradients(ours, args, workspace_bytes=10**6)
    adds = of_weight(launches)
    assert adds == [(False, False), *[(True, False)] * 3, (False, True)]
    assert all(told["REDUCE"] for name, told in launches if name == "input_gradient_kernel")


def test_hopper_adds_both_gradients_so():
    table = launch._TABLES["hopper", 2]
    assert table.weight_gradient.reduce
    assert table.input_gradient.reduce
    assert not launch._TABLES["hopper", 4].weight_gradient.reduce
