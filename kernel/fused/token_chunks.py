"""In how many chunks of tokens a loss is computed, forward and backward of one before the next, so that more is kept.

Columns kept for N tokens take N bytes or 2 N each: of a chunk the same memory holds a multiple of them. So three
products of the size of the logits take bounded memory. What it costs: the head's gradient is read and written once more
with each chunk but the first, and each chunk has launches of its own. The gradient of the hidden states of a chunk is
its rows of the whole.

While the first chunk is computed the memory of the head's gradient holds no sums yet: its columns may lie there, too,
so that it may have as many tokens more as the hidden size. The later ones are equal.

In half precision the sum over earlier chunks is rounded between chunks to what its 16 bits hold, which is finer than
bfloat16 (:mod:`.chunk_sums`), and adds to the error of the head's gradient. In squares of the error of one rounding to
bfloat16 that is 2 where dz is rounded and the sum over all tokens is; 3 where a kept softmax and the hidden states
scaled for it enter the product; and for each chunk but the last 1 / 16 of the share of the tokens up to its end, where
sums grow like their root (of its square, where they grow like their number): of k equal ones (k - 1) / 32.

How large chunks are best is looked for among multiples of a tile: by a model of their products that takes the budget to
be filled, then, of the few that are fastest by that, by the plans themselves. These depend on the size of a chunk
alone: another number of tokens mostly finds them made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .chunk_times import Chunks, ChunkTimes
from .launch import TOKENS_OF_A_PIECE, LaunchTable, blocks
from .planner import MEMORY, NEAR
from .schedule import DEFAULT_WORKSPACE_BYTES

__all__ = ["Chunks", "token_chunks"]

# Errors are to be at most 0.0030, 3.6 squares of 0.0015 to 0.0016. Of 20 equal chunks they are 3.6, where all columns
# enter the products as they are.
_MOST_CHUNKS = 20
_TRIED, _APART = 6, 0.05  # cuts that are planned, and how far one is from the next at least
_WORTHWHILE = 0.985  # of the time in one chunk
_LISTED = 40  # sizes of later chunks that are modelled
_STEP_TOKENS = 4  # tiles of tokens: numbers of them with the same chunks


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
        return Chunks(n, n)
    # Sequences of any length: of a few thousand lengths some have a plan of their own.
    step = _STEP_TOKENS * max(table.forward.rows, table.logit_gradient.rows)
    chosen = _chosen(blocks(n, step) * step, *sizes, table=table, **kinds)
    return chosen if chosen.first < n else Chunks(n, n)


@lru_cache(maxsize=1024)
def _chosen(
    n: int, vocab_size: int, hidden_size: int, itemsize: int, workspace_bytes: int, *, table: LaunchTable, **kinds: Any
) -> Chunks:
    times = ChunkTimes(n, vocab_size, hidden_size, itemsize, {**kinds, "table": table})
    whole = times.plan(n, workspace_bytes, sums=False)
    time = times.microseconds(n, whole)
    if times.gain(whole) < (1 - _WORTHWHILE) * time:
        return Chunks(n, n)
    found: dict[Chunks, tuple[float, float]] = {}  # time, and what ranks
    for chunks in _outlined(times, workspace_bytes):
        plans = times.plans(chunks, workspace_bytes)
        own = max(times.in_chunks(chunks, plans), times.host(chunks, plans))
        if own < _WORTHWHILE * time:
            found[chunks] = own, own * times.memory(chunks, plans) ** MEMORY
    least = NEAR * min((time for time, _ in found.values()), default=0.0)
    near = {chunks: rank for chunks, (time, rank) in found.items() if time <= least}
    return min(near, key=near.__getitem__, default=Chunks(n, n))


def _outlined(times: ChunkTimes, budget: int) -> list[Chunks]:
    """Cuts that are fastest by :meth:`.chunk_times.ChunkTimes.outlined`, some way apart from each other."""
    n, block = times.n, max(times.table.forward.rows, times.table.logit_gradient.rows)
    smallest, largest = (blocks(blocks(n, chunks), block) for chunks in (_MOST_CHUNKS, 2))
    # Sums over the tokens of a chunk are not cut, so that as many as would be are too many.
    most = (2 * TOKENS_OF_A_PIECE * times.hidden_size - 1) // block
    # In steps of a power of two, so that other numbers of tokens meet the same sizes.
    step = 1 << (max((largest - smallest) // _LISTED, 1).bit_length() - 1)
    first: dict[int, float] = {}
    found: dict[Chunks, float] = {}
    for tiles in range(blocks(smallest, step) * step, min(largest, most) + 1, step):
        later = tiles * block
        time = times.outlined(later, budget, sums=True) + times.apart
        for number in range(1, _MOST_CHUNKS):
            chunks = Chunks(n - number * later, later)
            rounded = number * (n + chunks.first - later)  # shares of the tokens up to the end of each, times 2 n
            if block <= chunks.first <= most * block and rounded <= (_MOST_CHUNKS - 1) * n:
                if chunks.first not in first:
                    first[chunks.first] = times.outlined(chunks.first, budget, sums=False)
                found[chunks] = first[chunks.first] + number * time
    chosen: list[Chunks] = []
    for chunks in sorted(found, key=found.__getitem__):
        if len(chosen) < _TRIED and all(_apart(chunks, other) for other in chosen):
            chosen.append(chunks)
    return chosen


def _apart(chunks: Chunks, other: Chunks) -> bool:
    return any(abs(rows - of_other) > _APART * of_other for rows, of_other in zip(chunks, other, strict=True))
