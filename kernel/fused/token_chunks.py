"""In how many chunks of tokens a loss is computed, forward and backward of one before the next, so that more is kept.

Columns kept for N tokens take N bytes or 2 N each: of a chunk the same memory holds a multiple of them. So three
products of the size of the logits take bounded memory. What it costs: the head's gradient is read and written once more
with each chunk but the first, and each chunk has launches of its own. The gradient of the hidden states of a chunk is
its rows of the whole.

In half precision the sum over earlier chunks is rounded between chunks to what its 16 bits hold, which is finer than
bfloat16 (:mod:`.chunk_sums`), and adds to the error of the head's gradient. In squares of the error of one rounding to
bfloat16 that is 2 where dz is rounded and the sum over all tokens is; 3 where a kept softmax and the hidden states
scaled for it enter the product; and for each chunk more 1 / 128 where sums grow like the square root of the chunks (the
sum over j < k of j / k, times 1 / 64), 1 / 192 where they grow like their number. In rows of words that no token names,
whose entries may be small, 16 times as much.

How large a chunk is best is looked for among multiples of a tile: by a model of its products that takes the budget to
be filled, then, of the few that are fastest by that, by the plans themselves. These depend on the size of a chunk
alone: another number of tokens mostly finds them made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from .last_round import rounds
from .launch import TOKENS_OF_A_PIECE, LaunchTable, blocks
from .schedule import DEFAULT_WORKSPACE_BYTES, Schedule, schedule
from .strip_times import KEPT, MAX_WIDTH, STRIP_DECODED, StripTimes

__all__ = ["Chunks", "token_chunks"]

# Chunks. Errors are to be at most 0.0030, in rows that no token names 0.0050: 3.6 and 10 squares of 0.0015 to 0.0016.
# Of 32 chunks they are 3.2, where all columns enter the products as they are, and 6: 0.0029 and 0.0039.
_MOST_CHUNKS = 32
_TRIED, _APART = 4, 0.05  # sizes of a chunk that are planned, and how far one is from the next at least
_WORTHWHILE = 0.97  # of the time in one chunk
# Microseconds of a chunk apart from its tiles (launches, last rounds); bytes of the head's gradient read or written in
# one; microseconds of the forward for a token and column that it keeps in a byte. Fitted to 39 budgets and sizes of a
# chunk at four heads on an H200, whose times were 1.05 to 1.19 times what the model says, 1.10 in the mean.
_CHUNK, _BYTES_SUMMED, _ENCODED = 110.0, 2.6e6, 0.6e-6
# Microseconds that the host takes to launch a chunk, and a strip of it: of a training loop the slower of both counts.
_HOST_CHUNK, _HOST_STRIP = 1000.0, 150.0
_STEP_WEIGHT, _STEP_INPUT, _STRIP = 0.70, 0.66, 30.0  # as in strip_times
_LISTED = 40  # sizes of a chunk that are modelled
_STRIP_SHARE = 8  # of the memory, for the strip in which bytes become dz
_STEP_TOKENS = 4  # tiles of tokens: numbers of them with the same chunks


class Chunks(NamedTuple):
    """How the tokens are cut."""

    rows: int  # tokens of a chunk, of which the last may have fewer; all of them where one chunk is best


def token_chunks(n: int, *sizes: int, keep: bool, table: LaunchTable, **kinds: Any) -> Chunks:
    """Choose the chunks; one with the default budget, which nobody may have chosen.

    Args:
        n: Tokens N.
        *sizes: V, D, bytes of an element and of the workspace.
        keep: As the others an argument of :func:`.schedule.schedule`, which plans each chunk; the head has a gradient.
        table: Launch parameters.
        **kinds: ``direct``, ``in_bytes`` and ``processors``.
    """
    if sizes[3] == DEFAULT_WORKSPACE_BYTES or not keep:
        return Chunks(n)
    # Sequences of any length: of a few thousand lengths some have a plan of their own.
    step = _STEP_TOKENS * max(table.forward.rows, table.logit_gradient.rows)
    chosen = _chosen(blocks(n, step) * step, *sizes, table=table, **kinds)
    return chosen if chosen.rows < n else Chunks(n)


@lru_cache(maxsize=1024)
def _chosen(
    n: int, vocab_size: int, hidden_size: int, itemsize: int, workspace_bytes: int, *, table: LaunchTable, **kinds: Any
) -> Chunks:
    search = _Search(n, vocab_size, hidden_size, itemsize, {**kinds, "table": table})
    whole = search.plan(n, workspace_bytes, sums=False)
    time = search.microseconds(n, whole)
    best, least = Chunks(n), _WORTHWHILE * time
    if search.gain(whole) < (1 - _WORTHWHILE) * time:
        return best
    for rows in search.sizes(workspace_bytes):
        plans = search.plans(rows, workspace_bytes)
        time = max(search.in_chunks(rows, plans), search.host(rows, plans))
        if time < least:
            best, least = Chunks(rows), time
    return best


class _Search:
    """Plans and times of chunks of one problem."""

    def __init__(self, n: int, vocab_size: int, hidden_size: int, itemsize: int, kinds: dict[str, Any]) -> None:
        self.n, self.vocab_size, self.hidden_size, self.itemsize = n, vocab_size, hidden_size, itemsize
        self.kinds, self.table, self.processors = kinds, kinds["table"], kinds["processors"]
        common = vocab_size, hidden_size, self.table, self.processors
        self.times = StripTimes(n, *common, direct=kinds["direct"], weight_gradient=True, in_bytes=kinds["in_bytes"])
        self.block = max(self.table.forward.rows, self.table.logit_gradient.rows)

    def sizes(self, budget: int) -> list[int]:
        """Sizes of a chunk that are fastest by :meth:`outlined`, some way apart from each other."""
        fewest, most = (blocks(blocks(self.n, chunks), self.block) for chunks in (_MOST_CHUNKS, 2))
        # Sums over the tokens of a chunk are not cut, so that as many as would be are too many.
        most = min(most, (2 * TOKENS_OF_A_PIECE * self.hidden_size - 1) // self.block)
        # In steps of a power of two, so that other numbers of tokens meet the same sizes.
        step = 1 << (max((most - fewest) // _LISTED, 1).bit_length() - 1)
        listed = [tiles * self.block for tiles in range(blocks(fewest, step) * step, most + 1, step)]
        found: list[int] = []
        for rows in sorted(listed, key=lambda rows: self.outlined(rows, budget)):
            if len(found) < _TRIED and all(abs(rows - other) > _APART * other for other in found):
                found.append(rows)
        return found

    def outlined(self, rows: int, budget: int) -> float:
        """Microseconds of all chunks if the budget were full of kept columns, in bytes or as they are."""
        times, weight, chunks = self.times, self.table.weight_gradient, self.n / rows
        held = budget // (rows * self.itemsize)  # columns in the workspace, kept ones or a strip of dz
        width = min(max(held // times.tile, 1) * times.tile, times.vocab)
        anew = max(times.vocab - held, 0)
        logits = times.saved * anew + _STRIP * chunks * anew / width
        if times.in_bytes and budget > DEFAULT_WORKSPACE_BYTES and anew:  # beside a strip of dz
            strip = min(max(held // _STRIP_SHARE, times.tile), MAX_WIDTH)
            coded = min(2 * (held - strip), times.vocab)
            strips = chunks * coded / strip * STRIP_DECODED
            logits = min(logits, times.saved * (times.vocab - coded) + times.decoded * coded + strips)
        # Strips of less than a round of tiles; in others the width is chosen for whole ones.
        tiles = width / weight.rows * blocks(self.hidden_size, weight.columns)
        size = weight.rows * weight.columns * weight.depth / (128 * 256 * 64)
        products = _STEP_WEIGHT * size * max(tiles / self.processors, 1) * blocks(rows, weight.depth)
        products = products * times.vocab / width + self.input_gradient(rows)
        return products * self.n / rows + logits + (chunks - 1) * self.apart()

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

    def plans(self, rows: int, budget: int) -> tuple[Schedule, Schedule]:
        """Those of the first chunk and of the later ones."""
        return self.plan(rows, budget, sums=False), self.plan(rows, budget, sums=True)

    def microseconds(self, rows: int, found: Schedule) -> float:
        """Of forward and backward of a chunk; of the last round of the input's gradient with its cuts."""
        launch = self.table.input_gradient
        columns = blocks(self.hidden_size, launch.columns)
        size = launch.rows * launch.columns * self.vocab_size / (128 * 256 * 64)
        modelled = blocks(blocks(2 * rows, launch.rows) * columns, self.processors) / 2
        coded = _in_bytes(found)
        time = found.microseconds + self.input_gradient(rows) - _STEP_INPUT * size * modelled
        time += rows * (KEPT * (found.columns - coded) + _ENCODED * coded)
        return time + self.times.saved * self.times.vocab * rows / self.n

    def gain(self, found: Schedule) -> float:
        """Microseconds that would be saved of all tokens if all columns were kept as they enter the products."""
        return self.times.saved * (self.times.vocab - found.columns) + self.times.decoded * _in_bytes(found)

    def apart(self) -> float:
        """Microseconds of a chunk more apart from its tiles."""
        return _CHUNK + 2 * self.itemsize * self.vocab_size * self.hidden_size / _BYTES_SUMMED

    def in_chunks(self, rows: int, plans: tuple[Schedule, Schedule]) -> float:
        """Microseconds of all chunks."""
        first, later = (self.microseconds(rows, plan) for plan in plans)
        return first + later * (self.n - rows) / rows + (blocks(self.n, rows) - 1) * self.apart()

    def host(self, rows: int, plans: tuple[Schedule, Schedule]) -> float:
        """Microseconds of the host."""
        first, later = (_HOST_CHUNK + _HOST_STRIP * len(plan.strips) for plan in plans)
        return first + later * (blocks(self.n, rows) - 1)


def _in_bytes(plan: Schedule) -> int:
    """Columns that are kept in bytes."""
    return sum(run.columns for run in plan.kept if run.in_bytes)
