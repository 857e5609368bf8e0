"""The first thirty-second of the vocabulary, and what lies behind its last whole tile, for all tokens."""

from __future__ import annotations

from torch import Tensor

from .run_products import add_input, add_weight
from .run_strip import StripColumns, recompute_strip
from .sparse_state import SparseState

__all__ = ["Pilot"]


class Pilot:
    """Dense strips before the choice of tiles: they show how large the gradients are at least."""

    def __init__(self, state: SparseState) -> None:
        self.state = state
        self.end = state.pilot * state.tile
        self.rows: Tensor | None = None  # of the weight's gradient, if that is needed
        self._rest: Tensor | None = None  # dz behind the last whole tile

    def _strips(self) -> list[StripColumns]:
        state, width = self.state, self.state.pilot_width
        strips = [StripColumns(start, min(width, self.end - start), 0, width) for start in range(0, self.end, width)]
        if state.vocab_size > state.tiles * state.tile:
            strips.append(StripColumns(state.tiles * state.tile, state.tile, 0, state.tile))
        return strips

    def run(self) -> None:
        """Add it to the input's gradient, and make its rows of the weight's."""
        state, gradients = self.state, self.state.gradients
        weight, strips = gradients.head.weight, self._strips()
        if state.needs[1]:
            self.rows = weight.new_empty(self.end, state.hidden_size)
        for strip in strips:
            behind = strip.run_start >= self.end
            if behind:
                self._rest = dz = weight.new_empty(state.n, state.tile)
            else:
                dz = state.workspace[: state.n * strip.strip_columns].view(state.n, strip.strip_columns)
            common = gradients.head, state.scalars, state.number, state.upstream.lse, state.of, dz
            recompute_strip(*common, strip, gradients.tiles)
            add_input(gradients, dz, strip, gradients.ones)
            if self.rows is not None and not behind:
                gradients.weight_gradient = self.rows
                add_weight(gradients, dz, gradients.head.hidden, strip, gradients.zeros)
        gradients.weight_gradient = None

    def write_rows(self) -> None:
        """Write its rows of the weight's gradient, now that there is memory for it, and let go of them."""
        gradient, gradients = self.state.gradients.weight_gradient, self.state.gradients
        assert gradient is not None
        assert self.rows is not None
        gradient[: self.end].copy_(self.rows)
        self.rows = None
        if self._rest is not None:
            add_weight(gradients, self._rest, gradients.head.hidden, self._strips()[-1], gradients.zeros)
            self._rest = None
