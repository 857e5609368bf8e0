"""Classes of like frequency by likeness: rows of the head that are alike share tiles.

A tile that is left out keeps its mean field (:mod:`kernel.sparse_products`): what is lost is the less the more its rows
are alike, both in the bound, by the size of the rows less their mean, and in probabilities that differ less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse_tiles import TILE_ROWS

__all__ = ["alike_in_bands"]

_BANDS = 4  # of the places from 2^k to 2^(k + 1) tiles
_ITERATIONS = 8  # of the power method: any direction along which rows differ much will do


def alike_in_bands(permutation: Tensor, frequency: Tensor, weight: Tensor) -> Tensor:
    """Return a permutation ``(V,)`` with the same classes in each band of places, those that are alike in one tile.

    Bands have 1 tile of 256 places at first, and 2, 4, 8 and so on, a quarter of the places before them at most. Each
    is halved across the direction along which its rows differ most, and each half again, until it is a tile; a
    band's tiles fall by frequency. What follows the last whole band stays.
    """
    found, begin = permutation.clone(), 2 * _BANDS
    while begin * TILE_ROWS < len(permutation):
        size = begin // _BANDS * TILE_ROWS
        first, last = begin * TILE_ROWS, min(2 * begin * TILE_ROWS, len(permutation))
        for start in range(first, last - size + 1, size):
            band = permutation[start : start + size]
            tiles = _halved(band.unsqueeze(0), weight)
            order = _summed(frequency[tiles]).argsort(descending=True, stable=True)
            found[start : start + size] = tiles[order].flatten()
        begin *= 2
    return found


def _summed(frequency: Tensor) -> Tensor:
    """Of each tile, in float32 where half precision would end at 65504."""
    return frequency.sum(1, dtype=torch.float32 if frequency.dtype.itemsize == 2 else None)


def _largest(rows: Tensor) -> Tensor:
    """Magnitude of the largest entry of each part ``(parts, 1, 1)``, above 0."""
    return rows.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def _halved(classes: Tensor, weight: Tensor) -> Tensor:
    """Tiles ``(tiles, 256)`` of the classes of one ``(1, n)``."""
    while classes.shape[1] > TILE_ROWS:
        rows = weight[classes.to(weight.device)]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        rows = (rows / _largest(rows)).float()  # of any size
        rows -= rows.mean(1, keepdim=True)
        rows /= _largest(rows)
        direction = rows[:, :1].mT  # (parts, D, 1)
        for _ in range(_ITERATIONS):
            direction = rows.mT @ (rows @ direction)
            direction /= direction.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        place = (rows @ direction).squeeze(2).argsort(dim=1, stable=True)
        classes = classes.gather(1, place.to(classes.device)).view(-1, classes.shape[1] // 2)
    return classes
