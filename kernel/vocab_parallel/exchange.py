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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Sum", "gather", "summed"]

_TEXT = "of process_group failed while it computed; its error says why."


def gather(
    compute: Callable[[], Tensor],
    shape: tuple[int, ...],
    group: dist.ProcessGroup,
    like: Tensor,
    confirmed: Callable[[], bool] | None = None,
) -> Tensor:
    """Gather the numbers of every process.

    Args:
        compute: Returns this process's numbers of ``shape``, or raises an error.
        shape: The same in every process.
        group: Process group.
        like: Its dtype and device are those of the numbers.
        confirmed: Called once they are computed and before they are exchanged: false if they have to be computed once
            more. An error of it, which has to be raised in every process, ends all of this.

    Returns:
        Numbers ``(processes, *shape)``.

    Raises:
        Exception: What ``compute`` raised here.
        RuntimeError: Another process failed.
    """
    sent = like.new_zeros(torch.Size(shape).numel() + 1)
    every = sent.new_empty(dist.get_world_size(group), len(sent))
    failed = _fill(sent, compute, shape)
    if confirmed is not None and not confirmed():
        sent.zero_()
        failed = _fill(sent, compute, shape)
    dist.all_gather_into_tensor(every.view(-1), sent, group=group)
    _raise(failed, every[:, -1])
    return every[:, :-1].reshape(len(every), *shape)


def summed(compute: Callable[[], Tensor], shape: tuple[int, ...], group: dist.ProcessGroup, like: Tensor) -> Tensor:
    """Sum the numbers of all processes, ``shape``; otherwise as :func:`gather`."""
    total = Sum(shape, group, like)
    total.guard(lambda: total.values.copy_(compute()))
    return total.end()


class Sum:
    """A sum of the numbers of all processes, which goes on beside other work once it has begun.

    Args:
        shape: The same in every process.
        group: Process group.
        like: Its dtype and device are those of the numbers.
    """

    def __init__(self, shape: tuple[int, ...], group: dist.ProcessGroup, like: Tensor) -> None:
        self._total = like.new_empty(torch.Size(shape).numel() + 1)
        self._total[-1] = 0
        self.values = self._total[:-1].view(shape)  # this process's, until it begins
        self._group, self._failed = group, None
        self._work: Any = None

    def begin(self) -> None:
        """Exchange the values, which are complete."""
        self._work = dist.all_reduce(self._total, group=self._group, async_op=True)

    def guard(self, compute: Callable[[], object]) -> None:
        """Do what fills ``values`` and may begin; what it raises is told to the others and raised by :meth:`end`."""
        try:
            compute()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            self._failed = error
            if self._work is None:
                self._total[:-1] = 0
                self._total[-1] = 1

    def end(self) -> Tensor:
        """Return the sum, ``shape``; on a GPU what follows waits for it, not the host.

        Raises:
            Exception: What happened here.
            RuntimeError: Another process failed.
        """
        if self._work is None:
            self.begin()
        work: Any = self._work
        work.wait()
        _raise(self._failed, self._total[-1:])
        return self.values


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
