"""Time and memory of the loss as tokens and vocabulary grow: ``python -m kernel.benchmark.scale``.

Loss and both gradients with smoothing and the default workspace: first N from 2,048 to 131,072 at one vocabulary, then
V from 32,768 to 1,048,576 at one number of tokens. slope is that of log time over log size between a row and the one
before it, 1 where time is linear; ms_per_product the time for 10^12 of the N V D multiplications of one product, and
t_mm that over the time of ``input @ weight.T``, measured on as many of the tokens as have 8 GiB of logits. beyond_mib
is the peak beyond the inputs less the gradients.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..api import linear_cross_entropy
from .command import add_places, finish, output_of, resolve_device, typed, whole
from .measure import ahead, peak_bytes, step, turn
from .problems import Data, Shape, make_data
from .rivals import Case
from .tables import Report

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.scale --output paper_figures/data/scale.csv   about a minute of a GPU
  python -m kernel.benchmark.scale --device cpu --scale 256 --rounds 1 --output /tmp/scale.csv
"""
_HIDDEN = 1024
_PRODUCT_BYTES = 2**33  # of logits that the product may take


@dataclass(frozen=True)
class _Growing:
    """Problems of which one size doubles."""

    grows: str
    shapes: tuple[Shape, ...]


def _series(scale: int) -> tuple[_Growing, _Growing]:
    def shape(n: int, vocab_size: int) -> Shape:
        return Shape("", max(n // scale, 2), max(vocab_size // scale, 2), max(_HIDDEN // scale, 16))

    tokens = tuple(shape(2048 << i, 32768) for i in range(7))
    classes = tuple(shape(2048, 32768 << i) for i in range(6))
    return _Growing("tokens", tokens), _Growing("vocab_size", classes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel.benchmark.scale",
        description=(__doc__ or "").partition(": ``")[0] + ".",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=whole(1), default=5, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide N, V and D by this, for a trial")
    add_places(parser, "scale")
    given = parser.parse_args(arguments)
    return finish(lambda: _measure(given, typed(parser, given)))


def _measure(given: argparse.Namespace, command: str) -> int:
    device = resolve_device(given)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = {"rounds": given.rounds, "scale": given.scale, "dtype": str(dtype).removeprefix("torch.")}
    config |= {"label_smoothing": Case().label_smoothing, "workspace_bytes": None}
    output = output_of(given, "scale")
    with Report(output, command=command, config=config, device=device) as report:
        for row in _rows(given.scale, given.rounds, dtype, device):
            report.add(row)
            print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    print(f"wrote {output}")
    return 0


def _rows(scale: int, rounds: int, dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, object]]:
    for series in _series(scale):
        before: tuple[int, float] | None = None
        for shape in series.shapes:
            ms, matmul_ms, peak, gradient_bytes = _times(shape, rounds, dtype, device)
            size = shape.n if series.grows == "tokens" else shape.vocab_size
            slope = math.log(ms / before[1]) / math.log(size / before[0]) if before else None
            before = size, ms
            work = shape.n * shape.vocab_size * shape.hidden_size
            yield {
                "grows": series.grows,
                "tokens": shape.n,
                "vocab_size": shape.vocab_size,
                "hidden_size": shape.hidden_size,
                "dtype": str(dtype).removeprefix("torch."),
                "ms": f"{ms:.4f}",
                "t_mm": f"{ms / matmul_ms:.3f}",
                "ms_per_product": f"{1e12 * ms / work:.4f}",
                "slope": None if slope is None else f"{slope:.3f}",
                "peak_mib": None if peak is None else f"{peak / 2**20:.1f}",
                "gradient_mib": f"{gradient_bytes / 2**20:.1f}",
                "beyond_mib": None if peak is None else f"{(peak - gradient_bytes) / 2**20:.1f}",
            }


def _loss(data: Data) -> Tensor:
    return linear_cross_entropy(data.hidden, data.weight, data.target, label_smoothing=Case().label_smoothing)


def _times(shape: Shape, rounds: int, dtype: torch.dtype, device: torch.device) -> tuple[float, float, int | None, int]:
    """Milliseconds of the loss and of the product, the peak over the inputs and the gradients' bytes."""
    data, case = make_data(shape, dtype, device), Case()
    run = partial(step, _loss, data, case)
    run()
    data.hidden.grad = data.weight.grad = None
    peak = peak_bytes(run, device)
    hidden, weight = data.hidden.detach(), data.weight.detach()
    part = hidden[: max(_PRODUCT_BYTES // (shape.vocab_size * hidden.element_size()), 1)]
    product = partial(torch.mm, part, weight.T, out=part @ weight.T)
    work = ahead(product, device)
    pairs = [[turn(call, device, before=work).ms for call in (run, product)] for _ in range(rounds + 1)]
    times, products = zip(*pairs[1:], strict=True)  # the first warms up
    whole_product = statistics.median(products) * len(hidden) / len(part)
    gradient_bytes = (hidden.numel() + weight.numel()) * hidden.element_size()
    data.hidden.grad = data.weight.grad = None
    return statistics.median(times), whole_product, peak, gradient_bytes


if __name__ == "__main__":
    sys.exit(main())
