"""Where the gradients of a backward go."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["Destination", "Reduction"]


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

    input: Tensor | None  # (n, D), contiguous
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,) float32: sums, at first zeros, that these are added to
    column_sums: dict[tuple[int, int], Tensor]  # of the head's rows, by the range: for all chunks
    accumulate: bool = False  # whether the weight's holds sums over earlier chunks, which these are added to
