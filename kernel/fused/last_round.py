"""How the last round of tiles of the input's gradient is cut, so that every multiprocessor has work in it.

The result has few tiles, 4.4 for each multiprocessor of an H100 at 8192 x 2304, and the last round of a strip would
leave two thirds of the device idle. The tiles of that round are therefore cut along the sum into equal pieces, as many
as occupy it best.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import blocks

__all__ = ["CUTS", "extra_row_blocks", "last_round", "rounds"]

# How the choice of the cuts reckons: in steps of the sum, of which a strip of 8192 columns has 128; the first loads and
# the store of a piece take the time of four.
CUTS = {"MAX_CUTS": 8, "STEPS": 128, "PIECE": 4}


def extra_row_blocks(row_blocks: int, column_blocks: int, programs: int, room: int | None = None) -> int:
    """Blocks of rows of the accumulator beyond its own: as many as ``last_round`` then makes of all tokens.

    Up to 4 pieces in one round; where fewer tokens are kept there is room for more. Or, of a chunk of tokens, whose
    rounds are few, as many pieces as ``room`` holds, the accumulator's blocks that the other tokens would take.
    """
    tiles = row_blocks * column_blocks
    rest = tiles % programs
    cut_rows = row_blocks - (tiles - rest) // column_blocks
    cuts = [c for c in range(1, 5) if rest * c <= programs]
    if room is not None:
        cuts = [c for c in range(1, CUTS["MAX_CUTS"] + 1) if (c - 1) * cut_rows <= room]
    return (min(cuts, key=lambda c: _last_steps(rest, c, programs)) - 1) * cut_rows


def rounds(row_blocks: int, column_blocks: int, programs: int, room: int | None = None) -> float:
    """Rounds of tiles that all tokens take, the last one with what its cuts leave of it; in whole ones."""
    whole, rest = divmod(row_blocks * column_blocks, programs)
    if not rest:
        return whole
    cut_rows = row_blocks - whole * programs // column_blocks
    memory = extra_row_blocks(row_blocks, column_blocks, programs, room)
    cuts = range(1, min(memory // cut_rows + 1, CUTS["MAX_CUTS"]) + 1)
    return whole + min(_last_steps(rest, c, programs) for c in cuts) / (CUTS["STEPS"] + CUTS["PIECE"])


def _last_steps(rest: int, cuts: int, programs: int) -> int:
    """Steps of the sum that each multiprocessor makes in the last round, its tiles cut into pieces."""
    return blocks(rest * cuts, programs) * (blocks(CUTS["STEPS"], cuts) + CUTS["PIECE"])


@triton.jit
def last_round(
    row_blocks,
    column_blocks,
    programs,
    memory_blocks,  # blocks of rows that the accumulator has
    MAX_CUTS: tl.constexpr,
    STEPS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Tiles in whole rounds, and the pieces that each tile of the incomplete last round is cut into."""
    tiles = row_blocks * column_blocks
    rest = tiles % programs
    extra = row_blocks - (tiles - rest) // column_blocks
    cuts = 1
    least = STEPS + PIECE
    for more in tl.static_range(2, MAX_CUTS + 1):  # pyright: ignore[reportGeneralTypeIssues]
        time = tl.cdiv(rest * more, programs) * (tl.cdiv(STEPS, more) + PIECE)
        better = (time < least) & (row_blocks + (more - 1) * extra <= memory_blocks)
        cuts = tl.where(better, more, cuts)
        least = tl.where(better, time, least)
    return tiles - rest, cuts
