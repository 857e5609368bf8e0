"""The most tiles that any choice can leave out with a gradient within a tolerance: a bound, with its proof.

Tile t of a group is left out (x = 1) or computed (x = 0). With E_t what leaving it out adds to a gradient, and G the
Gram matrix of the E_t, those left out change the group's rows of the gradient by x' G x, squared: errors of different
groups lie in rows of their own, those of the tiles of a group add as vectors and may cancel. Let D be diagonal, with
G - D positive semidefinite, and y any numbers. As x is 0 or 1, and by convexity::

    x' G x  =  x' (G - D) x + sum_t D_t x_t  >=  sum_t c_t x_t - y' (G - D) y,    c = D + 2 (G - D) y

so that k tiles that are left out change the gradient by at least the k smallest c of all groups less the constants
y' (G - D) y. The most for which that is within the tolerance is the most that any choice can leave out. D is a share of
the diagonal of G that a Cholesky factor of G - D confirms; y minimises x' G x less a price for each tile, over x
between 0 and 1: each price gives a bound, and the best is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Minorant", "error", "minorants", "most_left_out"]

_BISECTIONS = 12
_STEPS = 40  # of a descent, which begins where the one with the last price ended
_ROUNDING = 1e-6  # of what is allowed, on the side of more tiles left out


class Minorant(NamedTuple):
    """Leaving tiles out changes the squared gradient by at least the sum of their costs, less the constant."""

    cost: Tensor  # (groups, tiles)
    constant: float


def error(gram: Tensor, left_out: Tensor) -> float:
    """Norm of what leaving tiles out ``(groups, tiles)``, 0 or 1, changes."""
    return float((left_out * _product(gram, left_out)).sum().clamp(min=0).sqrt())


def minorants(gram: Tensor, prices: Sequence[float]) -> Iterator[Minorant]:
    """Yield one for each price of a tile, in the unit of ``gram`` ``(groups, tiles, tiles)``, dearest first."""
    own = gram.diagonal(dim1=1, dim2=2)
    scale = own.sqrt().clamp(min=torch.finfo(gram.dtype).tiny ** 0.5)
    unit = gram / scale.unsqueeze(2) / scale.unsqueeze(1)
    unit.diagonal(dim1=1, dim2=2).fill_(1)
    own_share = _convex_share(unit).unsqueeze(1) * own
    # at least the largest eigenvalue, as that of the eighth power is at most its Frobenius norm
    steep = torch.linalg.matrix_norm(torch.linalg.matrix_power(unit, 8)) ** 0.125
    del unit
    step = 0.5 / (steep.unsqueeze(1) * scale.square())
    x = torch.ones_like(own)
    for price in prices:
        x = _descend(gram, own_share, price, step, x)
        pull = _product(gram, x) - own_share * x
        yield Minorant(own_share + 2 * pull, float((x * pull).sum()))


def _product(gram: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(gram, x.unsqueeze(2)).squeeze(2)


def _convex_share(unit: Tensor) -> Tensor:
    """The share ``(groups,)`` of the unit diagonal without which the matrices remain positive semidefinite."""
    low = unit.new_zeros(len(unit))
    high = torch.ones_like(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        less = unit.clone()
        less.diagonal(dim1=1, dim2=2).sub_(middle.unsqueeze(1))
        fits = torch.linalg.cholesky_ex(less).info == 0
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return low


def _descend(gram: Tensor, own_share: Tensor, price: float, step: Tensor, x: Tensor) -> Tensor:
    """Descend with momentum, which starts anew where it leads up."""
    ahead, speed = x, 1.0
    for _ in range(_STEPS):
        slope = 2 * (_product(gram, ahead) - own_share * ahead) + own_share - price
        following = (ahead - step * slope).clamp(0, 1)
        if ((ahead - following) * (following - x) / step).sum() > 0:
            ahead, speed = following, 1.0
        else:
            faster = (1 + (1 + 4 * speed * speed) ** 0.5) / 2
            ahead, speed = following + (speed - 1) / faster * (following - x), faster
        x = following
    return x


def most_left_out(found: Sequence[Minorant], allowed: float) -> tuple[int, Minorant]:
    """How many tiles can be left out at most for an error of ``allowed``, and which of ``found`` says so."""
    counts = []
    for cost, constant in found:
        least = cost.flatten().sort().values.cumsum(0)
        counts.append(int((least <= allowed**2 * (1 + _ROUNDING) + constant).sum()))
    best = min(range(len(found)), key=counts.__getitem__)
    return counts[best], found[best]
