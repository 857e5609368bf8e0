"""What the processes of a group have to agree on before they exchange results: arguments that are right, and the same.

What the hosts know is compared by the hosts (:mod:`.host_numbers`). On a GPU none of them waits for its device to read
a tensor: digests of target and token weights go with the first numbers that are exchanged (:mod:`.exchange`), and the
forward is enqueued before the others' rows are known (:func:`propose`): the host goes by the rows that each process had
in the last call like this one, and learns before the exchange whether that was right.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from .host_numbers import HostNumbers, place, served

__all__ = ["Agreement", "Share", "check_group", "propose"]

_Checked = TypeVar("_Checked")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_REMEMBERED = 32  # heads of a group
# Of SplitMix64: the step between places, and shifts and factors, as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIXING = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


class Share(NamedTuple):
    """Which rows of the whole head a process holds.

    Attributes:
        offset: Index of its first row.
        vocab_size: Rows of the whole head.
        rows: Rows of each process, in the order of the group.
    """

    offset: int
    vocab_size: int
    rows: tuple[int, ...]


class Agreement(Generic[_Checked]):
    """What the processes told each other, on its way to this one's host.

    Attributes:
        group: Process group.
        checked: What the check of the own arguments returned.
        digests: Of target and token weights, on a device whose tensors the host does not read: to be compared there,
            with the first exchange; None where the host compares them.
        assumed: Which rows are here, if the others have as many as in this group's last call with the same head, by
            its place in memory, or, with none, in the last one with as many rows here; None if there was none.
    """

    def __init__(
        self,
        group: Any,
        checked: _Checked,
        head: Tensor,
        told: HostNumbers,
        digests: Tensor | None,
        shown: Callable[[], str],
    ) -> None:
        self.group, self.checked, self.digests = group, checked, digests
        self._rank, self._told, self._shown, self._share = dist.get_rank(group), told, shown, None
        self._remembered = _remembered.setdefault(group, {})
        self._keys = (rows := head.shape[0], head.data_ptr()), (rows, None)
        found = [self._remembered[key] for key in self._keys if key in self._remembered]
        self.assumed: Share | None = found[0] if found else None

    def confirm(self) -> Share:
        """Wait for what was told, and return which rows are here.

        Raises:
            RuntimeError: The arguments of others are wrong.
            ValueError: They are not the same in every process.
        """
        if self._share is None:
            rows = self._judged()
            self._share = Share(sum(rows[: self._rank]), sum(rows), rows)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered.update(dict.fromkeys(self._keys, self._share))
        return self._share

    def _judged(self) -> tuple[int, ...]:
        wrong, rows, options, *tokens = zip(*self._told.wait(), strict=True)
        if any(wrong):
            raise RuntimeError(f"process {wrong.index(1)} of process_group refused its arguments; its error says why.")
        if len(set(options)) > 1:
            raise ValueError(
                "input's shape, dtype, type of device and requires_grad, return_statistics and the options must be the "
                "same in every process of the group, and target, linear_bias and token_weight given in all or in none, "
                f"got {self._shown()} here, not elsewhere."
            )
        for name, told in zip(("target", "token_weight"), tokens, strict=True):
            if len(set(told)) > 1:
                other = next(i for i, digest in enumerate(told) if digest != told[self._rank])
                raise ValueError(
                    f"{name} must be the same in every process of the group, each of which holds some rows of the "
                    f"head, got another one in process {other}. Where processes have tokens of their own (FSDP), call "
                    "the loss inside the forward of the head's unit: the head is whole there."
                )
        return rows


_remembered: WeakKeyDictionary[Any, dict[tuple[int, int | None], Share]] = WeakKeyDictionary()


def check_group(group: object) -> None:
    """Raise a TypeError unless ``group`` is a process group or None."""
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"process_group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}.")


def propose(
    group: Any,
    check: Callable[[], _Checked],
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any = None,
    token_weight: Any = None,
    *,
    return_statistics: bool = False,
) -> Agreement[_Checked]:
    """Check the own arguments and tell the others before anything else is exchanged: none waits for one that failed.

    Args:
        group: Process group.
        check: Returns the options, or raises an error where this process's arguments are wrong.
        input: Hidden states ``(..., D)``, the same in every process.
        linear_weight: This process's rows ``(V_r, D)``.
        target: Class indices ``(...)``, the same in every process; None in every process or in none.
        linear_bias: Biases ``(V_r,)``; None in every process or in none.
        token_weight: Weights ``(...)``, the same in every process; None in every process or in none.
        return_statistics: The same in every process: more is exchanged for them.

    Returns:
        What has to be confirmed before the next exchange.

    Raises:
        Exception: What ``check`` raised.
        RuntimeError: While a CUDA graph is captured.
        ValueError: If this process is no member, or input lies on a device that the group's backend does not serve.
    """
    if dist.get_rank(group) < 0:
        raise ValueError("process_group must be a group that this process belongs to.")
    if isinstance(input, Tensor) and input.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "process_group must be None while a CUDA graph is captured: the hosts of its processes compare their "
            "arguments, which a graph would not repeat."
        )
    checked, digests, failed = None, None, None
    told = [1, 0, 0, 0, 0]  # whether it failed, its rows, digests of options, target and token_weight
    try:
        checked = check()
        if input.device.type not in (types := served(group)):
            raise ValueError(f"input must lie on a device that process_group serves, {types}, got {input.device}.")
        differentiable = input.requires_grad and torch.is_grad_enabled()
        given = target is None, linear_bias is None, None if token_weight is None else token_weight.dtype
        same = tuple(input.shape), input.dtype, input.device.type, differentiable, given, return_statistics, checked
        of_tokens = [_digest(values) for values in (target, token_weight)]
        if not _host_reads(input):
            digests = torch.stack([input.new_zeros((), dtype=torch.int64) if x is None else x for x in of_tokens])
            of_tokens = None, None
        of_tokens = [0 if x is None else int(x) for x in of_tokens]
        told = [0, linear_weight.shape[0], zlib.crc32(repr(same).encode()), *of_tokens]
    except Exception as error:  # told to the others, then raised
        failed = error
    numbers = HostNumbers(told, group, place(group, input, linear_weight))
    if failed is not None or checked is None:
        raise failed or AssertionError

    def shown() -> str:
        return (
            f"{tuple(input.shape)}, {input.dtype}, {input.device.type}, {input.requires_grad}, {checked}, "
            f"return_statistics={return_statistics}, target {_shown(target)}, linear_bias {_shown(linear_bias)} and "
            f"token_weight {_shown(token_weight)}"
        )

    return Agreement(group, checked, linear_weight, numbers, digests, shown)


def _host_reads(tensor: Tensor) -> bool:
    """Whether the host reads its values without waiting for a device."""
    return tensor.device.type == "cpu"


def _shown(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"of {tensor.dtype}"


def _digest(values: Tensor | None) -> Tensor | None:
    """A number of values ``(...)``, by their bits, that another sequence will hardly have; None for None."""
    if values is None:
        return None
    flat = values.detach().reshape(-1)
    if flat.is_floating_point():
        flat = flat.contiguous().view(_BITS[flat.element_size()])
    # Each value is mixed with its place (Steele, Lea, Flood 2014) before the sum, modulo 2^64: a linear sum is the same
    # for values that trade places in pairs.
    mixed = flat.long() + torch.arange(1, flat.numel() + 1, device=flat.device) * _GOLDEN
    for shift, factor in _MIXING:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)).sum()
