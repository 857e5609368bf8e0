"""How few tiles any choice could compute within a tolerance: ``python -m kernel.benchmark.sparse_floor``.

Of the problems of :mod:`kernel.benchmark.sparse`, in float64 and without the kernels; tiles of 128 tokens x 256 rows,
the vocabulary in the order in which the Triton path has it, the tokens as within a tolerance of 0.003. What is left out
keeps its mean field, targets are exact. Shares of the tiles for each tolerance, from few to many:

- ``floor``: no choice of tiles computes fewer (:mod:`kernel.benchmark.fewest_tiles` has the proof), the more of what
  either gradient asks for by itself.
- ``oracle``: one that knows the errors of all tiles, with the errors that it leaves.
- ``independent``: what either gradient would ask for if the errors of its tiles were orthogonal to each other.
- ``certified``: those that the kernel's two bounds ask for, beside exact norms of the gradients, and the tiles that it
  computes in any case, ``anyway``: those with targets and its pilot, as long as it is on this device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..sparse_tiles import TILE_ROWS, TILE_TOKENS
from .certificate import SoftmaxTiles
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .exact_tiles import TileErrors, tile_errors
from .fewest_tiles import Minorant, error, minorants, most_left_out
from .problems import SHAPES, Data, make_data, read_states
from .tables import Report

__all__ = ["Floors", "main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.sparse_floor --states gemma3.safetensors smollm2.safetensors --problem Gemma-2-2B
"""
_TOLERANCES = (0.001, 0.003, 0.01)
_SMOOTHING = (0.1, 0.0)
_PRICES = 30
_DEAREST = 1000  # beside the tolerance's square shared by all tiles


class Floors:
    """Shares of the tiles that are computed, by choices that know more or less."""

    def __init__(self, found: TileErrors) -> None:
        self.found = found
        self.number = found.anyway.numel()
        self.paths = [self._path(0, found.of_input), self._path(1, found.of_weight)]

    def _path(self, which: int, gram: Tensor) -> list[Minorant]:
        square = [norms[which] ** 2 / self.number for norms in self.found.norms.values()]
        dearest, cheapest = _DEAREST * max(_TOLERANCES) ** 2 * max(square), min(_TOLERANCES) ** 2 * min(square)
        factor = (cheapest / dearest) ** (1 / (_PRICES - 1))
        return list(minorants(gram, [dearest * factor**k for k in range(_PRICES)]))

    def row(self, smoothing: float, tolerance: float) -> dict[str, float]:
        """What a tolerance asks for; shares, and the relative errors of the oracle's choice."""
        found, norms = self.found, self.found.norms[smoothing]
        allowed = [tolerance * norm for norm in norms]
        (of_input, by_input), (of_weight, by_weight) = (
            most_left_out(path, most) for path, most in zip(self.paths, allowed, strict=True)
        )
        costs = [by_input.cost / allowed[0] ** 2, by_weight.cost.T / allowed[1] ** 2]
        costs.append(costs[0] + costs[1])
        left_out = max((self._fitting(cost, allowed) for cost in costs), key=lambda x: float(x.sum()))
        errors = self._errors(left_out)
        own = [gram.diagonal(dim1=1, dim2=2).flatten() for gram in (found.of_input, found.of_weight)]
        alone = [int((x.sort().values.cumsum(0) <= a * a).sum()) for x, a in zip(own, allowed, strict=True)]
        return {
            "floor": 1 - min(of_input, of_weight) / self.number,
            "floor_of_input": 1 - of_input / self.number,
            "floor_of_weight": 1 - of_weight / self.number,
            "oracle": 1 - float(left_out.sum()) / self.number,
            "oracle_input_error": errors[0] / norms[0],
            "oracle_weight_error": errors[1] / norms[1],
            "independent": 1 - min(alone) / self.number,
            "certified": float(self._certified(allowed).double().mean()),
            "anyway": float(found.anyway.double().mean()),
        }

    def _errors(self, left_out: Tensor) -> tuple[float, float]:
        return error(self.found.of_input, left_out), error(self.found.of_weight, left_out.T.contiguous())

    def _fitting(self, cost: Tensor, allowed: Sequence[float]) -> Tensor:
        """As many tiles of the least cost as both gradients allow, ``(B, T)``, 0 or 1."""

        def fits(left_out: Tensor) -> bool:
            return all(e <= a for e, a in zip(self._errors(left_out.to(cost.dtype)), allowed, strict=True))

        return _most_of(cost.flatten().argsort(), fits, cost.shape).to(cost.dtype)

    def _certified(self, allowed: Sequence[float]) -> Tensor:
        """The tiles that either bound asks for, ``(B, T)`` bool, each in the order of what it says of a tile."""
        found, active = self.found, self.found.anyway

        def input_fits(left_out: Tensor) -> bool:
            return bool((found.input_bound * left_out.unsqueeze(1)).sum(2).norm() <= allowed[0])

        def weight_fits(left_out: Tensor) -> bool:
            return bool((found.weight_bound * left_out).sum(0).norm() <= allowed[1])

        scores = found.input_bound.norm(dim=1), found.weight_bound
        for score, fits in zip(scores, (input_fits, weight_fits), strict=True):
            order = score.masked_fill(found.anyway, torch.inf).flatten().argsort()
            active = active | ~_most_of(order[: int((~found.anyway).sum())], fits, score.shape)
        return active


def _most_of(order: Tensor, fits: Callable[[Tensor], bool], shape: torch.Size) -> Tensor:
    """As many of the first tiles as fit, found by halving, in a mask ``(B, T)``: one that fits, or none."""

    def first(number: int) -> Tensor:
        mask = torch.zeros(shape, dtype=torch.bool, device=order.device)
        return mask.flatten().index_fill_(0, order[:number], True).view(shape)

    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(first(middle)) else (low, middle - 1)
    return first(low)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.sparse_floor", __doc__, _EXAMPLES)
    parser.add_argument(
        "--states", type=Path, nargs="+", default=[], metavar="FILE", help="hidden states and heads (safetensors)"
    )
    parser.add_argument("--problem", choices=[s.name for s in SHAPES], help="a synthetic problem, besides or instead")
    parser.add_argument("--tokens", type=whole(TILE_TOKENS), default=12288, help="of a text, tiled (default 12288)")
    parser.add_argument("--scale", type=whole(1), default=1, help="divide a synthetic problem's sizes, for a trial")
    add_places(parser, "sparse_floor")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _problems(given: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Data]]:
    for path in given.states:
        yield path.stem, read_states(path, given.tokens, device)[0]
    for shape in SHAPES:
        if shape.name == given.problem:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            yield shape.name, make_data(shape.divided(given.scale), dtype, device)


def _run(given: argparse.Namespace, command: str) -> int:
    if not given.states and given.problem is None:
        raise ValueError("give --states, --problem or both.")
    device, output = resolve_device(given), output_of(given, "sparse_floor")
    config: dict[str, Any] = {"problems": [p.stem for p in given.states] + [given.problem] * bool(given.problem)}
    config |= {"dtype": "float64", "tile": [TILE_TOKENS, TILE_ROWS]}
    with Report(output, command=command, config=config, device=device) as report:
        for name, data in _problems(given, device):
            floors = Floors(tile_errors(SoftmaxTiles(data, 0.0), _SMOOTHING))
            shape = {"tokens": len(data.hidden), "vocab_size": len(data.weight), "hidden_size": data.hidden.shape[1]}
            for smoothing in _SMOOTHING:
                for tolerance in _TOLERANCES:
                    row = {"problem": name, **shape, "label_smoothing": smoothing, "tolerance": tolerance}
                    row |= {name: f"{value:.4g}" for name, value in floors.row(smoothing, tolerance).items()}
                    report.add(row)
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
