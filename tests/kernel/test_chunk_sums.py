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
LARGEST = 2.0**-63


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


def defined():
    """All numbers that codes stand for, rising, of a sign bit, 6 bits of exponent and 9 of mantissa."""
    exponent, mantissa = np.divmod(np.arange(2**15), 2**9)
    magnitude = np.where(exponent > 0, 1 + mantissa / 512, mantissa / 256) * 2.0 ** (exponent - 127)
    magnitude[-1] = math.inf
    return magnitude


def test_every_code_is_the_number_that_it_is_defined_as():
    codes = torch.arange(2**16).to(torch.int16)
    numbers = torch.empty(2**16)
    both_ways[(1,)](numbers, codes, numbers, WRITE=False, BLOCK=2**16)
    want = np.concatenate([defined(), -defined()])
    np.testing.assert_array_equal(numbers.double().numpy(), want)


def test_a_number_becomes_the_nearest_one():
    random, known = np.random.default_rng(0), defined()
    sizes = LARGEST * np.exp2(-random.uniform(0.01, 66, 2**14))
    values = torch.tensor(sizes * random.choice([-1, 1], 2**14), dtype=torch.float32)
    _, got = through_codes(values)
    want = values.double().numpy()
    above = np.searchsorted(known, np.abs(want)).clip(1)
    least = np.minimum(np.abs(known[above] - np.abs(want)), np.abs(known[above - 1] - np.abs(want)))
    np.testing.assert_array_equal(np.abs(got - want), least)
    normal = np.abs(want) >= 2.0**-126
    assert np.abs(got / want - 1)[normal].max() <= 2.0**-10
    assert np.abs(got - want)[~normal].max() <= 2.0**-136


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_too_large_and_what_is_no_number_is_seen(sign):
    large = [LARGEST, 1.0, 3e38, math.inf]
    _, got = through_codes(
        sign * torch.tensor([*large, 0.0, 2.0**-140, LARGEST * (1 - 2.0**-9), LARGEST * (1 - 2.0**-20)])
    )
    np.testing.assert_array_equal(got, sign * np.array([math.inf] * 4 + [0.0, 0.0, LARGEST * (1 - 2.0**-9), math.inf]))
    bits = torch.tensor([0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32)
    assert not np.isfinite(through_codes(bits.view(torch.float32))[1]).any()


@triton.jit
def units(found, largest, shift, factor):
    scaled = chunk_sums.to_units(largest, shift, tl.load(factor))
    tl.store(found, scaled)
    tl.store(found + 1, chunk_sums.of_units(scaled, largest, shift))


@pytest.mark.parametrize("upstream", [2e-38, 1e-20, 1 / 12288, 1.0, 3e20, 1e38])
@pytest.mark.parametrize("hidden", [1e-4, 3.0, 60000.0])
def test_sums_of_any_size_come_back(upstream, hidden):
    """The largest sum of one token is between half of the unit and four of them, unless that is no float32."""
    numbers = torch.tensor([[hidden / 3, -hidden], [math.nan, math.inf]]), torch.tensor([-upstream, math.nan])
    largest = chunk_sums.CodedSums.of(*numbers, torch.tensor([3, -100]), -100).largest
    assert torch.equal(largest.view(torch.float32), torch.tensor([hidden, upstream]))
    for constant in (0.02, 1.0, 50.0):
        x = torch.tensor([min(upstream * hidden * constant, 3e38)])
        found = torch.empty(2)
        units[(1,)](found, largest, math.frexp(constant)[1], x)
        assert found[1].item() == x.item()
        if 1e-37 < x < 1e37:
            assert 0.5 <= found[0].item() * 2.0**87 <= 4
        else:
            assert found[0].item() * 2.0**87 <= 4
