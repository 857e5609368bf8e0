"""What the processes of a group have to agree on before they compute: that their arguments are right, and the same."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Share", "agree", "check_group"]

_Checked = TypeVar("_Checked")


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


def check_group(group: object) -> None:
    """Raise a TypeError unless ``group`` is a process group or None."""
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"process_group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}.")


def agree(
    group: Any, check: Callable[[], _Checked], input: Any, linear_weight: Any, target: Any
) -> tuple[_Checked, Share]:
    """Check the arguments everywhere before anything else is exchanged, so that no process waits for one that failed.

    Args:
        group: Process group, of a backend that works on input's device.
        check: Returns the options, or raises an error where this process's arguments are wrong.
        input: Hidden states ``(..., D)``, the same in every process.
        linear_weight: This process's rows ``(V_r, D)``.
        target: Class indices ``(...)``, the same in every process; None for none.

    Returns:
        What ``check`` returned, the same in every process, and which rows this one holds.

    Raises:
        TypeError: If the group is none.
        RuntimeError: In the processes whose own arguments are right, where those of others are not.
        ValueError: If tokens, hidden size, dtype or options differ between processes, or this process is no member.
    """
    check_group(group)
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("process_group must be a group that this process belongs to.")
    checked, failed, told, tokens = None, None, [1, 0, 0], None
    try:
        checked = check()
        differentiable = input.requires_grad and torch.is_grad_enabled()
        same = zlib.crc32(repr((tuple(input.shape), input.dtype, differentiable, checked)).encode())
        told, tokens = [0, linear_weight.shape[0], same], _digest(target)
    except Exception as error:  # told to the others, then raised
        failed = error
    device = input.device if isinstance(input, Tensor) else torch.device("cpu")
    mine = torch.zeros(4, dtype=torch.int64, device=device)
    mine[:3] = torch.tensor(told)
    if tokens is not None:
        mine[3] = tokens
    all_told = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(all_told, mine, group=group)
    if failed is not None or checked is None:
        raise failed or AssertionError
    wrong, rows, digests, targets = zip(*torch.stack(all_told).tolist(), strict=True)
    if any(wrong):
        raise RuntimeError(f"process {wrong.index(1)} of process_group refused its arguments; its error says why.")
    if len(set(digests)) > 1:
        raise ValueError(
            "input's shape, dtype and requires_grad and the options must be the same in every process of the group, "
            f"got {tuple(input.shape)}, {input.dtype}, {input.requires_grad} and {checked} here, not elsewhere."
        )
    if len(set(targets)) > 1:
        other = next(i for i, digest in enumerate(targets) if digest != targets[rank])
        raise ValueError(
            "target must be the same in every process of the group, each of which holds some rows of the head, got "
            f"another one in process {other}. Where processes have tokens of their own (FSDP), call the loss inside "
            "the forward of the head's unit: the head is whole there."
        )
    return checked, Share(sum(rows[:rank]), sum(rows), rows)


def _digest(target: Any) -> Tensor | None:
    """A number of integers ``(...)`` that another sequence will hardly have; on their device, nothing waits for it."""
    if target is None:
        return None
    flat = target.reshape(-1)
    place = torch.arange(1, flat.numel() + 1, device=flat.device)
    return ((flat + 1_000_003) * (place * 0x9E3779B97F4A7C1 + 1)).sum()  # modulo 2^64
