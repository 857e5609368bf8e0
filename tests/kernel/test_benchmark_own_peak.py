"""The memory of ours is known from its plans alone, so that a workspace is chosen within that of each rival."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import Peak, free_launches

from kernel.benchmark import compare, measure, own_peak
from kernel.benchmark.prepare import Entry
from kernel.benchmark.problems import SHAPES, Data, Shape
from kernel.benchmark.rivals import Case, Rival, ours
from kernel.fused import launch
from kernel.fused.arguments import Head, Scalars
from kernel.fused.call import LossCall
from kernel.fused.compile_ahead import _record
from kernel.fused.schedule import schedule
from kernel.fused.token_chunks import Chunks
from kernel.options import LossOptions


@pytest.fixture
def on_hopper(monkeypatch):
    """Plans are those of an H200, of whatever device the tensors are."""
    for name in ("kernel.fused.call", "kernel.benchmark.own_peak"):
        monkeypatch.setattr(f"{name}.launch_table", lambda *sizes: launch._fitting("hopper", 2, *sizes[2:3] or (None,)))
        monkeypatch.setattr(f"{name}.processors", lambda device: 132)


@pytest.mark.usefixtures("on_hopper")
def test_ours_is_measured_below_the_memory_of_each_rival():
    n, v, d = 8192, 256000, 2304
    tensors = {
        "hidden": torch.empty(n, d, dtype=torch.bfloat16, device="meta"),
        "target": torch.empty(n, device="meta"),
    }
    large = Data(weight=torch.empty(v, d, dtype=torch.bfloat16, device="meta"), **tensors)
    names = {"triton, default": None, "triton, 1 GiB": 2**30, "triton, all kept": 2 * n * (v + 20000) * 2}
    own = {name: own_peak.Plans.of(own_peak.call_of(large, Case(), size)) for name, size in names.items()}
    call = own_peak.call_of(large, Case())
    peaks = {name: (plans.peak_bytes(call) + 2**20) / 2**20 for name, plans in own.items()}
    assert peaks["triton, default"] < 1310 < 2161 < peaks["triton, 1 GiB"] < 3411 < peaks["triton, all kept"] < 4205
    others = {"lean": 1223.5, "as default": 1305.0, "four": 1411.0, "sixteen": 2161.1, "again": 2161.5}
    others |= {"float32": 3411.0, "as all kept": 4210.0, "eager": 12000.0}
    entries = [Entry(Case(), name, columns={"peak_mib": f"{mib}"}) for name, mib in (peaks | others).items()]
    entries.append(Entry(Case(), "refuses", columns={"skipped": "it does"}))
    chosen = [Rival(name, lambda case: len, lambda *_: None, size) for name, size in names.items()]
    group = compare._Group(Shape("large", n, v, d), large, 1)
    found = list(group.between(Case(), entries, chosen))
    within = [1411.0, 2161.1, 3411.0]
    assert len(found) == len(within), [rival.name for rival in found]
    for rival, mib in zip(found, within, strict=True):
        size = rival.workspace_bytes
        assert rival.name == f"triton, {size >> 20} MiB"
        peak = own_peak.Plans.of(own_peak.call_of(large, Case(), size)).peak_bytes(call)
        assert 0.94 * mib < (peak + own_peak.APART_BYTES) / 2**20 <= mib
    assert list(group.between(Case(), entries[3:], chosen)) == [], "ours is not among them"


def on_meta(n, v, d, dtype=torch.bfloat16):
    tensors = [torch.empty(*size, dtype=dtype, device="meta") for size in ((n, d), (v, d), (n,))]
    return Data(*tensors)


@pytest.mark.usefixtures("on_hopper")
def test_no_larger_workspace_is_within_a_memory():
    data = on_meta(16384, 49152, 576)
    call = own_peak.call_of(data, Case())
    most = data.weight.numel() * 2 + 600 * 2**20

    def peak(size):
        trial = replace(call, workspace_bytes=size * 2**20)
        return own_peak.Plans.of(trial).peak_bytes(trial) + own_peak.APART_BYTES

    fitting = [size for size in range(1, 600) if peak(size) <= most]
    assert own_peak.largest_workspace(call, most)[0] == fitting[-1]
    assert own_peak.largest_workspace(call, data.weight.numel() * 2) is None


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize(("dtype", "option"), [(torch.float16, {}), (torch.bfloat16, {"z_loss": 1e-4})])
def test_peaks_of_codes_exceed_a_workspace_by_a_128th_of_the_gradient(dtype, option):
    for shape in SHAPES:
        data = on_meta(shape.n, shape.vocab_size, shape.hidden_size, dtype)
        head = Head(data.hidden, data.weight, None, data.target)
        for size in (2**23, 2**27, 2**29):
            call = LossCall(head, Scalars.of(LossOptions(**option)), size)
            plan = call.plan(keep=True, consumed=True, weight_gradient=True)
            peaks = 4 * shape.n * sum(call.references(run) for run in plan.kept)
            room = max(size, 2 * 256 * shape.n) + data.weight.numel() * 2 / 128 + 8 * shape.n
            assert plan.memory * 2 + peaks <= room, shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "backward_rows"), [(512, 512), (176, 512), (512, 176)], ids=["at once", "in chunks", "backward in chunks"]
)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 2.0])
def test_our_peak_is_what_plans_say(share, rows, backward_rows, dtype, monkeypatch):
    """Launches are noted down alone, at a size where what plans do not count is small."""
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.fused.schedule.LEAST_DEFAULT_BYTES", 0)
    monkeypatch.setattr("kernel.fused.call.token_chunks", lambda *_, **__: Chunks(rows))
    monkeypatch.setattr("kernel.fused.call.backward_rows", lambda *_, **__: backward_rows)
    n, v, d = 512, 20000, 128
    leaves = [torch.zeros(size, d, dtype=dtype).requires_grad_() for size in (n, v)]
    data, case = Data(*leaves, torch.zeros(n, dtype=torch.int64)), Case()
    size = int(share * n * v * dtype.itemsize)
    schedule.cache_clear()
    with free_launches():
        call = own_peak.call_of(data, case, size)
        plans = own_peak.Plans.of(call)
        with Peak() as measured:
            _record(lambda: measure.step(ours("here", size).make(case), data, case))
    schedule.cache_clear()
    assert len(plans.plans) == (1 if rows == backward_rows == n else 2)
    least = plans.peak_bytes(call)
    assert 0 <= measured.bytes - least < 0.02 * least
