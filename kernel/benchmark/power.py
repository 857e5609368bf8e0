"""Time, power and clock of calls that go on for seconds, hence what limits them: ``python -m kernel.benchmark.power``.

A call alone meets a cool device at its highest clock; in a training step there is no pause. A row a case: ms is the
time of a call in a loop of calls (seconds, calls; two events around all of it, after 0.3 s of the same), ms_alone the
median of calls each after a pause. watts is the mean of the power sensor during the loop, counter_watts that of the
energy counter, a check; joules what a call takes by the sensor; mhz the mean clock of the multiprocessors; at_limit the
share of the samples in which the power limit holds the clock down, slowed that in which heat or the hardware does.
Where at_limit is near 1 time is about energy over power: what overlaps with other work saves time mostly where it saves
energy.

Cases: the library's three products of the loss on its own data (the last two of the loss's gradient of the logits),
the first of a head of zeros, which switch next to nothing, the others with small entries of dz as zeros (which no loss
here does: it would lose what rare words learn), a copy of the head, which is memory traffic alone, ours
with several workspaces, and rivals (``--no-rivals``); those written in CuTe in a process of their own
(:mod:`kernel.benchmark.apart`). Where a case is not to be trusted doubt says why, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ..fused import default_workspace_bytes
from . import measure
from .apart import Apart
from .command import add_places, finish, output_of, parser_of, typed, whole
from .cute_rivals import cute_rivals
from .nvml import Meter
from .prepare import Entry, prepare
from .problems import SHAPES, Data, make_data
from .profile import BUDGETS, workspace_bytes
from .rivals import Case, ours, rivals
from .sustained import Durations, Figures, Reader, Sustained, doubts, figures, sustain
from .tables import Report

__all__ = ["COLUMNS", "FLUSHED", "PRODUCTS", "main"]

PRODUCTS = ("input @ weight.T", "dz.T @ input", "dz @ weight")
FLUSHED = tuple(f"{product}, dz below 2^-20 as 0" for product in PRODUCTS[1:])
COLUMNS = (
    *("shape", "tokens", "vocab_size", "hidden_size", "dtype", "label_smoothing", "case", "workspace_mib"),
    *("seconds", "calls", "ms", "ms_alone", "watts", "counter_watts", "joules", "mhz", "at_limit", "slowed"),
    *("samples", "peak_mib", "doubt", "skipped"),
)
_SHAPES = ("Gemma-2-2B", "Llama-3-8B", "V 248320, D 2048", "Gemma-3-270M")
_RIVALS = ("eager", "torch.compile")
_CUTE = (
    *(f"Liger-Kernel CuTe, bfloat16 sums, chunk {chunk}" for chunk in (4, 16, 64)),
    "Liger-Kernel CuTe, float32 sums, chunk 16",
)
_SMALL = 2.0**-20
_WARM_S, _PAUSE_S, _ALONE = 0.3, 0.1, 3
_EXAMPLES = """
examples:
  python -m kernel.benchmark.power --output paper_figures/data/kernel_power.csv   two to three minutes of a GPU
  python -m kernel.benchmark.power --shapes Gemma-2-2B --seconds 2 --rounds 3 --no-rivals
"""


def _device() -> torch.device:
    if not torch.cuda.is_available():
        raise ValueError("power is measured on a GPU, and torch finds none.")
    return torch.device("cuda", torch.cuda.current_device())


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.power", __doc__, _EXAMPLES)
    names = [s.name for s in SHAPES]
    parser.add_argument(
        "--shapes", nargs="+", choices=names, default=list(_SHAPES), help="heads to measure (default: four of them)"
    )
    parser.add_argument("--seconds", type=_seconds, default=0.7, help="of each case in a round (default %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=1, help="through all cases of a head (default %(default)s)")
    parser.add_argument("--no-rivals", action="store_true", help="only ours, and the library's products")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N, V and D by this, for a trial")
    add_places(parser, "kernel_power", device=False)
    given = parser.parse_args(arguments)
    return finish(lambda: _measure(given, typed(parser, given)))


def _measure(given: argparse.Namespace, command: str) -> int:
    device = _device()
    meter, durations = Meter(), Durations(given.seconds, _WARM_S, _PAUSE_S, _ALONE)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = {"shapes": given.shapes, "scale": given.scale, "rounds": given.rounds, **durations._asdict()}
    config |= {"rivals": not given.no_rivals, "dtype": str(dtype).removeprefix("torch.")}
    config |= {"limit_watts": meter.limit_watts, "most_mhz": meter.most_mhz}
    output, shapes = output_of(given, "kernel_power"), {s.name: s for s in SHAPES}
    apart = Apart(dtype, device, () if given.no_rivals else _CUTE, cute_rivals, errors=False)
    about = {"command": command, "config": config, "device": device, "columns": COLUMNS}
    with contextlib.closing(apart), Report(output, **about) as report:
        for name in dict.fromkeys(given.shapes):
            apart.shape = shapes[name].divided(given.scale)
            data = make_data(apart.shape, dtype, device)
            for row in _rows(data, device, meter, durations, given.rounds, apart, others=not given.no_rivals):
                report.add(row)
                print(_described(row), flush=True)
            del data
    print(f"wrote {output}")
    doubted = [row for row in report.rows if row.get("doubt")]
    for row in doubted:
        print(f"not to be trusted: {row['shape']}, {row['case']}: {row['doubt']}", file=sys.stderr)
    return int(bool(doubted))


def _rows(
    data: Data, device: torch.device, meter: Reader, durations: Durations, rounds: int, apart: Apart, *, others: bool
) -> Iterator[dict[str, Any]]:
    """The rows of one head, each when its case has run for the last time."""
    entries = list(_entries(apart.shape.name, data, device, apart, others=others))
    for entry, loops in _rounds(entries, device, meter, durations, rounds, apart):
        yield _row(apart.shape.name, data, entry, figures(loops) if loops else None)


def _entries(name: str, data: Data, device: torch.device, apart: Apart, *, others: bool) -> Iterator[Entry]:
    """Every case of one head, products first; losses are built and their memory measured before products take any."""
    budgets = dict.fromkeys((*BUDGETS.get(name, ("default",)), "all kept"))
    chosen = [ours(budget, workspace_bytes(budget, data)) for budget in budgets]
    if others:
        chosen += [rival for rival in rivals(0) if rival.name in _RIVALS]
    losses = list(prepare(data, Case(), chosen, device, errors=False))
    for rival, entry in zip(chosen[: len(budgets)], losses, strict=False):
        size = default_workspace_bytes(len(data.hidden)) if rival.workspace_bytes is None else rival.workspace_bytes
        entry.columns["workspace_mib"] = f"{size / 2**20:.0f}"
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the other process
    losses += apart.prepare(Case())
    hidden, weight = data.hidden.detach(), data.weight.detach()
    logits = hidden @ weight.T
    yield Entry(Case(), PRODUCTS[0], partial(torch.mm, hidden, weight.T, out=logits))
    dz = measure.logit_gradient(data, Case())
    for names, gradient in ((PRODUCTS[1:], dz), (FLUSHED, torch.where(dz.abs() < _SMALL, 0, dz))):
        of_gradients = measure.library_products(data, Case(), device, gradient)[1:]
        yield from (Entry(Case(), product, run) for product, (run, _) in zip(names, of_gradients, strict=True))
    yield Entry(Case(), "input @ zeros.T", partial(torch.mm, hidden, torch.zeros_like(weight).T, out=logits))
    yield Entry(Case(), "copy of the head", partial(torch.empty_like(weight).copy_, weight))
    yield from losses


def _rounds(
    entries: Sequence[Entry], device: torch.device, meter: Reader, durations: Durations, rounds: int, apart: Apart
) -> Iterator[tuple[Entry, list[Sustained]]]:
    """Run all cases in each round, every other one backwards; yield each with its loops when it has its last."""
    loops: dict[str, list[Sustained]] = {entry.name: [] for entry in entries}
    for left in range(rounds - 1, -1, -1):
        for entry in reversed(entries) if left % 2 else entries:
            try:
                if entry.run is not None:
                    loops[entry.name].append(sustain(entry.run, device, meter, durations))
                elif entry.runs:
                    loops[entry.name].append(apart.sustain(entry, type(meter), durations))
            except EOFError:
                entry.turn, entry.columns["skipped"] = None, "its process ended during the rounds"
            if not left:
                yield entry, loops[entry.name]


def _row(name: str, data: Data, entry: Entry, found: Figures | None) -> dict[str, Any]:
    tokens, hidden_size = data.hidden.shape
    row: dict[str, Any] = {
        "shape": name,
        "tokens": tokens,
        "vocab_size": len(data.weight),
        "hidden_size": hidden_size,
        "dtype": str(data.hidden.dtype).removeprefix("torch."),
        "label_smoothing": Case().label_smoothing,
        "case": entry.name,
    }
    if found is not None:
        row |= {
            "seconds": f"{found.seconds:.2f}",
            "calls": found.calls,
            "ms": f"{found.ms:.4f}",
            "ms_alone": f"{found.ms_alone:.4f}",
            "watts": f"{found.watts:.1f}",
            "counter_watts": "" if found.counter_watts is None else f"{found.counter_watts:.1f}",
            "joules": f"{found.joules:.3f}",
            "mhz": f"{found.mhz:.0f}",
            "at_limit": f"{found.at_limit:.3f}",
            "slowed": f"{found.slowed:.3f}",
            "samples": found.samples,
            "doubt": "; ".join(doubts(found)),
        }
    return row | entry.columns


def _described(row: dict[str, Any]) -> str:
    case = f"{row['shape']:17} {row['case']:42}"
    if "ms" not in row:
        return f"{case} skipped: {row['skipped']}"
    power = f"{row['watts']} W, {row['joules']} J a call, {row['mhz']} MHz, at the limit {row['at_limit']}"
    return f"{case} {row['ms']:>9} ms ({row['ms_alone']} alone), {power}, {row['samples']} samples"


if __name__ == "__main__":
    sys.exit(main())
