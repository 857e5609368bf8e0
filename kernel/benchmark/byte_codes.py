"""What a kept softmax in bytes costs in accuracy, beside other codes: ``python -m kernel.benchmark.byte_codes``.

The kernels code the fourth root of a probability relative to the largest one among 64 columns but the target's, in
steps that are finer where the 64 lie close to each other (:mod:`kernel.fused.byte_peaks`). Here that code, the same
with one width of the steps, other roots, other numbers of columns, and the square root of how many nats a logit lies
below the peak, with 12 nats for all codes, stand in for the softmax of a smoothed loss. The target's own probability
comes from its float32 logit, dz and gradients are rounded to bfloat16 as the kernels do, and the gradients are compared
with float64 of the same inputs, beside what the kernels keep in two bytes and what others keep (bfloat16 logits).
Errors are norm-wise, of the rows of the head that no token names apart.

The last kinds of data are where a smoothed loss leaves a model: p = 1 - b for the target, b / V for the others, whose
logits differ by 0.01 to 1 nats. There dz is a small difference, and the steps of a byte are seen.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fused.plan import PEAK_COLUMNS
from .command import add_places, finish, output_of, parser_of, typed, whole
from .problems import Data, Shape, make_data
from .tables import Report

__all__ = ["ROOT", "by_gain", "by_logarithm", "by_root", "main", "optimum", "study"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.byte_codes --output paper_figures/data/byte_codes.csv     the committed table, no GPU
  python -m kernel.benchmark.byte_codes --tokens 128 --vocab-size 4096 --output /tmp/byte_codes.csv
"""
_SMOOTHING = 0.1
ROOT = 4
_NATS, _STEPS = 12.0, 254
_TILE = 256  # columns, of which the kernels keep the largest peak as it is, the others in steps below it
_PER_BIT, _LOWEST = 4, 63  # steps of a bit, and how many at most
_GAINS, _GAIN_STEPS = 6, 32  # of codes that are finer
_KINDS: dict[str, Callable[[Data, torch.Generator], Data]] = {
    "peaked": lambda data, generator: data,
    "flat": lambda data, generator: Data(0.3 * data.hidden, data.weight, data.target),
    "wrong evidence": lambda data, generator: Data(
        data.hidden, data.weight, data.target[torch.randperm(len(data.target), generator=generator)]
    ),
    "optimum, 1": lambda data, generator: optimum(data, 1.0, generator),
    "optimum, 0.3": lambda data, generator: optimum(data, 0.3, generator),
    "optimum, 0.03": lambda data, generator: optimum(data, 0.03, generator),
    "optimum, 0.01": lambda data, generator: optimum(data, 0.01, generator),
}


def optimum(data: Data, spread: float, generator: torch.Generator) -> Data:
    """Of the same sizes, each token in a direction that its target's row of the head has alone; many share some."""
    (n, hidden_size), vocab_size = data.hidden.shape, len(data.weight)
    own = min(n, hidden_size, vocab_size)
    directions = torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator))[0][:own]
    weight = torch.randn(vocab_size, hidden_size, generator=generator) * (spread / hidden_size**0.5)
    named = torch.arange(own) * (vocab_size // own)
    weight[named] = directions * (math.log((1 - _SMOOTHING) / _SMOOTHING * vocab_size) / hidden_size**0.5)
    token = torch.arange(n) % own
    return Data(directions[token] * hidden_size**0.5, weight, named[token])


def by_gain(z: Tensor, others: Tensor, lse: Tensor) -> Tensor:
    """Probabilities ``(N, V)`` after one byte each, by the code of the kernels.

    Args:
        z: Logits ``(N, V)`` in nats; V is a multiple of 256.
        others: The same with -inf for the targets.
        lse: The log-sum-exp ``(N, 1)``.
    """
    blocks = (others / math.log(2)).unflatten(1, (-1, _TILE // PEAK_COLUMNS, PEAK_COLUMNS))
    lowest = (z / math.log(2)).unflatten(1, blocks.shape[1:]).amin(-1, keepdim=True)
    peak = blocks.amax(-1, keepdim=True)
    largest = peak.amax(2, keepdim=True)
    # What lies within 7 bits / 2^i below the peak, which is rounded up by one at most and within 32 of the largest.
    share = torch.maximum((peak - lowest) / 7, (largest - peak) / _GAIN_STEPS)
    which = torch.floor(-torch.log2(share.clamp(min=2.0**-_GAINS))).clamp(-1, _GAINS - 1)
    power = torch.exp2(which)
    per_bit = torch.where(which < 0, _PER_BIT, power)
    steps = torch.floor((largest - peak) * per_bit).clamp(max=_LOWEST)
    gain = torch.where(which < 0, 255, 127 + 184 * power)
    peak = largest - steps / per_bit
    code = torch.round(gain * torch.exp2((blocks - peak) / ROOT)) - (gain - 255)
    p = ((code + gain - 255) / gain) ** ROOT * torch.exp2(peak - (lse / math.log(2))[..., None, None])
    return p.flatten(1)


def by_root(z: Tensor, lse: Tensor, columns: int = PEAK_COLUMNS, root: int = ROOT) -> Tensor:
    """The same with one width of the steps, of any root.

    Args:
        z: Logits ``(N, V)`` in nats, -inf for the targets; V is a multiple of ``columns``.
        lse: The log-sum-exp with the targets ``(N, 1)``.
        columns: Columns that share a peak.
        root: Which root of what they are relative to a peak is coded in 255 even steps.
    """
    blocks = z.unflatten(1, (-1, columns))
    peak = _stepped(blocks.amax(-1, keepdim=True), max(_TILE // columns, 1))
    code = torch.round(255 * torch.exp((blocks - peak) / root))
    return (torch.exp(peak - lse.unsqueeze(-1)) * (code / 255) ** root).flatten(1)


def _stepped(peak: Tensor, of_tile: int) -> Tensor:
    """Peaks ``(N, blocks, 1)`` in nats as the kernels keep them: in steps below the largest of a tile, rounded up."""
    of_tile = min(of_tile, peak.shape[1])
    tiles = peak.unflatten(1, (-1, of_tile))
    largest, bit = tiles.amax(2, keepdim=True), math.log(2)
    steps = torch.floor((largest - tiles) * (_PER_BIT / bit)).clamp(max=_LOWEST)
    return (largest - steps * (bit / _PER_BIT)).flatten(1, 2)


def by_logarithm(z: Tensor, lse: Tensor, columns: int) -> Tensor:
    """The same, of the square root of how far below the peak a logit lies; what lies more than 12 nats below is 0."""
    blocks = z.unflatten(1, (-1, columns))
    peak = blocks.amax(-1, keepdim=True)
    code = torch.round(_STEPS * ((peak - blocks) / _NATS).sqrt())
    p = torch.exp(peak - lse.unsqueeze(-1) - _NATS * (code / _STEPS).square())
    return torch.where(code > _STEPS, 0, p).flatten(1)


def study(n: int, vocab_size: int, hidden_size: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Errors of both gradients, and of the rows of the head without a target, for each kind of data and of storage."""
    for kind, change in _KINDS.items():
        made = make_data(Shape(kind, n, vocab_size, hidden_size), torch.float32, torch.device("cpu"), seed)
        data = change(made, torch.Generator().manual_seed(seed))
        hidden, weight = (t.detach().bfloat16().double() for t in (data.hidden, data.weight))
        z, rows = hidden @ weight.T, torch.arange(n)
        lse = torch.logsumexp(z, -1, keepdim=True)
        own = torch.exp(z - lse)[rows, data.target]
        unnamed = torch.ones(vocab_size, dtype=torch.bool)
        unnamed[data.target] = False

        def dz(p: Tensor, own: Tensor = own, rows: Tensor = rows, target: Tensor = data.target) -> Tensor:
            p = p.clone()
            p[rows, target] = own - (1 - _SMOOTHING)
            return p - _SMOOTHING / vocab_size

        exact = dz(torch.exp(z - lse))
        want = exact @ weight, exact.T @ hidden
        for storage, found in _gradients(z, lse, data.target, hidden, weight, exact, dz):
            rounded = [gradient.bfloat16().double() for gradient in found]
            errors = [_relative(a, b) for a, b in zip(rounded, want, strict=True)]
            errors.append(_relative(rounded[1][unnamed], want[1][unnamed]))
            names = ("input_gradient_error", "weight_gradient_error", "rows_without_target_error")
            yield {"data": kind, "storage": storage, **{k: f"{e:.5f}" for k, e in zip(names, errors, strict=True)}}


def _gradients(
    z: Tensor,
    lse: Tensor,
    target: Tensor,
    hidden: Tensor,
    weight: Tensor,
    exact: Tensor,
    dz: Callable[..., Tensor],
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Gradients of input and head by each kind of storage, not yet rounded."""

    def products(gradient: Tensor) -> tuple[Tensor, Tensor]:
        gradient = gradient.bfloat16().double()
        return gradient @ weight, gradient.T @ hidden

    yield "none, dz anew", products(exact)
    # The kernels' own: relative to the target's logit, the factors on the hidden states and on the result.
    rows = torch.arange(len(z))
    factor = torch.exp(z[rows, target].unsqueeze(1) - lse)
    kept = ((exact + _SMOOTHING / z.shape[1]) / factor).bfloat16().double()
    scaled, uniform = (factor * hidden).bfloat16().double(), _SMOOTHING / z.shape[1]
    yield (
        "softmax in bfloat16",
        (factor * (kept @ weight) - uniform * weight.sum(0), kept.T @ scaled - uniform * hidden.sum(0)),
    )
    p = torch.softmax(z.bfloat16().double(), -1)
    yield "logits in bfloat16", products(dz(p, p[rows, target]))
    others = z.index_put((rows, target), z.new_tensor(-math.inf))
    yield "bytes", products(dz(by_gain(z, others, lse)))
    for columns in (PEAK_COLUMNS, 128, 256):
        for root in (ROOT, 2, 8):
            name = f"bytes, root {root}, peaks of {columns} columns"
            yield name, products(dz(by_root(others, lse, columns, root)))
        yield f"bytes, logarithm, peaks of {columns} columns", products(dz(by_logarithm(others, lse, columns)))


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.byte_codes", __doc__, _EXAMPLES)
    parser.add_argument("--tokens", type=whole(1), default=384, help="tokens (default 384)")
    parser.add_argument(
        "--vocab-size", type=whole(256), default=32768, help="vocabulary, a multiple of 256 (default 32768)"
    )
    parser.add_argument("--hidden-size", type=whole(1), default=512, help="hidden size (default 512)")
    add_places(parser, "byte_codes", device=False)
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    if given.vocab_size % 256:
        raise ValueError(f"vocab-size must be a multiple of 256, got {given.vocab_size}.")
    output = output_of(given, "byte_codes")
    sizes = given.tokens, given.vocab_size, given.hidden_size
    config = dict(zip(("tokens", "vocab_size", "hidden_size"), sizes, strict=True)) | {"label_smoothing": _SMOOTHING}
    with Report(output, command=command, config=config, device=torch.device("cpu")) as report:
        for row in study(*sizes):
            report.add(row)
            print("  ".join(f"{value:32}" for value in row.values()))
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
