"""How long the backward of one strip takes, by a model of the three kernels, and the width that is fastest for that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .launch import Launch, LaunchTable, weight_splits

__all__ = ["KEPT", "MAX_WIDTH", "STRIP_DECODED", "Source", "StripTimes"]

Source = bool | Literal["bytes"]  # of a strip: the logits anew, what was kept, or what was kept in bytes

# Microseconds of one 128 x 256 x 64 step of a multiprocessor in each kernel, of a strip apart from its tiles (launches,
# the accumulator's traffic) and of one launch alone, and bytes moved in one: fitted to an H100; only ratios matter.
_STEP_DZ, _STEP_WEIGHT, _STEP_INPUT, _STRIP, _LAUNCH, _BYTES = 0.70, 0.67, 0.70, 25.0, 8.0, 2.5e6
# On an H200, whose products are as fast: bytes moved in one where bytes become dz, and of such a strip apart.
_BYTES_DECODED, STRIP_DECODED = 3.9e6, 37.0
# Of kept columns in one memory: sweeps of the forward that they end, launches that look whether to repair them, and so
# on. Measured as what GPT-2's loss takes more with two such memories than with one, nothing else being saved.
_RUN = 150.0
KEPT = 0.6e-6  # of the forward, for a token and column that it keeps; on an H200
_EPILOGUE = 4  # of a tile of dz, in steps
MAX_WIDTH = 16384


class StripTimes:
    """Times of strips of one problem.

    A training loop whose sequences differ in length asks for a plan in every step, so that the search must take little
    of it: each time is reckoned once, and the fastest width within a limit is looked up.

    Args:
        n: Tokens N.
        vocab_size: V.
        hidden_size: D.
        table: Launch parameters.
        processors: Multiprocessors of the device.
        direct: Whether kept columns enter the products as they are, without a strip of dz.
        in_bytes: Whether columns may also be kept in bytes.
        weight_gradient: Whether the weight needs a gradient.
    """

    def __init__(
        self,
        n: int,
        vocab_size: int,
        hidden_size: int,
        table: LaunchTable,
        processors: int,
        *,
        direct: bool,
        weight_gradient: bool,
        in_bytes: bool = False,
    ) -> None:
        self.n, self.hidden_size, self.table, self.processors = n, hidden_size, table, processors
        self.direct, self.weight_gradient = direct, weight_gradient
        self.tile = table.logit_gradient.columns
        self.vocab = -(-vocab_size // self.tile) * self.tile  # in whole tiles
        # What a kept column saves, where every multiprocessor has as much to do.
        dz = table.logit_gradient
        depth = hidden_size + _EPILOGUE * dz.depth
        self.saved = _STEP_DZ * n * depth / (128 * 256 * 64) / processors
        self.run = _RUN
        self.stored = KEPT * n  # what it costs the forward
        # In bytes, of which one is read and dz written, twice as many are kept. That pays where to make dz of a column
        # takes less than half of what keeping it saves.
        self.decoded = 3 * n / _BYTES_DECODED
        self.in_bytes = in_bytes and 2 * self.decoded < self.saved
        self.times: dict[tuple[int, Source], float] = {}
        # fastest width of at most 1, 2, ... tiles
        self.fastest: dict[Source, list[int]] = {False: [], True: [], "bytes": []}

    def width(self, limit: int, kept: Source) -> int:
        """Fastest width of at most ``limit``; of those as fast the widest."""
        tiles = max(1, min(limit, self.vocab, MAX_WIDTH) // self.tile)
        fastest = self.fastest[kept]
        while len(fastest) < tiles:
            new = (len(fastest) + 1) * self.tile
            old = fastest[-1] if fastest else new
            better = self.microseconds(new, kept) / new <= self.microseconds(old, kept) / old
            fastest.append(new if better else old)
        return fastest[tiles - 1]

    def equal(self, start: int, end: int, limit: int, kept: Source) -> Iterator[tuple[int, int, int]]:
        """Strips (start, padded columns, how many) of the fastest width within ``limit``, and a narrower last one."""
        if start < end:
            padded = self.width(limit, kept)
            count, rest = divmod(end - start, padded)
            if count:
                yield start, padded, count
            if rest:
                yield end - rest, rest, 1

    def microseconds(self, width: int, kept: Source) -> float:
        """Modelled time of one strip: whole rounds of tiles in each of the three kernels, and what comes on top."""
        if (width, kept) not in self.times:
            dz, input = self.table.logit_gradient, self.table.input_gradient
            time = STRIP_DECODED if kept == "bytes" else _STRIP
            if kept == "bytes":
                time += self.decoded * width
            elif kept and not self.direct:
                time += 2 * self.n * width * 2 / _BYTES
            elif not kept:
                depth = self.hidden_size + _EPILOGUE * dz.depth
                time += _STEP_DZ * self.steps(self.n, width, depth, dz)
            if self.weight_gradient:
                time += self.weight(width)
            # The last round of the input's gradient is cut along the sum: count it by halves.
            time += _STEP_INPUT * self.steps(2 * self.n, self.hidden_size, width, input) / 2
            self.times[width, kept] = time
        return self.times[width, kept]

    def kept(self, width: int, number: int) -> float:
        """Modelled time of kept columns in ``number`` strips: one launch for the input's gradient, others for each."""
        input = self.table.input_gradient
        time = _STRIP
        if not self.direct:
            time += 2 * self.n * width * number * 2 / _BYTES
        if self.weight_gradient:
            time += number * (_LAUNCH + self.weight(width))
        return time + _STEP_INPUT * self.steps(2 * self.n, self.hidden_size, width * number, input) / 2

    def weight(self, width: int) -> float:
        """Modelled time of the weight's gradient of one strip, with what joins the pieces of a cut sum."""
        launch = self.table.weight_gradient
        splits = weight_splits(self.n, width, self.hidden_size, launch, self.processors)
        time = _STEP_WEIGHT * self.steps(splits * width, self.hidden_size, -(-self.n // splits), launch)
        if splits > 1:  # written and read
            time += _LAUNCH + 2 * 4 * splits * width * self.hidden_size / _BYTES
        return time

    def steps(self, rows: int, columns: int, depth: int, launch: Launch) -> float:
        """Steps of 128 x 256 x 64 that each multiprocessor makes."""
        tiles = -(-rows // launch.rows) * -(-columns // launch.columns)
        step = launch.rows * launch.columns * launch.depth / (128 * 256 * 64)
        return step * -(-tiles // self.processors) * -(-depth // launch.depth)
