"""A few numbers of each process's host, told to the other hosts, whatever work the devices still have before them.

Where the group has a backend for CPUs they go from host to host. A group of NCCL alone sends them through the device
of the call's tensors, on a stream of its own: they wait for no work but that of the collectives which the group was
given before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["HostNumbers", "all_gather", "place", "served"]

_streams: dict[int, torch.cuda.Stream] = {}


def served(group: Any) -> list[str]:
    """Types of the devices that the group's backends serve, the same in every process."""
    return [part.partition(":")[0] for part in dist.get_backend_config(group).split(",")]


def place(group: Any, *tensors: object) -> torch.device:
    """Choose the device through which the hosts of a group tell each other numbers.

    Args:
        group: Process group.
        *tensors: Those of the call, or what is wrong in their place. Not the current device but that of the first of
            them which the group serves: the current one is the same in every process that has set none.
    """
    types = served(group)
    if "cpu" in types:
        return torch.device("cpu")
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.device.type == types[0]:
            return tensor.device
    bound = getattr(group, "bound_device_id", None)
    return torch.device(types[0]) if bound is None else bound


class HostNumbers:
    """Numbers of every process, on their way to this one's host.

    Args:
        numbers: This process's, as many as in every other: int64.
        group: Process group.
        device: Of :func:`place`.
    """

    def __init__(self, numbers: Sequence[int], group: Any, device: torch.device) -> None:
        self._arrived: torch.cuda.Event | None = None
        mine = torch.tensor(numbers, dtype=torch.int64)
        if device.type != "cuda":
            self._every = _gathered(mine.to(device), group)
            return
        with torch.cuda.stream(_stream(device)):  # which makes its device the current one
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


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The device's stream for them; of high priority, so that a busy device takes them in between."""
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _streams:
        _streams[index] = torch.cuda.Stream(index, priority=-1)
    return _streams[index]
