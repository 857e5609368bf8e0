"""Measures launch parameters on the device at hand and writes the best as a table. Nothing calls it by itself.

    python -m kernel.fused.tuner --tokens 8192 --vocab-size 256000 --hidden-size 2304 --output table.json

then, in a program, ``kernel.fused.tuner.load("table.json", device, dtype)`` before the first loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..options import LossOptions
from . import loss
from .launch import Launch, LaunchTable, launch_table, set_launch_table

__all__ = ["CANDIDATES", "load", "save", "tune"]

_EXAMPLES = """
examples:
  python -m kernel.fused.tuner --tokens 8192 --vocab-size 256000 --hidden-size 2304 --output table.json
"""
# Products of half precision: tile, depth, warps; each is tried with several stages and parts of the epilogue. What is
# higher than wide is transposed: as it is it would be slower (launch._fitting).
CANDIDATES: tuple[Launch, ...] = tuple(
    Launch(rows, columns, depth, warps, stages, parts, transposed=rows > columns)
    for rows, columns, depth, warps in ((128, 256, 64, 8), (256, 128, 64, 8), (128, 128, 64, 8), (64, 128, 32, 4))
    for stages, parts in ((3, 1), (3, 2), (4, 2), (4, 4), (2, 2))
)


def tune(
    n: int,
    vocab_size: int,
    hidden_size: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
    repeats: int = 5,
    candidates: Sequence[Launch] = CANDIDATES,
) -> LaunchTable:
    """Measure launch parameters for one shape, kernel after kernel, and use the fastest from then on.

    Args:
        n: Tokens.
        vocab_size: Vocabulary.
        hidden_size: Hidden size.
        dtype: Of the inputs.
        device: Where to measure.
        repeats: Timed runs of each candidate, of which the median counts.
        candidates: What to try beside the table in use.

    Returns:
        The fastest table.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(n, hidden_size, device=device, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, hidden_size, device=device, generator=generator) / hidden_size**0.5
    weight = weight.to(dtype).requires_grad_()
    target = torch.randint(vocab_size, (n,), device=device, generator=generator)

    def milliseconds(table: LaunchTable) -> float:
        set_launch_table(device, dtype, table)
        times = []
        for index in range(repeats + 1):  # the first compiles
            _wait(device)
            start = time.perf_counter()
            value, _ = loss(hidden, weight, target, None, None, LossOptions(label_smoothing=0.1))
            torch.autograd.grad(value, (hidden, weight))
            _wait(device)
            if index:
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    best = launch_table(device, dtype, hidden_size)
    fastest = milliseconds(best)
    for field in tqdm(fields(LaunchTable), desc="kernels", disable=None):
        for table in _neighbours(best, field.name, candidates):
            try:
                found = milliseconds(table)
            except Exception:
                continue
            if found < fastest:
                best, fastest = table, found
    set_launch_table(device, dtype, best)
    return best


def _neighbours(table: LaunchTable, name: str, candidates: Sequence[Launch]) -> Iterator[LaunchTable]:
    """Tables that differ in one kernel.

    The tiles of forward and logit_gradient are shared by kept columns and never transposed, and whole tiles of dz make
    up those of the products.
    """
    current: Launch = getattr(table, name)
    rows, columns = table.logit_gradient.rows, table.logit_gradient.columns
    for launch in candidates:
        launch = replace(launch, reduce=current.reduce, early=current.early, flatten=current.flatten)
        if launch == current or (
            name in ("forward", "logit_gradient")
            and (launch.transposed or (launch.rows, launch.columns) != (rows, columns))
        ):
            continue
        if (name == "weight_gradient" and columns % launch.rows) or (
            name == "input_gradient" and columns % launch.depth
        ):
            continue
        yield replace(table, **{name: launch})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save(table: LaunchTable, path: str | Path) -> None:
    """Write a table as JSON."""
    Path(path).write_text(json.dumps(asdict(table), indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, device: torch.device | str, dtype: torch.dtype) -> LaunchTable:
    """Read a table and use it from now on for inputs of ``dtype`` on ``device``."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    table = LaunchTable(**{name: Launch(**launch) for name, launch in values.items()})
    set_launch_table(torch.device(device), dtype, table)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel.fused.tuner",
        description=(__doc__ or "").splitlines()[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, required=True, metavar="N", help="of a batch")
    parser.add_argument("--vocab-size", type=int, required=True, metavar="V", help="rows of the head")
    parser.add_argument("--hidden-size", type=int, required=True, metavar="D", help="columns of the head")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default="bfloat16",
        help="of hidden states and weight (default bfloat16)",
    )
    parser.add_argument("--device", default="cuda", help="where to measure (default cuda)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timings of each launch (default 5)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write the fastest to")
    given = parser.parse_args(arguments)
    dtype = getattr(torch, given.dtype)
    table = tune(
        given.tokens, given.vocab_size, given.hidden_size, dtype=dtype, device=given.device, repeats=given.repeats
    )
    save(table, given.output)
    for field in fields(LaunchTable):
        print(f"{field.name:16} {getattr(table, field.name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
