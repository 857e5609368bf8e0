"""Runs the comparison and writes its table, the raw samples beside it and a description of the machine.

    python -m kernel.benchmark --output table.csv     # every shape, on a GPU
    python -m kernel.benchmark --shapes GPT-2 --rounds 5 --output table.csv
    python -m kernel.benchmark --output table.csv --resume       # goes on with a run that was cut

Columns: ms is the device's time behind ahead_ms of other work, the median over the rounds, ms_low and ms_high their
quartiles; host_ms the median time until the call returns meanwhile, which ms hides as training does (for those that
wait for the device it contains that work); product_ms that of the product right ahead of the call, which tells the
clock that it found (where it differs from the others' by more than 3% the command says so, and ends with status 1);
peak_mib the most memory beyond the inputs, in bytes asked for; share the time that the operations of a loss that keeps
its logits take at the measured rate of ``input @ weight.T`` (matmul_ms for the loss, three times that with gradients)
over ms; the errors are norm-wise, against float64, the last over the rows of the head that no token targets; commit
that of the source, which may be another one where a run goes on with a cut one. What takes more than twenty such
products is timed in two rounds. Two rows are no losses: "matmul" is that product alone, "three products" all that
logits and both gradients need, by the same library and of the same numbers. What is compared takes turns in the same
rounds, in orders that favour none by what it follows; what is written in CuTe takes them in a process of its own
(:mod:`kernel.benchmark.apart`). Of the last five heads only loss and gradients without softcap are measured; without
smoothing only ours and what has none. Ours is measured, too, with a workspace that makes its memory a little less than
that of each rival between the default and all kept columns.
``python -m kernel.benchmark.targets`` says what the table meets of what was asked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .apart import Apart
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .compare import GROUPS, compare
from .cute_rivals import cute_rivals
from .measure import AHEAD_MS, Turn
from .prepare import ERRORS
from .problems import SHAPES
from .results import off_clock, read
from .rivals import VARIANTS, Case, rivals
from .tables import Report, commit_of_source, device_name

COLUMNS = (
    *("shape", "tokens", "vocab_size", "hidden_size", "dtype", "label_smoothing", "softcap", "ignored", "mode"),
    *("implementation", "ms", "ms_low", "ms_high", "host_ms", "product_ms", "matmul_ms", "share", "peak_mib"),
    *("gradient_mib", *ERRORS, "ahead_ms", "commit", "skipped"),
)
_EXAMPLES = """
examples:
  python -m kernel.benchmark --output paper_figures/data/kernel.csv         the committed table again, on a GPU
  python -m kernel.benchmark --shapes GPT-2 --rounds 5 --output /tmp/table.csv
  python -m kernel.benchmark --device cpu --scale 64 --rounds 2 --output /tmp/table.csv   a trial without a GPU
"""


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("kernel.benchmark", __doc__, _EXAMPLES)
    names = [s.name for s in SHAPES]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="heads to measure (default all)")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N and V by this, for a trial (default 1)")
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed rounds (default 10)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="implementations whose name starts with one of these")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), help="other launches of our kernels, beside them"
    )
    parser.add_argument("--resume", action="store_true", help="keep what the same command, cut, left beside the table")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default=None,
        help="of hidden states and weight (default bfloat16 on a GPU, float32 elsewhere)",
    )
    add_places(parser, "kernel")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    typed_before = argparse.Namespace(**{**vars(given), "resume": False})  # the command of the whole table
    return finish(lambda: _measure(given, typed(parser, typed_before)))


def _measure(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given)
    _check_only(given.only)
    dtype = given.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    ahead_ms = AHEAD_MS if device.type == "cuda" else 0
    config = {"shapes": given.shapes, "scale": given.scale, "rounds": given.rounds, "only": given.only}
    config |= {"dtype": dtype, "ahead_ms": ahead_ms, "variants": given.variants}
    output = output_of(given, "kernel")
    rows, samples = _earlier(output, config, device) if given.resume else ([], [])
    done = {(row["shape"], group) for row in rows for group, cases in enumerate(GROUPS) if _case(row) in cases}
    shapes, variants = {s.name: s for s in SHAPES}, given.variants or ()
    about = {"command": command, "config": config, "device": device, "columns": COLUMNS, "earlier": (rows, samples)}
    made = {"ahead_ms": ahead_ms, "commit": commit_of_source()}
    doubted: list[str] = []
    names = [r.name for r in cute_rivals() if given.only is None or r.name.startswith(tuple(given.only))]
    apart = Apart(getattr(torch, dtype), device, names)
    with contextlib.closing(apart), Report(output, **about) as report:
        for shape in (shapes[name] for name in dict.fromkeys(given.shapes)):
            small = replace(shape, n=max(shape.n // given.scale, 1), vocab_size=max(shape.vocab_size // given.scale, 2))
            ready = {group for name, group in done if name == shape.name}
            for found in compare(
                small, getattr(torch, dtype), device, given.rounds, given.only, ready, variants, apart
            ):
                report.add_all([(row | made, list(_samples(row, times))) for row, times in found])
                for row, _ in found:
                    print(describe(row), flush=True)
                doubted += _doubts([row for row, _ in found])
    print(f"wrote {output}")
    if device.type != "cuda":  # a trial, whose times are of a host with other work
        return 0
    for doubt in doubted:
        print(f"not to be trusted: {doubt}", file=sys.stderr)
    return int(bool(doubted))


def _doubts(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Which rows of a group were measured at another clock than the others."""
    for row, own, clock in off_clock(rows):
        yield f"{describe(dict(row))} at another clock: the product ahead took {own:.3f} ms, of all calls {clock:.3f}"


def _samples(row: dict[str, Any], times: Sequence[Turn]) -> Iterator[dict[str, Any]]:
    key = {k: row[k] for k in ("shape", "label_smoothing", "softcap", "ignored", "mode", "implementation")}
    for i, turn in enumerate(times):
        yield {**key, "round": i, "ms": f"{turn.ms:.4f}", "host_ms": f"{turn.host_ms:.4f}", **_clock(turn)}


def _clock(turn: Turn) -> dict[str, str]:
    return {"product_ms": "" if turn.product_ms is None else f"{turn.product_ms:.4f}"}


def _case(row: dict[str, Any]) -> Case:
    softcap = float(row["softcap"]) if row["softcap"] else None
    return Case(float(row["label_smoothing"]), softcap, float(row["ignored"]), row["mode"] != "loss")


def _earlier(
    output: Path, config: dict[str, Any], device: torch.device
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows and samples that a cut run left: whole groups of cases; none if there was none.

    Raises:
        ValueError: If it measured something else, or on another kind of device.
    """
    partial = output.with_name(f"{output.stem}.partial.csv")
    if not partial.exists():
        return [], []
    made = json.loads(partial.with_suffix(".json").read_text(encoding="utf-8"))
    for what, got, before in (("options", config, made["config"]), ("device", device_name(device), made["device"])):
        if got != before:
            raise ValueError(f"resume goes on with the same {what}, got {got} after {before} in {partial}.")
    samples = partial.with_name(f"{partial.stem}_samples.csv")
    return read(partial), read(samples) if samples.exists() else []


def _check_only(only: Sequence[str] | None) -> None:
    """Refuse a beginning of no implementation's name, which would measure nothing."""
    names = [rival.name for rival in (*rivals(0), *cute_rivals())]
    for beginning in only or ():
        if not any(name.startswith(beginning) for name in names):
            raise ValueError(f"only must begin the name of one of {'; '.join(names)}, got {beginning!r}.")


def describe(row: dict[str, Any]) -> str:
    """Return one line about a row of the table, for the terminal."""
    case = f"b={row['label_smoothing']} cap={row['softcap'] or '-'} ign={row['ignored']} {row['mode']}"
    if row.get("skipped"):
        return f"{row['shape']:13} {case:40} {row['implementation']:27} skipped: {row['skipped']}"
    ratio = float(row["ms"]) / float(row["matmul_ms"])
    errors = " ".join(f"{row.get(k, ''):>8}" for k in ERRORS)
    time = f"{float(row['ms']):8.2f} ms {ratio:6.3f} t_mm {float(row['host_ms']):6.2f} host"
    return f"{row['shape']:13} {case:40} {row['implementation']:27} {time} {row.get('peak_mib', ''):>8} MiB {errors}"


if __name__ == "__main__":
    sys.exit(main())
