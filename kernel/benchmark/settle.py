"""How long a device takes after a pause to lower its clock to its power limit: ``python -m kernel.benchmark.settle``.

After each pause ``input @ weight.T`` runs over and over, and each run is timed. A row has those that begin between
from_ms and to_ms after the first: the median over all pauses, the quartiles, and over the median of the last row. Work
ahead of a call that is to be timed at the clock of a training step has to take as long as that is above 1
(``AHEAD_MS`` of :mod:`kernel.benchmark.measure`).
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .measure import AHEAD_MS, turn
from .problems import SHAPES, make_data
from .tables import Report

__all__ = ["COLUMNS", "main"]

COLUMNS = (
    *("shape", "tokens", "vocab_size", "hidden_size", "dtype", "from_ms", "to_ms", "runs"),
    *("ms", "ms_low", "ms_high", "of_last"),
)
_SHAPES = ("Gemma-2-2B", "Llama-3-8B")
_BOUNDS = (0, 20, 40, 80, 120, 160, 240, 320, 480)
_EXAMPLES = """
examples:
  python -m kernel.benchmark.settle --output paper_figures/data/kernel_settle.csv     half a minute of a GPU
  python -m kernel.benchmark.settle --device cpu --scale 64 --output /tmp/table.csv   a trial without a GPU
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.settle", __doc__, _EXAMPLES)
    names = [s.name for s in SHAPES]
    parser.add_argument(
        "--shapes", nargs="+", choices=names, default=list(_SHAPES), help="heads to measure (default: two of them)"
    )
    parser.add_argument("--pauses", type=whole(3), default=9, help="after which it is measured (default %(default)s)")
    parser.add_argument("--pause-ms", type=whole(0), default=200, help="of each pause (default %(default)s)")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N, V and D by this, for a trial")
    add_places(parser, "kernel_settle")
    given = parser.parse_args(arguments)
    return finish(lambda: _measure(given, typed(parser, given)))


def _measure(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = {"shapes": given.shapes, "pauses": given.pauses, "pause_ms": given.pause_ms, "scale": given.scale}
    config |= {"dtype": str(dtype).removeprefix("torch."), "ahead_ms": AHEAD_MS}
    output, shapes = output_of(given, "kernel_settle"), {s.name: s for s in SHAPES}
    with Report(output, command=command, config=config, device=device, columns=COLUMNS) as report:
        for name in dict.fromkeys(given.shapes):
            data = make_data(shapes[name].divided(given.scale), dtype, device)
            hidden, weight = data.hidden.detach(), data.weight.detach()
            sizes = {"tokens": len(hidden), "vocab_size": len(weight), "hidden_size": hidden.shape[1]}
            about = {"shape": name, **sizes, "dtype": config["dtype"]}
            product = partial(torch.mm, hidden, weight.T, out=hidden @ weight.T)
            for row in _rows(product, device, given.pauses, given.pause_ms / 1e3):
                report.add(about | row)
                print(f"{name:17} {row['from_ms']:4} to {row['to_ms']:4}: {row['ms']} ms, {row['of_last']}", flush=True)
    print(f"wrote {output}")
    return 0


def _rows(run: Callable[[], object], device: torch.device, pauses: int, pause: float) -> Iterator[dict[str, Any]]:
    """A row for each range in which a run began."""
    ranges = list(itertools.pairwise(_BOUNDS))
    found: dict[tuple[int, int], list[float]] = {each: [] for each in ranges}
    number = math.ceil(_BOUNDS[-1] / min(turn(run, device, before=run).ms for _ in range(3)))
    for _ in range(pauses):
        time.sleep(pause)
        for begin, ms in _runs(run, number, device):
            for low, high in ranges:
                if low <= begin < high:
                    found[low, high].append(ms)
    found = {each: times for each, times in found.items() if times}  # a run may take longer than a range
    last = statistics.median(list(found.values())[-1])
    for (low, high), each in found.items():
        quartiles = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else (each[0],) * 3
        times = dict(zip(("ms_low", "ms", "ms_high"), (f"{ms:.4f}" for ms in quartiles), strict=True))
        yield {"from_ms": low, "to_ms": high, "runs": len(each), **times, "of_last": f"{quartiles[1] / last:.4f}"}


def _runs(run: Callable[[], object], number: int, device: torch.device) -> list[tuple[float, float]]:
    """Milliseconds from the first to each run's begin, and of it, one directly behind the other."""
    on_device = device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)] if on_device else []
    marks = []
    for index in range(number + 1):
        if events:
            events[index].record()
        marks.append(1e3 * time.perf_counter())
        if index < number:
            run()
    if events:
        events[-1].synchronize()
        marks = [events[0].elapsed_time(event) for event in events]
    return [(begin - marks[0], end - begin) for begin, end in itertools.pairwise(marks)]


if __name__ == "__main__":
    sys.exit(main())
