"""Runs the comparison and writes its table, the raw samples beside it and a description of the machine.

    python -m kernel.benchmark                        # every shape, into paper_figures/data/kernel.csv
    python -m kernel.benchmark --shapes GPT-2 --rounds 5 --output table.csv

Columns: ms is the median over the rounds, ms_low and ms_high their quartiles; peak_mib the most memory beyond the
inputs; share the time that the operations of a loss that keeps its logits take at the measured rate of ``input @
weight.T`` (matmul_ms for the loss, three times that with gradients) over ms; the errors are norm-wise, against float64
on the first tokens. Two rows are no losses: "matmul" is that product alone, "three products" all that logits and both
gradients need, by the same library and of the same numbers.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import measure
from .problems import SHAPES, Data, Shape, make_data
from .rivals import Case, Loss, Rival, rivals

COLUMNS = (
    *("shape", "tokens", "vocab_size", "hidden_size", "dtype", "label_smoothing", "softcap", "ignored", "mode"),
    *("implementation", "ms", "ms_low", "ms_high", "matmul_ms", "share", "peak_mib", "gradient_mib"),
    *("loss_error", "input_gradient_error", "weight_gradient_error", "skipped"),
)
CASES = (Case(), Case(softcap=30.0), Case(ignored=0.8), Case(gradients=False), Case(label_smoothing=0.0))
PRODUCTS = "three products"
ERROR_TOKENS = 1024  # float64 gradients of the whole head take 4.7 GB and a second or two of an H100
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
    sidecar = json.dumps(machine(device, given.rounds), indent=2) + "\n"
    given.output.with_suffix(".json").write_text(sidecar, encoding="utf-8")
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    shapes = {s.name: s for s in SHAPES}
    for shape in (shapes[name] for name in given.shapes):
        small = replace(shape, n=max(shape.n // given.scale, 1), vocab_size=max(shape.vocab_size // given.scale, 2))
        for row, times in compare(small, dtype, device, given.rounds, given.only):
            rows.append(row)
            key = {k: row[k] for k in ("shape", "label_smoothing", "softcap", "ignored", "mode", "implementation")}
            samples += [{**key, "round": i, "ms": f"{ms:.4f}"} for i, ms in enumerate(times)]
            print(describe(row), flush=True)
            write(given.output, rows, COLUMNS)  # as it grows: a run that is cut short leaves what it measured
            write(given.output.with_name(given.output.stem + "_samples.csv"), samples)
    return 0


def compare(
    shape: Shape, dtype: torch.dtype, device: torch.device, rounds: int, only: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """Rows of one shape with their raw times, case by case."""
    everything = make_data(shape, dtype, device)
    hidden = everything.hidden.detach()[:ERROR_TOKENS].clone().requires_grad_()
    first = Data(hidden, everything.weight, everything.target[:ERROR_TOKENS])
    itemsize = everything.hidden.element_size()
    keep_all = 2 * shape.n * (shape.vocab_size + 20000) * itemsize
    for case in CASES:
        data = everything
        if case.ignored:
            generator = torch.Generator(device).manual_seed(1)
            drop = torch.rand(shape.n, device=device, generator=generator) < case.ignored
            data = Data(data.hidden, data.weight, torch.where(drop, -100, data.target))
        chosen = [r for r in rivals(keep_all) if only is None or r.name.startswith(tuple(only))]
        if case.ignored or not case.gradients:  # side cases: one of ours, one to compare with
            chosen = [r for r in chosen if r.name in ("triton, default", "eager")]
        yield from _compare_case(shape, case, data, first, chosen, dtype, device, rounds)


def _compare_case(
    shape: Shape,
    case: Case,
    data: Data,
    first: Data,
    chosen: list[Rival],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
) -> Iterator[tuple[dict[str, Any], list[float]]]:
    gradient_bytes = (data.hidden.numel() + data.weight.numel()) * data.hidden.element_size()
    base = {
        "shape": shape.name,
        "tokens": shape.n,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "dtype": str(dtype).removeprefix("torch."),
        "label_smoothing": case.label_smoothing,
        "softcap": "" if case.softcap is None else case.softcap,
        "ignored": case.ignored,
        "mode": "loss and gradients" if case.gradients else "loss",
        "gradient_mib": f"{gradient_bytes / 2**20:.0f}" if case.gradients else "0",
    }
    exact = measure.exact_gradients(first, case) if case.gradients and not case.ignored else None
    ready: dict[str, tuple[Loss, dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    for rival in chosen:
        reason = rival.refuses(case, device)
        if reason is None:
            try:
                ready[rival.name] = _prepare(rival, case, data, first, exact, device)
            except Exception as error:  # an implementation that fails is a result, and must not end the run
                reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
                data.hidden.grad = data.weight.grad = None
        if reason is not None:
            skipped[rival.name] = reason
    product = data.hidden.detach() @ data.weight.detach().T

    def matmul() -> None:
        torch.mm(data.hidden.detach(), data.weight.detach().T, out=product)

    runs: dict[str, Callable[[], object]] = {"matmul": matmul}
    if case == Case():
        runs[PRODUCTS] = measure.three_products(data, case, device)
    for name, (loss, _) in ready.items():
        runs[name] = lambda loss=loss: measure.step(loss, data, case)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):  # the first round warms up
        # In another order each round: what ran before decides how warm the device is, hence how fast.
        for name in random.Random(index).sample(sorted(runs), len(runs)):
            ms = measure.turn(runs[name], device, before=matmul)
            if index:
                times[name].append(ms)
    data.hidden.grad = data.weight.grad = None
    matmul_ms = statistics.median(times["matmul"])
    base["matmul_ms"] = f"{matmul_ms:.3f}"
    yield base | {"implementation": "matmul", "ms": f"{matmul_ms:.3f}"}, times["matmul"]
    for name in [PRODUCTS] * (PRODUCTS in runs) + [r.name for r in chosen]:
        row = base | {"implementation": name}
        if name in skipped:
            yield row | {"skipped": skipped[name]}, []
            continue
        low, median, high = statistics.quantiles(times[name], n=4) if rounds > 1 else times[name] * 3
        kept = 1 - case.ignored
        share = (3 if case.gradients else 1) * kept * matmul_ms / median
        spread = {"ms": f"{median:.3f}", "ms_low": f"{low:.3f}", "ms_high": f"{high:.3f}", "share": f"{share:.3f}"}
        yield row | spread | (ready[name][1] if name in ready else {}), times[name]


def _prepare(
    rival: Rival, case: Case, data: Data, first: Data, exact: tuple[Any, Any, Any] | None, device: torch.device
) -> tuple[Loss, dict[str, Any]]:
    """Build an implementation, choose its fastest variant, and measure its memory and its error."""
    variants = rival.variants or ((),)
    best: tuple[float, Loss] | None = None
    for variant in variants:
        loss = rival.make(case, variant) if rival.variants else rival.make(case)  # pyright: ignore[reportCallIssue]
        measure.step(loss, data, case)
        if len(variants) > 1:
            ms = measure.turn(lambda loss=loss: measure.step(loss, data, case), device)
            best = min(best, (ms, loss), key=lambda pair: pair[0]) if best else (ms, loss)
        else:
            best = (0.0, loss)
    assert best is not None
    loss = best[1]
    data.hidden.grad = data.weight.grad = None
    peak = measure.peak_bytes(lambda: measure.step(loss, data, case), device)
    data.hidden.grad = data.weight.grad = None
    columns: dict[str, Any] = {"peak_mib": "" if peak is None else f"{peak / 2**20:.1f}"}
    if exact is not None:
        names = ("loss_error", "input_gradient_error", "weight_gradient_error")
        columns |= {k: f"{e:.2e}" for k, e in zip(names, measure.errors(loss, first, case, exact), strict=True)}
    return loss, columns


def describe(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    case = f"b={row['label_smoothing']} cap={row['softcap'] or '-'} ign={row['ignored']} {row['mode']}"
    if row.get("skipped"):
        return f"{row['shape']:13} {case:40} {row['implementation']:27} skipped: {row['skipped']}"
    ratio = float(row["ms"]) / float(row["matmul_ms"])
    errors = " ".join(f"{row.get(k, ''):>8}" for k in COLUMNS[-4:-1])
    time = f"{float(row['ms']):8.2f} ms {ratio:6.3f} t_mm"
    return f"{row['shape']:13} {case:40} {row['implementation']:27} {time} {row.get('peak_mib', ''):>8} MiB {errors}"


def write(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def machine(device: torch.device, rounds: int) -> dict[str, Any]:
    """Device, versions and commit, for the file beside the table."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    installed = {d.name.lower().replace("-", "_"): d.version for d in importlib.metadata.distributions()}
    versions |= {n: installed.get(n, "not installed") for n in ("triton", "liger_kernel", "cut_cross_entropy")}
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "versions": versions, "cuda": torch.version.cuda, "commit": commit, "rounds": rounds}


if __name__ == "__main__":
    sys.exit(main())
