"""What the benchmark's clock and memory count on a CUDA device."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from kernel.benchmark import measure
from kernel.benchmark.nvml import Meter
from kernel.benchmark.phases import IDLE, calls_of, phase_times
from kernel.benchmark.profiled import record
from kernel.benchmark.sustained import Durations, figures, sustain

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SLEEP_MS = 5.0


def _run(matrix, *, wait: bool) -> None:
    total = matrix.sum()
    if wait:
        total.item()
    time.sleep(SLEEP_MS / 1e3)
    matrix.sum()


@pytest.mark.alone
@pytest.mark.parametrize(("queued", "wait"), [(True, False), (True, True), (False, False)])
def test_queued_work_hides_the_host_but_not_what_the_device_idles(queued, wait):
    device, matrix = torch.device("cuda"), torch.ones(4096, 4096, device="cuda")
    before = measure.ahead(partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix)), device)
    _run(matrix, wait=wait)
    found = measure.turn(partial(_run, matrix, wait=wait), device, before=before if queued else None)
    assert found.host_ms >= SLEEP_MS + (measure.AHEAD_MS / 2 if wait else 0)
    assert (found.product_ms is not None) == queued
    assert found.product_ms is None or 0 < found.product_ms < measure.AHEAD_MS
    assert (found.ms >= SLEEP_MS) == (wait or not queued), "after a wait the device idles while the host sleeps"


def test_memory_is_that_of_the_tensors():
    size = 3 * 2**20 + 4  # the allocator gives it a block of another size
    assert measure.peak_bytes(lambda: torch.empty(size, dtype=torch.uint8, device="cuda"), torch.device("cuda")) == size


def test_a_profile_has_the_kernels_of_each_call_and_nothing_that_was_queued_before():
    """Their time is that of the device's clock without the profiler."""
    device, matrix = torch.device("cuda"), torch.ones(8192, 8192, device="cuda")
    before = measure.ahead(partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix)), device)
    calls = calls_of(record(matrix.clone, before, 3))
    assert [len(call) for call in calls] == [3] * 3, "two marks around one copy"
    found = phase_times(calls)
    assert set(found) == {"PyTorch's own", IDLE}
    ms = min(measure.turn(matrix.clone, device, before=before).ms for _ in range(5))
    assert found["PyTorch's own"].ms == pytest.approx(ms, rel=0.2)


@pytest.mark.alone
def test_power_is_that_of_the_device_at_work():
    """The sensor and the energy counter, which know nothing of each other, agree; a device without work takes less."""
    meter, matrix = Meter(), torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    time.sleep(0.5)
    idle = meter.read()
    product = partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))
    found = figures([sustain(product, torch.device("cuda"), meter, Durations(1.0, 0.3, 0.1, 3))])
    assert found.seconds == pytest.approx(1.0, rel=0.3)
    assert found.watts > 2 * idle.watts
    assert found.counter_watts is None or found.counter_watts == pytest.approx(found.watts, rel=0.15)
    assert meter.limit_watts is None or found.watts < 1.1 * meter.limit_watts
    assert found.ms_alone < 1.1 * found.ms
