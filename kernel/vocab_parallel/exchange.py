"""Exchanges between the processes of a group that say which of them failed, so that none waits for one that did.

A process in which anything raised, its memory exhausted for instance, sends zeros and a mark, and raises its error
afterwards. The others raise a RuntimeError; off the CPU they fail a device-side assertion, so that the host does not
wait, after which CUDA takes no more work in that process. What is sent and received is allocated first, so that a
process whose memory ends while it computes can still tell. What no process can tell of itself, its end, a broken device
or no memory for the exchange, is left to the backend's timeout and to torchrun.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather", "summed"]

_TEXT = "of process_group failed while it computed; its error says why."


def gather(compute: Callable[[], Tensor], shape: tuple[int, ...], group: dist.ProcessGroup, like: Tensor) -> Tensor:
    """Gather the numbers of every process.

    Args:
        compute: Returns this process's numbers of ``shape``, or raises an error.
        shape: The same in every process.
        group: Process group.
        like: Its dtype and device are those of the numbers.

    Returns:
        Numbers ``(processes, *shape)``.

    Raises:
        Exception: What ``compute`` raised here.
        RuntimeError: Another process failed.
    """
    sent = like.new_zeros(torch.Size(shape).numel() + 1)
    every = sent.new_empty(dist.get_world_size(group), len(sent))
    failed = _fill(sent, compute, shape)
    dist.all_gather(list(every.unbind()), sent, group=group)
    _raise(failed, every[:, -1])
    return every[:, :-1].reshape(len(every), *shape)


def summed(compute: Callable[[], Tensor], shape: tuple[int, ...], group: dist.ProcessGroup, like: Tensor) -> Tensor:
    """Sum the numbers of all processes, ``shape``; otherwise as :func:`gather`."""
    total = like.new_zeros(torch.Size(shape).numel() + 1)
    failed = _fill(total, compute, shape)
    dist.all_reduce(total, group=group)
    _raise(failed, total[-1:])
    return total[:-1].view(shape)


def _fill(sent: Tensor, compute: Callable[[], Tensor], shape: tuple[int, ...]) -> Exception | None:
    """Write what ``compute`` returns, or a mark; return what it raises, without the memory that its variables held."""
    try:
        sent[:-1].view(shape).copy_(compute())
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        sent[:-1] = 0
        sent[-1] = 1
        return error
    return None


def _raise(failed: Exception | None, marks: Tensor) -> None:
    if failed is not None:
        raise failed
    if marks.device.type != "cpu":
        torch.ops.aten._assert_async.msg((marks == 0).all(), f"another process {_TEXT}")
    elif marks.any():
        which = f"process {int(marks.argmax())}" if marks.numel() > 1 else "another process"
        raise RuntimeError(f"{which} {_TEXT}")
