"""What every tile adds to the errors of both gradients if it is left out: Gram matrices, in float64.

What is left out keeps its mean field, and targets are exact, as :mod:`kernel.sparse_products` leaves tiles out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..sparse_tiles import TILE_ROWS, TILE_TOKENS, spectral
from .certificate import SoftmaxTiles

__all__ = ["TileErrors", "tile_errors"]


class TileErrors(NamedTuple):
    """What each of B x T tiles adds to the errors of both gradients of a sum of losses, in float64."""

    of_input: Tensor  # (B, T, T): Gram matrices of a block's tiles
    of_weight: Tensor  # (T, B, B): Gram matrices of a tile's blocks
    norms: Mapping[float, tuple[float, float]]  # of both exact gradients, by label smoothing
    input_bound: Tensor  # (B, 128, T): by which the kernel bounds each token's part
    weight_bound: Tensor  # (B, T)
    anyway: Tensor  # (B, T) bool: pilot and targets


def tile_errors(tiles: SoftmaxTiles, smoothing: Sequence[float]) -> TileErrors:
    """Compute them a block of tokens, then a tile of the vocabulary at a time."""
    weight, hidden, target, t = tiles.weight.double(), tiles.hidden.double(), tiles.target, tiles.tiles
    by_tile, blocks = weight.unflatten(0, (t, TILE_ROWS)), hidden.unflatten(0, (-1, TILE_TOKENS))
    labels = target.unflatten(0, (-1, TILE_TOKENS))
    of_input, of_weight = weight.new_empty(len(blocks), t, t), weight.new_empty(t, len(blocks), len(blocks))
    size, lse, squares = [], [], dict.fromkeys(smoothing, (0.0, 0.0))
    uniform = weight.mean(0)
    for index, (h, label) in enumerate(zip(blocks, labels, strict=True)):
        logits = h @ weight.T
        lse.append(logits.logsumexp(1, keepdim=True))
        p = (logits - lse[-1]).exp()
        mean = p @ weight
        for b in smoothing:
            square = (mean - (1 - b) * weight[label] - b * uniform).square().sum()
            squares[b] = (squares[b][0] + float(square), 0.0)
        residual = _residual(p.unflatten(1, (t, TILE_ROWS)), label)
        size.append(residual.norm(dim=2))
        part = torch.bmm(residual.transpose(0, 1), by_tile).flatten(1)
        torch.mm(part, part.T, out=of_input[index])
    together = torch.cat(lse)
    total = hidden.sum(0)
    for index, w in enumerate(by_tile):
        p = (hidden @ w.T - together).exp()
        local = target - index * TILE_ROWS
        inside = ((local >= 0) & (local < TILE_ROWS)).nonzero().squeeze(1)
        named = torch.zeros_like(w).index_add_(0, local[inside], hidden[inside])
        for b in smoothing:
            square = (p.T @ hidden - (1 - b) * named - b / len(weight) * total).square().sum()
            squares[b] = (squares[b][0], squares[b][1] + float(square))
        residual = _residual(p.unsqueeze(1), local).squeeze(1).unflatten(0, (-1, TILE_TOKENS))
        part = torch.bmm(residual.mT, blocks).flatten(1)
        torch.mm(part, part.T, out=of_weight[index])
    norm = torch.stack(size)
    anyway = torch.zeros(len(blocks), t, dtype=torch.bool, device=weight.device)
    anyway.scatter_(1, labels // TILE_ROWS, True)
    anyway[:, : tiles.pilot] = True
    weight_bound = (norm * blocks.norm(dim=2, keepdim=True)).sum(1)
    norms = {b: (of_h**0.5, of_w**0.5) for b, (of_h, of_w) in squares.items()}
    return TileErrors(of_input, of_weight, norms, norm * spectral(by_tile), weight_bound, anyway)


def _residual(p: Tensor, label: Tensor) -> Tensor:
    """``p`` (n, tiles, rows) less its mean over each tile's rows other than the target's, 0 at targets; in place.

    ``label`` counts from the first row of ``p``, and may lie outside of it.
    """
    flat = p.flatten(1)
    row = ((label >= 0) & (label < flat.shape[1])).nonzero().squeeze(1)
    own = label[row]
    flat[row, own] = 0
    others = torch.full_like(p[:, :, 0], TILE_ROWS)
    others[row, own // TILE_ROWS] -= 1
    p -= (p.sum(2) / others).unsqueeze(2)
    flat[row, own] = 0
    return p
