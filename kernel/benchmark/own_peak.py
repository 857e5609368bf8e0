"""What our loss takes over its inputs at the peak, by its plans, and the largest workspace within a rival's memory."""

from __future__ import annotations

from typing import NamedTuple

from ..fused.arguments import Head, Scalars
from ..fused.backward_chunks import rows_of_sums
from ..fused.call import LossCall
from ..fused.last_round import extra_row_blocks
from ..fused.launch import blocks, launch_table, processors, weight_splits
from ..fused.plan import ALIGN
from ..fused.schedule import Schedule
from ..options import LossOptions
from .problems import Data
from .rivals import Case

__all__ = ["APART_BYTES", "Plans", "call_of", "largest_workspace"]

MIB = 2**20
_STEPS = 8  # in which a workspace that is too large is made smaller, past plans of others
APART_BYTES = 2 * MIB  # numbers of tokens and of the hidden size, which plans do not count: 1.4 at most of ten heads


class Plans(NamedTuple):
    """The plans of a loss with both gradients: of all tokens, or of the first chunk of them and of the later ones."""

    tokens: int  # of a chunk
    plans: tuple[Schedule, ...]
    most_rows: int  # of the float32 sums of the input's gradient of a chunk

    @classmethod
    def of(cls, call: LossCall) -> Plans:
        """Make them as a call does."""
        n, chunks = int(call.head.hidden.shape[0]), None
        if call.serves_chunks((True, True, False), return_statistics=False, sparse=False):
            chunks = call.chunks()
        if chunks is not None and chunks.rows < n:
            return cls(chunks.rows, call.chunk_plans(chunks), n)
        kinds = {"keep": True, "consumed": True, "weight_gradient": True}
        whole = call.plan(**kinds)
        rows = call.backward_rows(whole, (True, True, False))
        if rows >= n:
            return cls(n, (whole,), n)
        plans = (call.plan(**{**kinds, "keep": False}, tokens=rows, sums=sums) for sums in (False, True))
        return cls(rows, tuple(plans), rows_of_sums(n, rows, call.head.weight.element_size()))

    def peak_bytes(self, call: LossCall) -> int:
        """Count what is held during the backward, over the inputs; without ``APART_BYTES``."""
        hidden, weight = call.head.hidden, call.head.weight
        (n, hidden_size), itemsize = hidden.shape, hidden.element_size()
        launch, programs = (
            launch_table(hidden.device, hidden.dtype, hidden_size).input_gradient,
            processors(hidden.device),
        )
        column_blocks, own = blocks(hidden_size, launch.columns), []
        chunked = len(self.plans) > 1
        for tokens in {self.tokens, n % self.tokens or self.tokens}:
            row_blocks = blocks(tokens, launch.rows)
            room = max(blocks(self.most_rows, launch.rows) - row_blocks, 0) if chunked else None
            row_blocks += extra_row_blocks(row_blocks, column_blocks, programs, room)
            # Packed hidden states become the input's gradient; those of a chunk have memory of their own.
            packed = itemsize * tokens if chunked else 0
            own.append((packed + 4 * row_blocks * launch.rows) * hidden_size)
        return itemsize * (weight.numel() + hidden.numel()) + max(own) + self._planned(call, itemsize)

    def _planned(self, call: LossCall, itemsize: int) -> int:
        """The largest of each part that plans take, which of chunks is held for both."""
        references = [4 * self.tokens * sum(call.references(run) for run in plan.kept) for plan in self.plans]
        if len(self.plans) == 1:
            return itemsize * self.plans[0].memory + references[0] + self._pieces(call)
        placed = [blocks(max(plan.workspace, plan.held), ALIGN) * ALIGN for plan in self.plans]
        scaled = max(plan.memory - max(plan.workspace, plan.held) for plan in self.plans)
        memory = max(itemsize * a + b for a, b in zip(placed, references, strict=True))
        return memory + itemsize * scaled + self._pieces(call)

    def _pieces(self, call: LossCall) -> int:
        """Float32 of sums that are cut along the tokens: not those of later chunks, nor any that become codes."""
        hidden, first = call.head.hidden, self.plans[0]
        if len(self.plans) > 1 and hidden.element_size() == 2:
            return 0
        launch, programs = (
            launch_table(hidden.device, hidden.dtype, hidden.shape[1]).weight_gradient,
            processors(hidden.device),
        )
        widths = {strip.padded for strip in first.strips} | {run.width for run in first.kept}
        splits = {width: weight_splits(self.tokens, width, hidden.shape[1], launch, programs) for width in widths}
        return max((4 * n * width * hidden.shape[1] for width, n in splits.items() if n > 1), default=0)


def call_of(data: Data, case: Case, workspace_bytes: int | None = 0) -> LossCall:
    """Return the call of our loss on a case; of None with the default workspace."""
    scalars = Scalars.of(LossOptions(label_smoothing=case.label_smoothing, softcap=case.softcap))
    head = Head(data.hidden.detach(), data.weight.detach(), None, data.target)
    return LossCall(head, scalars, workspace_bytes)


def largest_workspace(call: LossCall, most: int) -> tuple[int, Plans] | None:
    """Return a workspace, in whole MiB, whose peak over the inputs is at most ``most`` bytes, and its plans.

    The largest that few trials find: with other plans, one that is larger still may leave a smaller peak. None if none
    is that small.
    """
    size, found, step = (most - call.head.weight.numel() * call.head.weight.element_size()) // MIB, None, 1
    while size > 0 and found is None:
        plans, over = _trial(call, size, most)
        if over <= 0:
            found = size, plans
        else:  # with another plan a larger workspace may leave a smaller peak: not by all that is over
            step = blocks(over, _STEPS * MIB)
            size -= step
    for larger in range(size + step - 1, max(size, 0), -1):
        plans, over = _trial(call, larger, most)
        if over <= 0:
            return larger, plans
    return found


def _trial(call: LossCall, size: int, most: int) -> tuple[Plans, int]:
    """The plans of a workspace of so many MiB, and by how many bytes they exceed ``most``."""
    trial = LossCall(call.head, call.scalars, size * MIB)
    plans = Plans.of(trial)
    return plans, plans.peak_bytes(trial) + APART_BYTES - most
