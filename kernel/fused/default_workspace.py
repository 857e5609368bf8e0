"""How much workspace a loss may use where nobody chose it: it follows the number of tokens.

A workspace holds strips of dz, tokens x columns. With twice the tokens in the same memory strips are half as wide, so
that there are twice as many: their launches, last rounds of tiles, and reads and writes of the input's gradient, whose
float32 sums grow with the tokens, take more for each token. Strips of one width cost each token the same.
"""

from __future__ import annotations

__all__ = ["LEAST_DEFAULT_BYTES", "default_workspace_bytes"]

LEAST_DEFAULT_BYTES = 128 * 2**20
_MOST = 512 * 2**20  # very many tokens have a backward in chunks (backward_chunks), whose strips are as wide with less
_OF_A_TOKEN = 16 * 2**10  # a strip of 8192 columns in half precision
_STEP = 512  # tokens: lengths that differ by less have the same budget, and what was planned for it


def default_workspace_bytes(tokens: int) -> int:
    """Return 16 KiB for each of the tokens N, in steps of 512 of them; at least 128 MiB and at most 512 MiB."""
    return min(max(_OF_A_TOKEN * (tokens // _STEP * _STEP), LEAST_DEFAULT_BYTES), _MOST)
