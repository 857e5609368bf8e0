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

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .compile_ahead import recording
from .launch import blocks
from .listed_rounds import ROUND_FIELDS, Room, Round, rounds_of
from .pilot import Pilot
from .run_listed import ListedRun
from .sparse_state import SparseState
from .tile_errors import input_error, scores, weight_error
from .tile_levels import FOUND, choose_levels, levels
from .tile_limits import limits
from .tile_lists import ListedTiles

__all__ = ["Chosen", "choose_tiles"]

_MARGIN = 0.995  # of the tolerance: rounding of the bounds and of the least norm


class Certificate(NamedTuple):
    """What one gradient came to."""

    active: float
    bound: float


class Chosen(NamedTuple):
    """Tiles that are computed, their share of all, and certified relative errors of both gradients."""

    run: ListedRun
    rounds: Sequence[Round]
    share: float
    bounds: tuple[float, float]

    def certificates(self, needs: tuple[bool, bool, bool]) -> list[Certificate | None]:
        """Of the gradients that are needed."""
        return [Certificate(self.share, bound) if n else None for n, bound in zip(needs, self.bounds, strict=False)]


def choose_tiles(state: SparseState, pilot: Pilot, tolerance: float, most: float) -> Chosen | None:
    """Run the pilot, add the mean field and choose what is computed beside them; None for more than ``most`` of all.

    The host waits once, while the device goes on.
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
    numbers = limits(tokens, behind, longest, largest, *least, share, factor, state.tile, state.hidden_size)
    needs = [x is not None for x in least]
    level = levels(of_input, of_weight, numbers, tokens, state.number, state.pilot, state.row, needs)
    errors = (
        input_error(state.of_tokens, sigma, level[0]) if needs[0] else None,
        weight_error(of_weight, level[1]) if needs[1] else None,
    )
    return _listed(state, level, errors, numbers, share, most)


def _listed(
    state: SparseState,
    level: Tensor,
    errors: Sequence[Tensor | None],
    numbers: Tensor,
    share: float,
    most: float,
) -> Chosen | None:
    """Make the choice and the list, and wait for the numbers that the host needs, while the device goes on.

    It has the first round to do, of which the host's part takes longer than the device needs for the list.
    """
    entries = max(int(most * state.row_blocks * state.tiles), 1)
    memory = torch.empty(FOUND + 1 + ROUND_FIELDS * state.tiles, dtype=torch.int32, device=state.device)
    told = memory[:FOUND].view(torch.float32)
    shape = state.row_blocks, state.tiles
    active = choose_levels(level, shape, errors, numbers, state.number, share, state.row, told)
    sizes = state.hidden_size, state.row, state.tiles - state.pilot
    room = Room.of(state.capacity, *sizes, gradient=state.needs[1])
    if state.needs[1]:
        column_blocks = blocks(state.hidden_size, state.weight_launch.columns)
        room = room._replace(programs=state.programs, column_blocks=column_blocks)
    listed = ListedTiles(active, told, room, state.pilot, entries, memory[FOUND:])
    on_host, done = _copied(memory), None
    if memory.is_cuda:
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(memory.device))
    listed.make()
    if state.needs[1]:
        state.mean_field.add_weight(state.gradients.head.hidden, state.workspace)
    run = ListedRun(state, listed, room)
    run.begin()
    if recording():
        return Chosen(run, [Round(0, 0, 0, 0, 0)] * 2, 1.0, (0.0, 0.0))
    if done is not None:
        done.synchronize()
    certified, *bounds, row_blocks = on_host[:FOUND].view(torch.float32).tolist()
    number = int(on_host[FOUND])
    rounds = rounds_of(on_host[FOUND : FOUND + 1 + ROUND_FIELDS * number].tolist())
    if not certified or not rounds:
        return None
    computed = rounds[-1].first + rounds[-1].number + row_blocks * state.pilot
    share = computed / max(row_blocks * state.tiles, 1.0)
    if share > most:
        return None
    of_input, of_weight = (bound if need else 0.0 for bound, need in zip(bounds, state.needs, strict=False))
    return Chosen(run, rounds, share, (of_input, of_weight))


def _copied(x: Tensor) -> Tensor:
    """The numbers on the host, once a later event has come."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) if x.is_cuda else x
