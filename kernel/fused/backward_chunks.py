"""In how many chunks of tokens the backward makes the gradients, so that its time is linear in the tokens.

The workspace holds dz of all tokens for a strip of the vocabulary. Of very many tokens that is a strip of few columns:
the input's gradient, float32 ``(N, D)``, is read and written with each of very many strips, the head's has few tiles in
each, and next to no column is kept. Of a chunk of the tokens the same workspace holds strips as many times as wide, and
the float32 sums are those of the chunk. What it costs: sums of the head's gradient are read and written once more with
each chunk but the first, in half precision as float16 (:mod:`.chunk_sums`), and each chunk has launches of its own. A
frozen head has no such sums. The forward is that of all tokens at once, and keeps nothing; when the first chunk begins
the upstream gradients are known, of any reduction.

Other than :mod:`.token_chunks`, which cuts forward and backward, so that more columns are kept, this is done with any
budget. One chunk and more compete as plans do (:mod:`.planner`): of those nearly as fast as the fastest by the model
the one is taken whose time and memory are least.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .chunk_times import BYTES_SUMMED, CHUNK
from .launch import TOKENS_OF_A_PIECE, LaunchTable, blocks
from .plan import PEAK_ROWS
from .planner import MEMORY, NEAR
from .schedule import Schedule
from .strip_times import StripTimes

__all__ = ["backward_rows", "rows_of_sums"]

_CHUNKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # numbers that are tried; for the most of them see token_chunks
_FEWEST = 2048  # tokens of a chunk: the sums and the launches of fewer take more than they save
_STEP_TOKENS = 4  # tiles of tokens: numbers of them with the same chunks
# Microseconds that the host takes to launch a chunk, and a strip of it: of a training loop the slower of both counts.
_HOST_CHUNK, _HOST_STRIP = 500.0, 150.0


def backward_rows(
    n: int,
    vocab_size: int,
    hidden_size: int,
    itemsize: int,
    workspace_bytes: int,
    *,
    whole: Schedule,
    table: LaunchTable,
    processors: int,
    weight_gradient: bool,
) -> int:
    """Choose how many tokens a chunk of the backward has, of which the last one may have fewer; N where one is best.

    Args:
        n: Tokens N.
        vocab_size: V.
        hidden_size: D.
        itemsize: Bytes of an element of the inputs.
        workspace_bytes: Budget of dz.
        whole: The plan of all tokens at once.
        table: Launch parameters.
        processors: Multiprocessors of the device.
        weight_gradient: Whether the weight needs a gradient.
    """
    if n < 2 * _FEWEST:
        return n
    problem = vocab_size, hidden_size, table, processors, weight_gradient
    size = hidden_size * itemsize
    gradients = (n + weight_gradient * vocab_size) * size
    # Microseconds and bytes over the inputs, by tokens of a chunk: with float32 sums, and packed rows beside chunks.
    peaks = 4 * PEAK_ROWS * n * sum(run.columns for run in whole.kept if run.in_bytes) // table.logit_gradient.columns
    found = {n: (_of_whole(n, whole, *problem), gradients + 4 * n * hidden_size + whole.memory * itemsize + peaks)}
    block = max(table.forward.rows, table.logit_gradient.rows)
    tiles = blocks(n, block * _STEP_TOKENS) * _STEP_TOKENS
    apart = CHUNK + (2 * itemsize * vocab_size * hidden_size / BYTES_SUMMED if weight_gradient else 0)
    for chunks in _CHUNKS:
        rows = blocks(tiles, chunks) * block
        # Sums over the tokens of a chunk are not cut, so that as many as would be are too many.
        cut = weight_gradient and rows >= 2 * TOKENS_OF_A_PIECE * hidden_size
        if rows >= n or rows < _FEWEST or cut:
            continue
        forward, strips, widest, each = _of_chunk(rows, workspace_bytes // (rows * itemsize), *problem)
        later = blocks(n, rows) - 1
        host = (later + 1) * (_HOST_CHUNK + _HOST_STRIP * strips)
        time = forward * n / rows + max(each * n / rows + apart * later, host)
        found[rows] = time, gradients + rows * (4 * hidden_size + size + widest * itemsize)
    most = NEAR * min(time for time, _ in found.values())
    near = {rows: time * memory**MEMORY for rows, (time, memory) in found.items() if time <= most}
    return min(near, key=near.__getitem__)


def rows_of_sums(n: int, rows: int, itemsize: int) -> int:
    """Most rows of the float32 sums of the input's gradient of a chunk: with its packed rows they take what N would."""
    return n - rows * itemsize // 4


def _times(
    n: int, vocab_size: int, hidden_size: int, table: LaunchTable, processors: int, weight_gradient: bool
) -> StripTimes:
    """Times of strips of which nothing is kept."""
    return StripTimes(n, vocab_size, hidden_size, table, processors, direct=True, weight_gradient=weight_gradient)


def _of_whole(n: int, whole: Schedule, *problem: Any) -> float:
    """Microseconds of forward and backward of all tokens at once."""
    times, memories = _times(n, *problem), {run.in_gradient for run in whole.kept}
    time = times.forward + whole.microseconds + times.run * (len(memories) - 1 if memories else 0)
    return time + sum((times.stored + (times.encoded if run.in_bytes else 0)) * run.columns for run in whole.kept)


@lru_cache(maxsize=1024)
def _of_chunk(rows: int, limit: int, *problem: Any) -> tuple[float, int, int, float]:
    """Of a chunk microseconds of the forward, strips, columns of the widest (at most ``limit``) and microseconds."""
    times = _times(rows, *problem)
    strips = [(padded, number) for _, padded, number in times.equal(0, times.vocab, limit, False)]
    backward = sum(number * times.microseconds(padded, False) for padded, number in strips)
    return times.forward, sum(number for _, number in strips), max(padded for padded, _ in strips), backward
