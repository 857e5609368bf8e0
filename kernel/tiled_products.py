"""The two products that leave tiles out: the input's gradient, certified block by block, and the head's, in the end.

The bounds of their errors are those of :mod:`kernel.sparse_products`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import sparse_tiles

__all__ = ["InputProduct", "WeightProduct", "in_range"]

_MANY = 0.6  # active tiles of a block, above which dense products take no more time
_PAUSE = 31  # blocks that are computed dense after one with so many; twice as many after the next one, and so on
_GUESS = 0.7  # of what seems to be allowed, before the norm of a gradient is known
_MARGIN = 0.999  # of what is allowed, for rounding of the bounds
_SAFE = 1e-30, 1e30  # entries and norms at which float32 neither overflows nor loses digits


class TiledProduct:
    """What both products share: tensors, the share of active tiles, and when to go by tiles at all."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, tolerance: float, tiles: int, out: Tensor
    ) -> None:
        self.hidden, self.weight, self.labels, self.scale = hidden, weight, labels, scale
        self.tolerance, self.tiles, self.out = tolerance, tiles, out
        self.cut = self.tiles * sparse_tiles.TILE_ROWS  # the rows behind whole tiles are always computed
        self.computed, self.seen, self._pause, self._failed = 0, 0, 1, 0

    @property
    def active(self) -> float:
        """Share of the tiles that were computed; 1 where there are none."""
        return self.computed / self.seen if self.seen else 1.0

    def wants_tiles(self) -> bool:
        """Whether the next block of tokens goes by tiles. The first does not: it tells how large dW is."""
        if self._pause:
            self._pause -= 1
            return False
        return self.tiles > 0

    def allowed(self, least: float) -> float:
        """How large an error may be where the exact norm is at least so large; negative where nothing is certain."""
        return _MARGIN * self.tolerance * least if _safe(least) else -1.0

    def count(self, active: int, *, dense: bool = False) -> None:
        """Note the active tiles of a block; where they are many, the next blocks are computed dense."""
        self.computed += active
        self.seen += self.tiles
        if active > _MANY * self.tiles and not dense:
            self._pause = _PAUSE << self._failed
            self._failed += 1


class InputProduct(TiledProduct):
    """dz W, certified block by block."""

    _error = _least = 0.0  # the error's bound, and the least that the exact norm can be
    _sums: Tensor | None = None  # (tiles, D) of the rows
    _sigma: Tensor | None = None  # (tiles,)

    @property
    def bound(self) -> float:
        """Certified relative error."""
        return _relative(self._error, self._least)

    def add_dense(self, rows: slice, dz: Tensor) -> None:
        """Compute a block without tiles."""
        self.out[rows] = out = (dz @ self.weight).mul_(self.scale[rows])
        self._least = math.hypot(self._least, sparse_tiles.length(out))
        self.count(self.tiles, dense=True)

    def add(self, rows: slice, split: sparse_tiles.Split) -> None:
        """Compute a block tile by tile."""
        scale = self.scale[rows]
        whole = self.weight[: self.cut].unflatten(0, (self.tiles, sparse_tiles.TILE_ROWS))
        if self._sums is None:
            self._sums = whole.sum(1)
        total = split.mean @ self._sums
        total.addcmul_(split.own, self.weight[self.labels[rows]])
        total.addmm_(split.residual[:, self.cut :], self.weight[self.cut :])
        lost = scale.abs() * split.norm
        allowed = _GUESS * self.tolerance * sparse_tiles.length(total * scale)
        if self._sigma is None and self._may_leave_out(whole, self._sums, lost, allowed):
            self._sigma = sparse_tiles.spectral(whole)
        size = torch.full_like(lost, torch.inf) if self._sigma is None else lost * self._sigma  # (n, tiles)
        order = size.norm(dim=0).argsort()
        errors = size[:, order].cumsum(1).norm(dim=0)  # of leaving out the first so many tiles
        left_out = int((errors <= allowed).sum())
        self._add_tiles(total, split, order[left_out:])
        error, least = self._certified(total, scale, errors, left_out)
        if not error <= self.allowed(least):
            fewer = int((errors <= self.allowed(least)).sum())
            self._add_tiles(total, split, order[fewer:left_out])
            left_out = fewer
            error, now = self._certified(total, scale, errors, left_out)
            least = max(least, now) if left_out else now
        torch.mul(total, scale, out=self.out[rows])
        self._error, self._least = math.hypot(self._error, error), math.hypot(self._least, least)
        self.count(self.tiles - left_out)

    def _may_leave_out(self, whole: Tensor, sums: Tensor, lost: Tensor, allowed: float) -> bool:
        """Whether enough tiles might be left out for sigma, as dear as products of 256 tokens or more, to be worth it.

        A guess: the largest singular value of a matrix of independent entries with the tile's norm.
        """
        square = torch.linalg.vector_norm(whole, dim=(1, 2)).square() - sums.square().sum(1) / whole.shape[1]
        few, many = sorted(whole.shape[1:])
        sigma = (square / few).clamp(min=0).sqrt() * (1 + (few / many) ** 0.5)
        size = (lost * sigma).norm(dim=0).sort().values
        return float(size[: math.ceil((1 - _MANY) * self.tiles)].norm()) <= allowed

    def _add_tiles(self, total: Tensor, split: sparse_tiles.Split, tiles: Tensor) -> None:
        for columns in sparse_tiles.runs(tiles):
            total.addmm_(split.residual[:, columns], self.weight[columns])

    def _certified(self, total: Tensor, scale: Tensor, errors: Tensor, left_out: int) -> tuple[float, float]:
        """Bound of the error, and the least that the exact norm can be; nan where a step may have left the range."""
        norm = sparse_tiles.length(total * scale)
        if not left_out:
            return 0.0, norm
        error = float(errors[left_out - 1])
        return error, norm - error if _safe(sparse_tiles.length(total)) else math.nan


class WeightProduct(TiledProduct):
    """dz^T h, certified in the end."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, tolerance: float, tiles: int, out: Tensor
    ) -> None:
        super().__init__(hidden, weight, labels, scale, tolerance, tiles, out)
        self.missing: dict[int, Tensor] = {}  # tiles of the block that begins at a token
        self._left_out: dict[int, Tensor] = {}  # bounds (tiles,) of what is
        self._means = weight.new_zeros(self.tiles, weight.shape[1])
        size = torch.linalg.vector_norm(hidden * scale, dim=1, dtype=torch.float64)
        self._shares, self._done = size / size.sum().clamp(min=1e-300), 0.0
        self._blocks, self._at, self._estimate = 0, 0, 0.0  # those that are done, and those at the last estimate
        self._least = 0.0  # that the exact norm can be

    @property
    def bound(self) -> float:
        """Certified relative error."""
        return _relative(self._error(), self._least)

    def add_dense(self, rows: slice, dz: Tensor) -> None:
        """Add a block without tiles."""
        self.out.addmm_(dz.T, self.hidden[rows] * self.scale[rows])
        self.count(self.tiles, dense=True)
        self._next(rows)

    def add(self, rows: slice, split: sparse_tiles.Split) -> None:
        """Add a block tile by tile."""
        h = self.hidden[rows] * self.scale[rows]
        self._means.addmm_(split.mean.T, h)
        self.out.index_add_(0, self.labels[rows], split.own * h)
        self.out[self.cut :].addmm_(split.residual[:, self.cut :].T, h)
        apart = (split.norm * torch.linalg.vector_norm(h, dim=1, keepdim=True, dtype=torch.float64)).sum(0)
        lost = torch.minimum(split.norm.norm(dim=0) * sparse_tiles.largest(h.unsqueeze(0)), apart)  # (tiles,)
        lost = lost.clamp(min=1e-300)  # 0 is for what is computed
        allowed = _GUESS * self.tolerance * self._norm() * float(self._shares[rows].sum())
        order = lost.argsort()
        left_out = int((lost[order].square().cumsum(0) <= allowed**2).sum())
        self._add_tiles(split, h, order[left_out:])
        self._left_out[rows.start] = lost.index_fill(0, order[left_out:], 0)
        self.count(self.tiles - left_out)
        self._next(rows)

    def complete(self) -> bool:
        """Add the mean field; whether the tolerance is certified. If not, ``missing`` says what is."""
        self.out[: self.cut].unflatten(0, (self.tiles, sparse_tiles.TILE_ROWS)).add_(self._means.unsqueeze(1))
        error = self._error()
        self._least = sparse_tiles.length(self.out) - error
        allowed = self.allowed(self._least)
        if error == 0 or error <= allowed:
            return True
        lost = torch.stack(list(self._left_out.values()))  # (blocks, tiles)
        limits = lost.flatten().sort().values
        low, high = -1, limits.numel() - 1  # limits[low] keeps within what is allowed, limits[high] does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = float(lost.masked_fill(lost > limits[middle], 0).sum(0).norm()) <= allowed
            low, high = (middle, high) if fits else (low, middle)
        limit = limits[low] if low >= 0 else limits.new_zeros(())
        for start, values in self._left_out.items():
            if bool((above := values > limit).any()):
                self.missing[start] = above.nonzero().squeeze(-1)
                self._left_out[start] = values.masked_fill(above, 0)
                self.computed += int(above.sum())
        return False

    def add_missing(self, rows: slice, split: sparse_tiles.Split) -> None:
        """Add the missing tiles of a block."""
        self._add_tiles(split, self.hidden[rows] * self.scale[rows], self.missing[rows.start])

    def _add_tiles(self, split: sparse_tiles.Split, h: Tensor, tiles: Tensor) -> None:
        for columns in sparse_tiles.runs(tiles):
            self.out[columns].addmm_(split.residual[:, columns].T, h)

    def _error(self) -> float:
        return float(torch.stack(list(self._left_out.values())).sum(0).norm()) if self._left_out else 0.0

    def _next(self, rows: slice) -> None:
        self._done += float(self._shares[rows].sum())
        self._blocks += 1

    def _norm(self) -> float:
        """A guess of the gradient's norm, which the certificate does not rely on: blocks add up as independent ones."""
        if self._blocks >= 2 * self._at:  # a pass over the whole gradient
            self._at = self._blocks
            self._estimate = sparse_tiles.length(self.out) / max(self._done, 1e-300) ** 0.5
        return self._estimate


def _safe(size: float) -> bool:
    return _SAFE[0] <= size <= _SAFE[1]


def in_range(x: Tensor) -> bool:
    """Whether float32 neither overflows nor loses digits in sums over such entries."""
    return x.numel() > 0 and _safe(max(abs(float(end)) for end in x.aminmax()))


def _relative(error: float, least: float) -> float:
    return 0.0 if error == 0 else error / least
