"""Tiles of the gradient of the logits: a block of it taken apart, columns of tiles, the size of the head's tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TILE_ROWS", "TILE_TOKENS", "Split", "parts", "runs", "spectral", "split"]

TILE_TOKENS, TILE_ROWS = 128, 256
_AT_A_TIME = 16  # tiles whose Gram matrices are formed at a time


class Split(NamedTuple):
    """A block of dz, taken apart; the residuals lie where it did."""

    mean: Tensor  # (n, tiles)
    own: Tensor  # (n, 1): dz of the target less the mean of its tile, 0 where the target lies behind the whole tiles
    residual: Tensor  # (n, V): of whole tiles, 0 at targets; dz itself behind them
    norm: Tensor  # (n, tiles) of the residuals


def split(dz: Tensor, labels: Tensor, tiles: int) -> Split:
    """Take dz ``(n, V)`` with targets ``(n,)`` apart, in place, into so many whole tiles and what lies behind them."""
    label = labels.unsqueeze(-1)
    inside, at = label < tiles * TILE_ROWS, (label // TILE_ROWS).clamp(max=tiles - 1)
    own = dz.gather(-1, label)
    dz.scatter_(-1, label, torch.where(inside, 0, own))
    whole = dz[:, : tiles * TILE_ROWS].unflatten(-1, (tiles, TILE_ROWS))
    mean = whole.sum(-1) / TILE_ROWS
    of_others = mean.gather(-1, at) * (TILE_ROWS / (TILE_ROWS - 1))
    mean.scatter_(-1, at, torch.where(inside, of_others, mean.gather(-1, at)))
    whole.sub_(mean.unsqueeze(-1))
    dz.scatter_(-1, label, torch.where(inside, 0, own))
    own = torch.where(inside, own - mean.gather(-1, at), 0)
    return Split(mean, own, dz, torch.linalg.vector_norm(whole, dim=-1))


def parts(part: slice, dz: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of 128 tokens."""
    for start in range(part.start, part.stop, TILE_TOKENS):
        rows = slice(start, min(start + TILE_TOKENS, part.stop))
        yield rows, dz[start - part.start : rows.stop - part.start]


def runs(tiles: Tensor) -> Iterator[slice]:
    """Columns of tiles that lie side by side."""
    begin = end = -1
    for tile in sorted(tiles.tolist()):
        if tile != end:
            if end >= 0:
                yield slice(begin * TILE_ROWS, end * TILE_ROWS)
            begin = tile
        end = tile + 1
    if end >= 0:
        yield slice(begin * TILE_ROWS, end * TILE_ROWS)


def spectral(whole: Tensor) -> Tensor:
    """Bounds of the largest singular value of each tile ``(tiles, rows, D)`` less its mean row: 0 to 40 % above it.

    The largest eigenvalue of a Gram matrix G is at most the fourth root of the Frobenius norm of G^4.
    """
    found = []
    for tile in whole.split(_AT_A_TIME):
        rows = tile - tile.mean(1, keepdim=True)
        gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
        trace = gram.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=torch.finfo(gram.dtype).tiny)
        fourth = torch.linalg.matrix_power(gram / trace[:, None, None], 4)
        found.append((trace * torch.linalg.matrix_norm(fourth) ** 0.25).sqrt())
    return torch.cat(found)
