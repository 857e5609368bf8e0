"""The loss of a head split over processes against one process: ``python -m kernel.benchmark.parallel``.

Starts the processes by torchrun, or is started by it. Every process computes the whole head alone first, then its rows
of an even and of an uneven split, and, without smoothing, torch's loss_parallel. The slowest process counts, and the
largest memory and error; times are medians.

forward_ms and backward_ms are the parts of a call on the device, from runs of their own, with all that passes between
the processes; gather_ms and sum_ms what the exchanges take by themselves: three numbers a token, and the gradient of
the hidden states in float32. host_ms is what the host takes to enqueue a call, and wait_ms how long it waits in between
for what the other hosts tell of their arguments: with a backend for CPUs in the group as long as messages between hosts
take, with NCCL alone until the device has done what was queued ahead of the call's first exchange.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ..api import linear_cross_entropy
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .measure import ahead, peak_bytes, turn
from .parallel_calls import Loss, exchanges, halves, loss_parallel, noted_waits, run
from .problems import SHAPES, Data, Shape, make_data
from .tables import Report

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.parallel --output paper_figures/data/parallel.csv   every GPU of this host
  python -m kernel.benchmark.parallel --processes 3 --device cpu --scale 512 --output /tmp/p.csv
"""
_SHAPES = (SHAPES[0], Shape("V 262144, D 4096", 16384, 262144, 4096))
_SOFTCAPS = (None, 30.0)
_SMOOTHING = 0.1


def _splits(vocab_size: int, processes: int) -> dict[str, list[int]]:
    """Rows of each process: as even as they go, and with twice as many for the last one."""
    even = [vocab_size // processes + (i < vocab_size % processes) for i in range(processes)]
    part = vocab_size // (processes + 1)
    return {"even": even, "uneven": [part] * (processes - 1) + [vocab_size - part * (processes - 1)]}


def _worst(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of each number over the processes."""
    found = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()


def _measure(data: Data, softcap: float | None, rounds: int) -> Iterator[dict[str, object]]:
    """A row for one process, each split, and loss_parallel where it computes the same loss but for the smoothing."""
    device, rank, processes = data.hidden.device, dist.get_rank(), dist.get_world_size()
    options = {"label_smoothing": _SMOOTHING, "softcap": softcap}
    alone: Any = partial(linear_cross_entropy, **options)
    value, whole_hidden, whole_rows = run(alone, data.hidden, data.weight, data.target)
    whole_hidden, whole_rows = whole_hidden.double(), whole_rows.double()
    vocab_size = len(data.weight)
    cases: list[tuple[str, list[int], Loss]] = [("one process", [vocab_size], alone)]
    together: Any = partial(linear_cross_entropy, **options, process_group=dist.group.WORLD)
    splits = _splits(vocab_size, processes)
    cases += [(f"process_group, {name}", rows, together) for name, rows in splits.items()]
    if softcap is None and vocab_size % processes == 0:
        cases.append(("loss_parallel, no smoothing", splits["even"], loss_parallel))
    for name, rows, loss in cases:
        begin = 0 if len(rows) == 1 else sum(rows[:rank])
        mine = slice(begin, begin + rows[0 if len(rows) == 1 else rank])
        part = data.weight.detach()[mine].clone().requires_grad_()
        call = partial(run, loss, data.hidden, part, data.target)
        first, second = ([t.clone() for t in call()] for _ in range(2))
        repeats = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        work = ahead(lambda: data.hidden.detach() @ data.weight.detach()[:4096].T, device)
        token = torch.zeros(1, device=device)

        def before(work: Callable[[], None] = work, token: torch.Tensor = token) -> None:
            work()
            dist.all_reduce(token)  # on the device: what one GPU is faster in the work is none of the call's time

        times, parts = [], []
        for _ in range(rounds):
            dist.barrier()
            with noted_waits() as waits:
                ms, host_ms, _ = turn(call, device, before=before)
            times.append((ms, host_ms - sum(waits), sum(waits)))
            dist.barrier()
            parts.append(halves(lambda mark, call=call: call(between=mark), before, device))
        alone_ms = exchanges(data.hidden.detach(), before, rounds) if len(rows) > 1 and loss is together else (0, 0)
        peak = peak_bytes(call, device)
        compared = loss is not loss_parallel
        off = (
            (first[0].double() - value.double()).abs() / value.double().abs(),
            (first[1].double() - whole_hidden).norm() / whole_hidden.norm(),
            (first[2].double() - whole_rows[mine]).norm() / whole_rows[mine].norm(),
        )
        measured = [statistics.median(x) for x in (*zip(*times, strict=True), *zip(*parts, strict=True))]
        measured += [*alone_ms, float(peak or 0) / 2**20, part.numel() * part.element_size() / 2**20]
        found = _worst([*measured, *map(float, off), float(not repeats)], device)
        ms, host_ms, wait_ms, forward_ms, backward_ms, gather_ms, sum_ms, peak_mib, head_mib, *errors, differs = found
        yield {
            "softcap": softcap,
            "implementation": name,
            "processes": len(rows),
            "rows": " ".join(map(str, rows)),
            "label_smoothing": _SMOOTHING if compared else 0.0,
            "ms": round(ms, 4),
            "host_ms": round(host_ms, 3),
            "wait_ms": round(wait_ms, 3),
            "forward_ms": round(forward_ms, 3),
            "backward_ms": round(backward_ms, 3),
            "gather_ms": round(gather_ms, 3) if any(alone_ms) else None,
            "sum_ms": round(sum_ms, 3) if any(alone_ms) else None,
            "peak_mib": round(peak_mib, 2) if peak is not None else None,
            "head_gradient_mib": round(head_mib, 3),
            "loss_difference": f"{errors[0]:.3g}" if compared else None,
            "input_gradient_difference": f"{errors[1]:.3g}" if compared else None,
            "weight_gradient_difference": f"{errors[2]:.3g}" if compared else None,
            "repeats_bitwise": not differs,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table in the first process and return the exit status."""
    parser = parser_of("kernel.benchmark.parallel", __doc__, _EXAMPLES)
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed calls of each (default: 10)")
    parser.add_argument("--shape", choices=[s.name for s in _SHAPES], nargs="+", help="leave the other out")
    text = "of the group (default: cpu:gloo,cuda:nccl, as torch's own for a GPU; gloo on a CPU)"
    parser.add_argument("--backend", help=text)
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N, V and D by this, for a trial")
    text = "to start, unless torchrun did (default: one for each GPU, 2 on a CPU)"
    parser.add_argument("--processes", type=whole(1), metavar="N", help=text)
    add_places(parser, "parallel")
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(words)
    return finish(lambda: _main(given, typed(parser, given)) if "RANK" in os.environ else _start(given, words))


def _start(given: argparse.Namespace, words: list[str]) -> int:
    device = resolve_device(given)
    if device.type == "cuda" and given.device not in (None, "cuda"):
        raise ValueError(f"device must be cuda or cpu, got {given.device!r}: each process takes a GPU of its own.")
    processes = given.processes or (torch.cuda.device_count() if device.type == "cuda" else 2)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*run, "-m", "kernel.benchmark.parallel", *words], check=False).returncode


def _main(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given)
    cuda = device.type == "cuda"
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast over NVLink is not everywhere allowed
    backend = given.backend or ("cpu:gloo,cuda:nccl" if cuda else "gloo")
    dist.init_process_group(backend, device_id=device if cuda else None)
    try:
        dtype = torch.bfloat16 if cuda else torch.float32
        config = {"rounds": given.rounds, "scale": given.scale, "dtype": str(dtype).removeprefix("torch.")}
        config |= {"processes": dist.get_world_size(), "backend": backend}
        if dist.get_rank():
            for _ in _rows(given, dtype, device):
                pass
            return 0
        with Report(output_of(given, "parallel"), command=command, config=config, device=device) as report:
            for row in _rows(given, dtype, device):
                report.add(row)
        print(f"wrote {output_of(given, 'parallel')}")
        return 0
    finally:
        dist.destroy_process_group()


def _rows(given: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, object]]:
    for shape in (s for s in _SHAPES if s.name in (given.shape or [s.name])):
        small = shape.divided(given.scale)
        data = make_data(small, dtype, device)
        for tensor in (data.hidden, data.weight, data.target):  # from one seed each GPU may draw other targets
            dist.broadcast(tensor.detach(), 0)
        sizes = {"tokens": small.n, "vocab_size": small.vocab_size, "hidden_size": small.hidden_size}
        about = {"shape": shape.name, **sizes}
        for softcap in _SOFTCAPS:
            for row in _measure(data, softcap, given.rounds):
                yield {**about, "dtype": str(dtype).removeprefix("torch."), **row}


if __name__ == "__main__":
    status = main()
    if "RANK" in os.environ:  # without Python's last steps, in which gloo's threads may abort as they let go of tensors
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
