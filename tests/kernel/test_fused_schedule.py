"""How the backward cuts the vocabulary: laws that every plan keeps, whatever the shape and the budget; the tuner's tables."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.fused import launch
from kernel.fused.launch import Launch, LaunchTable, launch_table, processors, set_launch_table, uses_descriptors
from kernel.fused.schedule import schedule
from kernel.fused.strip_times import StripTimes

pytest.importorskip("triton")
HOPPER = launch._TABLES["hopper", 2]
SMALL = launch._TABLES["interpreter", 4]


def plan(n, v, d, workspace_bytes, table=HOPPER, **options):
    defaults = {"keep": True, "direct": True, "keep_in_gradient": True, "weight_gradient": True}
    count = 132 if table is HOPPER else 3
    return schedule(n, v, d, 2, workspace_bytes, processors=count, table=table, **(defaults | options))


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 3000),
    v=st.integers(1, 3000),
    d=st.integers(1, 300),
    workspace_bytes=st.sampled_from([0, 10_000, 300_000, 2**24]),
    keep=st.booleans(),
    direct=st.booleans(),
    weight_gradient=st.booleans(),
)
def test_plans_cover_the_vocabulary_and_overwrite_nothing_in_use(
    n, v, d, workspace_bytes, keep, direct, weight_gradient
):
    options = {"keep": keep, "direct": direct}
    options |= {"keep_in_gradient": weight_gradient, "weight_gradient": weight_gradient}
    found = plan(n, v, d, workspace_bytes, table=SMALL, **options)
    tile = SMALL.logit_gradient.columns
    covered = sorted((s.start, s.start + s.columns) for s in found.strips)
    if direct and found.kept:
        covered.append((found.boundary, v))
    assert covered[0][0] == 0
    assert covered[-1][1] == v
    assert all(a[1] == b[0] for a, b in pairwise(covered))
    assert found.boundary + found.kept == -(-v // tile) * tile
    held = n * found.kept if found.in_gradient else 0  # at the beginning of the gradient's memory
    written = [(found.boundary * d, v * d)] if direct and found.kept else []
    if found.scaled_offset is not None:
        assert held <= found.scaled_offset
        assert found.scaled_offset + n * d <= found.boundary * d
    if found.in_gradient:
        assert held <= found.boundary * d, "the rows of the kept columns would overwrite them"
    for s in found.strips:
        assert s.padded % tile == 0
        assert s.columns <= s.padded
        assert s.kept == (s.start >= found.boundary and not direct and found.kept > 0)
        rows = (s.start * d, (s.start + s.columns) * d)
        if s.offset is None:
            assert n * s.padded <= found.workspace
        else:
            dz = (s.offset, s.offset + n * s.padded)
            assert weight_gradient
            assert 0 <= dz[0] <= dz[1] <= v * d
            assert dz[0] % 64 == 0
            for a, b in [*written, rows]:
                assert dz[1] <= a or b <= dz[0], "dz lies on rows of the gradient that are written"
            if s.kept and found.in_gradient:
                assert held <= dz[0], "dz lies on kept columns that are still to be read"
        run = [other for other in found.strips if other.run_start == s.run_start]
        assert [other.start for other in run] == [s.run_start + i * s.padded for i in range(len(run))]
        assert s.run_columns == len(run) * s.padded
        assert len(run) == 1 or all(o.columns == o.padded == s.padded and o.offset == s.offset for o in run)
        assert len(run) == 1 or not s.kept
        written.append(rows)
    assert 2 * found.memory <= max(workspace_bytes, 2 * n * tile)


@pytest.mark.parametrize(("n", "v", "d"), [(1, 7000, 64), (333, 50257, 768), (8192, 256000, 2304)])
@pytest.mark.parametrize("direct", [True, False])
def test_widths_are_the_fastest_within_every_limit(n, v, d, direct):
    times = StripTimes(n, v, d, HOPPER, 132, direct=direct, weight_gradient=True)
    widths = range(256, 16384 + 1, 256)
    for limit in (20000, *reversed(widths), 1000, 1, 0):  # whatever was asked before
        allowed = [w for w in widths if w <= min(limit, -(-v // 256) * 256)] or [256]
        for kept in (False, True):
            fastest = min(allowed, key=lambda w: (times.microseconds(w, kept) / w, -w))
            assert times.width(limit, kept) == fastest


def test_budgets_of_a_large_head():
    n, v, d = 8192, 256000, 2304
    small, default, large = (plan(n, v, d, size) for size in (2**25, 2**27, 2 * n * (v + 20000)))
    assert small.in_gradient
    assert 0.15 * v < small.kept < 0.25 * v, "about D / (N + D)"
    assert default.memory * 2 <= 2**27
    assert large.kept == v
    assert large.strips == ()


def test_frozen_weight_has_no_gradient_memory():
    found = plan(512, 3000, 64, 2**20, weight_gradient=False, keep_in_gradient=False)
    assert not found.in_gradient
    assert all(s.offset is None for s in found.strips)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.zeros(8, 16), True),
        (lambda: torch.zeros(8, 6), False),  # 24-byte rows
        (lambda: torch.zeros(16, 8).T, False),
        (lambda: torch.zeros(8, 32)[:, :16], True),
        (lambda: torch.zeros(129)[1:].view(8, 16), False),  # 4 bytes off
        (lambda: torch.zeros(1, 16).expand(8, 16), False),  # stride 0
    ],
)
def test_what_tensor_descriptors_can_take(make, expected):
    assert uses_descriptors(make()) is expected


def test_tables_can_be_replaced_and_restored():
    cpu = torch.device("cpu")
    original = launch_table(cpu, torch.float32)
    other = LaunchTable(*[Launch(16, 16, 16, warps=4, stages=1)] * 4)
    set_launch_table(cpu, torch.float32, other)
    try:
        assert launch_table(cpu, torch.float32) is other
        assert launch_table(cpu, torch.float16) is not other
    finally:
        set_launch_table(cpu, torch.float32, None)
    assert launch_table(cpu, torch.float32) is original
    assert processors(cpu) == 3


def test_tuner(tmp_path):
    from kernel.fused import tuner

    cpu = torch.device("cpu")
    candidates = [Launch(32, 32, 16, warps=4, stages=1), Launch(7, 32, 16, warps=4, stages=1)]  # the second cannot run
    try:
        best = tuner.tune(20, 40, 16, dtype=torch.float32, device=cpu, repeats=1, candidates=candidates)
        assert launch_table(cpu, torch.float32) == best
        tuner.save(best, tmp_path / "table.json")
        set_launch_table(cpu, torch.float32, None)
        assert tuner.load(tmp_path / "table.json", cpu, torch.float32) == best
        assert all(getattr(best, name).rows != 7 for name in ("forward", "weight_gradient", "input_gradient"))
    finally:
        set_launch_table(cpu, torch.float32, None)
