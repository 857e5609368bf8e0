"""What the processes of a group have to agree on before they exchange results: arguments that are right, and the same.

On a GPU the host need not wait for it before it enqueues the forward (:func:`propose`): it goes by the rows that each
process had in the last call like this one, and learns before the next exchange whether that was right.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Agreement", "Share", "agree", "check_group", "propose"]

_Checked = TypeVar("_Checked")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_WORDS = 5  # that each process tells: whether it failed, its rows, digests of options, target and token_weight
_REMEMBERED = 32  # heads of a group


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
        checked: What the check of the own arguments returned.
        assumed: Which rows are here, if the others have as many as in this group's last call with the same head, by
            its place in memory, or, with none, in the last one with as many rows here; None if there was none.
    """

    def __init__(self, group: Any, checked: _Checked, head: Tensor, every: Tensor, shown: Callable[[], str]) -> None:
        self.checked, self._rank, self._shown, self._share = checked, dist.get_rank(group), shown, None
        self._remembered = _remembered.setdefault(group, {})
        self._keys = (rows := head.shape[0], head.data_ptr()), (rows, None)
        found = [self._remembered[key] for key in self._keys if key in self._remembered]
        self.assumed: Share | None = found[0] if found else None
        self._every, self._arrived = every, None
        if every.is_cuda:
            self._every = torch.empty(every.shape, dtype=every.dtype, pin_memory=True)
            self._every.copy_(every, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def confirm(self) -> Share:
        """Wait for what was told, and return which rows are here.

        Raises:
            RuntimeError: The arguments of others are wrong.
            ValueError: They are not the same in every process.
        """
        if self._share is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            rows = self._judged()
            self._share = Share(sum(rows[: self._rank]), sum(rows), rows)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered.update(dict.fromkeys(self._keys, self._share))
        return self._share

    def _judged(self) -> tuple[int, ...]:
        wrong, rows, digests, *tokens = zip(*self._every.tolist(), strict=True)
        if any(wrong):
            raise RuntimeError(f"process {wrong.index(1)} of process_group refused its arguments; its error says why.")
        if len(set(digests)) > 1:
            raise ValueError(
                "input's shape, dtype and requires_grad, return_statistics and the options must be the same in every "
                "process of the group, and linear_bias and token_weight given in all or in none, got "
                f"{self._shown()} here, not elsewhere."
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


def agree(
    group: Any,
    check: Callable[[], _Checked],
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any = None,
    token_weight: Any = None,
) -> tuple[_Checked, Share]:
    """Check the arguments everywhere before anything else is exchanged, so that no process waits for one that failed.

    Returns:
        What ``check`` returned, the same in every process, and which rows this one holds. Otherwise as
        :func:`propose`, and what ``Agreement.confirm`` raises.
    """
    agreement = propose(group, check, input, linear_weight, target, linear_bias, token_weight)
    return agreement.checked, agreement.confirm()


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
    """Check the own arguments and tell the others, without waiting for a device where the group serves no CPU.

    Args:
        group: Process group.
        check: Returns the options, or raises an error where this process's arguments are wrong.
        input: Hidden states ``(..., D)``, the same in every process.
        linear_weight: This process's rows ``(V_r, D)``.
        target: Class indices ``(...)``, the same in every process; None for none.
        linear_bias: Biases ``(V_r,)``; None in every process or in none.
        token_weight: Weights ``(...)``, the same in every process; None for none.
        return_statistics: The same in every process: more is exchanged for them.

    Returns:
        What has to be confirmed before the next exchange.

    Raises:
        Exception: What ``check`` raised.
        ValueError: If this process is no member, or input lies on a device that the group's backend does not serve.
    """
    if dist.get_rank(group) < 0:
        raise ValueError("process_group must be a group that this process belongs to.")
    served = [part.partition(":")[0] for part in dist.get_backend_config(group).split(",")]
    # The same in every process, whatever it was called with.
    device = torch.device("cpu" if "cpu" in served else served[0])
    checked, failed = None, None
    mine = torch.zeros(_WORDS, dtype=torch.int64, device=device)
    mine[0] = 1  # by numbers of the host: a tensor made of them would let it wait for the device
    try:
        checked = check()
        if input.device.type not in served:
            raise ValueError(f"input must lie on a device that process_group serves, {served}, got {input.device}.")
        differentiable = input.requires_grad and torch.is_grad_enabled()
        given = linear_bias is None, None if token_weight is None else token_weight.dtype, return_statistics
        same = zlib.crc32(repr((tuple(input.shape), input.dtype, differentiable, given, checked)).encode())
        mine[3], mine[4] = _digest(target), _digest(token_weight)
        mine[1], mine[2] = linear_weight.shape[0], same
        mine[0] = 0
    except Exception as error:  # told to the others, then raised
        failed = error
    every = mine.new_empty(dist.get_world_size(group), _WORDS)
    dist.all_gather_into_tensor(every.view(-1), mine, group=group)
    if failed is not None or checked is None:
        raise failed or AssertionError

    def shown() -> str:
        return (
            f"{tuple(input.shape)}, {input.dtype}, {input.requires_grad}, {checked}, "
            f"return_statistics={return_statistics}, linear_bias {_shown(linear_bias)} and token_weight "
            f"{_shown(token_weight)}"
        )

    return Agreement(group, checked, linear_weight, every, shown)


def _shown(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"of {tensor.dtype}"


def _digest(values: Tensor | None) -> Tensor | int:
    """A number of values ``(...)``, by their bits, that another sequence will hardly have; 0 for None."""
    if values is None:
        return 0
    flat = values.detach().reshape(-1)
    if flat.is_floating_point():
        flat = flat.contiguous().view(_BITS[flat.element_size()])
    place = torch.arange(1, flat.numel() + 1, device=flat.device)
    return ((flat.long() + 1_000_003) * (place * 0x9E3779B97F4A7C1 + 1)).sum()  # modulo 2^64
