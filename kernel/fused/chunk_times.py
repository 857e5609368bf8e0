"""How long chunks of tokens take: one by its memory alone, roughly, or by its plan; all of them; and the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .last_round import extra_row_blocks, rounds
from .launch import LaunchTable, blocks
from .schedule import DEFAULT_WORKSPACE_BYTES, Schedule, schedule
from .strip_times import KEPT, MAX_WIDTH, STRIP_DECODED, StripTimes

__all__ = ["ChunkTimes", "Chunks"]

# Microseconds of a chunk apart from its tiles (launches, last rounds); bytes of the head's gradient read or written in
# one; microseconds of the forward for a token and column that it keeps in a byte; of each kind of kept columns but one.
# Fitted to budgets and sizes of a chunk at nine heads on an H200, whose times were 1.05 to 1.19 times what the model
# says.
_CHUNK, _BYTES_SUMMED, _ENCODED, _RUN = 110.0, 2.6e6, 0.6e-6, 150.0
# Microseconds that the host takes to launch a chunk, and a strip of it: of a training loop the slower of both counts.
_HOST_CHUNK, _HOST_STRIP = 1000.0, 150.0
_STEP_WEIGHT, _STEP_INPUT, _STRIP = 0.70, 0.66, 30.0  # as in strip_times
_STRIP_SHARE = 8  # of the memory, for the strip in which bytes become dz


class Chunks(NamedTuple):
    """How the tokens are cut."""

    first: int  # tokens of the first chunk; all of them where one is best
    later: int  # of every other one, of which the last may have fewer

    def sizes(self, n: int) -> list[int]:
        """Tokens of every chunk of ``n``."""
        if self.first >= n:
            return [n]
        whole, last = divmod(n - self.first, self.later)
        return [self.first, *[self.later] * whole, *[last] * (last > 0)]


class ChunkTimes:
    """Plans and times of chunks of one problem."""

    def __init__(self, n: int, vocab_size: int, hidden_size: int, itemsize: int, kinds: dict[str, Any]) -> None:
        self.n, self.vocab_size, self.hidden_size, self.itemsize = n, vocab_size, hidden_size, itemsize
        self.kinds, self.processors = kinds, kinds["processors"]
        self.table: LaunchTable = kinds["table"]
        common = vocab_size, hidden_size, self.table, self.processors
        self.times = StripTimes(n, *common, direct=kinds["direct"], weight_gradient=True, in_bytes=kinds["in_bytes"])
        # Of a chunk more apart from its tiles.
        self.apart = _CHUNK + 2 * itemsize * vocab_size * hidden_size / _BYTES_SUMMED

    def outlined(self, rows: int, budget: int, *, sums: bool) -> float:
        """Microseconds of a chunk if its memory were full of kept columns, in bytes or as they are.

        Without ``sums`` the memory of the head's gradient serves, too.
        """
        times, share = self.times, rows / self.n
        outside = budget // (rows * self.itemsize)  # columns in the workspace, kept ones or a strip of dz
        inside = 0 if sums else self.vocab_size * self.hidden_size // rows
        kept = min(outside + inside, times.vocab)
        weight = self.weight(rows, times.vocab) / times.vocab  # of a column of many
        time = weight * kept
        if kept < times.vocab:
            time += self.recomputed(rows, max(outside, inside // 2)) * (times.vocab - kept)
        if times.in_bytes and budget > DEFAULT_WORKSPACE_BYTES and kept < times.vocab:  # beside a strip of dz
            strip = min(max(outside // _STRIP_SHARE, times.tile), MAX_WIDTH)
            coded = min(2 * max(outside + inside - strip, 0), times.vocab)
            width = self.whole_rounds(strip)
            in_bytes = (times.decoded * share + (self.weight(rows, width) + STRIP_DECODED) / width) * coded
            if coded < times.vocab:
                in_bytes += self.recomputed(rows, max(outside, inside // 2)) * (times.vocab - coded)
            time = min(time, in_bytes)
        return time + self.input_gradient(rows)

    def weight(self, rows: int, width: int) -> float:
        """Microseconds of the head's gradient of a strip of ``width`` columns, in whole rounds of tiles."""
        launch = self.table.weight_gradient
        tiles = blocks(width, launch.rows) * blocks(self.hidden_size, launch.columns)
        size = launch.rows * launch.columns * launch.depth / (128 * 256 * 64)
        return _STEP_WEIGHT * size * blocks(tiles, self.processors) * blocks(rows, launch.depth)

    def whole_rounds(self, limit: int) -> int:
        """The most columns within ``limit`` that make whole rounds of tiles of the head's gradient, if any do."""
        launch, tile = self.table.weight_gradient, self.times.tile
        across = blocks(self.hidden_size, launch.columns)
        number = min(limit, MAX_WIDTH, self.times.vocab) // launch.rows * across // self.processors
        width = number * self.processors // across * launch.rows if number else min(limit, self.times.vocab)
        return max(width // tile * tile, tile)

    def recomputed(self, rows: int, limit: int) -> float:
        """Microseconds of a column that is not kept, in strips within ``limit`` columns."""
        width, launch = self.whole_rounds(limit), self.table.logit_gradient
        tiles = blocks(rows, launch.rows) * (width // self.times.tile)
        return (self.times.dz_round * blocks(tiles, self.processors) + self.weight(rows, width) + _STRIP) / width

    def input_gradient(self, rows: int) -> float:
        """Microseconds of the input's gradient of a chunk, in rounds of tiles, the last one cut."""
        launch = self.table.input_gradient
        tiles = blocks(rows, launch.rows), blocks(self.hidden_size, launch.columns)
        size = launch.rows * launch.columns * self.vocab_size / (128 * 256 * 64)
        room = blocks(self.n, launch.rows) - tiles[0]
        return _STEP_INPUT * size * rounds(*tiles, self.processors, room or None)

    def plan(self, rows: int, budget: int, *, sums: bool) -> Schedule:
        """The plan of a chunk."""
        sizes = rows, self.vocab_size, self.hidden_size, self.itemsize, budget
        # In the order of LossCall.plan, by which the cache knows that they are the same.
        return schedule(*sizes, keep=True, **self.kinds, consumed=True, weight_gradient=True, sums=sums)

    def plans(self, chunks: Chunks, budget: int) -> tuple[Schedule, Schedule]:
        """Those of the first chunk and of the later ones."""
        return self.plan(chunks.first, budget, sums=False), self.plan(chunks.later, budget, sums=True)

    def microseconds(self, rows: int, found: Schedule, tokens: int | None = None) -> float:
        """Of forward and backward of a chunk of ``rows``; of the last round of the input's gradient with its cuts.

        Or of one of fewer ``tokens`` by the same plan, which takes as many strips.
        """
        tokens = rows if tokens is None else tokens
        launch, share = self.table.input_gradient, tokens / rows
        columns = blocks(self.hidden_size, launch.columns)
        size = launch.rows * launch.columns * self.vocab_size / (128 * 256 * 64)
        modelled = blocks(blocks(2 * rows, launch.rows) * columns, self.processors) / 2
        strips, coded = _STRIP * len(found.strips), _in_bytes(found)
        time = strips + (found.microseconds - strips - _STEP_INPUT * size * modelled) * share
        time += self.input_gradient(tokens) + _RUN * max(len(found.kept) - 1, 0)
        time += tokens * (KEPT * (found.columns - coded) + _ENCODED * coded)
        return time + self.times.saved * self.times.vocab * tokens / self.n

    def gain(self, found: Schedule) -> float:
        """Microseconds that would be saved of all tokens if all columns were kept as they enter the products."""
        return self.times.saved * (self.times.vocab - found.columns) + self.times.decoded * _in_bytes(found)

    def in_chunks(self, chunks: Chunks, plans: Sequence[Schedule]) -> float:
        """Microseconds of all chunks."""
        (first, later), sizes = plans, chunks.sizes(self.n)
        time = self.microseconds(chunks.first, first) + self.microseconds(chunks.later, later, sizes[-1])
        return time + (len(sizes) - 2) * self.microseconds(chunks.later, later) + (len(sizes) - 1) * self.apart

    def memory(self, chunks: Chunks, plans: Sequence[Schedule]) -> int:
        """Bytes over the inputs, with packed hidden states and float32 sums of the largest chunk."""
        launch, sizes = self.table.input_gradient, chunks.sizes(self.n)
        columns, every = blocks(self.hidden_size, launch.columns), blocks(self.n, launch.rows)
        own = []
        for tokens in {sizes[0], sizes[1], sizes[-1]}:
            rows = blocks(tokens, launch.rows)
            rows += extra_row_blocks(rows, columns, self.processors, every - rows)
            own.append(self.itemsize * tokens + 4 * rows * launch.rows)
        gradients = (self.vocab_size + self.n) * self.itemsize
        return self.hidden_size * (gradients + max(own)) + self.itemsize * max(plan.memory for plan in plans)

    def host(self, chunks: Chunks, plans: Sequence[Schedule]) -> float:
        """Microseconds of the host."""
        first, later = (_HOST_CHUNK + _HOST_STRIP * len(plan.strips) for plan in plans)
        return first + later * (len(chunks.sizes(self.n)) - 1)


def _in_bytes(plan: Schedule) -> int:
    """Columns that are kept in bytes."""
    return sum(run.columns for run in plan.kept if run.in_bytes)
