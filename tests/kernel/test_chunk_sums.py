"""What sums of the head's gradient between chunks of tokens are relative to, against what is possible."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

triton = pytest.importorskip("triton")
tl = importlib.import_module("triton.language")
chunk_sums = importlib.import_module("kernel.fused.chunk_sums")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter runs these")
LARGEST = 2.0**16


@triton.jit
def units(found, largest, hidden_size, shift, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    tl.store(found + column, chunk_sums.units_of(largest, column, hidden_size, shift))
    tl.store(found + BLOCK + column, chunk_sums.of_units(largest, column, hidden_size, shift))


def units_of(codes, factor):
    """Powers of two of each column and, in the second row, their reciprocals."""
    hidden_size = len(codes.largest) - 1
    block = 1 << (hidden_size - 1).bit_length()
    found = torch.empty(2, block)
    units[(1,)](found, codes.largest, hidden_size, codes.shift(factor), BLOCK=block)
    return found[:, :hidden_size].double()


@pytest.mark.parametrize("upstream", [2e-38, 1 / 12288, 1.0, 3e20, 1e38])
@pytest.mark.parametrize("hidden", [1e-4, 3.0, 60000.0])
def test_sums_of_any_size_have_units(upstream, hidden):
    """Of 5 tokens, one of them kept: its products are 1 / 128 to 1 / 16 of what 8 such units of 8 tokens come to."""
    kept, ignored = [hidden / 300, -hidden, 0.0], [math.nan, math.inf, math.inf]
    target = torch.tensor([3, *[-100] * 4])
    weighed = torch.tensor([-upstream, *[math.nan] * 4])
    codes = chunk_sums.CodedSums.of(torch.tensor([kept, *[ignored] * 4]), weighed, target, -100)
    assert torch.equal(codes.largest.view(torch.float32), torch.tensor([hidden / 300, hidden, 0.0, upstream]))
    for factor in (0.02, 1.0, 50.0):
        unit, reciprocal = units_of(codes, factor)
        assert torch.equal(unit * reciprocal, torch.ones(3).double())
        assert unit.isfinite().all()
        assert (unit > 0).all()
        for column, size in enumerate([hidden / 300, hidden]):
            scaled = upstream * size * factor * unit[column].item()
            if upstream * max(size, 1) * factor < 1e35:  # else float32 has no number for what is possible
                assert scaled < LARGEST / 16
                assert torch.tensor(upstream * factor) * unit[column].float() < math.inf, "as the kernel multiplies"
            assert scaled >= LARGEST / 128 or upstream * size * factor < 1e-29


@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
def test_the_largest_sums_that_a_confidence_penalty_can_make_fit(penalty):
    """All tokens point one way, with the probability at which the penalty's part is largest in a vocabulary of 2^20."""
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    entropy = -p * p.log() - (1 - p) * ((1 - p) / (2**20 - 1)).log()
    most = (p + penalty * p * (p.log() + entropy)).max()
    n, upstream, hidden = 64, 1.99, 1.99  # just below a power of two
    given = torch.full((n, 1), hidden), torch.full((n,), upstream), torch.zeros(n, dtype=torch.int64)
    codes = chunk_sums.CodedSums.of(*given, -100, penalty)
    for factor in (0.99, 1.0):
        scaled = n * upstream * hidden * factor * float(most) * units_of(codes, factor)[0].item()
        assert LARGEST / 64 < scaled < LARGEST / 1.9


def test_a_column_has_its_own_largest_and_tokens_of_weight_zero_have_none():
    hidden = torch.zeros(70, 300)
    hidden[:, 0], hidden[40, 1], hidden[69, 299], hidden[3] = 0.5, -2.0, 7.0, 6e4
    upstream = torch.full((70,), 0.25)
    upstream[3] = 0.0
    codes = chunk_sums.CodedSums.of(hidden, upstream, torch.zeros(70, dtype=torch.int64), -100)
    want = torch.zeros(301)
    want[[0, 1, 299, 300]] = torch.tensor([0.5, 2.0, 7.0, 0.25])
    assert torch.equal(codes.largest.view(torch.float32), want)
    unit, _ = units_of(codes, 1.0)
    assert unit[1] == unit[0] / 4, "an outlier coarsens its own column alone"
