"""The device's time by phase of one call, beside the library's products: ``python -m kernel.benchmark.profile``.

Loss and both gradients with smoothing, a row a phase (:mod:`kernel.benchmark.phases`), the mean over the profiled
calls: ms and launches of a call; columns the share of the vocabulary (and of the tokens) that the phase computes;
product_ms the time of the library's product that a phase does that share of; rate that share of it over ms; excess_ms
what the phase takes more. kept and in_bytes are the shares of the columns that the forward keeps, the second as far as
in one byte. call_ms is the median time without the profiler, in rounds that the products share, before and after the
profiled calls, profiled_ms the sum of all phases: where they differ by more than 3% all is measured again, up to three
times (tries; the nearest counts). If they still do the table is written, and the command ends with status 1; so it
does where kernels that no phase has take more than 1%. copy_ms is the time of a copy of the head: its bytes read and
written.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import GradientTolerance
from .command import add_places, finish, output_of, typed, whole
from .measure import AHEAD_MS
from .phases import OTHER
from .problems import SHAPES, Data, make_data, read_states
from .profiled import NEAR, Profiled, rows
from .tables import Report

__all__ = ["BUDGETS", "main", "workspace_bytes"]

BUDGETS: dict[str, tuple[str, ...]] = {
    "Gemma-2-2B": ("default", "914 MiB", "3 GiB", "all kept"),
    "V 248320, D 2048": ("default", "1 GiB"),
    "Qwen2.5-0.5B": ("default", "148 MiB", "593 MiB"),
    "Gemma-3-270M": ("default", "271 MiB", "1039 MiB"),
    "Qwen3-8B": ("default",),
}
_OF_STATES = ("default", "all kept", "sparse, default", "sparse, 384 MiB")
_TOLERANCE, _TOKENS = 0.003, 12288
_FEW = 0.01  # of the time of a call, in kernels that no phase has
_EXAMPLES = """
examples:
  python -m kernel.benchmark.profile --output paper_figures/data/kernel_profile.csv   less than a minute of a GPU
  python -m kernel.benchmark.profile --shapes Gemma-2-2B --budgets default "914 MiB"
  python -m kernel.benchmark.profile --shapes --states gemma.safetensors              dense and sparse, on real text
"""


def _device() -> torch.device:
    if not torch.cuda.is_available():
        raise ValueError("kernels are profiled on a GPU, and torch finds none.")
    return torch.device("cuda")


def workspace_bytes(budget: str, data: Data) -> int | None:
    """Return the bytes of a budget as ``BUDGETS`` names it, or None for the default."""
    budget = budget.removeprefix("sparse, ")
    if budget == "default":
        return None
    if budget == "all kept":  # as python -m kernel.benchmark has it
        return 2 * len(data.hidden) * (len(data.weight) + 20000) * data.hidden.element_size()
    number, unit = budget.split()
    return int(float(number) * {"MiB": 2**20, "GiB": 2**30}[unit])


def _budget(text: str) -> str:
    if not re.fullmatch(r"default|all kept|\d+(\.\d+)? [MG]iB", text):
        raise argparse.ArgumentTypeError(f"must be default, all kept or like 914 MiB or 3 GiB, got {text!r}")
    return text


def _doubts(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What a reader of the table must know before it is trusted: one line a case."""
    for row in rows:
        case, whole_ms = f"{row['shape']}, {row['budget']}", float(row["profiled_ms"])
        if row["phase"] == "forward" and abs(whole_ms / float(row["call_ms"]) - 1) > NEAR:
            yield f"{case}: {whole_ms:.2f} ms in the profile, {float(row['call_ms']):.2f} without it"
        if row["phase"] == OTHER and float(row["ms"]) > _FEW * whole_ms:
            yield f"{case}: {float(row['ms']):.2f} of {whole_ms:.2f} ms in kernels of no phase: {row['kernels']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel.benchmark.profile",
        description=(__doc__ or "").partition(": ``")[0] + ".",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [s.name for s in SHAPES]
    parser.add_argument(
        "--shapes", nargs="*", choices=names, default=list(BUDGETS), help="heads to profile (default: five of them)"
    )
    parser.add_argument("--budgets", nargs="+", type=_budget, help="workspaces, of each head (default: each its own)")
    parser.add_argument("--states", type=Path, metavar="FILE.safetensors", help="hidden states and head of a model too")
    parser.add_argument("--calls", type=whole(1), default=5, help="profiled, and timed (default %(default)s)")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N, V and D by this, for a trial")
    add_places(parser, "kernel_profile", device=False)
    given = parser.parse_args(arguments)
    return finish(lambda: _measure(given, typed(parser, given)))


def _problems(given: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Data, Any]]:
    shapes = {s.name: s for s in SHAPES}
    for name in dict.fromkeys(given.shapes):
        sizes = (shapes[name].n, shapes[name].vocab_size, shapes[name].hidden_size)
        n, vocab_size, hidden_size = (max(size // given.scale, 16) for size in sizes)
        small = replace(shapes[name], n=n, vocab_size=vocab_size, hidden_size=hidden_size)
        yield name, make_data(small, dtype, device), given.budgets or BUDGETS.get(name, ("default",))
    if given.states is not None:
        yield given.states.stem, read_states(given.states, _TOKENS, device)[0], _OF_STATES


def _measure(given: argparse.Namespace, command: str) -> int:
    device = _device()
    if not given.shapes and given.states is None:
        raise ValueError("give at least one of --shapes, or --states.")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = {"shapes": given.shapes, "budgets": given.budgets, "calls": given.calls, "scale": given.scale}
    config |= {"dtype": str(dtype).removeprefix("torch."), "ahead_ms": AHEAD_MS, "tolerance": _TOLERANCE}
    output = output_of(given, "kernel_profile")
    with Report(output, command=command, config=config, device=device) as report:
        for name, data, budgets in _problems(given, dtype, device):
            cases = [
                Profiled(
                    budget,
                    workspace_bytes(budget, data),
                    data,
                    GradientTolerance(_TOLERANCE) if budget.startswith("sparse") else None,
                )
                for budget in budgets
            ]
            for row in rows(name, data, cases, given.calls, device):
                report.add(row)
                print(_described(row), flush=True)
    print(f"wrote {output}")
    doubts = list(_doubts([dict(row) for row in report.rows]))
    for doubt in doubts:
        print(f"not to be trusted: {doubt}", file=sys.stderr)
    return int(bool(doubts))


def _described(row: dict[str, Any]) -> str:
    case = f"{row['shape']:17} {row['budget']:16} {row['phase']:21}"
    rate = f"{row['columns'] or '-':>7} of a product at {row['rate'] or '-':>6}"
    call = f"{row['profiled_ms']} ms in all, {row['call_ms']} without the profiler, try {row['tries']}"
    return f"{case} {row['launches']:>6} launches {row['ms']:>9} ms {rate}, {row['excess_ms']:>9} beyond; {call}"


if __name__ == "__main__":
    sys.exit(main())
