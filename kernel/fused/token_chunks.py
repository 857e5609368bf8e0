"""In how many chunks of tokens a loss is computed, forward and backward of one before the next, so that more is kept.

Columns kept for N tokens take N bytes or 2 N each: of a chunk the same memory holds a multiple of them. So three
products of the size of the logits take bounded memory. What it costs: the head's gradient is read and written once more
with each chunk but the first, and each chunk has launches of its own. The gradient of the hidden states of a chunk is
its rows of the whole.

In bfloat16 the sum over earlier chunks is rounded once more with each chunk, which adds to the error of the head's
gradient. In squares of the error of one rounding that is 2 where dz is rounded and the sum over all tokens is; 3 where
a kept softmax and the hidden states scaled for it enter the product, as far as that is so of the first columns, the
frequent words of most vocabularies, whose rows make most of the whole; and each chunk more adds 0.4 where sums grow
like the square root of the chunks. Where all columns would be kept as they are, the first are therefore recomputed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from .last_round import rounds
from .launch import LaunchTable, blocks
from .schedule import DEFAULT_WORKSPACE_BYTES, Schedule, schedule
from .strip_times import KEPT, StripTimes

__all__ = ["Chunks", "token_chunks"]

_COUNTS = (2, 3, 4, 5)  # that are tried; in half precision the error of six is beyond the largest one below
# Squares of errors of one rounding, which is 0.0015 to 0.0016 in bfloat16: at most 0.0030.
_ERROR, _ERROR_AS_IT_IS, _ERROR_CHUNK, _MOST_ERROR = 2.0, 1.0, 0.4, 3.6
_FIRST = 64  # one in so many columns is one of the first
_WORTHWHILE = 0.97  # of the time in one chunk
# Microseconds of a chunk apart from its tiles (launches, last rounds); bytes of the head's gradient read or written in
# one; microseconds of the forward for a token and column that it keeps in a byte. Of an H200, as the others: times over
# budgets and chunks at five heads were 1.08 to 1.20 times what the model says.
_CHUNK, _BYTES_SUMMED, _ENCODED = 150.0, 3.0e6, 0.9e-6
_STEP_INPUT = 0.70  # as in strip_times
_STEP_TOKENS = 4  # tiles of tokens: numbers of them with the same chunks


class Chunks(NamedTuple):
    """How the tokens are cut."""

    rows: int  # tokens of a chunk, of which the last may have fewer; all of them where one chunk is best
    recompute_first: bool = False  # whether no chunk keeps the first columns


def token_chunks(n: int, *sizes: int, keep: bool, table: LaunchTable, **kinds: Any) -> Chunks:
    """Choose the chunks; one up to the default budget, which nobody may have chosen.

    Args:
        n: Tokens N.
        *sizes: V, D, bytes of an element and of the workspace.
        keep: As the others an argument of :func:`.schedule.schedule`, which plans each chunk; the head has a gradient.
        table: Launch parameters.
        **kinds: ``direct``, ``in_bytes`` and ``processors``.
    """
    if sizes[3] <= DEFAULT_WORKSPACE_BYTES or not keep:
        return Chunks(n)
    # Sequences of any length: of a few thousand lengths some have a plan of their own.
    step = _STEP_TOKENS * max(table.forward.rows, table.logit_gradient.rows)
    chosen = _chosen(blocks(n, step) * step, *sizes, table=table, **kinds)
    return chosen if chosen.rows < n else Chunks(n)


@lru_cache(maxsize=1024)
def _chosen(
    n: int, vocab_size: int, hidden_size: int, itemsize: int, workspace_bytes: int, *, table: LaunchTable, **kinds: Any
) -> Chunks:
    search = _Search(n, vocab_size, hidden_size, itemsize, {"table": table, **kinds})
    whole = search.plan(n, workspace_bytes, sums=False)
    time = search.microseconds(n, whole)
    best, least = Chunks(n), _WORTHWHILE * time
    if search.gain(whole) < (1 - _WORTHWHILE) * time:
        return best
    block = max(table.forward.rows, table.logit_gradient.rows)
    for count in _COUNTS:
        rows = blocks(blocks(n, count), block) * block
        for recompute_first in (False, True):
            plans = search.plans(rows, workspace_bytes, recompute_first)
            if itemsize == 2 and search.error(rows, plans) > _MOST_ERROR:
                continue
            time = search.in_chunks(rows, plans)
            if time < least:
                best, least = Chunks(rows, recompute_first), time
            break
    return best


class _Search:
    """Plans and times of chunks of one problem."""

    def __init__(self, n: int, vocab_size: int, hidden_size: int, itemsize: int, kinds: dict[str, Any]) -> None:
        self.n, self.vocab_size, self.hidden_size, self.itemsize = n, vocab_size, hidden_size, itemsize
        self.kinds, self.table, self.processors = kinds, kinds["table"], kinds["processors"]
        common = vocab_size, hidden_size, self.table, self.processors
        self.times = StripTimes(n, *common, direct=kinds["direct"], weight_gradient=True)

    def plan(self, rows: int, budget: int, *, sums: bool, recompute_first: bool = False) -> Schedule:
        """The plan of a chunk."""
        sizes = rows, self.vocab_size, self.hidden_size, self.itemsize, budget
        options = {"keep": True, "consumed": True, "weight_gradient": True, "recompute_first": recompute_first}
        return schedule(*sizes, sums=sums, **options, **self.kinds)

    def plans(self, rows: int, budget: int, recompute_first: bool) -> tuple[Schedule, Schedule]:
        """Those of the first chunk and of the later ones."""
        first, later = (self.plan(rows, budget, sums=s, recompute_first=recompute_first) for s in (False, True))
        return first, later

    def microseconds(self, rows: int, found: Schedule) -> float:
        """Of forward and backward of a chunk; of the last round of the input's gradient with its cuts."""
        launch = self.table.input_gradient
        tiles = blocks(rows, launch.rows), blocks(self.hidden_size, launch.columns)
        modelled = blocks(blocks(2 * rows, launch.rows) * tiles[1], self.processors) / 2
        size = launch.rows * launch.columns * self.vocab_size / (128 * 256 * 64)
        coded = _in_bytes(found)
        time = found.microseconds + _STEP_INPUT * size * (rounds(*tiles, self.processors) - modelled)
        time += rows * (KEPT * (found.columns - coded) + _ENCODED * coded)
        return time + self.times.saved * self.times.vocab * rows / self.n

    def gain(self, found: Schedule) -> float:
        """Microseconds that would be saved of all tokens if all columns were kept as they enter the products."""
        return self.times.saved * (self.times.vocab - found.columns) + self.times.decoded * _in_bytes(found)

    def error(self, rows: int, plans: tuple[Schedule, Schedule]) -> float:
        """The square of the weight gradient's error."""
        first, later = plans
        found = _ERROR + _ERROR_CHUNK * (blocks(self.n, rows) - 1)
        if self.kinds["direct"]:
            share = rows * self.as_it_is(first) + (self.n - rows) * self.as_it_is(later)
            found += _ERROR_AS_IT_IS * share / self.n
        return found

    def as_it_is(self, plan: Schedule) -> bool:
        """Whether the first columns are kept as they enter the products."""
        return any(run.start < self.vocab_size // _FIRST and not run.in_bytes for run in plan.kept)

    def in_chunks(self, rows: int, plans: tuple[Schedule, Schedule]) -> float:
        """Microseconds of all chunks."""
        first, later = (self.microseconds(rows, plan) for plan in plans)
        chunks = blocks(self.n, rows) - 1  # but the first
        summed = 2 * self.itemsize * self.vocab_size * self.hidden_size / _BYTES_SUMMED
        return first + later * (self.n - rows) / rows + chunks * (_CHUNK + summed)


def _in_bytes(plan: Schedule) -> int:
    """Columns that are kept in bytes."""
    return sum(run.columns for run in plan.kept if run.in_bytes)
