"""Exchanges between the processes of a group that say which of them failed, so that none waits for one that did.

A process in which anything raised, its memory exhausted for instance, sends zeros and a mark, and raises its error
afterwards. The others raise a RuntimeError; off the CPU they fail a device-side assertion, so that the host does not
wait, after which CUDA takes no more work in that process. Digests of the tokens, where no host read them, go with the
numbers and are compared in the same way. What is sent and received is allocated first, so that a process whose memory
ends while it computes can still tell. What no process can tell of itself, its end, a broken device, no memory for the
exchange or an error while its numbers are on their way, is left to the backend's timeout and to torchrun.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .host_numbers import all_gather

if TYPE_CHECKING:
    from .agreement import Agreement

__all__ = ["Sum", "gather", "summed"]

_TEXT = "of process_group failed while it computed; its error says why."
_TOKENS = (
    "target and token_weight must be the same in every process of the group, each of which holds some rows of the "
    "head. Where processes have tokens of their own (FSDP), call the loss inside the forward of the head's unit."
)


def gather(
    compute: Callable[[], Tensor],
    shape: tuple[int, ...],
    agreement: Agreement[Any],
    like: Tensor,
    confirmed: Callable[[], bool] | None = None,
) -> Tensor:
    """Gather the numbers of every process.

    Args:
        compute: Returns this process's numbers of ``shape``, or raises an error.
        shape: The same in every process.
        agreement: Group, and digests of the tokens if they are to be compared now.
        like: Its dtype and device are those of the numbers.
        confirmed: Called once they are computed and before they are exchanged: false if they have to be computed once
            more. An error of it, which has to be raised in every process, ends all of this.

    Returns:
        Numbers ``(processes, *shape)``.

    Raises:
        Exception: What ``compute`` raised here.
        RuntimeError: Another process failed.
        ValueError: Another process has other tokens.
    """
    group, digests, size = agreement.group, agreement.digests, torch.Size(shape).numel()
    words = 0 if digests is None else digests.nbytes // like.element_size()
    sent = like.new_zeros(size + words + 1)  # numbers, digests, mark
    if digests is not None:
        sent[size:-1].view(torch.uint8).copy_(digests.view(torch.uint8))
    every = sent.new_empty(dist.get_world_size(group), len(sent))
    failed = _fill(sent, compute, shape)
    if confirmed is not None and not confirmed():
        sent[:size].zero_()
        sent[-1:].zero_()
        failed = _fill(sent, compute, shape)
    all_gather(every, sent, group)
    _raise(failed, every[:, -1])
    if digests is not None:
        told = every[:, size:-1].view(torch.uint8)
        same = (told == told[:1]).all()
        if same.device.type != "cpu":
            torch.ops.aten._assert_async.msg(same, _TOKENS)
        elif not same:
            raise ValueError(_TOKENS)
    return every[:, :size].reshape(len(every), *shape)


def summed(compute: Callable[[], Tensor], shape: tuple[int, ...], group: Any, like: Tensor) -> Tensor:
    """Sum the numbers of all processes of a group, ``shape``; otherwise as :func:`gather`."""
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

    def __init__(self, shape: tuple[int, ...], group: Any, like: Tensor) -> None:
        self._total = like.new_empty(torch.Size(shape).numel() + 1)
        self._total[-1:].zero_()  # any number of the host's would be copied, for which it waits
        self.values = self._total[:-1].view(shape)  # this process's, until it begins
        self._group, self._failed = group, None
        self._work: Any = None

    def begin(self) -> None:
        """Exchange the values, which are complete."""
        self._work = dist.all_reduce(self._total, group=self._group, async_op=True)

    def guard(self, compute: Callable[[], object]) -> None:
        """Do what fills ``values`` and may begin; what it raises is raised by :meth:`end`, told before it has begun.

        What it raises afterwards comes too late for this exchange: the others go on, to the next one.
        """
        try:
            compute()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            self._failed = error
            if self._work is None:
                self._total[:-1].zero_()
                self._total[-1:].fill_(1)

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
    numbers = sent[: torch.Size(shape).numel()].view(shape)
    try:
        numbers.copy_(compute())
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        numbers.zero_()
        sent[-1:].fill_(1)
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
