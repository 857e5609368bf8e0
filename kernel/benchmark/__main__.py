"""Runs the comparison and writes its table, the raw samples beside it and a description of the machine.

    python -m kernel.benchmark                        # every shape, into paper_figures/data/kernel.csv
    python -m kernel.benchmark --shapes GPT-2 --rounds 5 --output table.csv

Columns: ms is the device's time behind 20 ms of other work, the median over the rounds, ms_low and ms_high their
quartiles; host_ms the median time until the call returns meanwhile, which ms hides as training does (for those that
wait for the device it contains that work); peak_mib the most memory beyond the inputs, in bytes asked for; share the
time that the operations of a loss that keeps its logits take at the measured rate of ``input @ weight.T`` (matmul_ms
for the loss, three times that with gradients) over ms; the errors are norm-wise, against float64. Two rows are no
losses: "matmul" is that product alone, "three products" all that logits and both gradients need, by the same library
and of the same numbers. What is compared takes turns in the same rounds, in another order in each.
``python -m kernel.benchmark.targets`` says what the table meets of what was asked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .compare import compare
from .measure import AHEAD_MS
from .problems import SHAPES
from .tables import machine, write

COLUMNS = (
    *("shape", "tokens", "vocab_size", "hidden_size", "dtype", "label_smoothing", "softcap", "ignored", "mode"),
    *("implementation", "ms", "ms_low", "ms_high", "host_ms", "matmul_ms", "share", "peak_mib", "gradient_mib"),
    *("loss_error", "input_gradient_error", "weight_gradient_error", "skipped"),
)
_EXAMPLES = """
examples:
  python -m kernel.benchmark                        every shape, into paper_figures/data/kernel.csv, on a GPU
  python -m kernel.benchmark --shapes GPT-2 --rounds 5 --output /tmp/table.csv
  python -m kernel.benchmark --device cpu --scale 64 --rounds 2 --output /tmp/table.csv   a trial without a GPU
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel.benchmark",
        description=(__doc__ or "").splitlines()[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="+", choices=[s.name for s in SHAPES], default=[s.name for s in SHAPES])
    parser.add_argument("--scale", type=int, default=1, help="divide N and V by this, for a trial (default 1)")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (default 10)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="implementations whose name starts with one of these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default=None)
    parser.add_argument("--output", type=Path, default=Path("paper_figures/data/kernel.csv"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit status."""
    given = parse(arguments)
    device = torch.device(given.device)
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    about = {**machine(device, given.rounds), "ahead_ms": AHEAD_MS if device.type == "cuda" else 0}
    sidecar = json.dumps(about, indent=2) + "\n"
    given.output.with_suffix(".json").write_text(sidecar, encoding="utf-8")
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    shapes = {s.name: s for s in SHAPES}
    for shape in (shapes[name] for name in given.shapes):
        small = replace(shape, n=max(shape.n // given.scale, 1), vocab_size=max(shape.vocab_size // given.scale, 2))
        for row, times in compare(small, dtype, device, given.rounds, given.only):
            rows.append(row)
            key = {k: row[k] for k in ("shape", "label_smoothing", "softcap", "ignored", "mode", "implementation")}
            for i, turn in enumerate(times):
                samples.append({**key, "round": i, "ms": f"{turn.ms:.4f}", "host_ms": f"{turn.host_ms:.4f}"})
            print(describe(row), flush=True)
            write(given.output, rows, COLUMNS)  # as it grows: a run that is cut short leaves what it measured
            write(given.output.with_name(given.output.stem + "_samples.csv"), samples)
    return 0


def describe(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    case = f"b={row['label_smoothing']} cap={row['softcap'] or '-'} ign={row['ignored']} {row['mode']}"
    if row.get("skipped"):
        return f"{row['shape']:13} {case:40} {row['implementation']:27} skipped: {row['skipped']}"
    ratio = float(row["ms"]) / float(row["matmul_ms"])
    errors = " ".join(f"{row.get(k, ''):>8}" for k in COLUMNS[-4:-1])
    time = f"{float(row['ms']):8.2f} ms {ratio:6.3f} t_mm {float(row['host_ms']):6.2f} host"
    return f"{row['shape']:13} {case:40} {row['implementation']:27} {time} {row.get('peak_mib', ''):>8} MiB {errors}"


if __name__ == "__main__":
    sys.exit(main())
