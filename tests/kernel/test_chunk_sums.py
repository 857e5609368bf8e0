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
def both_powers(found, possible, hidden_size, shift, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    tl.store(found + column, chunk_sums.powers_of(possible, column, hidden_size, shift))
    tl.store(found + BLOCK + column, chunk_sums.reciprocals_of(possible, column, hidden_size, shift))


def powers_of(sums, factor):
    """Powers of two of each column and, in the second row, their reciprocals."""
    hidden_size = len(sums.possible)
    block = 1 << (hidden_size - 1).bit_length()
    found = torch.empty(2, block)
    both_powers[(1,)](found, sums.possible, hidden_size, sums.shift(factor), BLOCK=block)
    return found[:, :hidden_size].double()


@pytest.mark.parametrize("upstream", [2e-38, 1 / 12288, 1.0, 3e20, 1e38])
@pytest.mark.parametrize("hidden", [1e-4, 3.0, 60000.0])
def test_sums_of_any_size_have_powers(upstream, hidden):
    """Of 5 tokens, one of them kept: what it may come to is a quarter to a half of what has a number, or less."""
    if upstream * hidden > 3e38:
        pytest.skip("float32 has no number for it")
    kept, ignored = [hidden / 300, -hidden, 0.0], [math.nan, math.inf, math.inf]
    target = torch.tensor([3, *[-100] * 4])
    weighed = torch.tensor([-upstream, *[math.nan] * 4])
    powers = chunk_sums.SumPowers.of(torch.tensor([kept, *[ignored] * 4]), weighed, target, -100)
    want = torch.tensor([hidden / 300, hidden, 0.0]) * upstream
    torch.testing.assert_close(powers.possible, want)
    for factor in (0.02, 1.0, 50.0):
        power, reciprocal = powers_of(powers, factor)
        assert torch.equal(power * reciprocal, torch.ones(3).double())
        assert power.isfinite().all()
        assert (power > 0).all()
        for column, size in enumerate([hidden / 300, hidden]):
            product = upstream * size * factor
            assert product * power[column].item() <= LARGEST / 2 or product > 1e36, "float32 has no number for it"
            assert product * power[column].item() >= LARGEST / 16 or not 1e-29 < product < 1e36


@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
def test_the_largest_sums_that_a_confidence_penalty_can_make_fit(penalty):
    """All tokens point one way, with the probability at which the penalty's part is largest in a vocabulary of 2^20."""
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    entropy = -p * p.log() - (1 - p) * ((1 - p) / (2**20 - 1)).log()
    most = (p + penalty * p * (p.log() + entropy)).max()
    n, upstream, hidden = 64, 1.99, 1.0
    given = torch.full((n, 1), hidden), torch.full((n,), upstream), torch.zeros(n, dtype=torch.int64)
    powers = chunk_sums.SumPowers.of(*given, -100, penalty)
    for factor in (0.99, 1.0):
        scaled = n * upstream * hidden * factor * float(most) * powers_of(powers, factor)[0].item()
        assert LARGEST / 16 < scaled < LARGEST / 1.9


@pytest.mark.parametrize("n", [1, 70, 5000])
def test_what_is_possible_is_of_a_column_and_of_tokens_that_count(n):
    torch.manual_seed(0)
    hidden, upstream = torch.randn(n, 300), torch.rand(n) - 0.3
    target = torch.where(torch.rand(n) < 0.5, -100, 1)
    hidden[target == -100] = math.nan
    upstream[target == -100] = math.inf
    if n > 1:
        target[3], upstream[3], hidden[3] = 1, 0.0, math.inf  # a token of weight 0
        hidden[6, 7], target[6] = 1e3, 1
        hidden[6].nan_to_num_(0.0)
        upstream[6] = 1.0
    powers = chunk_sums.SumPowers.of(hidden, upstream, target, -100)
    counts = (target != -100) & (upstream != 0)
    want = (hidden[counts].abs() * upstream[counts].abs()[:, None]).double().sum(0)
    torch.testing.assert_close(powers.possible.double(), want, rtol=1e-5, atol=0)
    again = chunk_sums.SumPowers.of(hidden, upstream, target, -100)
    assert torch.equal(powers.possible, again.possible)
