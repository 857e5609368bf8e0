"""How long the backward of one strip takes, by a model of the three kernels, and the width that is fastest for that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .launch import Launch, LaunchTable, blocks, weight_splits

__all__ = ["ENCODED", "KEPT", "MAX_WIDTH", "STRIP_DECODED", "Source", "StripTimes"]

Source = bool | Literal["bytes"]  # of a strip: the logits anew, what was kept, or what was kept in bytes

# Microseconds of one 128 x 256 x 64 step of a multiprocessor in each kernel, of a strip apart from its tiles
# (launches), of one where bytes become dz, of the launch of each kept strip, and bytes moved in one: fitted to phases
# of an H200 (kernel_profile.csv) and to its times of 70 plans at ten heads (kernel.csv), which are 0.9 to 1.2 times
# these; only ratios matter.
_STEP_DZ, _STEP_WEIGHT, _STEP_INPUT, _STRIP, STRIP_DECODED, _LAUNCH, _BYTES = 0.70, 0.70, 0.66, 30.0, 15.0, 10.0, 2.5e6
_BYTES_DECODED = 3.9e6  # moved in one where bytes become dz
_CACHED = 70e6  # bytes of the input gradient's float32 sums, of which a strip moves the others twice
# Of kept columns in one memory: sweeps of the forward that they end, launches that look whether to repair them, and so
# on. Measured as what GPT-2's loss takes more with two such memories than with one, nothing else being saved; at
# Llama-3-8B's it is some 230.
_RUN = 150.0
KEPT, ENCODED = 0.6e-6, 0.9e-6  # of the forward, for a token and column that it keeps, in a byte; on an H200
_EPILOGUE, _EPILOGUE_INPUT = 4, 2  # of a tile of dz and of the input's gradient, in steps
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
        moved = 2 * max(4 * n * hidden_size - _CACHED, 0) / _BYTES_DECODED
        self.strip, self.decoded_strip = _STRIP + moved, STRIP_DECODED + moved
        self.stored, self.encoded = KEPT * n, (ENCODED - KEPT) * n  # what it costs the forward, and in a byte more
        self.forward = self.saved * self.vocab
        # In bytes, of which one is read and dz written, twice as many are kept. That pays where to make dz of a column
        # takes less than half of what keeping it saves.
        self.decoded = 3 * n / _BYTES_DECODED
        self.in_bytes = in_bytes and 2 * self.decoded < self.saved
        # Of a round of tiles of dz; of a step of the input's gradient, whose last round, cut along the sum, counts by
        # halves.
        self.dz_round = _STEP_DZ * _steps(1, 1, depth, dz, 1)
        self.input_step = _STEP_INPUT * _steps(2 * n, hidden_size, 1, table.input_gradient, processors) / 2
        self.rows = blocks(n, dz.rows)
        self.products: dict[int, float] = {}
        self.times: dict[tuple[int, Source], float] = {}
        # fastest width of at most 1, 2, ... tiles, and the time of a column in the last one
        self.fastest: dict[Source, list[int]] = {False: [], True: [], "bytes": []}
        self.least: dict[Source, float] = dict.fromkeys(self.fastest, float("inf"))

    def width(self, limit: int, kept: Source) -> int:
        """Fastest width of at most ``limit``; of those as fast the widest."""
        tiles = max(1, min(limit, self.vocab, MAX_WIDTH) // self.tile)
        fastest = self.fastest[kept]
        while len(fastest) < tiles:
            new = (len(fastest) + 1) * self.tile
            each = self.microseconds(new, kept) / new
            if each <= self.least[kept]:
                self.least[kept] = each
                fastest.append(new)
            else:
                fastest.append(fastest[-1])
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
        time = self.times.get((width, kept))
        if time is None:
            time = self.both(width) + (self.decoded_strip if kept == "bytes" else self.strip)
            if kept == "bytes":
                time += self.decoded * width
            elif kept and not self.direct:
                time += 2 * self.n * width * 2 / _BYTES
            elif not kept:
                time += self.dz_round * blocks(self.rows * blocks(width, self.tile), self.processors)
            self.times[width, kept] = time
        return time

    def each(self, kept: Source) -> float:
        """The least time of a column, in strips of the best width."""
        self.width(self.vocab, kept)
        return self.least[kept]

    def kept(self, width: int, number: int) -> float:
        """Modelled time of kept columns in ``number`` strips: one launch for the input's gradient, others for each."""
        time = self.strip
        if not self.direct:
            time += 2 * self.n * width * number * 2 / _BYTES
        if self.weight_gradient:
            time += number * (_LAUNCH + self.weight(width))
        return time + self.input(width * number)

    def both(self, width: int) -> float:
        """Modelled time of the two products of a strip, of whatever its dz is made."""
        if width not in self.products:
            self.products[width] = self.input(width) + (self.weight(width) if self.weight_gradient else 0)
        return self.products[width]

    def input(self, width: int) -> float:
        """Modelled time of one launch for the input's gradient."""
        return self.input_step * (blocks(width, self.table.input_gradient.depth) + _EPILOGUE_INPUT)

    def weight(self, width: int) -> float:
        """Modelled time of the weight's gradient of one strip, with what joins the pieces of a cut sum."""
        launch = self.table.weight_gradient
        splits = weight_splits(self.n, width, self.hidden_size, launch, self.processors)
        steps = _steps(splits * width, self.hidden_size, blocks(self.n, splits), launch, self.processors)
        if splits == 1:
            return _STEP_WEIGHT * steps
        # Pieces are written and read.
        return _STEP_WEIGHT * steps + _LAUNCH + 2 * 4 * splits * width * self.hidden_size / _BYTES


def _steps(rows: int, columns: int, depth: int, launch: Launch, processors: int) -> float:
    """Steps of 128 x 256 x 64 that each multiprocessor makes."""
    tiles = blocks(rows, launch.rows) * blocks(columns, launch.columns)
    step = launch.rows * launch.columns * launch.depth / (128 * 256 * 64)
    return step * blocks(tiles, processors) * blocks(depth, launch.depth)
