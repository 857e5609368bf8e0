"""Time and memory of the chunked loss against eager PyTorch on the CPU: ``python -m kernel.benchmark_cpu``.

Absolute times on a CPU are worth nothing elsewhere, so the table holds ratios: the median over rounds of
chunked / eager, the two timed one after the other in each round. Memory is the rise of the process's peak resident
set over what it holds with the inputs in place, each measurement in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import linear_cross_entropy

__all__ = ["losses", "measure_peak_bytes", "time_ratio"]

SHAPES = ((4096, 65536, 64), (2048, 32768, 256), (1024, 4096, 256))  # (N, V, D)
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "paper_figures" / "data" / "chunked.csv"


def losses(label_smoothing: float) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The two mean losses compared, by name."""

    def eager(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input @ weight.T, target, label_smoothing=label_smoothing)

    def chunked(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return linear_cross_entropy(input, weight, target, label_smoothing=label_smoothing, implementation="chunked")

    return {"eager": eager, "chunked": chunked}


def _inputs(n: int, v: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(n, d, generator=generator).requires_grad_()
    weight = (torch.randn(v, d, generator=generator) * (2 / d**0.5)).requires_grad_()
    return input, weight, torch.randint(v, (n,), generator=generator)


def time_ratio(n: int, v: int, d: int, label_smoothing: float, rounds: int = 5) -> tuple[float, float]:
    """Median and spread (largest minus smallest) over rounds of the time chunked / eager, loss and both gradients."""
    input, weight, target = _inputs(n, v, d)

    def seconds(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        input.grad = weight.grad = None
        start = time.perf_counter()
        loss(input, weight, target).backward()
        return time.perf_counter() - start

    compared = losses(label_smoothing)
    for loss in compared.values():
        seconds(loss)  # warm-up: threads, pages
    ratios = []
    for _ in range(rounds):
        taken = {name: seconds(loss) for name, loss in compared.items()}
        ratios.append(taken["chunked"] / taken["eager"])
    return statistics.median(ratios), max(ratios) - min(ratios)


def measure_peak_bytes(name: str, n: int, v: int, d: int, label_smoothing: float) -> int:
    """Peak resident bytes over the inputs of one loss with both gradients, in a fresh process (Linux only)."""
    code = f"from kernel.benchmark_cpu import _print_peak; _print_peak({name!r}, {n}, {v}, {d}, {label_smoothing})"
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    return int(out)


def _print_peak(name: str, n: int, v: int, d: int, label_smoothing: float) -> None:
    loss = losses(label_smoothing)[name]
    loss(*_inputs(8, 16, 4)).backward()  # load libraries and start threads before the baseline
    inputs = _inputs(n, v, d)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before = _status("VmRSS")
    loss(*inputs).backward()
    print(_status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def main(argv: list[str] | None = None) -> None:
    """Measure every shape and write the table and its sidecar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="CSV file to write (default: %(default)s)")
    out = parser.parse_args(argv).out
    rows = []
    for n, v, d in SHAPES:
        for smoothing in (0.0, 0.1):
            ratio, spread = time_ratio(n, v, d, smoothing)
            peak = {name: measure_peak_bytes(name, n, v, d, smoothing) for name in ("eager", "chunked")}
            rows.append(
                {
                    "tokens": n,
                    "vocab_size": v,
                    "hidden_size": d,
                    "label_smoothing": smoothing,
                    "time_ratio": f"{ratio:.3f}",
                    "time_ratio_spread": f"{spread:.3f}",
                    "logits_mib": round(4 * n * v / 2**20),
                    "eager_peak_mib": round(peak["eager"] / 2**20),
                    "chunked_peak_mib": round(peak["chunked"] / 2**20),
                }
            )
            print(rows[-1], flush=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    about = {
        "command": "python -m kernel.benchmark_cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dtype": "float32",
    }
    out.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
