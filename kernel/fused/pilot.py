"""The first thirty-second of the vocabulary, or up to a fifth less, and what lies behind its last whole tile.

Both are computed for all tokens.
"""

from __future__ import annotations

from .run_products import add_input, add_weight
from .run_strip import StripColumns, recompute_strip
from .sparse_state import SparseState

__all__ = ["Pilot"]


class Pilot:
    """Dense strips before the choice of tiles: they show how large the gradients are at least."""

    def __init__(self, state: SparseState) -> None:
        self.state = state
        self.end = state.pilot * state.tile
        gradient = state.gradients.weight_gradient
        self.rows = None if gradient is None else gradient[: self.end]  # of the weight's gradient, if that is needed

    def run(self) -> None:
        """Add it to the input's gradient, and make its rows of the weight's."""
        state, gradients = self.state, self.state.gradients
        width, memory = state.pilot_width, state.workspace
        if state.pilot_in_gradient:
            assert gradients.weight_gradient is not None
            memory = gradients.weight_gradient.view(-1)[self.end * state.hidden_size :]
        strips = [StripColumns(start, min(width, self.end - start), 0, width) for start in range(0, self.end, width)]
        if state.vocab_size > state.tiles * state.tile:
            strips.append(StripColumns(state.tiles * state.tile, state.tile, 0, state.tile))
        for strip in strips:
            behind = strip.run_start >= self.end  # its rows of the gradient are written: no part of them is memory
            memory = state.workspace if behind else memory
            dz = memory[: state.n * strip.strip_columns].view(state.n, strip.strip_columns)
            common = gradients.head, state.scalars, state.number, state.upstream.lse, state.of, dz
            recompute_strip(*common, strip, gradients.tiles)
            add_input(gradients, dz, strip, gradients.ones)
            add_weight(gradients, dz, gradients.head.hidden, strip, gradients.zeros)
