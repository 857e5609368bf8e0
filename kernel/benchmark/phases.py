"""What a loss's kernels are for: a call's events on the device as times of phases, and the least that a call can take.

Pure functions of names and numbers, so that they are tested without a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

__all__ = [
    "IDLE",
    "MARK",
    "OTHER",
    "PHASES",
    "DeviceEvent",
    "Least",
    "PhaseTime",
    "calls_of",
    "least",
    "phase_of",
    "phase_times",
]

MARK = "spin_kernel"  # of torch.cuda._sleep: it stands before and after each call
IDLE, OTHER, TORCH = "idle between kernels", "other", "PyTorch's own"
# The Triton kernels of kernel.fused by what they are for. A kernel that is missing here is in OTHER.
PHASES: dict[str, tuple[str, ...]] = {
    "forward": ("forward_kernel",),
    "merge": ("merge_kernel",),
    "logits anew": ("recomputed_strip_kernel", "listed_gradient_kernel"),
    "dz of what was kept": ("decoded_strip_kernel", "kept_strip_kernel"),
    "weight gradient": ("weight_gradient_kernel", "join_sums_kernel", "listed_weight_kernel"),
    "input gradient": ("input_gradient_kernel", "listed_input_kernel", "join_kernel"),
    "rows and rounding": (
        *("_index_kernel", "_pack_kernel", "largest_kernel", "gradient_rows_kernel", "target_logit_kernel"),
        *("_target_column_kernel", "_column_sum_kernel", "_join_columns_kernel"),
        *("_scale_kernel", "unpack_kernel", "bias_gradient_kernel", "_possible_kernel"),
    ),
    "choice of tiles": (
        *("_finish_kernel", "_mean_kernel", "_gram_kernel", "_square_kernel", "_score_kernel"),
        *("_input_error_kernel", "_weight_error_kernel", "_input_kernel", "_weight_kernel", "_sigma_kernel"),
        *("_reorder_kernel", "_token_kernel", "_limit_kernel", "_level_kernel", "_active_kernel"),
        *("_split_kernel", "_scaled_kernel", "_count_kernel", "_round_kernel"),
        *("_by_tile_kernel", "_by_block_kernel", "_piece_kernel"),
    ),
}
_PHASE_OF = {kernel: phase for phase, kernels in PHASES.items() for kernel in kernels}
_TORCH = re.compile(r"\bat::|\bat_cuda_detail::|\bcub::|^Mem(cpy|set)\b")  # elementwise, sums, sorts, copies
_CHUNKS = 64  # of tokens, at most, in which the least is looked for


class DeviceEvent(NamedTuple):
    """A kernel, or a copy, on the device: microseconds of the profiler's clock."""

    name: str
    start: float
    end: float


class PhaseTime(NamedTuple):
    """The mean of one phase over the calls."""

    ms: float
    launches: float
    kernels: tuple[str, ...]  # by their time, the longest first


def phase_of(kernel: str) -> str:
    """Return the phase of a kernel by its name on the device, in which Triton may name the module too."""
    found = _PHASE_OF.get(kernel.rpartition(".")[2])
    return found or (TORCH if _TORCH.search(kernel) else OTHER)


def calls_of(events: Iterable[DeviceEvent]) -> list[list[DeviceEvent]]:
    """Return the events of each call with the two marks that enclose it; those between calls are left out.

    Raises:
        ValueError: If there are no marks, or one without its second.
    """
    ordered = sorted(events, key=lambda event: event.start)
    marks = [i for i, event in enumerate(ordered) if MARK in event.name]
    if not marks or len(marks) % 2:
        raise ValueError(
            f"each call must lie between two kernels named {MARK}, got {len(marks)} of them in {len(ordered)} events."
        )
    return [ordered[first : last + 1] for first, last in zip(marks[::2], marks[1::2], strict=True)]


def phase_times(calls: Sequence[Sequence[DeviceEvent]]) -> dict[str, PhaseTime]:
    """Return the mean time of each phase, whose sum is the time from mark to mark.

    What kernels overlap counts for the one that began first.
    """
    times: dict[tuple[str, str], float] = {}
    launches: dict[str, int] = {}
    idle = 0.0
    for call in calls:
        reached = call[0].end
        for event in call[1:-1]:
            phase = phase_of(event.name)
            idle += max(event.start - reached, 0.0)
            own = phase, event.name
            times[own] = times.get(own, 0.0) + max(event.end - max(event.start, reached), 0.0)
            launches[phase] = launches.get(phase, 0) + 1
            reached = max(reached, event.end)
        idle += max(call[-1].start - reached, 0.0)
    unit = 1e3 * len(calls)
    found = {}
    for phase in (*PHASES, TORCH, OTHER):
        kernels = sorted((kernel for of, kernel in times if of == phase), key=lambda kernel: -times[phase, kernel])
        if kernels:
            ms = sum(times[phase, kernel] for kernel in kernels) / unit
            found[phase] = PhaseTime(ms, launches[phase] / len(calls), tuple(kernels))
    return {**found, IDLE: PhaseTime(idle / unit, 0, ())}


class Least(NamedTuple):
    """What a loss takes at least, in milliseconds, beside the three products of a loss that keeps its logits."""

    anew_ms: float  # logits of columns that no memory holds
    moved_ms: float  # bytes that become dz, and sums of the head's gradient over chunks of tokens
    chunks: int

    @property
    def ms(self) -> float:
        """Both."""
        return self.anew_ms + self.moved_ms


def least(
    tokens: int,
    vocab_size: int,
    hidden_size: int,
    workspace_bytes: float,
    *,
    matmul_ms: float,
    copy_ms: float,
    itemsize: int = 2,
    in_bytes: bool = False,
) -> Least:
    """Return the least that the memory forces, over all numbers of chunks of tokens up to 64.

    Of the first chunk (or of all tokens) the gradient's memory and the workspace hold columns, of a later one the
    workspace alone, as the gradient's holds sums, which are read and written once more. What is held in no memory is
    computed anew at the rate of ``input @ weight.T``; what is held in a byte is read, and dz written. Nothing else
    takes time or memory here, so that no schedule can be faster.

    Args:
        tokens: N.
        vocab_size: V.
        hidden_size: D.
        workspace_bytes: Beyond the gradients.
        matmul_ms: Of ``input @ weight.T``.
        copy_ms: Of a copy of the head, V x D read and written.
        itemsize: Bytes of a number.
        in_bytes: Whether columns may be kept in one byte, too.
    """
    decode_ms = copy_ms * (1 + itemsize) * tokens / (2 * itemsize * hidden_size)  # of all columns and tokens
    held = _held(itemsize, matmul_ms, decode_ms) if in_bytes else _held(itemsize, matmul_ms, None)
    head = itemsize * vocab_size * hidden_size
    found = []
    for chunks in range(1, min(_CHUNKS, tokens) + 1):
        entries = tokens / chunks * vocab_size
        first, later = held((workspace_bytes + head) / entries), held(workspace_bytes / entries)
        anew, decoded = ((a + (chunks - 1) * b) / chunks for a, b in zip(first, later, strict=True))
        found.append(Least(anew * matmul_ms, decoded * decode_ms + (chunks - 1) * copy_ms, chunks))
    return min(found, key=lambda each: each.ms)


def _held(itemsize: int, anew_ms: float, decode_ms: float | None) -> Callable[[float], tuple[float, float]]:
    """How bytes for each entry become shares that are computed anew and that are decoded, for the least time."""

    def shares(room: float) -> tuple[float, float]:
        as_it_is = min(room / itemsize, 1.0)
        choices = [(1 - as_it_is, 0.0)]
        if decode_ms is not None:
            coded = min(room, 1.0) if room <= 1 else max(itemsize - room, 0.0) / (itemsize - 1)
            choices.append((1 - min(room, 1.0), coded))
        return min(choices, key=lambda share: share[0] * anew_ms + share[1] * (decode_ms or 0.0))

    return shares
