"""In how many chunks of tokens a loss is computed, forward and backward of one before the next, so that more is kept.

Columns kept for N tokens take N bytes or 2 N each: of a chunk the same memory holds a multiple of them. So three
products of the size of the logits take bounded memory. What it costs: the head's gradient is read and written once more
with each chunk but the first, whose rounded sum the next ones start from, and each chunk has launches of its own. The
gradient of the hidden states of a chunk is its rows of the whole.

Each rounding of the head's gradient adds to its error. With r = 0.0016, bfloat16's relative one, that of one chunk is
sqrt(2) r where dz was rounded and the sum over the tokens is, sqrt(3) r where a kept softmax and scaled hidden states
enter the product. Sums of independent chunks grow like the square root of their number, so that k chunks add
sqrt((k - 1) / 2) r: of 0.0023 and 0.0027 four and two chunks make at most 0.0030.
"""

from __future__ import annotations

from functools import lru_cache

from .launch import LaunchTable, blocks
from .schedule import DEFAULT_WORKSPACE_BYTES, Schedule, schedule
from .strip_times import StripTimes

__all__ = ["chunk_rows"]

_MOST, _MOST_AS_IT_IS = 4, 2  # chunks; where columns of half precision enter the products as they were kept
_WORTHWHILE = 0.98  # of the time in one chunk
# Microseconds of a chunk apart from its tiles (launches, a last round of the forward); bytes of the head's gradient that
# are read or written in one; microseconds of the forward for each token and column that it keeps, and keeps in a byte.
_CHUNK, _BYTES_SUMMED, _KEPT, _ENCODED = 150.0, 3.0e6, 0.6e-6, 0.9e-6


@lru_cache(maxsize=1024)
def chunk_rows(
    n: int,
    vocab_size: int,
    hidden_size: int,
    itemsize: int,
    workspace_bytes: int,
    *,
    direct: bool,
    in_bytes: bool,
    keep: bool,
    processors: int,
    table: LaunchTable,
) -> int:
    """Tokens of a chunk, of which the last may have fewer: n where one chunk is best.

    The arguments are those of :func:`.schedule.schedule`; columns kept are consumed and the weight has a gradient.
    """
    if workspace_bytes <= DEFAULT_WORKSPACE_BYTES or not keep:
        return n
    kinds = {"keep": True, "direct": direct, "consumed": True, "weight_gradient": True, "in_bytes": in_bytes}
    kinds |= {"processors": processors, "table": table}
    block = max(table.forward.rows, table.logit_gradient.rows)
    times = StripTimes(n, vocab_size, hidden_size, table, processors, direct=direct, weight_gradient=True)

    def plan(rows: int, *, sums: bool) -> Schedule:
        return schedule(rows, vocab_size, hidden_size, itemsize, workspace_bytes, **kinds, sums=sums)

    def microseconds(rows: int, found: Schedule) -> float:
        coded = sum(run.columns for run in found.kept if run.in_bytes)
        return found.microseconds + rows * (_KEPT * (found.columns - coded) + _ENCODED * coded)

    whole = plan(n, sums=False)
    if whole.columns >= times.vocab and not any(run.in_bytes for run in whole.kept):
        return n
    forward = times.saved * times.vocab  # of one chunk and of several
    best, least = n, _WORTHWHILE * (forward + microseconds(n, whole))
    for count in range(2, _MOST + 1):
        rows = blocks(blocks(n, count), block) * block
        if rows >= n:
            break
        first, later = plan(rows, sums=False), plan(rows, sums=True)
        exact = itemsize > 2 or not direct or all(run.in_bytes for run in (*first.kept, *later.kept))
        if count > _MOST_AS_IT_IS and not exact:
            continue
        summed = 2 * itemsize * vocab_size * hidden_size / _BYTES_SUMMED
        time = forward + microseconds(rows, first) + microseconds(rows, later) * (n - rows) / rows
        time += (blocks(n, rows) - 1) * (_CHUNK + summed)
        if time < least:
            best, least = rows, time
    return best
