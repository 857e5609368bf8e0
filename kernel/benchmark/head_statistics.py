"""head_statistics against the loss-only forward: ``python -m kernel.benchmark.head_statistics [--tune]``.

Writes time, memory and error of each number of temperatures to a table and a description of the machine beside it.
The calls take turns in every round; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from ..api import linear_cross_entropy
from ..fused.launch import Launch, launch_table
from ..options import LossOptions
from ..statistics import head_statistics
from ..statistics.fused import statistics as fused
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .measure import ahead, peak_bytes, turn
from .problems import SHAPES, Data, make_data
from .rounds import orders
from .tables import Report

__all__ = ["TEMPERATURES", "errors", "main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.head_statistics --output paper_figures/data/statistics.csv   the committed table again
  python -m kernel.benchmark.head_statistics --shape GPT-2 --output /tmp/table.csv
  python -m kernel.benchmark.head_statistics --tune     times of other launch parameters, printed
"""
SOFTCAPS = (None, 30.0)
TEMPERATURES = {1: (1.0,), 8: (0.05, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 20.0)}
SCORES = ("lse", "entropy", "participation", "log_probability", "confidence", "log1m_confidence")
ERROR_TOKENS = 256  # float64 logits of 256 tokens and 256,000 classes take 0.5 GB


def errors(data: Data, softcap: float | None, temperatures: tuple[float, ...]) -> dict[str, float]:
    """Return the largest error of each score against float64 (relative above 1), and those of argmax and rank."""
    few = slice(None, ERROR_TOKENS)
    hidden, weight, target = data.hidden.detach()[few], data.weight.detach(), data.target[few]
    options = {"softcap": softcap, "temperatures": temperatures}
    ours = head_statistics(hidden, weight, target, implementation="triton", **options)
    exact = head_statistics(hidden.double(), weight.double(), target, implementation="chunked", **options)
    found = {}
    for name in SCORES:
        got, want = getattr(ours, name).double(), getattr(exact, name)
        found[name] = ((got - want).abs() / want.abs().clamp(min=1)).max().item()
    assert ours.rank is not None
    assert exact.rank is not None
    found["argmax_differs"] = (ours.argmax != exact.argmax).double().mean().item()
    found["rank_off"] = (ours.rank - exact.rank).abs().double().max().item()
    return found


def _launches(base: Launch) -> list[Launch]:
    """Candidates for ``--tune``."""
    sizes = [(base.columns, base.warps), (base.columns // 2, base.warps), (base.columns // 2, base.warps // 2)]
    choices = itertools.product(sizes, (base.stages, base.stages - 1))
    return [replace(base, columns=c, warps=w, stages=s) for (c, w), s in choices if s > 0]


def _ratios(
    calls: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each call, and the median of its ratio to the first of its round."""
    for call in calls.values():
        for _ in range(2):
            call()
    first = next(iter(calls))
    times: dict[str, list[float]] = {name: [] for name in calls}
    before = ahead(calls[first], device)
    names = list(calls)
    for order in orders(len(names), rounds):
        for name in (names[index] for index in order):
            times[name].append(turn(calls[name], device, before=before).ms)
    return {
        name: (statistics.median(t), statistics.median(a / b for a, b in zip(t, times[first], strict=True)))
        for name, t in times.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.head_statistics", __doc__, _EXAMPLES)
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed rounds (default 10)")
    parser.add_argument(
        "--shape",
        default="Gemma-2-2B",
        choices=[shape.name for shape in SHAPES],
        help="head (default Gemma-2-2B)",
    )
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N, V and D by this, for a trial")
    parser.add_argument(
        "--tune", action="store_true", help="print the times of other launch parameters and write nothing"
    )
    add_places(parser, "statistics")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given, writes=not given.tune)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = next(shape for shape in SHAPES if shape.name == given.shape).divided(given.scale)

    def data() -> Data:
        return make_data(shape, dtype, device)

    if given.tune:
        _tune(data(), given.rounds)
        return 0
    config = {"shape": given.shape, "scale": given.scale, "rounds": given.rounds}
    config |= {"dtype": str(dtype).removeprefix("torch.")}
    output = output_of(given, "statistics")
    sizes = {"n": shape.n, "vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size}
    with Report(output, command=command, config=config, device=device) as report:
        for row in _measure(data(), given.rounds):
            report.add({"shape": given.shape, **sizes, "dtype": config["dtype"], **row})
    print(f"wrote {output}")
    return 0


def _calls(data: Data, softcap: float | None) -> tuple[Callable[[], Tensor], dict[int, Callable[..., object]]]:
    """The loss-only forward, and the statistics at each number of temperatures."""
    hidden, weight, target = data.hidden.detach(), data.weight.detach(), data.target

    def forward() -> Tensor:
        with torch.no_grad():
            return linear_cross_entropy(hidden, weight, target, softcap=softcap, implementation="triton")

    options = LossOptions(softcap=softcap)
    return forward, {k: partial(fused, hidden, weight, target, None, options, t, 0) for k, t in TEMPERATURES.items()}


def _tune(data: Data, rounds: int) -> None:
    """Print the times of other launch parameters."""
    device = data.hidden.device
    for softcap in SOFTCAPS:
        forward, run = _calls(data, softcap)
        for launch in _launches(launch_table(device, data.hidden.dtype).forward):
            calls = {"loss": forward, **{str(k): partial(call, launch=launch) for k, call in run.items()}}
            try:
                print(softcap, launch, _ratios(calls, device, rounds))
            except Exception as error:  # parameters that do not fit the device are a result
                print(softcap, launch, type(error).__name__)


def _measure(data: Data, rounds: int) -> Iterator[dict[str, object]]:
    """A row for the loss and one for each number of temperatures, without and with softcap."""
    device = data.hidden.device
    for softcap in tqdm(SOFTCAPS, desc="softcap", disable=None):
        forward, run = _calls(data, softcap)
        measured = _ratios({"loss": forward, **{str(k): call for k, call in run.items()}}, device, rounds)
        for name, (ms, ratio) in measured.items():
            peak = peak_bytes(forward if name == "loss" else run[int(name)], device)
            found = {} if name == "loss" else errors(data, softcap, TEMPERATURES[int(name)])
            row: dict[str, object] = {"softcap": softcap, "temperatures": 0 if name == "loss" else int(name)}
            row |= {"ms": round(ms, 4), "ratio": round(ratio, 4)}
            row |= {"peak_mib": None if peak is None else round(peak / 2**20, 2)}
            row |= {key: f"{found[key]:.3g}" if found else None for key in (*SCORES, "argmax_differs", "rank_off")}
            yield row


if __name__ == "__main__":
    sys.exit(main())
