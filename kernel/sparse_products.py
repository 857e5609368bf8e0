"""Products of dz, the gradient of the logits, that leave out tiles whose share of the result is certified to be small.

A tile is a block of tokens, at most 128, x 256 rows of the head. In a tile that is left out, dz of a token is replaced
by its mean over the tile's rows other than the target's. What is lost, r = dz - mean, sums to 0 there; the target's own
dz stays exact, and so does what is constant in a tile, as smoothing's uniform term is without a softcap. With W_t the
tile's rows less their mean::

    error of dH_n = sum_t r_nt W_t        at most  sum_t |r_nt| sigma_t,  sigma_t >= |W_t|_2
    error of dW_t = sum_B r_Bt^T h_B      at most  sum_B min(|r_Bt|_F |h_B|_2, sum_{n in B} |r_nt| |h_n|)

summed over the tiles t and blocks of tokens B that are left out; errors of different tiles of dW are orthogonal. With e
the bound of an error and g the gradient that has it, the exact norm is at least ``|g| - e``: the tolerance is certified
by ``e <= tolerance (|g| - e)``. For dH that is made to hold in each block, by more tiles while the block is at hand;
for dW it is looked at in the end, and what is missing takes a second pass over the tokens.

Bounds are float64, and above what squares that were rounded to 0 could hide. Where head, hidden states or a gradient
are so small or large that the sums above may leave the range of their numbers, nothing is left out.
"""

from __future__ import annotations

from torch import Tensor

from . import sparse_tiles
from .tiled_products import InputProduct, WeightProduct, in_range

__all__ = ["SparseProducts"]


class SparseProducts:
    """Gradients ``scale_n dz_n W`` and ``sum_n scale_n dz_n^T h_n`` in the making, to a relative Frobenius error.

    Args:
        hidden: Hidden states ``(n, D)``.
        weight: Head ``(V, D)``.
        labels: Targets ``(n,)``.
        scale: Factor of each token ``(n, 1)``.
        tolerance: Largest relative error, in (0, 1).
        grad_hidden: Memory of the input's gradient ``(n, D)``, or None.
        grad_weight: Zeros, to become the head's gradient ``(V, D)``, or None.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        scale: Tensor,
        tolerance: float,
        grad_hidden: Tensor | None,
        grad_weight: Tensor | None,
    ) -> None:
        safe = all(map(in_range, (hidden, weight, scale, hidden * scale)))
        tiles = weight.shape[0] // sparse_tiles.TILE_ROWS if safe else 0
        shared = hidden, weight, labels, scale, tolerance, tiles
        self.labels, self.tiles = labels, tiles
        self.of_input = None if grad_hidden is None else InputProduct(*shared, grad_hidden)
        self.of_weight = None if grad_weight is None else WeightProduct(*shared, grad_weight)

    def add(self, part: slice, dz: Tensor) -> None:
        """Add the tokens ``part``, whose dz ``(block, V)`` is overwritten."""
        products = [p for p in (self.of_input, self.of_weight) if p is not None]
        for rows, block in sparse_tiles.parts(part, dz):
            by_tile = [p for p in products if p.wants_tiles()]
            for p in products:
                if p not in by_tile:
                    p.add_dense(rows, block)
            if by_tile:
                split = sparse_tiles.split(block, self.labels[rows], self.tiles)
                for p in by_tile:
                    p.add(rows, split)

    def complete(self) -> bool:
        """End a pass over all tokens; False asks for another one, of :meth:`add_missing`."""
        return self.of_weight is None or self.of_weight.complete()

    def add_missing(self, part: slice, dz: Tensor) -> None:
        """Add what is missing of the tokens ``part``, whose dz is overwritten."""
        for rows, block in sparse_tiles.parts(part, dz):
            if self.of_weight is not None and rows.start in self.of_weight.missing:
                self.of_weight.add_missing(rows, sparse_tiles.split(block, self.labels[rows], self.tiles))
