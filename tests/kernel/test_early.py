"""Kernels that begin before the one ahead of them has ended: none of them needs what that one still writes, or reads."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from helpers import free_launches

from kernel import linear_cross_entropy
from kernel.fused.launch import launch_table, set_launch_table
from kernel.fused.schedule import schedule

pytest.importorskip("triton")
compile_ahead = importlib.import_module("kernel.fused.compile_ahead")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_early_cuda.py covers the device")
PRODUCTS = ("weight_gradient_kernel", "join_sums_kernel", "input_gradient_kernel")


@pytest.fixture
def early(monkeypatch):
    """The interpreter's table with early launches, which are recorded and not run; columns in bytes pay."""
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    table = launch_table(cpu, dtype)
    begins = {name: replace(getattr(table, name), early=True) for name in ("logit_gradient", "input_gradient")}
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.fused.schedule.LEAST_DEFAULT_BYTES", 0)
    set_launch_table(cpu, dtype, replace(table, **begins))
    with free_launches():
        yield
    set_launch_table(cpu, dtype, None)


def launches(n, v, d, workspace_bytes, needs=(True, True), bias=False, **options):
    """Name and arguments of every launch of a loss and its gradients."""
    leaves = (
        torch.zeros(rows, d, dtype=torch.bfloat16, requires_grad=r) for rows, r in zip((n, v), needs, strict=True)
    )
    target = torch.zeros(n, dtype=torch.int64)
    linear_bias = torch.zeros(v, dtype=torch.bfloat16, requires_grad=True) if bias else None

    def call():
        how = {"implementation": "triton", "workspace_bytes": workspace_bytes, "linear_bias": linear_bias}
        linear_cross_entropy(*leaves, target, **how, **options).backward()

    return [(kernel.__name__, arguments) for kernel, _, arguments in compile_ahead._record(call)]


def memory(matrix):
    """Where a matrix begins and ends, in bytes."""
    base, size = matrix.base, matrix.shape[0] * matrix.strides[0]
    return base.address, base.address + size * base.dtype.itemsize


def rows_written(arguments):
    """Where the rows of the head's gradient begin and end that a launch writes, in bytes."""
    gradient = arguments["gradient"]
    begin = memory(gradient)[0] if hasattr(gradient, "base") else gradient.address
    first = arguments["run_start"] + arguments["run_offset"] * arguments["strip_columns"]
    row = 2 * arguments["gradient_row_stride"]
    return begin + first * row, begin + min(first + arguments["strip_columns"], arguments["vocab_size"]) * row


def overlap(a, b):
    return a[0] < b[1] and b[0] < a[1]


CASES = {
    "dz in the gradient": ((60, 900, 64, 8_000), {}),
    "kept columns, too": ((200, 900, 64, 60_000), {}),
    "in bytes": ((200, 900, 64, 80_000), {}),
    "codes": ((200, 900, 64, 60_000), {"z_loss": 1e-3}),
    "sums that are cut": ((900, 200, 16, 0), {}),
    "a bias": ((200, 900, 64, 20_000), {"bias": True}),
    "a frozen input": ((200, 900, 64, 20_000), {"needs": (False, True)}),
    "a frozen head": ((200, 900, 64, 20_000), {"needs": (True, False)}),
}


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("case", list(CASES))
def test_early_kernels_touch_nothing_that_is_in_use(case):
    sizes, options = CASES[case]
    found = launches(*sizes, **options)
    independent = dict.fromkeys(("input_gradient_kernel", "recomputed_strip_kernel"), 0)
    for index, (name, arguments) in enumerate(found):
        assert ("launch_pdl" in arguments) == arguments.get("EARLY", False) == (name in independent)
        if not arguments.get("independent"):
            continue  # it is launched as usual, or waits before anything else
        independent[name] += 1
        ahead = index
        while found[ahead - 1][0] in PRODUCTS[:2]:
            ahead -= 1
        of_weight = [other for _, other in found[ahead:index]]
        reads = [arguments["weight"], arguments["dz" if name == "input_gradient_kernel" else "hidden"]]
        assert not any(overlap(memory(matrix), rows_written(other)) for matrix in reads for other in of_weight)
        if name == "input_gradient_kernel":  # of the same dz, which is complete: these are launched as usual
            assert of_weight
            assert memory(of_weight[0]["dz"]) == memory(arguments["dz"])
            assert found[ahead - 1][0] not in PRODUCTS
        else:  # the strip before is complete, or its products are under way
            assert found[index - 1][0] in (PRODUCTS if case != "a frozen head" else PRODUCTS[2:])
    assert case != "in bytes" or any(name == "decoded_strip_kernel" for name, _ in found)
    frozen = options.get("needs", (True, True))
    assert (independent["input_gradient_kernel"] > 0) == all(frozen)
    assert independent["recomputed_strip_kernel"] > 0


@pytest.mark.usefixtures("early", "worth_it_at_any_size")
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_of_listed_tiles_the_inputs_gradient_begins_beside_the_weights(needs):
    """Of the same dz, which is complete, as the weight's is launched as usual.

    Nothing runs here: that dz within the gradient begins behind the rows that are written meanwhile is tested by
    ``test_every_active_tile_is_listed_once``.
    """
    found = launches(200, 900, 64, 0, needs, gradient_tolerance=0.1)
    rounds = [index for index, (name, _) in enumerate(found) if name == "listed_gradient_kernel"]
    assert rounds
    for index in rounds:
        names = [name for name, _ in found[index + 1 : index + 3]]
        if needs[1]:
            name, weight = found[index + 1]
            assert name == "listed_weight_kernel"
            assert "launch_pdl" not in weight
            assert weight["NEXT_EARLY"] == needs[0]
        if needs[0]:
            kernel = dict(found[index + 1 : index + 3])["listed_input_kernel"]
            assert names[needs[1]] == "listed_input_kernel"
            assert kernel["EARLY"]
            assert kernel["launch_pdl"]
            assert bool(kernel["independent"]) == needs[1]
            assert not needs[1] or memory(kernel["dz"]) == memory(weight["dz"])
        else:
            assert "listed_input_kernel" not in dict(found)


def test_by_default_kernels_begin_early_on_hopper_alone():
    from kernel.fused.launch import _TABLES

    for (family, itemsize), table in _TABLES.items():
        early = {name for name in table.__dataclass_fields__ if getattr(table, name).early}
        assert early == ({"logit_gradient", "input_gradient"} if (family, itemsize) == ("hopper", 2) else set())
    schedule.cache_clear()
