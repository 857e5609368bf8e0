"""What stands in for NVIDIA's library where there is no GPU, in a test's process and in one that it starts."""

from __future__ import annotations

from kernel.benchmark.nvml import POWER_CAP, Sample

WATTS, STEP_S, LOOK_S = 700.0, 0.1, 0.02


class FakeMeter:
    """A device that takes 700 W at its limit; a look lasts 20 ms by its own clock, the counter goes on every 100."""

    limit_watts, most_mhz = WATTS, 1980

    def __init__(self) -> None:
        self.looks = 0

    def read(self) -> Sample:
        self.looks += 1
        seconds = self.looks * LOOK_S
        return Sample(seconds, WATTS, 1400.0, POWER_CAP, WATTS * STEP_S * int(seconds / STEP_S + 1e-9))
