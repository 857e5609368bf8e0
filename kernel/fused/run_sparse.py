"""A backward that leaves out tiles whose share of both gradients is certified to be small.

The certificate is that of :mod:`kernel.sparse_products`, for tiles of the forward's kernel (128 tokens x 256 columns on
Hopper) and with what the forward knows of them (:mod:`.tile_sums`) in place of dz.

- **Order** (:mod:`.sparse_state`). Tokens are sorted by the tile from which on they need none (:mod:`.tile_sums`): a
  block then holds tokens as sure, or as unsure, as each other, and leaves out what all of them do.
- **Pilot** (:mod:`.pilot`). The first thirty-second of the vocabulary, or up to a fifth less, is computed for all
  tokens. With the mean field of all other tiles (:mod:`.mean_field`) that is a gradient whose error is bounded: the
  exact one has a least norm.
- **Choice** (:mod:`.choose_tiles`). Which tiles remain is the one thing that the host waits for.
- **The rest** (:mod:`.run_listed`). dz of the chosen tiles less their mean field, in rounds (:mod:`.listed_rounds`).

A forward whose backward is to be sparse keeps no columns, of which it would use none. Where the choice fails, because
many tiles remain or nothing could be certified, the backward computes all logits anew, and the next losses of the kind
are dense from the start (:mod:`.tries`).
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from ..gradient_tolerance import GradientTolerance
from .arguments import Head, Scalars
from .choose_tiles import choose_tiles
from .gradient_rows import Upstream
from .launch import launch_table
from .pilot import Pilot
from .run_listed import run_listed
from .sparse_state import SparseState
from .tile_sums import SparseTiles
from .tries import Tries

__all__ = ["Sparse", "SparseTiles", "sparse_backward"]

_FEWEST = 4, 8  # blocks of tokens and tiles of the vocabulary, below which everything is computed
_tries = Tries()
_tries_of: WeakKeyDictionary[GradientTolerance, Tries] = WeakKeyDictionary()


class Sparse(NamedTuple):
    """A tolerance above 0, and who is told what became of it."""

    tolerance: float
    told: GradientTolerance | None

    def serves(self, head: Head, scalars: Scalars, needs: tuple[bool, bool, bool]) -> bool:
        """Whether this path can certify anything for a loss; else its gradients are exact."""
        hidden, weight, _, _ = head
        table = launch_table(hidden.device, hidden.dtype)
        tile, row = table.logit_gradient.columns, table.logit_gradient.rows
        return (
            any(needs[:2])
            and not needs[2]
            and not scalars.softcap
            and not scalars.confidence_penalty
            and hidden.shape[0] >= _FEWEST[0] * row
            and weight.shape[0] // tile >= _FEWEST[1]
            and table.forward.rows == table.input_gradient.rows == row
            and table.forward.columns == tile
            and self._sums_are_exact_enough(hidden.shape[0], weight.shape[0] // tile, hidden.element_size())
        )

    def _sums_are_exact_enough(self, tokens: int, tiles: int, itemsize: int) -> bool:
        """Whether the mean field's sums are, to an eighth of the tolerance, beside products of the inputs' dtype.

        Tensor cores truncate a sum every 16 terms, three times with the parts of a factor. Products of half precision
        are rounded more than that for any number of tokens that is served; those of float32 are not.
        """
        return itemsize == 2 or 8 * 3 * max(tokens, tiles) / 16 * 2.0**-23 <= self.tolerance

    def due(self, head: Head, needs: tuple[bool, bool, bool]) -> bool:
        """Whether the last tries say that this loss, which is counted, is to be another one."""
        return self._own_tries().due(self._kind(head, needs))

    def note(self, head: Head, needs: tuple[bool, bool, bool], failed: bool) -> None:
        """Say what became of a try."""
        self._own_tries().note(self._kind(head, needs), failed)

    def _own_tries(self) -> Tries:
        return _tries if self.told is None else _tries_of.setdefault(self.told, Tries())

    def _kind(self, head: Head, needs: tuple[bool, bool, bool]) -> tuple[object, ...]:
        weight = head.weight
        return weight.device, weight.dtype, weight.shape, needs, self.tolerance


def sparse_backward(
    head: Head,
    scalars: Scalars,
    upstream: Upstream,
    found: SparseTiles,
    sparse: Sparse,
    workspace_bytes: int,
    needs: tuple[bool, bool, bool],
    most: float,
) -> tuple[Tensor | None, ...] | None:
    """Gradients within the tolerance by at most ``most`` of the tiles, or None: they are to be computed exactly."""
    state = SparseState(head, scalars, upstream, found, workspace_bytes, needs)
    pilot = Pilot(state)
    chosen = choose_tiles(state, pilot, sparse.tolerance, most)
    if chosen is None:
        return None
    if sparse.told is not None:
        sparse.told.record(*chosen.certificates(needs))
    return run_listed(chosen.run, chosen.rounds)
