"""Time and memory of the chunked loss against eager PyTorch on the CPU: ``python -m kernel.benchmark.cpu``.

Absolute times on a CPU are worth nothing elsewhere, so the table holds ratios: the median over rounds of
chunked / eager, the two timed one after the other in each round. Memory is the rise of the process's peak resident
set over what it holds with the inputs in place, each measurement in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .command import add_places, finish, output_of, parser_of, typed
from .measure import turn
from .problems import Data
from .rivals import Case, DataLoss, rivals
from .tables import Report

__all__ = ["losses", "main", "measure_peak_bytes", "time_ratio"]

CASES = ((0.0, None), (0.1, None), (0.1, 30.0))  # (label smoothing, softcap)
SHAPES = ((4096, 65536, 64), (2048, 32768, 256), (1024, 4096, 256))  # (N, V, D)
ROUNDS = 5
_EXAMPLES = """
examples:
  python -m kernel.benchmark.cpu --output /tmp/table.csv                    some minutes
  python -m kernel.benchmark.cpu --output paper_figures/data/chunked.csv   the committed table again
"""


def losses(label_smoothing: float, softcap: float | None) -> dict[str, DataLoss]:
    """Return the two mean losses that are compared, by name."""
    made = {rival.name: rival.make for rival in rivals(0)}
    case = Case(label_smoothing=label_smoothing, softcap=softcap)
    return {name: made[name](case) for name in ("eager", "chunked")}


def _inputs(n: int, v: int, d: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(n, d, generator=generator).requires_grad_()
    weight = (torch.randn(v, d, generator=generator) * (2 / d**0.5)).requires_grad_()
    return Data(input, weight, torch.randint(v, (n,), generator=generator))


def time_ratio(
    n: int, v: int, d: int, label_smoothing: float, softcap: float | None, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Time loss and both gradients; return median and range over rounds of the ratio chunked / eager."""
    data = _inputs(n, v, d)

    def milliseconds(loss: DataLoss) -> float:
        data.hidden.grad = data.weight.grad = None
        return turn(lambda: loss(data).backward(), torch.device("cpu")).ms

    compared = losses(label_smoothing, softcap)
    for loss in compared.values():
        milliseconds(loss)  # warm-up: threads, pages
    ratios = []
    for _ in range(rounds):
        taken = {name: milliseconds(loss) for name, loss in compared.items()}
        ratios.append(taken["chunked"] / taken["eager"])
    return statistics.median(ratios), max(ratios) - min(ratios)


def measure_peak_bytes(name: str, n: int, v: int, d: int, label_smoothing: float, softcap: float | None) -> int:
    """Return the peak of resident bytes beyond the inputs, of loss and gradients in a new process (Linux only)."""
    arguments = (name, n, v, d, label_smoothing, softcap)
    code = f"from kernel.benchmark.cpu import _print_peak; _print_peak{arguments!r}"
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    return int(out)


def _print_peak(name: str, n: int, v: int, d: int, label_smoothing: float, softcap: float | None) -> None:
    loss = losses(label_smoothing, softcap)[name]
    loss(_inputs(8, 16, 4)).backward()  # load libraries and start threads before the baseline
    inputs = _inputs(n, v, d)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before = _status("VmRSS")
    loss(inputs).backward()
    print(_status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every shape, write the table and its sidecar, and return the exit status."""
    parser = parser_of("kernel.benchmark.cpu", __doc__, _EXAMPLES)
    add_places(parser, "chunked", device=False)
    given = parser.parse_args(arguments)
    return finish(lambda: _measure(output_of(given, "chunked"), typed(parser, given)))


def _measure(output: Path, command: str) -> int:
    config = {"rounds": ROUNDS, "dtype": "float32", "threads": torch.get_num_threads()}
    with Report(output, command=command, config=config, device=torch.device("cpu")) as report:
        for n, v, d in SHAPES:
            for case in CASES:
                ratio, spread = time_ratio(n, v, d, *case)
                peak = {name: measure_peak_bytes(name, n, v, d, *case) for name in ("eager", "chunked")}
                row = {
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
                report.add(row)
                print(row, flush=True)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
