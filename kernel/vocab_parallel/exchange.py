"""Exchanges between the processes of a group that say which of them failed, so that none waits for one that did.

A process in which anything raised, its memory exhausted for instance, sends zeros and a mark, and raises its error
afterwards. The others raise a RuntimeError; off the CPU they fail a device-side assertion, so that the host does not
wait. What no process can tell of itself, its end or a broken device, is left to the backend's timeout and to torchrun.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["attempt", "gather", "summed"]

_TEXT = "of process_group failed while it computed; its error says why."


def attempt(compute: Callable[[], Tensor]) -> tuple[Tensor | None, Exception | None]:
    """Return what ``compute`` returns, or what it raises, without the memory that its variables held."""
    try:
        return compute(), None
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        return None, error


def gather(
    mine: Tensor | None, shape: tuple[int, ...], failed: Exception | None, group: dist.ProcessGroup, like: Tensor
) -> Tensor:
    """Gather the numbers of every process.

    Args:
        mine: This process's numbers of ``shape``; None if it failed.
        shape: The same in every process.
        failed: What this process failed with.
        group: Process group.
        like: Its dtype and device are those of the numbers.

    Returns:
        Numbers ``(processes, *shape)``.

    Raises:
        Exception: ``failed`` itself.
        RuntimeError: Another process failed.
    """
    sent = _marked(mine, shape, failed, like)
    every = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, sent, group=group)
    received = torch.stack(every)
    _raise(failed, received[:, -1])
    return received[:, :-1].view(-1, *shape)


def summed(
    mine: Tensor | None, shape: tuple[int, ...], failed: Exception | None, group: dist.ProcessGroup, like: Tensor
) -> Tensor:
    """Sum the numbers of all processes, ``shape``; otherwise as :func:`gather`."""
    total = _marked(mine, shape, failed, like)
    dist.all_reduce(total, group=group)
    _raise(failed, total[-1:])
    return total[:-1].view(shape)


def _marked(mine: Tensor | None, shape: tuple[int, ...], failed: Exception | None, like: Tensor) -> Tensor:
    """The numbers, flat, and behind them whether this process failed."""
    sent = like.new_zeros(torch.Size(shape).numel() + 1)
    if mine is not None:
        sent[:-1].view(shape).copy_(mine)
    if failed is not None:
        sent[-1] = 1
    return sent


def _raise(failed: Exception | None, marks: Tensor) -> None:
    if failed is not None:
        raise failed
    if marks.device.type != "cpu":
        torch.ops.aten._assert_async.msg((marks == 0).all(), f"another process {_TEXT}")
    elif marks.any():
        which = f"process {int(marks.argmax())}" if marks.numel() > 1 else "another process"
        raise RuntimeError(f"{which} {_TEXT}")
