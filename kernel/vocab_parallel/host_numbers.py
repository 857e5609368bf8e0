"""A few numbers of each process's host, told to the other hosts, whatever work the devices still have before them.

Where the group has a backend for CPUs they go from host to host. A group of NCCL alone sends them through the device,
on a stream of its own: they wait for no work but that of the collectives which the group was given before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["HostNumbers", "all_gather", "served"]

_streams: dict[int, torch.cuda.Stream] = {}


def served(group: Any) -> list[str]:
    """Types of the devices that the group's backends serve, the same in every process."""
    return [part.partition(":")[0] for part in dist.get_backend_config(group).split(",")]


class HostNumbers:
    """Numbers of every process, on their way to this one's host.

    Args:
        numbers: This process's, as many as in every other: int64.
        group: Process group.
    """

    def __init__(self, numbers: Sequence[int], group: Any) -> None:
        self._arrived: torch.cuda.Event | None = None
        mine, types = torch.tensor(numbers, dtype=torch.int64), served(group)
        if "cpu" in types or types[0] != "cuda":
            self._every = _gathered(mine.to("cpu" if "cpu" in types else types[0]), group)
            return
        with torch.cuda.stream(_stream()):
            # From pinned memory and to it: any other copy would let the host wait.
            every = _gathered(mine.pin_memory().to("cuda", non_blocking=True), group)
            self._every = torch.empty(every.shape, dtype=every.dtype, pin_memory=True)
            self._every.copy_(every, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[list[int]]:
        """Return the numbers of each process, in the order of the group, once they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._every.tolist()


def _gathered(mine: Tensor, group: Any) -> Tensor:
    every = mine.new_empty(dist.get_world_size(group), len(mine))
    all_gather(every, mine, group)
    return every


def all_gather(every: Tensor, mine: Tensor, group: Any = None) -> None:
    """Gather flat tensors of all processes into ``every``, contiguous, by the name that torch has for it."""
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # older torch has the latter
    gather(every.view(-1), mine, group=group)


def _stream() -> torch.cuda.Stream:
    """The current device's stream for them; of high priority, so that a busy device takes them in between."""
    device = torch.cuda.current_device()
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device, priority=-1)
    return _streams[device]
