"""What the committed tables meet of the figures that were asked of the kernel: ``python -m kernel.benchmark.targets``.

Loss and both gradients in bfloat16 with smoothing .1 and no softcap where nothing else is said; t_mm is the time of
``input @ weight.T`` in the same rounds, and memory the peak over the inputs. Of a loss that keeps its logits the row
"three products" gives the part that no implementation avoids: where it alone exceeds what was asked, the line says so.
A rival is ahead of ours where it is faster than our fastest setting of at most its memory, or, where it takes less than
any of ours, than our leanest one: both in t_mm, both without smoothing where it has none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .command import committed, finish, parser_of
from .results import PRODUCTS, Table, Target, is_ours, read

__all__ = ["Table", "Target", "main", "read", "targets"]

DEFAULT, SMALL, KEPT = "triton, default", "triton, 32 MiB", "triton, all kept"
_COMPILED = "torch.compile"
_LARGE = ("Gemma-2-2B", "Llama-3-8B")
_LARGER = ("V 248320, D 2048", "Qwen3-8B", "V 262144, D 4096")
_JUDGED = (*_LARGE, "Qwen2.5-0.5B", "Qwen2.5-7B", "Gemma-3-270M")
# MiB over the inputs at which rivals were, and the t_mm asked there. The default at Gemma's shape is the third.
_WITHIN = (
    *(("Gemma-2-2B", 2161, 3.25), ("Gemma-2-2B", 3411, 3.15), ("Gemma-2-2B", 1310, 3.8)),
    *(("Llama-3-8B", 1535, 3.45), ("Llama-3-8B", 1680, 3.25), ("Qwen2.5-0.5B", 1500, 3.7)),
)
_FIRST_CALL = ((16, 5.0), (2, 12.0))  # cores, and the seconds asked with so many or more
_SIDES = ("input_gradient_error", "weight_gradient_error")
_EXAMPLES = """
examples:
  python -m kernel.benchmark.targets
  python -m kernel.benchmark.targets --table /tmp/kernel.csv --missed
  python -m kernel.benchmark.targets --rivals
"""


def targets(table: Table, first_calls: Sequence[dict[str, str]] = ()) -> Iterator[Target]:
    """Yield every figure that was asked for and that the table holds, then one for each row of ``first_calls``."""
    for target in _asked(table):
        if target.measured == target.measured:  # what was not measured is nan and cannot be judged
            yield target
    for row in first_calls:
        cores = int(row.get("cores", 16))  # tables without this column were made on 16
        most = next((seconds for at_least, seconds in _FIRST_CALL if cores >= at_least), None)
        if most is not None:
            line = f"first call, nothing compiled, {cores} cores"
            yield Target(line, row["shape"], float(row["first_seconds"]), most, "s")


def _asked(table: Table) -> tuple[Target, ...]:
    """Every figure that was asked of the table, measured or not."""
    return (
        *_absolute(table),
        *_against_rivals(table),
        *_parts(table),
        *_errors(table),
        *_frontier(table),
        *_large_heads(table),
        *_every_workspace(table),
    )


def _value(number: float | None) -> float:
    return float("nan") if number is None else number


def _absolute(table: Table) -> Iterator[Target]:
    gemma, llama = _LARGE
    for name, factor, memory in ((DEFAULT, 1.04, 1400), (SMALL, 1.15, 1300)):
        yield Target(f"{name}: time", gemma, _value(table.products(gemma, name)), 4 * factor, "t_mm")
        yield Target(f"{name}: memory", gemma, _value(table.number(gemma, name, "peak_mib")), memory, "MiB")
    for shape, factor in ((gemma, 1.06), (llama, 0.93)):
        floor = table.products(shape, PRODUCTS)
        note = "" if floor is None else f"the three products alone take {floor:.3f}"
        yield Target(f"{KEPT}: time", shape, _value(table.products(shape, KEPT)), 3 * factor, "t_mm", note=note)


def _against_rivals(table: Table) -> Iterator[Target]:
    for shape in table.shapes:
        for name, share in ((DEFAULT, 0.2), (KEPT, 0.6)):
            line = f"{name}: memory beyond the gradients / {_COMPILED}'s"
            yield Target(line, shape, _ratio(table.beyond(shape, name), table.beyond(shape, _COMPILED)), share)
        ours, theirs = (table.number(shape, name, "ms") for name in (DEFAULT, _COMPILED))
        line = f"{DEFAULT}: time / {_COMPILED}'s"
        yield Target(line, shape, _ratio(ours, theirs), 1.12 if shape in _LARGE else 1.0)
        kept = table.number(shape, KEPT, "ms")
        yield Target(f"{_COMPILED}'s time / {KEPT}'s", shape, _ratio(theirs, kept), 1.1, at_least=True)
        for rival, smoothing in (
            ("Liger-Kernel", 0.1),
            ("Liger-Kernel, float32 sums", 0.1),
            ("cut-cross-entropy, exact", 0.0),
        ):
            theirs = table.number(shape, rival, "ms", smoothing=smoothing)
            for name in (DEFAULT, KEPT):
                ratio = _ratio(theirs, table.number(shape, name, "ms", smoothing=smoothing))
                line = f"{rival}'s time / that of {name}" + (", no smoothing" if not smoothing else "")
                yield Target(line, shape, ratio, 2.0, at_least=True)


def _parts(table: Table) -> Iterator[Target]:
    for shape in table.shapes:
        time = _value(table.products(shape, DEFAULT, mode="loss"))
        yield Target("loss only: time", shape, time, 1.06, "t_mm")
        memory = _value(table.number(shape, DEFAULT, "peak_mib", mode="loss"))
        yield Target("loss only: memory", shape, memory, 4, "MiB")
        few = table.number(shape, DEFAULT, "ms", ignored=0.8)
        ratio = _ratio(few, table.number(shape, DEFAULT, "ms"))
        yield Target("80 % of rows ignored: time / that of all rows", shape, ratio, 0.25)


def _errors(table: Table) -> Iterator[Target]:
    for shape in table.shapes:
        for name, most in ((DEFAULT, 0.0025), (SMALL, 0.0025), (KEPT, 0.0035)):
            for side in ("input", "weight"):
                error = table.number(shape, name, f"{side}_gradient_error")
                yield Target(f"{name}: error of the {side} gradient", shape, _value(error), most)


def _frontier(table: Table) -> Iterator[Target]:
    for shape in _JUDGED:
        ahead = table.ahead(shape)
        note = "" if not ahead else "; ".join(map(str, ahead))
        count = float("nan") if ahead is None else len(ahead)
        yield Target("rivals ahead of ours at their memory", shape, count, 0, note=note)
    for shape, mib, most in _WITHIN:
        time = _value(table.within(shape, mib))
        yield Target(f"ours within {mib} MiB: time", shape, time, most, "t_mm")
    memory = _value(table.number(_LARGE[0], KEPT, "peak_mib"))
    yield Target(f"{KEPT}: memory", _LARGE[0], memory, 4450, "MiB")


def _large_heads(table: Table) -> Iterator[Target]:
    for shape in _LARGER:
        for name, most in ((DEFAULT, 4.05), ("triton, 1 GiB", 3.7)):
            yield Target(f"{name}: time at large heads", shape, _value(table.products(shape, name)), most, "t_mm")


def _every_workspace(table: Table) -> Iterator[Target]:
    """Errors of the frontier's settings; those of rows without a target where the table has them."""
    for shape in table.shapes:
        settings = [name for name in table.points(shape, 0.1) if is_ours(name)]
        for line, names, sides, most in (
            ("default: larger gradient error", [DEFAULT], _SIDES, 0.0024),
            ("any workspace: largest gradient error", settings, _SIDES, 0.003),
            ("any workspace: largest error of rows without a target", settings, ("no_target_rows_error",), 0.005),
        ):
            errors = [table.number(shape, name, side) for name in names for side in sides]
            found = [error for error in errors if error is not None and error == error]
            yield Target(line, shape, max(found, default=float("nan")), most)


def _ratio(a: float | None, b: float | None) -> float:
    return float("nan") if a is None or not b else a / b


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every figure and return the exit status: 2 if the table holds no figure that was asked for."""
    parser = parser_of("kernel.benchmark.targets", __doc__, _EXAMPLES)
    parser.add_argument("--table", type=Path, default=committed("kernel"), help="default: the committed kernel.csv")
    parser.add_argument("--first-call", type=Path, help="default: first_call.csv beside the table, where there is one")
    parser.add_argument("--missed", action="store_true", help="only the lines that are not met")
    parser.add_argument(
        "--rivals",
        action="store_true",
        help="instead, every setting of a rival, and whether a workspace of ours is as lean and as fast",
    )
    given = parser.parse_args(arguments)
    return finish(lambda: _judge(given))


def _judge(given: argparse.Namespace) -> int:
    beside = given.table.with_name("first_call.csv")
    first_call = given.first_call or (beside if beside.exists() else None)
    if not given.table.exists():
        raise FileNotFoundError(
            f"there is no table {given.table}: name one with --table, or make it on a GPU with "
            "python -m kernel.benchmark --output FILE.csv."
        )
    try:
        table = Table(read(given.table))
        asked, found = _asked(table), list(targets(table))
    except (KeyError, TypeError, ValueError) as error:
        raise _no_table(given.table, "kernel.benchmark", error) from error
    if not found:
        raise ValueError(f"{given.table} must hold figures that were asked for, got none in {len(table.rows)} rows.")
    if given.rivals:
        _beside(table, given.missed)
        return 0
    try:
        first = [] if first_call is None else list(targets(Table(()), read(first_call)))
    except (KeyError, TypeError, ValueError) as error:
        raise _no_table(first_call, "kernel.benchmark.first_call", error) from error
    left = len(asked) - len(found)
    found += first
    for target in found:
        if not (given.missed and target.met):
            print(target)
    print(f"{sum(t.met for t in found)} of {len(found)} met" + (f"; {left} not in the table" if left else ""))
    return 0


def _beside(table: Table, missed: bool) -> None:
    """Print a line for each setting of a rival, and how many have one of ours that is as lean and as fast."""
    for shape in table.shapes:
        found = table.beside(shape)
        for beside in found:
            if not (missed and beside.met):
                said = "as lean and as fast" if beside.met else f"{beside.own_time / beside.time:.3f} of its time"
                said = said if beside.own_mib <= beside.mib else f"takes more; {said}"
                print(f"{shape:16} {beside}: {said}")
        if found:
            print(f"{shape:16} ours is as lean and as fast as {sum(b.met for b in found)} of {len(found)} settings")


def _no_table(path: Path | None, maker: str, error: Exception) -> ValueError:
    reason = f"it has no column {error}" if isinstance(error, KeyError) else str(error)
    return ValueError(f"{path} must be a table of python -m {maker}: {reason}.")


if __name__ == "__main__":
    sys.exit(main())
