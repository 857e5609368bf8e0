"""Codes of the head's gradient between chunks of tokens, against the numbers that their definition says they are."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
tl = importlib.import_module("triton.language")
chunk_sums = importlib.import_module("kernel.fused.chunk_sums")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter runs these")
LARGEST = 2.0**31


@triton.jit
def both_ways(values, codes, numbers, WRITE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WRITE:
        tl.store(codes + at, chunk_sums.encoded(tl.load(values + at)))
    tl.store(numbers + at, chunk_sums.decoded(tl.load(codes + at)))


def through_codes(values):
    codes, numbers = torch.empty(len(values), dtype=torch.int16), torch.empty_like(values)
    both_ways[(1,)](values, codes, numbers, WRITE=True, BLOCK=len(values))
    return codes, numbers.double().numpy()


def test_every_code_is_the_square_of_a_float16_with_its_sign():
    codes = torch.arange(2**16).to(torch.int16)
    numbers = torch.empty(2**16)
    with np.errstate(invalid="ignore"):
        both_ways[(1,)](numbers, codes, numbers, WRITE=False, BLOCK=2**16)
    roots = codes.view(torch.float16).double()
    torch.testing.assert_close(numbers.double(), roots * roots.abs(), rtol=0, atol=0, equal_nan=True)


def test_a_number_becomes_one_of_the_nearest():
    random = np.random.default_rng(0)
    sizes = LARGEST * np.exp2(-random.uniform(0.01, 84, 2**15))
    values = torch.tensor(sizes * random.choice([-1, 1], 2**15), dtype=torch.float32)
    codes, got = through_codes(values)
    want, large = values.double().numpy(), values.abs().numpy() >= LARGEST * 2.0**-59
    assert np.abs(got / want - 1)[large].max() <= 1.001 * 2.0**-10
    assert np.mean((got / want - 1)[large] ** 2) < np.mean((values.bfloat16() / values - 1).numpy()[large] ** 2) / 15
    roots = codes.numpy().view(np.float16).astype(np.float64)
    assert np.abs(roots - np.sign(want) * np.sqrt(np.abs(want)))[~large].max() <= 1.001 * 2.0**-25


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_too_large_and_what_is_no_number_is_seen(sign):
    with np.errstate(over="ignore", invalid="ignore"):
        _, got = through_codes(sign * torch.tensor([2 * LARGEST, 1e20, 3e38, math.inf, 0.0, 1e-30, LARGEST, 1.0]))
        root = float(np.float16(LARGEST**0.5))
        np.testing.assert_array_equal(got, sign * np.array([math.inf] * 4 + [0.0, 0.0, root * root, 1.0]))
        bits = torch.tensor([0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32)
        assert not np.isfinite(through_codes(bits.view(torch.float32))[1]).any()


@triton.jit
def units(found, largest, shift, factor):
    scaled = chunk_sums.to_units(largest, shift, tl.load(factor))
    tl.store(found, scaled)
    tl.store(found + 1, chunk_sums.of_units(scaled, largest, shift))


@pytest.mark.parametrize("upstream", [2e-38, 1 / 12288, 1.0, 3e20, 1e38])
@pytest.mark.parametrize("hidden", [1e-4, 3.0, 60000.0])
def test_sums_of_any_size_come_back(upstream, hidden):
    """Of 5 tokens: the largest product of one is between 1 / 128 and 1 / 16 of what 8 of them might come to."""
    kept, ignored = [hidden / 3, -hidden], [math.nan, math.inf]
    target = torch.tensor([3, *[-100] * 4])
    weighed = torch.tensor([-upstream, *[math.nan] * 4])
    codes = chunk_sums.CodedSums.of(torch.tensor([kept, *[ignored] * 4]), weighed, target, -100)
    assert torch.equal(codes.largest.view(torch.float32), torch.tensor([hidden, upstream]))
    for factor in (0.02, 1.0, 50.0):
        x = torch.tensor([min(upstream * hidden * factor, 3e38)])
        found = torch.empty(2)
        units[(1,)](found, codes.largest, codes.shift(factor), x)
        assert found[1].item() == x.item()
        assert found[0].item() < LARGEST / 16 or x > 1e35
        assert found[0].item() >= LARGEST / 128 or x < 1e-35


@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
def test_the_largest_sums_that_a_confidence_penalty_can_make_have_codes(penalty):
    """All tokens point one way, with the probability at which the penalty's part is largest in a vocabulary of 2^20."""
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    entropy = -p * p.log() - (1 - p) * ((1 - p) / (2**20 - 1)).log()
    most = (p + penalty * p * (p.log() + entropy)).max()
    n, upstream, hidden = 64, 1.99, 1.99  # just below a power of two
    given = torch.full((n, 1), hidden), torch.full((n,), upstream), torch.zeros(n, dtype=torch.int64)
    codes = chunk_sums.CodedSums.of(*given, -100, penalty)
    for factor in (0.99, 1.0):
        found = torch.empty(2)
        total = torch.tensor([n * upstream * hidden * factor * float(most)])
        units[(1,)](found, codes.largest, codes.shift(factor), total)
        assert LARGEST / 64 < found[0].item() < LARGEST / 1.9


def test_a_token_of_weight_zero_does_not_say_how_large_sums_may_be():
    hidden, target = torch.tensor([[0.5, -2.0], [6e4, 1.0]]), torch.tensor([1, 2])
    codes = chunk_sums.CodedSums.of(hidden, torch.tensor([0.25, 0.0]), target, -100)
    assert codes.largest.view(torch.float32).tolist() == [2.0, 0.25]
