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
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


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
    group: Any,
    check: Callable[[], _Checked],
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any = None,
    token_weight: Any = None,
) -> tuple[_Checked, Share]:
    """Check the arguments everywhere before anything else is exchanged, so that no process waits for one that failed.

    Args:
        group: Process group.
        check: Returns the options, or raises an error where this process's arguments are wrong.
        input: Hidden states ``(..., D)``, the same in every process.
        linear_weight: This process's rows ``(V_r, D)``.
        target: Class indices ``(...)``, the same in every process; None for none.
        linear_bias: Biases ``(V_r,)``; None in every process or in none.
        token_weight: Weights ``(...)``, the same in every process; None for none.

    Returns:
        What ``check`` returned, the same in every process, and which rows this one holds.

    Raises:
        RuntimeError: In the processes whose own arguments are right, where those of others are not.
        ValueError: If tokens, hidden size, dtype or options differ between processes, this process is no member, or
            input lies on a device that the group's backend does not serve.
    """
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("process_group must be a group that this process belongs to.")
    served = [part.partition(":")[0] for part in dist.get_backend_config(group).split(",")]
    # The same in every process, whatever it was called with.
    device = torch.device("cpu" if "cpu" in served else served[0])
    checked, failed = None, None
    mine = torch.tensor([1, 0, 0, 0, 0], device=device)
    try:
        checked = check()
        if input.device.type not in served:
            raise ValueError(f"input must lie on a device that process_group serves, {served}, got {input.device}.")
        differentiable = input.requires_grad and torch.is_grad_enabled()
        given = linear_bias is None, None if token_weight is None else token_weight.dtype
        same = zlib.crc32(repr((tuple(input.shape), input.dtype, differentiable, given, checked)).encode())
        mine[3], mine[4] = _digest(target), _digest(token_weight)
        mine[:3] = torch.tensor([0, linear_weight.shape[0], same])
    except Exception as error:  # told to the others, then raised
        failed = error
    all_told = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(all_told, mine, group=group)
    if failed is not None or checked is None:
        raise failed or AssertionError
    wrong, rows, digests, *tokens = zip(*torch.stack(all_told).tolist(), strict=True)
    if any(wrong):
        raise RuntimeError(f"process {wrong.index(1)} of process_group refused its arguments; its error says why.")
    if len(set(digests)) > 1:
        raise ValueError(
            "input's shape, dtype and requires_grad and the options must be the same in every process of the group, "
            "and linear_bias and token_weight given in all or in none, "
            f"got {tuple(input.shape)}, {input.dtype}, {input.requires_grad}, {checked}, linear_bias "
            f"{_shown(linear_bias)} and token_weight {_shown(token_weight)} here, not elsewhere."
        )
    for name, told in zip(("target", "token_weight"), tokens, strict=True):
        if len(set(told)) > 1:
            other = next(i for i, digest in enumerate(told) if digest != told[rank])
            raise ValueError(
                f"{name} must be the same in every process of the group, each of which holds some rows of the head, "
                f"got another one in process {other}. Where processes have tokens of their own (FSDP), call the loss "
                "inside the forward of the head's unit: the head is whole there."
            )
    return checked, Share(sum(rows[:rank]), sum(rows), rows)


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
