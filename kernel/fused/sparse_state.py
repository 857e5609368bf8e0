"""What every step of a sparse backward reads: tokens in their new order, tiles of the head, memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from .arguments import Head, Held, Scalars
from .gradient_rows import Upstream
from .gradients import Gradients
from .head_tiles import head_tiles
from .launch import blocks, launch_table, processors
from .listed_pieces import most_extra_blocks
from .mean_field import MeanField
from .pilot_length import pilot_tiles
from .sparse_tokens import reordered, sparse_tokens
from .tile_sums import SparseTiles, TokenTiles

__all__ = ["SparseState"]

_LEAST_BYTES = 2**25  # for dz of the pilot, whatever the workspace


class SparseState:
    """One backward; what it reads of each token is in the new order, by the tile from which on it needs none.

    Attributes:
        row: Tokens of a block.
        tile: Columns of a tile; ``tiles`` of them are whole.
        pilot: Tiles at the vocabulary's beginning that are computed for all tokens.
        gradients: The gradients in the making.
        memory: Float32 sum of the input's gradient, with rows for pieces of it, or None.
        weight_launch: Of the weight's gradient of listed tiles.
        tokens: Numbers of each token.
        of_tokens: Masses and spreads.
        mean_field: Of all tiles behind the pilot.
        workspace: For dz, of ``capacity`` tiles (or elsewhere: :mod:`.listed_rounds`) or of ``pilot_width`` columns of
            all tokens, unless ``pilot_in_gradient``: the pilot's dz then lies in the weight's gradient.
    """

    def __init__(
        self,
        head: Head,
        scalars: Scalars,
        upstream: Upstream,
        found: SparseTiles,
        workspace_bytes: int,
        needs: tuple[bool, bool, bool],
    ) -> None:
        hidden, weight, _, _ = head
        self.scalars, self.needs, self.device = scalars, needs, hidden.device
        self.table, self.programs = launch_table(hidden.device, hidden.dtype), processors(hidden.device)
        launch = self.table.logit_gradient
        self.row, self.tile = launch.rows, launch.columns
        self.n, (self.vocab_size, self.hidden_size) = hidden.shape[0], weight.shape
        self.row_blocks, self.tiles = blocks(self.n, self.row), self.vocab_size // self.tile
        sizes = self.tiles, self.tile, self.hidden_size
        self.pilot = pilot_tiles(*sizes, hidden.device, hidden.dtype, of_weight=needs[1])
        order = found.reach.sort(stable=True).indices
        self.upstream, order = reordered(upstream, order)
        columns = self.table.input_gradient.columns
        if blocks(self.hidden_size, columns) * columns - self.hidden_size >= columns // 2 > 16:
            columns //= 2
        self.columns, self.column_blocks = columns, blocks(self.hidden_size, columns)
        of_weight = self.table.weight_gradient
        columns = of_weight.rows * of_weight.columns // self.tile  # as many sums of a tile's rows
        columns = min(columns, of_weight.columns)
        self.weight_launch = replace(of_weight, rows=self.tile, columns=columns, transposed=columns < self.tile)
        self.memory = None
        if needs[0]:
            shape = (self.row_blocks + self.most_extra_blocks()) * self.row, self.hidden_size
            self.memory = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        own = None if self.memory is None else self.memory[: self.row_blocks * self.row].zero_()
        self.gradients = Gradients(head, scalars, self.upstream, Held(), (needs[0], False, False), accumulator=own)
        self.number, self.of = self.gradients.number, self.gradients.of
        packed, lse = self.gradients.head.hidden, self.upstream.lse
        sizes = self.tile, self.tiles, self.pilot
        self.tokens = sparse_tokens(packed, self.number, lse, self.of, scalars, *sizes)
        self.of_tokens = TokenTiles(found, order, self.number, self.tokens.factor, self.tiles, self.row)
        self.head_tiles = head_tiles(weight, self.tile)
        uniform = scalars.uniform(self.vocab_size) * self.tile
        self.mean_field = MeanField(
            self.of_tokens, self.tokens, self.head_tiles, self.of.row_scale, uniform, self.tile, self.pilot
        )
        # One tile of the vocabulary at all tokens, or more.
        fitting = workspace_bytes // (hidden.element_size() * self.row * self.tile)
        self.capacity = max(min(fitting, self.row_blocks * self.tiles), self.row_blocks)
        # The pilot in few and equal strips: the rows of few tiles leave the device idle.
        of_tile = self.n * self.tile
        free = (self.tiles - self.pilot) * self.tile * self.hidden_size if needs[1] else 0
        self.pilot_in_gradient = free >= of_tile * self.pilot
        most = self.pilot
        if not self.pilot_in_gradient:
            most = max(max(workspace_bytes, _LEAST_BYTES) // (hidden.element_size() * of_tile), 1)
        self.pilot_width = blocks(self.pilot, blocks(self.pilot, most)) * self.tile
        of_pilot = 0 if self.pilot_in_gradient else self.n * self.pilot_width
        self.workspace = weight.new_empty(max(self.capacity * self.row * self.tile, of_pilot))
        if needs[1]:  # before it is known whether it will be returned: what is not yet written of it holds dz
            self.gradients.weight_gradient = weight.new_empty(weight.shape)

    def most_extra_blocks(self) -> int:
        """Most blocks of rows for pieces of the input's gradient."""
        return most_extra_blocks(self.programs, self.column_blocks) if self.needs[0] else 0
