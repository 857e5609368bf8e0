"""Sparse gradients beside dense ones and cut-cross-entropy's filter: ``python -m kernel.benchmark.sparse``.

On hidden states and the head of a real model (``python -m analysis.language_models.saved_states`` writes the file), its
text tiled to as many tokens, the vocabulary sorted by mean probabilities on other text and by the head's rows; or on a
problem of ``python -m kernel.benchmark``, whose classes are sorted by frequency. Loss and both gradients; all in shared
rounds, behind the same work; errors against float64, of the head's rows that no token names apart.

"as they are" is the same head in the model's own order, where little can be left out: dense after a failed try, unless
each call is a try. "sorting in each call" begins and ends with that head too, as a model does whose head is not stored
sorted: its rows and the targets are sorted, and the gradient goes back into the model's order. Beside these stand
"default" and "all kept", "as they are", which need no order.

ms is the median, ms_low and ms_high are the quartiles, of all rounds; product_ms the median time of the product right
ahead of the call. Where that differs from the others', or rounds from each other, a time is not to be trusted: the
table is written, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import measure
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .measure import Turn
from .problems import SHAPES, Data, make_data, read_both_orders
from .rivals import Case
from .rounds import NEAR, in_rounds
from .sparse_calls import Contender, OwnOrder, entries_of
from .tables import Report

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.sparse --states gemma.safetensors --tokens 12288
  python -m kernel.benchmark.sparse --problem Gemma-2-2B
  python -m kernel.benchmark.sparse --states gemma.safetensors --profile      the kernels' times, and no table
"""
_APART = 0.1  # how far quartiles of the rounds may be apart
_OTHER_CALL = 0.001  # more, of the tiles, is another call: sums of another order choose within it
_TIMES = ("ms", "products", "ms_low", "ms_high", "product_ms")


def _described_or_not(entry: Contender, exact: tuple[Tensor, Tensor, Tensor], device: torch.device) -> dict[str, Any]:
    try:
        return _described(entry, exact, device)
    except Exception as error:  # an implementation that fails is a result, and must not end the run
        return {"skipped": f"{type(error).__name__}: {str(error)[:120]}"}


def _described(entry: Contender, exact: tuple[Tensor, Tensor, Tensor], device: torch.device) -> dict[str, Any]:
    """Memory and errors; the run before these compiles."""
    entry.run()
    peak = measure.peak_bytes(entry.run, device)
    data = entry.data
    assert data.hidden.grad is not None
    assert data.weight.grad is not None
    unnamed = torch.ones(len(data.weight), dtype=torch.bool, device=device)
    unnamed[data.target] = False
    pairs = {
        "input_gradient_error": (data.hidden.grad, exact[1]),
        "weight_gradient_error": (data.weight.grad, exact[2]),
        "rows_without_target_error": (data.weight.grad[unnamed], exact[2][unnamed]),
    }
    columns = {name: f"{_relative(a, b):.5f}" for name, (a, b) in pairs.items()}
    data.hidden.grad = data.weight.grad = None
    told = entry.told
    columns["active"] = entry.active
    columns["input_bound"] = "" if told is None else f"{told.input_bound:.5f}"
    columns["weight_bound"] = "" if told is None else f"{told.weight_bound:.5f}"
    columns["peak_mib"] = "" if peak is None else f"{peak / 2**20:.0f}"
    return columns


def _relative(got: Tensor, want: Tensor) -> float:
    """Relative error in the Frobenius norm, a slice at a time: float64 of a whole head takes gigabytes."""
    pairs = list(zip(got.split(16384), want.split(16384), strict=True))
    return float((sum((a.double() - b).square().sum() for a, b in pairs) / want.square().sum()) ** 0.5)


def _measure(name: str, data: Data, own: OwnOrder | None, rounds: int, device: torch.device) -> Iterator[Any]:
    """Rows of the table, each with what makes it doubtful."""
    entries = list(entries_of(data, own, device))
    for group in {(id(entry.data), entry.case): None for entry in entries}:
        members = [entry for entry in entries if (id(entry.data), entry.case) == group]
        exact = measure.exact_gradients(members[0].data, members[0].case)
        for entry in members:
            entry.columns = _described_or_not(entry, exact, device)
        del exact
    times = _times(entries, data, rounds, device)
    product = statistics.median(t.ms for t in times[-1])
    clock = measure.product_ms(t for turns in times for t in turns)
    for entry, turns in zip(entries, times, strict=False):
        row = {
            "problem": name,
            "tokens": len(data.hidden),
            "vocab_size": len(data.weight),
            "hidden_size": data.hidden.shape[1],
            "label_smoothing": entry.case.label_smoothing,
            "implementation": entry.name,
            "tolerance": entry.tolerance,
            "matmul_ms": f"{product:.3f}",
        }
        row |= _time_columns(turns, product)
        columns = ("peak_mib", "active", "input_bound", "weight_bound", "input_gradient_error")
        columns += ("weight_gradient_error", "rows_without_target_error", "skipped")
        row |= {column: entry.columns.get(column, "") for column in columns}
        yield row, list(_doubts(row, clock, entry.shares))


def _time_columns(turns: Sequence[Turn], product: float) -> dict[str, str]:
    if not turns:
        return dict.fromkeys(_TIMES, "nan")
    times = [turn.ms for turn in turns]
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    values = median, median / product, low, high, measure.product_ms(turns)
    return {name: f"{value:.3f}" for name, value in zip(_TIMES, values, strict=True)}


def _doubts(row: Mapping[str, Any], clock: float, shares: set[str]) -> Iterator[str]:
    """What a reader must know before a row is trusted.

    Args:
        row: Of the table.
        clock: Median time of the product ahead, of all rows.
        shares: Of active tiles that the calls told of in the rounds.
    """
    ms, _, low, high, ahead = (float(row[name]) for name in _TIMES)
    if abs(ahead / clock - 1) > NEAR:
        yield f"{ms:.2f} ms at another clock: the product ahead took {ahead:.3f} ms, of all calls {clock:.3f}"
    if high - low > _APART * ms:
        yield f"{ms:.2f} ms of rounds that differ: quartiles {low:.2f} and {high:.2f}"
    told = [float(share) for share in (*shares, row["active"]) if share]
    if told and (any(map(math.isnan, told)) or max(told) - min(told) > _OTHER_CALL):
        yield f"{ms:.2f} ms of different calls: active tiles {', '.join(sorted({*shares, row['active']}))}"


def _times(entries: Sequence[Contender], data: Data, rounds: int, device: torch.device) -> list[list[Turn]]:
    """Times of each entry in each round, and of the product of hidden states and head, the last."""
    hidden, weight = data.hidden.detach(), data.weight.detach()
    product = partial(torch.mm, hidden, weight.T, out=hidden @ weight.T)
    running = [index for index, entry in enumerate(entries) if "skipped" not in entry.columns]
    runs = [entries[index].run for index in running]

    def note(place: int) -> None:
        if place < len(running):
            entry = entries[running[place]]
            entry.shares.add(entry.active)

    *found, of_product = in_rounds([*runs, product], product, rounds, device, measure.AHEAD_MS, after=note)
    times: list[list[Turn]] = [[] for _ in entries]
    for index, turns in zip(running, found, strict=True):
        times[index] = turns
    times.append(of_product)
    for entry in entries:
        entry.data.hidden.grad = entry.data.weight.grad = None
    return times


def _profile(data: Data, device: torch.device) -> None:
    """Print the device's time by kernel, of one call within 0.003 and of one that keeps all."""
    chosen = [e for e in entries_of(data, None, device) if e.case == Case()]
    for entry in [e for e in chosen if e.name == "all kept" or (e.name == "sparse" and e.tolerance == 0.003)]:
        for _ in range(3):
            entry.run()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            entry.run()
            torch.cuda.synchronize()
        print(entry.name, entry.told)
        print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=30, max_name_column_width=60))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.sparse", __doc__, _EXAMPLES)
    parser.add_argument("--states", type=Path, metavar="FILE.safetensors", help="hidden states and head of a model")
    parser.add_argument("--problem", choices=[s.name for s in SHAPES], help="a synthetic problem instead")
    parser.add_argument("--tokens", type=whole(1), default=12288, help="tokens of the text, tiled (default 12288)")
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed rounds (default 10)")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide a synthetic problem's sizes, for a trial")
    parser.add_argument("--profile", action="store_true", help="print kernels' times of one call and write nothing")
    add_places(parser, "sparse")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    if (given.states is None) == (given.problem is None):
        raise ValueError("give either --states or --problem.")
    device = resolve_device(given, writes=not given.profile)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name, own = given.problem, None
    if given.states is None:
        shape = next(shape for shape in SHAPES if shape.name == given.problem)
        data = make_data(shape.divided(given.scale), dtype, device)
    else:
        data, in_own_order, order = read_both_orders(given.states, given.tokens, device)
        own = OwnOrder(in_own_order, order)
        name = given.states.stem
    if given.profile:
        _profile(data, device)
        return 0
    config = {
        "problem": name,
        "rounds": given.rounds,
        "ahead_ms": measure.AHEAD_MS,
        "dtype": str(data.hidden.dtype).removeprefix("torch."),
    }
    output = output_of(given, "sparse")
    doubted: list[str] = []
    with Report(output, command=command, config=config, device=device) as report:
        for row, doubts in _measure(name, data, own, given.rounds, device):
            report.add(row)
            print("  ".join(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
            call = f"{row['implementation']}, tolerance {row['tolerance']}, smoothing {row['label_smoothing']}"
            doubted += [f"{call}: {doubt}" for doubt in doubts]
    print(f"wrote {output}")
    if device.type != "cuda":  # a trial, whose times are of a host with other work
        return 0
    for doubt in doubted:
        print(f"not to be trusted: {doubt}", file=sys.stderr)
    return int(bool(doubted))


if __name__ == "__main__":
    sys.exit(main())
