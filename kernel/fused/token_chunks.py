"""In how many chunks of tokens a loss is computed, forward and backward of one before the next, so that more is kept.

Columns kept for N tokens take N bytes or 2 N each: of a chunk the same memory holds a multiple of them. So three
products of the size of the logits take bounded memory. What it costs: the head's gradient is read and written once more
with each chunk but the first, and each chunk has launches of its own. The gradient of the hidden states of a chunk is
its rows of the whole.

In half precision the sum over earlier chunks is rounded between chunks to what its 16 bits hold, which is finer than
bfloat16 (:mod:`.chunk_sums`), and adds to the error of the head's gradient. In squares of the error of one rounding to
bfloat16 that is 2 where dz is rounded and the sum over all tokens is; 3 where a kept softmax and the hidden states
scaled for it enter the product; and for each chunk but the last 1 / 64 of the share of the tokens up to its end, where
sums grow like their root (of its square, where they grow like their number): of k equal ones (k - 1) / 128.

How large a chunk is best is looked for among multiples of a tile: by a model of its products that takes the budget to
be filled, then, of the few that are fastest by that, by the plans themselves. These depend on the size of a chunk
alone: another number of tokens mostly finds them made. Of sizes that are nearly as fast the one of least memory is
taken, as of plans. All chunks have one size, and what is left of the tokens is counted as it is. The first could have
more tokens, as the head's gradient holds no sums yet and so may hold columns: that would save less than the model errs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .chunk_times import Chunks, ChunkTimes
from .launch import TOKENS_OF_A_PIECE, LaunchTable, blocks
from .planner import MEMORY, NEAR

__all__ = ["Chunks", "token_chunks"]

# Errors are to be at most 0.0030, 3.6 squares of 0.0015 to 0.0016: of 32 chunks they are 3.26, 0.0029, where all
# columns enter the products as they are.
_MOST_CHUNKS = 32
_TRIED, _APART = 4, 0.05  # sizes that are planned, and how far one is from the next at least
# Of the time in one chunk, and microseconds less than it: of GPT-2's head, which takes 4 ms, the model has cuts faster
# by 200 that are slower by 50 on an H200.
_WORTHWHILE, _SAVED = 0.98, 250.0
_LISTED = 40  # sizes of a chunk that are modelled
_STEP_TOKENS = 4  # tiles of tokens: numbers of them with the same chunks


def token_chunks(n: int, *sizes: int, default: bool, keep: bool, table: LaunchTable, **kinds: Any) -> Chunks:
    """Choose the chunks; one with the default budget, which nobody chose.

    Args:
        n: Tokens N.
        *sizes: V, D, bytes of an element and of the workspace.
        default: Whether nobody chose the workspace.
        keep: As the others an argument of :func:`.schedule.schedule`, which plans each chunk; the head has a gradient.
        table: Launch parameters.
        **kinds: ``direct``, ``in_bytes`` and ``processors``.
    """
    if default or not keep:
        return Chunks(n)
    # Sequences of any length: of a few thousand lengths some have a plan of their own.
    step = _STEP_TOKENS * max(table.forward.rows, table.logit_gradient.rows)
    chosen = _chosen(blocks(n, step) * step, *sizes, table=table, **kinds)
    return chosen if chosen.rows < n else Chunks(n)


@lru_cache(maxsize=1024)
def _chosen(
    n: int, vocab_size: int, hidden_size: int, itemsize: int, workspace_bytes: int, *, table: LaunchTable, **kinds: Any
) -> Chunks:
    times = ChunkTimes(n, vocab_size, hidden_size, itemsize, {**kinds, "table": table})
    whole = times.plan(n, workspace_bytes, sums=False)
    time = times.microseconds(n, whole)
    worthwhile = min(_WORTHWHILE * time, time - _SAVED)
    if times.gain(whole) < time - worthwhile:
        return Chunks(n)
    found: dict[int, tuple[float, float]] = {}  # time, and what ranks
    for rows in _outlined(times, workspace_bytes):
        plans = times.plans(rows, workspace_bytes)
        own = max(times.in_chunks(rows, plans), times.host(rows, plans))
        if own < worthwhile:
            found[rows] = own, own * times.memory(rows, plans) ** MEMORY
    least = NEAR * min((time for time, _ in found.values()), default=0.0)
    near = {rows: rank for rows, (time, rank) in found.items() if time <= least}
    return Chunks(min(near, key=near.__getitem__, default=n))


def _outlined(times: ChunkTimes, budget: int) -> list[int]:
    """Sizes that are fastest by :meth:`.chunk_times.ChunkTimes.outlined`, some way apart from each other."""
    n, block = times.n, max(times.table.forward.rows, times.table.logit_gradient.rows)
    fewest, most = (blocks(blocks(n, chunks), block) for chunks in (_MOST_CHUNKS, 2))
    # Sums over the tokens of a chunk are not cut, so that as many as would be are too many.
    most = min(most, (2 * TOKENS_OF_A_PIECE * times.hidden_size - 1) // block)
    # In steps of a power of two, so that other numbers of tokens meet the same sizes.
    step = 1 << (max((most - fewest) // _LISTED, 1).bit_length() - 1)
    listed = [tiles * block for tiles in range(blocks(fewest, step) * step, most + 1, step)]
    found: list[int] = []
    for rows in sorted(listed, key=lambda rows: times.outlined(rows, budget)):
        if len(found) < _TRIED and all(abs(rows - other) > _APART * other for other in found):
            found.append(rows)
    return found
