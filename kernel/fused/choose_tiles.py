"""The tiles that a sparse backward computes: as few as still certify the tolerance.

With a the factor of a token's softmax in dz, r its residual in a tile t and sigma the size of the head's tile, what
leaving tiles out changes is::

    of dH_n   at most  sum_t |a_n| |r_nt| sigma_t
    of dW_t   at most  sum_n |a_n| |r_nt| |h_n|

- **Least norms.** With the pilot and the mean field of all other tiles, dH_n is known up to the first of these sums
  over all of them, so that its length is known from below, token by token. dW is at least as long as its rows in the
  pilot.
- **Choice.** Of 64 thresholds of a tile's part of the error, the largest is taken whose tiles together stay within the
  tolerance. Tiles with a target of the block in them are computed, so that targets are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .compile_ahead import recording
from .listed_rounds import ListedTiles
from .pilot import Pilot
from .sparse_state import SparseState
from .tile_errors import input_error, scores, weight_error
from .tile_limits import FOUND_BYTES, choose_levels, levels, limits

__all__ = ["Chosen", "choose_tiles"]

_MANY = 0.5  # share of active tiles above which the dense path takes no more time
_MARGIN = 0.995  # of the tolerance: rounding of the bounds and of the least norm


class Certificate(NamedTuple):
    """What one gradient came to."""

    active: float
    bound: float


class Chosen(NamedTuple):
    """Tiles that are computed, their share of all, and certified relative errors of both gradients."""

    listed: ListedTiles
    share: float
    bounds: tuple[float, float]

    def certificates(self, needs: tuple[bool, bool, bool]) -> list[Certificate | None]:
        """Of the gradients that are needed."""
        return [Certificate(self.share, bound) if n else None for n, bound in zip(needs, self.bounds, strict=False)]


def choose_tiles(state: SparseState, pilot: Pilot, tolerance: float) -> Chosen | None:
    """Run the pilot, add the mean field and choose what is computed beside them; None for all.

    The host waits once, while the device computes the mean field of the weight's gradient.
    """
    sigma, tokens, share = state.head_tiles.sigma, state.tokens, _MARGIN * tolerance
    of_input, of_weight, behind = scores(state.of_tokens, tokens.length, sigma, state.pilot)
    pilot.run()
    norm = pilot_norm = None
    if state.memory is not None:
        head = state.gradients.head
        norm = state.mean_field.add_input(state.memory, head.weight, state.of.label, tokens.own)
    if pilot.rows is not None:
        pilot_norm = torch.linalg.vector_norm(pilot.rows, dtype=torch.float32)
    least = norm, pilot_norm
    longest, largest, factor = state.head_tiles.longest, state.of.largest, abs(state.gradients.factor)
    numbers = limits(tokens, behind, longest, largest, *least, share, factor, state.tile)
    needs = [x is not None for x in least]
    level = levels(of_input, of_weight, numbers, tokens, state.number, state.pilot, state.row, needs)
    errors = (
        input_error(state.of_tokens, sigma, level[0]) if needs[0] else None,
        weight_error(of_weight, level[1]) if needs[1] else None,
    )
    shape = state.row_blocks, state.tiles
    return _listed(state, choose_levels(level, shape, errors, numbers, state.number, share, state.row))


def _listed(state: SparseState, found: Tensor) -> Chosen | None:
    """Wait for the choice while the mean field is computed, and list it."""
    shape, extra = (state.row_blocks, state.tiles), state.most_extra_blocks()
    if recording():
        _of_weight(state)
        every = np.ones(shape, dtype=np.bool_)
        return Chosen(ListedTiles(every, state.capacity, state.pilot, extra), 1.0, (0.0, 0.0))
    on_host, done = _copied(found), None
    if found.is_cuda:
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(found.device))
    _of_weight(state)
    if done is not None:
        done.synchronize()
    read = on_host.numpy()  # and not by PyTorch, whose threads take milliseconds to wake
    certified, *bounds, row_blocks = read[:FOUND_BYTES].view(np.float32).tolist()
    active = read[FOUND_BYTES:].view(np.bool_).reshape(shape)
    total = row_blocks * state.tiles
    share = float(np.count_nonzero(active)) / total if total else 1.0
    if not certified or share > _MANY:
        return None
    of_input, of_weight = (bound if need else 0.0 for bound, need in zip(bounds, state.needs, strict=False))
    return Chosen(ListedTiles(active, state.capacity, state.pilot, extra), share, (of_input, of_weight))


def _of_weight(state: SparseState) -> None:
    if state.needs[1]:
        state.mean_field.add_weight(state.gradients.head.hidden)


def _copied(x: Tensor) -> Tensor:
    """The numbers on the host, once a later event has come."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) if x.is_cuda else x
