"""How long chunks of tokens take: one by its memory alone, roughly, or by its plan; all of them; and the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .last_round import extra_row_blocks, rounds
from .launch import LaunchTable, blocks
from .schedule import Schedule, schedule
from .strip_times import ENCODED, KEPT, MAX_WIDTH, STRIP_DECODED, StripTimes

__all__ = ["BYTES_SUMMED", "CHUNK", "ChunkTimes", "Chunks"]

# Microseconds of a chunk apart from its tiles (launches, last rounds), and bytes of the head's gradient read or written
# in one, as fitted to an H200 before the copy engine added the sums of most chunks. What that saves is left to what the
# model lacks: with less it would choose chunks that are slower, of Gemma-2-2B's head for one.
CHUNK, BYTES_SUMMED = 110.0, 3.6e6
# Microseconds to launch a chunk, and a strip of it, that count where the device's are fewer. About half of what an
# H200's host took (2100 and 260, and 4300 of the call): other layers keep the device busy ahead of the loss.
_HOST_CHUNK, _HOST_STRIP = 1000.0, 150.0
_STEP_WEIGHT, _STEP_INPUT, _STRIP = 0.70, 0.66, 30.0  # as in strip_times
_STRIP_SHARE = 8  # of the memory, for the strip in which bytes become dz


class Chunks(NamedTuple):
    """How the tokens are cut."""

    rows: int  # tokens of a chunk, of which the last may have fewer; all of them where one is best


class ChunkTimes:
    """Plans and times of chunks of one problem."""

    def __init__(self, n: int, vocab_size: int, hidden_size: int, itemsize: int, kinds: dict[str, Any]) -> None:
        self.n, self.vocab_size, self.hidden_size, self.itemsize = n, vocab_size, hidden_size, itemsize
        self.kinds, self.processors = kinds, kinds["processors"]
        self.table: LaunchTable = kinds["table"]
        common = vocab_size, hidden_size, self.table, self.processors
        self.times = StripTimes(n, *common, direct=kinds["direct"], weight_gradient=True, in_bytes=kinds["in_bytes"])
        # Of a chunk more apart from its tiles.
        self.apart = CHUNK + 2 * itemsize * vocab_size * hidden_size / BYTES_SUMMED

    def outlined(self, rows: int, budget: int) -> float:
        """Microseconds of the backward of all chunks of ``rows`` if the budget were full of kept columns."""
        number, last = self.chunks(rows)
        later = self._outlined(rows, budget, sums=True) * (self.n - rows) / rows
        of_input = self.input_gradient(rows) * (number - 1) + self.input_gradient(last)
        return self._outlined(rows, budget, sums=False) + later + of_input + (number - 1) * self.apart

    def _outlined(self, rows: int, budget: int, *, sums: bool) -> float:
        """Microseconds of a chunk but for the input's gradient, its columns kept in bytes or as they are.

        Without ``sums`` the memory of the head's gradient serves, too.
        """
        times, share = self.times, rows / self.n
        outside = budget // (rows * self.itemsize)  # columns in the workspace, kept ones or a strip of dz
        inside = 0 if sums else self.vocab_size * self.hidden_size // rows
        kept = min(outside + inside, times.vocab)
        weight = self.weight(rows, times.vocab) / times.vocab  # of a column of many
        anew = self.recomputed(rows, max(outside, inside // 2)) if kept < times.vocab else 0.0
        time = weight * kept + anew * (times.vocab - kept)
        if times.in_bytes and kept < times.vocab:  # beside a strip of dz
            strip = min(max(outside // _STRIP_SHARE, times.tile), MAX_WIDTH)
            coded = min(2 * max(outside + inside - strip, 0), times.vocab)
            width = self.whole_rounds(strip)
            decoded = times.decoded * share + (self.weight(rows, width) + STRIP_DECODED) / width
            time = min(time, decoded * coded + anew * (times.vocab - coded))
        return time

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
        return schedule(*sizes, default=False, keep=True, **self.kinds, consumed=True, weight_gradient=True, sums=sums)

    def plans(self, rows: int, budget: int) -> tuple[Schedule, Schedule]:
        """Those of the first chunk and of the later ones."""
        return self.plan(rows, budget, sums=False), self.plan(rows, budget, sums=True)

    def chunks(self, rows: int) -> tuple[int, int]:
        """How many chunks of ``rows`` there are, and the tokens of the last one."""
        number = blocks(self.n, rows)
        return number, self.n - (number - 1) * rows

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
        time += self.input_gradient(tokens) + self.times.run * max(len(found.kept) - 1, 0)
        time += tokens * (KEPT * (found.columns - coded) + ENCODED * coded)
        return time + self.times.saved * self.times.vocab * tokens / self.n

    def gain(self, found: Schedule) -> float:
        """Microseconds that would be saved of all tokens if all columns were kept as they enter the products."""
        return self.times.saved * (self.times.vocab - found.columns) + self.times.decoded * _in_bytes(found)

    def in_chunks(self, rows: int, plans: Sequence[Schedule]) -> float:
        """Microseconds of all chunks."""
        (first, later), (number, last) = plans, self.chunks(rows)
        time = self.microseconds(rows, first) + self.microseconds(rows, later, last)
        return time + (number - 2) * self.microseconds(rows, later) + (number - 1) * self.apart

    def memory(self, rows: int, plans: Sequence[Schedule]) -> int:
        """Bytes over the inputs, with packed hidden states and float32 sums of the largest chunk."""
        launch, (_, last) = self.table.input_gradient, self.chunks(rows)
        columns, every = blocks(self.hidden_size, launch.columns), blocks(self.n, launch.rows)
        own = []
        for tokens in (rows, last):
            down = blocks(tokens, launch.rows)
            down += extra_row_blocks(down, columns, self.processors, every - down)
            own.append(self.itemsize * tokens + 4 * down * launch.rows)
        gradients = (self.vocab_size + self.n) * self.itemsize
        return self.hidden_size * (gradients + max(own)) + self.itemsize * max(plan.memory for plan in plans)

    def host(self, rows: int, plans: Sequence[Schedule]) -> float:
        """Microseconds of the host."""
        first, later = (_HOST_CHUNK + _HOST_STRIP * len(plan.strips) for plan in plans)
        return first + later * (self.chunks(rows)[0] - 1)


def _in_bytes(plan: Schedule) -> int:
    """Columns that are kept in bytes."""
    return sum(run.columns for run in plan.kept if run.in_bytes)
