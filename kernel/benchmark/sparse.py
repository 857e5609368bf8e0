"""Sparse gradients beside dense ones and cut-cross-entropy's filter: ``python -m kernel.benchmark.sparse``.

On hidden states and the head of a real model (``python -m analysis.language_models.saved_states`` writes the file), its
text tiled to as many tokens, the vocabulary sorted by mean probabilities on other text and by the head's rows; or on a
problem of ``python -m kernel.benchmark``, whose classes are sorted by frequency. Loss and both gradients; all in shared
rounds, behind the same work; errors against float64, of the head's rows that no token names apart. "as they are" is the
same head in the model's own order, where little can be left out: dense after a failed try, unless each call is a try.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import GradientTolerance, linear_cross_entropy
from . import measure
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .measure import Turn
from .problems import SHAPES, Data, make_data, read_states
from .rivals import Case, DataLoss, rivals
from .tables import Report

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.sparse --states gemma.safetensors --tokens 12288
  python -m kernel.benchmark.sparse --problem Gemma-2-2B
  python -m kernel.benchmark.sparse --states gemma.safetensors --profile      the kernels' times, and no table
"""
_TOLERANCES = (0.001, 0.003, 0.01)


@dataclass
class _Contender:
    name: str
    case: Case
    data: Data
    loss: DataLoss
    tolerance: float = 0.0
    told: GradientTolerance | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Tensor:
        return measure.step(self.loss, self.data, self.case)


def _ours(case: Case, **options: Any) -> DataLoss:
    given = {"label_smoothing": case.label_smoothing, "implementation": "triton", **options}
    return lambda data: linear_cross_entropy(data.hidden, data.weight, data.target, **given)


def _ever_trying(case: Case, tolerance: float) -> DataLoss:
    """A loss that remembers no failed try: each call has a tolerance of its own."""
    return lambda data: _ours(case, gradient_tolerance=GradientTolerance(tolerance))(data)


def _entries(data: Data, own_order: Data | None, device: torch.device) -> Iterator[_Contender]:
    all_kept = 2 * data.hidden.shape[0] * (data.weight.shape[0] + 20000) * data.hidden.element_size()
    for case in (Case(), Case(label_smoothing=0.0)):
        yield _Contender("default", case, data, _ours(case))
        yield _Contender("all kept", case, data, _ours(case, workspace_bytes=all_kept))
        for tolerance in _TOLERANCES:
            told = GradientTolerance(tolerance)
            yield _Contender("sparse", case, data, _ours(case, gradient_tolerance=told), tolerance, told)
        told = GradientTolerance(0.003)
        larger = _ours(case, gradient_tolerance=told, workspace_bytes=3 * 2**27)  # fewer rounds
        yield _Contender("sparse, 384 MiB", case, data, larger, 0.003, told)
        if own_order is not None and case == Case():
            yield _Contender("default, as they are", case, own_order, _ours(case))
            told = GradientTolerance(0.003)
            yield _Contender("sparse, as they are", case, own_order, _ours(case, gradient_tolerance=told), 0.003, told)
            yield _Contender("sparse, as they are, each a try", case, own_order, _ever_trying(case, 0.003), 0.003)
        for rival in rivals(all_kept):
            if rival.name.startswith("cut-cross-entropy") and rival.refuses(case, device) is None:
                yield _Contender(rival.name, case, data, rival.make(case))


def _described_or_not(entry: _Contender, exact: tuple[Tensor, Tensor, Tensor], device: torch.device) -> dict[str, Any]:
    try:
        return _described(entry, exact, device)
    except Exception as error:  # an implementation that fails is a result, and must not end the run
        return {"skipped": f"{type(error).__name__}: {str(error)[:120]}"}


def _described(entry: _Contender, exact: tuple[Tensor, Tensor, Tensor], device: torch.device) -> dict[str, Any]:
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
    columns["active"] = "" if told is None else f"{told.input_active:.4f}"
    columns["input_bound"] = "" if told is None else f"{told.input_bound:.5f}"
    columns["weight_bound"] = "" if told is None else f"{told.weight_bound:.5f}"
    columns["peak_mib"] = "" if peak is None else f"{peak / 2**20:.0f}"
    return columns


def _relative(got: Tensor, want: Tensor) -> float:
    """Relative error in the Frobenius norm, a slice at a time: float64 of a whole head takes gigabytes."""
    pairs = list(zip(got.split(16384), want.split(16384), strict=True))
    return float((sum((a.double() - b).square().sum() for a, b in pairs) / want.square().sum()) ** 0.5)


def _measure(name: str, data: Data, own_order: Data | None, rounds: int, device: torch.device) -> Iterator[Any]:
    entries = list(_entries(data, own_order, device))
    for group in {(id(entry.data), entry.case): None for entry in entries}:
        members = [entry for entry in entries if (id(entry.data), entry.case) == group]
        exact = measure.exact_gradients(members[0].data, members[0].case)
        for entry in members:
            entry.columns = _described_or_not(entry, exact, device)
        del exact
    times = _times(entries, data, rounds, device)
    product = statistics.median(t.ms for t in times[-1])
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
        ms = statistics.median(t.ms for t in turns) if turns else float("nan")
        row |= {"ms": f"{ms:.3f}", "products": f"{ms / product:.3f}"}
        columns = ("peak_mib", "active", "input_bound", "weight_bound", "input_gradient_error")
        columns += ("weight_gradient_error", "rows_without_target_error", "skipped")
        yield row | {column: entry.columns.get(column, "") for column in columns}


def _times(entries: Sequence[_Contender], data: Data, rounds: int, device: torch.device) -> list[list[Turn]]:
    """Times of each entry in each round, and of the product of hidden states and head, the last."""
    hidden, weight = data.hidden.detach(), data.weight.detach()
    out = hidden @ weight.T
    product = partial(torch.mm, hidden, weight.T, out=out)
    runs: list[Callable[[], object] | None] = [e.run if "skipped" not in e.columns else None for e in entries]
    runs.append(product)
    times: list[list[Turn]] = [[] for _ in runs]
    before = measure.ahead(product, device)
    for index in range(rounds + 1):  # the first warms up
        for i in random.Random(index).sample(range(len(runs)), len(runs)):
            run = runs[i]
            if run is not None:
                found = measure.turn(run, device, before=before)
                times[i] += [found] if index else []
    for entry in entries:
        entry.data.hidden.grad = entry.data.weight.grad = None
    return times


def _profile(data: Data, device: torch.device) -> None:
    """Print the device's time by kernel, of one call within 0.003 and of one that keeps all."""
    chosen = [e for e in _entries(data, None, device) if e.case == Case()]
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
    name, own_order = given.problem, None
    if given.states is None:
        shape = next(shape for shape in SHAPES if shape.name == given.problem)
        data = make_data(shape.divided(given.scale), dtype, device)
    else:
        data, own_order = read_states(given.states, given.tokens, device)
        name = given.states.stem
    if given.profile:
        _profile(data, device)
        return 0
    config = {"problem": name, "rounds": given.rounds, "dtype": str(data.hidden.dtype).removeprefix("torch.")}
    output = output_of(given, "sparse")
    with Report(output, command=command, config=config, device=device) as report:
        for row in _measure(name, data, own_order, given.rounds, device):
            report.add(row)
            print("  ".join(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
