"""How many tiles at the vocabulary's beginning a sparse backward computes for all tokens."""

from __future__ import annotations

import torch

from .launch import Launch, blocks, launch_table, processors

__all__ = ["pilot_tiles"]

_PILOT = 32  # a thirty-second of the vocabulary, which waves may shorten


def pilot_tiles(
    tiles: int, tile: int, hidden_size: int, device: torch.device, dtype: torch.dtype, *, of_weight: bool = True
) -> int:
    """Return how many whole tiles, of ``tiles``, the pilot has: at least one.

    Args:
        tiles: Whole tiles of the vocabulary.
        tile: Rows of the head in each.
        hidden_size: D.
        device: Whose waves shorten it.
        dtype: Of hidden states and head.
        of_weight: Whether the head's gradient is needed; without it there are no such waves.
    """
    pilot = max(tiles // _PILOT, 1)
    if not of_weight:
        return pilot
    launch = launch_table(device, dtype, hidden_size).weight_gradient
    return _in_waves(pilot, tile, hidden_size, launch, processors(device))


def _in_waves(pilot: int, tile: int, hidden_size: int, launch: Launch, programs: int) -> int:
    """Tiles of the pilot, or up to a fifth less whose weight's gradient is whole waves of tiles, one for each program.

    A shorter pilot leaves more tiles to the lists, and a smaller norm to certify errors against.
    """
    of_tile = blocks(tile, launch.rows) * blocks(hidden_size, launch.columns)
    fewer = pilot * of_tile // programs * programs // of_tile
    return fewer if 5 * fewer >= 4 * pilot else pilot
