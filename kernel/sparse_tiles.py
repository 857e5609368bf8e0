"""Tiles of the gradient of the logits: a block of it taken apart, columns of tiles, the size of the head's tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TILE_ROWS", "TILE_TOKENS", "Split", "largest", "length", "parts", "runs", "spectral", "split"]

TILE_TOKENS, TILE_ROWS = 128, 256
_AT_A_TIME = 16  # tiles whose Gram matrices are formed at a time


class Split(NamedTuple):
    """A block of dz, taken apart; the residuals lie where it did."""

    mean: Tensor  # (n, tiles)
    own: Tensor  # (n, 1): dz of the target less the mean of its tile, 0 where the target lies behind the whole tiles
    residual: Tensor  # (n, V): of whole tiles, 0 at targets; dz itself behind them
    norm: Tensor  # (n, tiles) that the residuals' norms do not exceed, in float64


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
    norm = torch.linalg.vector_norm(whole, dim=-1).double()
    return Split(mean, own, dz, norm + (TILE_ROWS * torch.finfo(dz.dtype).tiny) ** 0.5)  # squares may be rounded to 0


def parts(part: slice, dz: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of at most 128 tokens: a block of many logits has fewer (:func:`kernel.blocks.block_tokens`)."""
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
    """Bounds of the largest singular value of each tile ``(tiles, rows, D)`` less its mean row: 0 to 40 % above it."""
    return torch.cat([largest(tile - tile.mean(1, keepdim=True)) for tile in whole.split(_AT_A_TIME)])


def largest(matrices: Tensor) -> Tensor:
    """Bounds of the largest singular value of each matrix ``(matrices, rows, D)``, in float64; nan where not finite.

    The largest eigenvalue of a Gram matrix G is at most the fourth root of the Frobenius norm of G^4. The entries are
    divided by the largest one, so that no square overflows, and none that counts is rounded to 0.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    peak = matrices.abs().amax((1, 2), keepdim=True).clamp(min=tiny)
    rows = matrices / peak
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    trace = gram.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=tiny)
    fourth = torch.linalg.matrix_power(gram / trace[:, None, None], 4)
    found = (trace * torch.linalg.matrix_norm(fourth) ** 0.25).sqrt().double() * peak.flatten().double()
    return found + tiny * rows[0].numel() ** 0.5  # what is below the normal numbers may count as 0


def length(x: Tensor) -> float:
    """Frobenius norm, of which float32 rounds nothing that counts to 0 and nothing to infinity."""
    norm = float(torch.linalg.vector_norm(x))
    if 1e-10 < norm < 1e15:
        return norm
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))  # which copies x
