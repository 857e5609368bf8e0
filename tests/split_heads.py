"""Programs of several processes, each with some rows of one head."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from processes import in_processes

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform.startswith("linux")), reason="needs gloo"
)

# A program finds its rows ``mine`` of ``head`` and ``bias``, the whole of both, and the tokens.
START = """
import kernel
from kernel import LinearCrossEntropy, head_statistics, linear_cross_entropy

rows = eval(arguments[0])
group, begin = dist.group.WORLD, sum(rows[:rank])
mine = slice(begin, begin + rows[rank])
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
hidden, head, bias, scale = draw(3, 7, 6), draw(sum(rows), 6), draw(sum(rows)), draw(3, 7).abs()
target = torch.randint(sum(rows), (3, 7), generator=generator)
target[0, :2] = -100
"""


def with_rows(rows: tuple[int, ...], program: str, folder: Path, *more: str) -> list[str]:
    """Run ``program`` in one process for each number of ``rows``, of which it holds so many; what each printed."""
    return in_processes(START + program, len(rows), folder, repr(rows), *more)
