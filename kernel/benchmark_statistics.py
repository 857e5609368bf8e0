"""head_statistics against the loss-only forward: ``python -m kernel.benchmark_statistics [--tune]``.

Writes time, memory and error of each number of temperatures to paper_figures/data/statistics.csv and a description of
the machine beside it. The calls take turns in every round; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from .api import linear_cross_entropy
from .benchmark.measure import ahead, peak_bytes, turn
from .benchmark.problems import SHAPES, Data, make_data
from .benchmark.tables import machine, write
from .fused.launch import Launch, launch_table
from .options import LossOptions
from .statistics import head_statistics
from .statistics.fused import statistics as fused

__all__ = ["TEMPERATURES", "errors", "main"]

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "paper_figures" / "data" / "statistics.csv"
_EXAMPLES = """
examples:
  python -m kernel.benchmark_statistics                          the committed table again, on a GPU
  python -m kernel.benchmark_statistics --shape GPT-2 --out /tmp/table.csv
  python -m kernel.benchmark_statistics --tune                   times of other launch parameters, printed
"""
TEMPERATURES = {1: (1.0,), 8: (0.05, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 20.0)}
SCORES = ("lse", "entropy", "participation", "log_probability", "confidence", "log1m_confidence")
ERROR_TOKENS = 256  # float64 logits of 256 tokens and 256,000 classes take 0.5 GB


def errors(data: Data, softcap: float | None, temperatures: tuple[float, ...]) -> dict[str, float]:
    """Largest error of each score against float64, relative where the value exceeds 1; and whether ranks agree."""
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
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(turn(call, device, before=before).ms)
    return {
        name: (statistics.median(t), statistics.median(a / b for a, b in zip(t, times[first], strict=True)))
        for name, t in times.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel.benchmark_statistics",
        description=(__doc__ or "").partition(": ``")[0] + ".",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--shape", default="Gemma-2-2B", choices=[shape.name for shape in SHAPES])
    parser.add_argument("--scale", type=int, default=1, help="divide N, V and D by this, for a trial")
    parser.add_argument(
        "--tune", action="store_true", help="print the times of other launch parameters and write nothing"
    )
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = next(shape for shape in SHAPES if shape.name == chosen.shape)
    sizes = {name: max(getattr(shape, name) // chosen.scale, 2) for name in ("n", "vocab_size", "hidden_size")}
    data = make_data(replace(shape, **sizes), dtype, device)
    hidden, weight, target = data.hidden.detach(), data.weight.detach(), data.target
    rows: list[dict[str, object]] = []
    for softcap in tqdm((None, 30.0), desc="softcap", disable=None):

        def forward(softcap: float | None = softcap) -> torch.Tensor:
            with torch.no_grad():
                return linear_cross_entropy(hidden, weight, target, softcap=softcap, implementation="triton")

        options = LossOptions(softcap=softcap)
        run = {k: partial(fused, hidden, weight, target, None, options, t, 0) for k, t in TEMPERATURES.items()}
        if chosen.tune:
            for launch in _launches(launch_table(device, dtype).forward):
                calls = {"loss": forward, **{str(k): partial(call, launch=launch) for k, call in run.items()}}
                try:
                    print(softcap, launch, _ratios(calls, device, chosen.rounds))
                except Exception as error:
                    print(softcap, launch, type(error).__name__)
            continue
        measured = _ratios({"loss": forward, **{str(k): call for k, call in run.items()}}, device, chosen.rounds)
        for name, (ms, ratio) in measured.items():
            peak = peak_bytes(forward if name == "loss" else run[int(name)], device)
            found = {} if name == "loss" else errors(data, softcap, TEMPERATURES[int(name)])
            row: dict[str, object] = {"shape": chosen.shape, **sizes, "dtype": str(dtype).removeprefix("torch.")}
            row |= {"softcap": softcap, "temperatures": 0 if name == "loss" else int(name)}
            row |= {"ms": round(ms, 4), "ratio": round(ratio, 4)}
            row |= {"peak_mib": None if peak is None else round(peak / 2**20, 2)}
            row |= {key: f"{found[key]:.3g}" if found else None for key in (*SCORES, "argmax_differs", "rank_off")}
            rows.append(row)
    if not rows:
        return
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write(chosen.out, rows)
    command = f"python -m kernel.benchmark_statistics --rounds {chosen.rounds} --shape {chosen.shape}"
    command += f" --scale {chosen.scale}" if chosen.scale != 1 else ""
    about = {"command": command, **machine(device, chosen.rounds)}
    chosen.out.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
