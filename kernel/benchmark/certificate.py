"""How far certificates of sparse gradients lie above the errors: ``python -m kernel.benchmark.certificate``.

On hidden states and the head of a real model (:mod:`kernel.benchmark.sparse` says which file), in float32 and without
the kernels: of tiles of 128 tokens x 256 rows, in the order in which the Triton path leaves them out, so large a share
is computed, and of the rest the mean field. The pilot, which is computed in any case, is as long as the Triton path has
it on this device. Errors of both gradients are measured, bounds are those that certify.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..fused.pilot_length import pilot_tiles
from ..sparse_tiles import TILE_ROWS, TILE_TOKENS, spectral
from .command import add_places, finish, output_of, parser_of, resolve_device, typed, whole
from .problems import Data, read_states
from .tables import Report

__all__ = ["SoftmaxTiles", "main"]

_EXAMPLES = """
examples:
  python -m kernel.benchmark.certificate --states gemma.safetensors
"""
_SHARES = (0.0, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.2, 0.3, 0.5)  # of 0 remain the pilot and tiles with targets
_REST = 6e-4  # what a token's residuals behind its reach sum to at most: as the Triton path sorts within 0.003
_AT_A_TIME = 512  # tokens


class SoftmaxTiles:
    """Softmax and gradients of a sum of losses, by tile; tokens sorted by reach (:mod:`kernel.fused.tile_sums`).

    Args:
        data: Hidden states, head and targets; all tokens are kept, and whole tiles of the vocabulary.
        label_smoothing: b.

    Attributes:
        tiles: Whole tiles of the vocabulary.
        pilot: Of these the first ones, which are computed in any case: as many as the Triton path's.
    """

    def __init__(self, data: Data, label_smoothing: float) -> None:
        n = len(data.hidden) // TILE_TOKENS * TILE_TOKENS
        self.smoothing, self.tiles = label_smoothing, len(data.weight) // TILE_ROWS
        vocabulary = self.tiles, TILE_ROWS, data.weight.shape[1]
        self.pilot = pilot_tiles(*vocabulary, data.weight.device, data.weight.dtype)
        self.weight = data.weight.detach()[: self.tiles * TILE_ROWS].float()
        self.hidden, self.target = data.hidden.detach()[:n].float(), data.target[:n]
        reach = torch.cat([_reach(residual.norm(dim=2)) for _, _, residual in self._residuals()])
        order = reach.argsort(stable=True)
        self.hidden, self.target = self.hidden[order], self.target[order]

    def _residuals(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Tokens, their probabilities ``(n, V)``, and those less their mean over each tile ``(n, tiles, rows)``."""
        for start in range(0, len(self.hidden), _AT_A_TIME):
            rows = slice(start, start + _AT_A_TIME)
            p = (self.hidden[rows] @ self.weight.T).softmax(1)
            by_tile = p.unflatten(1, (self.tiles, TILE_ROWS))
            yield rows, p, by_tile - by_tile.mean(2, keepdim=True)

    def rows(self, shares: Sequence[float]) -> Iterator[dict[str, float]]:
        """Relative errors and their bounds where such shares of the tiles are computed, or those that must be."""
        length, sigma = self.hidden.norm(dim=1), spectral(self.weight.unflatten(0, (self.tiles, TILE_ROWS))).float()
        exact_input, exact_weight = torch.empty_like(self.hidden), torch.zeros_like(self.weight)
        norms = []
        for rows, p, residual in self._residuals():
            norms.append(residual.norm(dim=2))
            dz = p - self.smoothing / len(self.weight)
            dz.scatter_add_(1, self.target[rows, None], torch.full_like(dz[:, :1], self.smoothing - 1))
            exact_input[rows] = dz @ self.weight
            exact_weight.addmm_(dz.T, self.hidden[rows])
        norm = torch.cat(norms)
        of_input = (norm * sigma).view(-1, TILE_TOKENS, self.tiles)
        of_weight = (norm * length[:, None]).view(-1, TILE_TOKENS, self.tiles).sum(1)
        score = of_input.norm(dim=1)
        forced = torch.zeros_like(score, dtype=torch.bool)
        forced[torch.arange(len(self.target), device=score.device) // TILE_TOKENS, self.target // TILE_ROWS] = True
        forced[:, : self.pilot] = True
        ranked = score.masked_fill(forced, torch.inf).flatten().sort(descending=True).values
        for share in shares:
            number = max(int(forced.sum()), int(share * forced.numel()))
            active = score.masked_fill(forced, torch.inf) >= ranked[number - 1]
            errors = self._errors(active)
            bounds = (of_input * ~active.unsqueeze(1)).sum(2).norm(), (of_weight * ~active).sum(0).norm()
            of_both = exact_input.norm(), exact_weight.norm()
            names = ("input_error", "weight_error"), ("input_bound", "weight_bound")
            yield {"active": float(active.float().mean())} | {
                name: float(value / of)
                for group, values in zip(names, (errors, bounds), strict=True)
                for name, value, of in zip(group, values, of_both, strict=True)
            }

    def _errors(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """Norms of what leaving the other tiles out changes, of the input's and of the weight's gradient."""
        square, of_weight = self.hidden.new_zeros(()), torch.zeros_like(self.weight)
        for rows, _, residual in self._residuals():
            residual *= ~active.repeat_interleave(TILE_TOKENS, 0)[rows].unsqueeze(2)
            square += (residual.flatten(1) @ self.weight).square().sum()
            of_weight.addmm_(residual.flatten(1).T, self.hidden[rows])
        return square.sqrt(), of_weight.norm()


def _reach(norm: Tensor) -> Tensor:
    """Tiles up to the last from which on a token's residuals ``(n, tiles)`` sum to more than the rest."""
    return (norm.flip(1).cumsum(1) > _REST).sum(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and return the exit status."""
    parser = parser_of("kernel.benchmark.certificate", __doc__, _EXAMPLES)
    parser.add_argument(
        "--states", type=Path, required=True, metavar="FILE.safetensors", help="hidden states and head of a model"
    )
    parser.add_argument("--tokens", type=whole(1), default=12288, help="tokens of the text, tiled (default 12288)")
    add_places(parser, "sparse_certificate")
    given = parser.parse_args(arguments)
    return finish(lambda: _run(given, typed(parser, given)))


def _run(given: argparse.Namespace, command: str) -> int:
    device, output = resolve_device(given), output_of(given, "sparse_certificate")
    data, _ = read_states(given.states, given.tokens, device)
    config = {"problem": given.states.stem, "dtype": "float32"}
    with Report(output, command=command, config=config, device=device) as report:
        for label_smoothing in (0.1, 0.0):
            shape = {"tokens": len(data.hidden), "vocab_size": len(data.weight), "hidden_size": data.hidden.shape[1]}
            for found in SoftmaxTiles(data, label_smoothing).rows(_SHARES):
                row = {"problem": given.states.stem, **shape, "label_smoothing": label_smoothing}
                row |= {name: f"{value:.4g}" for name, value in found.items()}
                report.add(row)
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
