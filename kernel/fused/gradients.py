"""The gradients of a loss in the making: what every launch of a backward reads, what it writes to, where they go."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .arguments import Head, Held, Scalars, Tiles
from .chunk_sums import SumPowers
from .compile_ahead import recording, run_kernel
from .gradient_rows import Upstream, gradient_rows
from .input_gradient import unpack_kernel
from .last_round import CUTS, extra_row_blocks
from .launch import blocks, launch_table, processors, uses_descriptors
from .rows import pack_hidden

__all__ = ["Destination", "Gradients", "Reduction"]


class Reduction(Protocol):
    """A sum of the input's gradient over processes that goes on while the rest of the weight's is computed."""

    values: Tensor  # (N, D), where the own part is written

    def begin(self) -> None:
        """Start it: ``values`` are complete."""

    def end(self) -> Tensor:
        """Return the sum; on a GPU what follows waits for it, not the host."""
        ...


class Destination(NamedTuple):
    """Where the gradients of a chunk of the tokens go."""

    packed: Tensor  # (n, D) hidden states of its tokens, packed; may be overwritten
    input: Tensor | None  # (N, D), contiguous, of all tokens
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,) float32: sums, at first zeros, that these are added to
    column_sums: dict[tuple[int, int], Tensor]  # of the head's rows, by the range: for all chunks
    accumulate: bool = False  # whether the weight's holds sums over earlier chunks, which these are added to
    powers: SumPowers | None = None  # of the weight's sums between chunks; None: as they are, in its own dtype
    rows: int | None = None  # most rows of the input's float32 sums, if the chunk has no more; None: of all tokens


class Gradients:
    """Gradients in the making: products of strips are added (:mod:`.run_products`), and :meth:`finish` returns them."""

    def __init__(
        self,
        head: Head,
        scalars: Scalars,
        upstream: Upstream,
        held: Held,
        needs: tuple[bool, bool, bool],
        reduction: Reduction | None = None,
        accumulator: Tensor | None = None,  # zeros, for whoever reads it on the way: no tile is cut into pieces then
        into: Destination | None = None,
    ) -> None:
        hidden, weight, bias, _ = head
        self.reduction, self.reducing = reduction, False
        self.scalars, self.rows, self.number = scalars, upstream.rows, upstream.rows.number
        self.n, device = self.rows.source.shape[0], hidden.device
        self.vocab_size, self.hidden_size = weight.shape
        self.programs, self.table = processors(device), launch_table(device, hidden.dtype, self.hidden_size)
        self.need_input, self.lse, self.target_logit = needs[0], upstream.lse, held.target_logit
        self.factor = scalars.logit_scale / scalars.temperature
        # The packed hidden states live where the input's gradient will be written at the very end.
        self.into = into
        packed = hidden.new_empty(hidden.shape) if into is None else into.packed
        self.head = head._replace(hidden=packed)
        if into is None:
            pack_hidden(hidden, self.rows, packed)
        self.accumulator, zeros = accumulator, None
        self.memory_blocks = 0  # of rows of the accumulator, where pieces of tiles may lie behind the kept tokens'
        if self.need_input and accumulator is None:
            launch = self.table.input_gradient
            row_blocks, column_blocks = blocks(self.n, launch.rows), blocks(self.hidden_size, launch.columns)
            room = None
            if into is not None and into.input is not None:
                rows = into.input.shape[0] if into.rows is None else into.rows
                room = max(blocks(rows, launch.rows) - row_blocks, 0)
            row_blocks += extra_row_blocks(row_blocks, column_blocks, self.programs, room)
            shape = row_blocks * launch.rows + 1, self.hidden_size
            memory = torch.zeros(shape, dtype=torch.float32, device=device)
            self.accumulator, zeros, self.memory_blocks = memory[:-1], memory[-1], row_blocks
        self.weight_gradient = None
        if needs[1]:
            given = held.gradient if into is None else into.weight
            self.weight_gradient = weight.new_empty(weight.shape) if given is None else given
        self.pieces: Tensor | None = None  # see piece_memory
        self.bias_gradient = None
        if needs[2] and bias is not None:
            self.bias_gradient = weight.new_empty(self.vocab_size) if into is None else into.bias
        as_it_is = next((run for run in held.kept if not run.in_bytes), None)
        self.of = gradient_rows(head, scalars, upstream, as_it_is)
        self.ones = self.of.ones
        if zeros is None:
            zeros = torch.zeros(self.hidden_size, dtype=torch.float32, device=device)
        self.zeros = zeros
        self.uniform = self.zeros  # times row_scale, to be subtracted from the input's gradient
        self.tiles = Tiles(uses_descriptors(self.head.hidden, weight))

    def piece_memory(self, elements: int) -> Tensor:
        """Float32 memory for the pieces of cut sums, the same for all strips."""
        if recording():
            elements = 1
        if self.pieces is None or self.pieces.numel() < elements:
            self.pieces = torch.empty(elements, dtype=torch.float32, device=self.ones.device)
        return self.pieces

    def reduce(self) -> None:
        """Start the reduction of the input's gradient, which is complete, if there is one."""
        if self.reduction is not None:
            self.unpack(self.reduction.values)
            self.accumulator = None
            self.reduction.begin()
            self.reducing = True

    def finish(self) -> tuple[Tensor | None, ...]:
        """Round the input's gradient into the memory of the packed hidden states, and return all gradients."""
        gradient = self.head.hidden if self.into is None else self.into.input
        gradient = gradient if self.need_input else None
        if gradient is not None and self.reduction is not None:
            gradient.copy_(self.reduction.end())
        elif gradient is not None:
            self.unpack(gradient)
        return gradient, self.weight_gradient, self.bias_gradient

    def unpack(self, gradient: Tensor) -> None:
        """Write the input's gradient, in the order of the tokens."""
        if self.accumulator is not None:
            launch = self.table.input_gradient
            run_kernel(
                unpack_kernel,
                (blocks(self.n, 16),),
                accumulator=self.accumulator,
                gradient=gradient,
                count=self.number,
                source=self.rows.source,
                row_scale=self.of.row_scale,
                uniform=self.uniform,
                scale=self.of.largest,
                n=self.n,
                hidden_size=self.hidden_size,
                constant=self.factor,
                programs=self.programs,
                memory_blocks=self.memory_blocks,
                BLOCK_ROWS=launch.rows,
                BLOCK_COLUMNS=launch.columns,
                **CUTS,
                ROWS=16,
                COLUMNS=128,
            )
