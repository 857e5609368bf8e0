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
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import linear_cross_entropy

__all__ = ["losses", "measure_peak_bytes", "time_ratio"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
CASES = ((0.0, None), (0.1, None), (0.1, 30.0))  # (label smoothing, softcap)
SHAPES = ((4096, 65536, 64), (2048, 32768, 256), (1024, 4096, 256))  # (N, V, D)
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "paper_figures" / "data" / "chunked.csv"
_EXAMPLES = """
examples:
  python -m kernel.benchmark_cpu                        the committed table again, some minutes
  python -m kernel.benchmark_cpu --out /tmp/table.csv   elsewhere, to compare
"""


def losses(label_smoothing: float, softcap: float | None) -> dict[str, Loss]:
    """The two mean losses compared, by name."""

    def eager(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = input @ weight.T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)

    def chunked(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "softcap": softcap}
        return linear_cross_entropy(input, weight, target, **options, implementation="chunked")

    return {"eager": eager, "chunked": chunked}


def _inputs(n: int, v: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(n, d, generator=generator).requires_grad_()
    weight = (torch.randn(v, d, generator=generator) * (2 / d**0.5)).requires_grad_()
    return input, weight, torch.randint(v, (n,), generator=generator)


def time_ratio(
    n: int, v: int, d: int, label_smoothing: float, softcap: float | None, rounds: int = 5
) -> tuple[float, float]:
    """Median and spread (largest minus smallest) over rounds of the time chunked / eager, loss and both gradients."""
    input, weight, target = _inputs(n, v, d)

    def seconds(loss: Loss) -> float:
        input.grad = weight.grad = None
        start = time.perf_counter()
        loss(input, weight, target).backward()
        return time.perf_counter() - start

    compared = losses(label_smoothing, softcap)
    for loss in compared.values():
        seconds(loss)  # warm-up: threads, pages
    ratios = []
    for _ in range(rounds):
        taken = {name: seconds(loss) for name, loss in compared.items()}
        ratios.append(taken["chunked"] / taken["eager"])
    return statistics.median(ratios), max(ratios) - min(ratios)


def measure_peak_bytes(name: str, n: int, v: int, d: int, label_smoothing: float, softcap: float | None) -> int:
    """Peak resident bytes over the inputs of one loss with both gradients, in a fresh process (Linux only)."""
    arguments = (name, n, v, d, label_smoothing, softcap)
    code = f"from kernel.benchmark_cpu import _print_peak; _print_peak{arguments!r}"
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    return int(out)


def _print_peak(name: str, n: int, v: int, d: int, label_smoothing: float, softcap: float | None) -> None:
    loss = losses(label_smoothing, softcap)[name]
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
    parser = argparse.ArgumentParser(
        prog="python -m kernel.benchmark_cpu",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="CSV file to write (default: %(default)s)")
    out = parser.parse_args(argv).out
    rows = []
    for n, v, d in SHAPES:
        for case in CASES:
            ratio, spread = time_ratio(n, v, d, *case)
            peak = {name: measure_peak_bytes(name, n, v, d, *case) for name in ("eager", "chunked")}
            rows.append(
                {
                    "tokens": n,
                    "vocab_size": v,
                    "hidden_size": d,
                    "label_smoothing": case[0],
                    "softcap": case[1],
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
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dtype": "float32",
        "commit": _commit(),
    }
    out.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1] if found else 'unknown'}, {platform.machine()}"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
