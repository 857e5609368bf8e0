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

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .compile_ahead import recording
from .listed_rounds import ListedTiles
from .pilot import Pilot
from .sparse_state import SparseState
from .tile_errors import LEVELS, input_error, scores, weight_error

__all__ = ["Chosen", "choose_tiles"]

_MANY = 0.5  # share of active tiles above which the dense path takes no more time
_MARGIN = 0.995  # of the tolerance: rounding of the bounds and of the least norm
_ROUNDING = 2.0**-20, 2.0**-23  # of the mean field's terms: float32 products, and masses by bits of log-partition
_PER_OCTAVE = 4  # thresholds
_SAFE = 1e-12, 1e12  # norms of rows at which float32 keeps the bounds


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
    hidden, sigma = state.gradients.head.hidden, state.head_tiles.sigma
    length = torch.linalg.vector_norm(hidden, dim=1, dtype=torch.float32)
    of_input, of_weight, behind = scores(state.of_tokens, length, sigma, state.pilot)
    rows = torch.arange(state.row_blocks, device=state.device) * state.row < state.number  # (blocks,) with tokens
    chosen_from = _behind_the_pilot(state) & rows.unsqueeze(1)
    longest, longest_token = state.head_tiles.longest.amax(), torch.where(state.row_mask, length, 0.0).amax()
    ok = _safe(longest) & _safe(longest_token)
    rounding = _rounding(state)
    rounding_of = (
        rounding.norm() * longest,
        torch.where(state.row_mask, rounding * length, 0.0).sum() / math.sqrt(state.tile),
    )
    pilot.run()
    least = []
    if state.memory is not None:
        head, own = state.gradients.head, pilot.own_behind()
        norm = state.mean_field.add_input(state.memory, head.weight, state.of.label, own)
        least.append((norm - behind - rounding * longest).clamp(min=0).norm())
    if pilot.rows is not None:
        unit = state.of.largest[0] * abs(state.gradients.factor)
        least.append(torch.linalg.vector_norm(pilot.rows, dtype=torch.float32) / unit - rounding_of[1])
    active, bounds = rows.unsqueeze(1) & ~chosen_from, []
    for which, norm in zip([i for i in (0, 1) if state.needs[i]], least, strict=True):
        limit = norm * (_MARGIN * tolerance)
        score = of_weight if which else of_input
        level = torch.where(chosen_from, _levels(score, limit), LEVELS)
        errors = weight_error(score, level) if which else input_error(state.of_tokens, sigma, level)
        errors += rounding_of[which]
        fits = (errors <= limit) & (limit > 0)
        chosen = fits.int().cumprod(0).sum() - 1  # the last of the levels that fit; -1 if none does
        active |= (level > chosen) & chosen_from
        error = torch.where(chosen >= 0, errors.gather(0, chosen.clamp(min=0).view(1))[0], 0.0)
        bounds.append(error / limit * (_MARGIN * tolerance))
        ok = ok & torch.isfinite(limit) & (chosen >= 0)
    return _listed(state, active, rows, ok, bounds)


def _behind_the_pilot(state: SparseState) -> Tensor:
    """Tiles behind the pilot that hold no target of the block ``(blocks, tiles)``."""
    flat = torch.ones(state.row_blocks, state.tiles + 1, dtype=torch.bool, device=state.device)
    block = torch.arange(state.n, device=state.device) // state.row
    flat[block, state.tile_of_target()] = False
    flat[:, : state.pilot] = False
    return flat[:, :-1]


def _rounding(state: SparseState) -> Tensor:
    """What float32 may round of a token's terms of the mean field ``(N,)``."""
    size = state.of_tokens.factor.abs() + state.of.row_scale.abs()
    size = size if state.of.mix is None else size + state.of.mix[2].abs()
    rounding = size * (_ROUNDING[0] + _ROUNDING[1] * torch.where(state.row_mask, state.upstream.lse.abs(), 0.0))
    return torch.where(state.row_mask, rounding, 0.0)


def _listed(state: SparseState, active: Tensor, rows: Tensor, ok: Tensor, bounds: list[Tensor]) -> Chosen | None:
    """Wait for the choice while the mean field is computed, and list it."""
    extra = state.most_extra_blocks()
    if recording():
        _of_weight(state)
        every = torch.ones(active.shape, dtype=torch.bool)
        return Chosen(ListedTiles(every.numpy(), state.capacity, state.pilot, extra), 1.0, (0.0, 0.0))
    on_host, found = _copied(active), _copied(torch.stack([rows.sum().float(), ok.float(), *bounds]))
    done = None
    if active.is_cuda:
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(active.device))
    _of_weight(state)
    if done is not None:
        done.synchronize()
    row_blocks, certified, *of = found.tolist()
    total = row_blocks * state.tiles
    by_tile = on_host.numpy()  # and not by PyTorch, whose threads take milliseconds to wake
    share = float(np.count_nonzero(by_tile)) / total if total else 1.0
    if not certified or share > _MANY:
        return None
    both = (of[0] if state.needs[0] else 0.0, of[-1] if state.needs[1] else 0.0)
    return Chosen(ListedTiles(by_tile, state.capacity, state.pilot, extra), share, both)


def _of_weight(state: SparseState) -> None:
    if state.needs[1]:
        state.mean_field.add_weight(state.gradients.head.hidden)


def _levels(score: Tensor, limit: Tensor) -> Tensor:
    """How large a tile's error is beside what is allowed: 0 for next to nothing, LEVELS for all of it or no number."""
    share = (score / limit).nan_to_num(nan=math.inf, posinf=math.inf)
    return (LEVELS - 1 + (share.log2() * _PER_OCTAVE).ceil()).clamp(0, LEVELS).int()


def _safe(size: Tensor) -> Tensor:
    return (size > _SAFE[0]) & (size < _SAFE[1])


def _copied(x: Tensor) -> Tensor:
    """The numbers on the host, once a later event has come."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) if x.is_cuda else x
