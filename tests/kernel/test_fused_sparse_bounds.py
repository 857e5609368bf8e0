"""What the sparse backward of the fused kernels certifies by, against float64, and problems on which half precision would break it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernel import GradientTolerance, linear_cross_entropy
from kernel.fused.launch import launch_table

pytest.importorskip("triton")

from kernel.fused.halves import MASS_SCALE
from kernel.fused.head_tiles import head_tiles
from kernel.fused.mean_field import MeanField
from kernel.fused.tile_errors import LEVELS, input_error, scores, weight_error
from kernel.fused.tile_sums import TokenTiles, finish_tile_sums, new_tile_sums

pytestmark = pytest.mark.usefixtures("worth_it_at_any_size")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAUNCH = launch_table(torch.device(DEVICE), torch.float16).logit_gradient
ROWS, COLUMNS = LAUNCH.rows, LAUNCH.columns


def gradient(which, hidden, weight, target, **options):
    """The gradient of one argument, the other frozen, in float64."""
    leaves = [hidden.clone(), weight.clone()]
    leaves[which].requires_grad_()
    loss: Any = linear_cross_entropy(*leaves, target, **options)
    return torch.autograd.grad(loss, leaves[which])[0].double()


def error_of(which, tensors, told, **options):
    """Relative error of a gradient in float16 within a tolerance."""
    hidden, weight, target = (t.to(DEVICE) for t in tensors)
    half = hidden.half(), weight.half()
    double = half[0].double(), half[1].double()
    exact = gradient(which, *double, target, implementation="reference", **options)
    found = gradient(which, *half, target, implementation="triton", gradient_tolerance=told, **options)
    return (found - exact).norm() / exact.norm()


def test_a_z_loss_may_make_large_factors():
    """With an input that is frozen, where nothing but the head's gradient could tell."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.zeros(4 * ROWS, 8), torch.zeros(9 * COLUMNS, 8)
    hidden[:, 0], weight[:, 0] = 1, 150
    hidden[:, 1:] = torch.randn(len(hidden), 7, generator=generator) * 0.3
    weight[:COLUMNS, 1:] = torch.randn(COLUMNS, 7, generator=generator) * 0.3
    weight[5 * COLUMNS : 6 * COLUMNS, 0] += 4  # equal rows with most of the mass: a term of its mean field is near 150
    target = torch.randint(0, COLUMNS, (len(hidden),), generator=generator)
    told = GradientTolerance(0.3)
    assert error_of(1, (hidden, weight, target), told, z_loss=0.5, label_smoothing=0.1) < 0.01
    assert told.weight_active < 0.5


def test_tiles_that_cancel_each_other_stay_within_the_tolerance():
    """Their mean rows are hundreds of times as long as the gradient: half precision of them would be 0.0023 off."""
    generator = torch.Generator().manual_seed(0)
    tiles = 31
    weight, hidden = torch.randn(tiles * COLUMNS, 8, generator=generator), torch.randn(4 * ROWS, 8, generator=generator)
    hidden *= 0.002
    hidden[:, 0], sign = 0, 2.0 * (torch.arange(tiles) % 2) - 1
    sign[0] = 0
    weight[:, 0] += 300 * sign.repeat_interleave(COLUMNS)
    weight[:COLUMNS] *= 3
    target = torch.randint(0, COLUMNS, (len(hidden),), generator=generator)
    told = GradientTolerance(0.003)
    assert error_of(0, (hidden, weight, target), told) < 0.001
    assert told.input_active < 0.5


# The interpreter multiplies the bit patterns of bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]


class Known:
    """Softmax of 2.5 blocks of tokens over six tiles, most of it in one of them or none, in float64 and as the forward leaves it."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.n, self.tiles, self.count = int(2.5 * ROWS), 6, int(2.5 * ROWS) - 3

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)

        logits = normal(self.n, self.tiles, COLUMNS) * normal(self.n, self.tiles, 1)
        logits[:, 1] += 20  # all of the mass
        logits[:, 2] = -3  # equal in the tile
        logits[:, 3, 0] += 30  # one column
        self.p = logits.flatten(1).softmax(1).view_as(logits)
        bits = torch.tensor(2.0).log().item()
        sums = new_tile_sums(self.n, self.tiles, torch.device(DEVICE))
        both = sums.view(torch.float32).unflatten(1, (-1, 2))
        both[:, : self.tiles, 0] = (logits.logsumexp(2) / bits).float()
        both[:, : self.tiles, 1] = logits.softmax(2).square().sum(2).float()
        lse = (logits.flatten(1).logsumexp(1) / bits).float()
        self.number = torch.tensor([self.count], dtype=torch.int32, device=DEVICE)
        self.rest = 1e-3
        found = finish_tile_sums(sums, lse, self.number, self.tiles, COLUMNS, self.rest)
        self.reach, (first, second) = found.reach, found.mass.double().unbind(1)
        self.mass = ((first + second) / MASS_SCALE)[:, : self.tiles]
        self.spread = (found.spread.int() << 16).view(torch.float32)[:, : self.tiles].double()
        self.residual = (self.p - self.p.mean(2, keepdim=True)).norm(dim=2)
        kept = torch.randperm(self.count, generator=generator)
        self.order = torch.cat([kept, torch.arange(self.count, self.n)]).to(DEVICE)
        self.factor, self.length = normal(self.n).float(), normal(self.n).float().abs()
        self.sigma = normal(self.tiles).float().abs()
        of = TokenTiles(found, self.order.int(), self.number, self.factor, self.tiles, ROWS)
        self.of = of
        # |a| |r|, by block: 0 where there is no token
        size = self.factor[:, None].abs() * self.spread[self.order]
        size[self.count :] = 0
        self.size = torch.cat([size, size.new_zeros(of.blocks * ROWS - self.n, self.tiles)]).view(-1, ROWS, self.tiles)


@pytest.fixture(scope="module")
def known():
    return Known()


def reached(size, rest):
    """Tiles up to the last from which on sizes ``(n, tiles)`` sum to more than the rest."""
    return torch.stack([size[:, tile:].sum(1) > rest for tile in range(size.shape[1])]).sum(0)


def test_masses_are_right_and_no_residual_is_longer_than_said(known):
    mass, spread = known.mass[: known.count], known.spread[: known.count]
    p, residual = known.p[: known.count], known.residual[: known.count]
    torch.testing.assert_close(mass, p.sum(2), rtol=2e-5, atol=2e-12)
    assert (spread >= residual * (1 - 1e-6)).all()
    assert (spread <= (residual + 0.003 * p.sum(2)) * (1 + 2**-7)).all()
    reach = known.reach[: known.count]
    assert (reached(residual, known.rest) <= reach).all()
    assert (reach <= reached(residual + 0.003 * p.sum(2), known.rest)).all()
    assert (known.reach[known.count :] > known.tiles).all()


@pytest.mark.parametrize("tiles", [40, 300])
def test_the_reach_ends_where_what_is_behind_it_is_small(tiles):
    """Tiles of a sorted vocabulary, some rarer than those behind them, and more of them than a program holds at once."""
    generator = torch.Generator().manual_seed(0)
    falling = -torch.rand(20, 1, generator=generator) * torch.arange(tiles) * 40 / tiles
    mass = (falling + 3 * torch.randn(20, tiles, generator=generator)).double().softmax(1).to(DEVICE)
    sums = new_tile_sums(20, tiles, torch.device(DEVICE))
    both = sums.view(torch.float32).unflatten(1, (-1, 2))
    both[:, :tiles, 0], both[:, :tiles, 1] = mass.log2().float(), 1.0  # all of it in one column
    number = torch.tensor([20], dtype=torch.int32, device=DEVICE)
    size = mass * (1 - 1 / COLUMNS) ** 0.5
    for rest in (0.1, 1e-3, 1e-5):
        reach = finish_tile_sums(sums, torch.zeros(20, device=DEVICE), number, tiles, COLUMNS, rest).reach
        assert (reached(size, rest * 1.01) <= reach).all()
        assert (reach <= reached(size, rest * 0.99)).all()
        assert len(reach.unique()) > 9


def test_scores_are_those_of_blocks(known):
    first = 2
    of_input, of_weight, behind = scores(known.of, known.length, known.sigma, first)
    long = torch.cat([known.length, known.length.new_zeros(known.size.shape[0] * ROWS - known.n)]).view(-1, ROWS, 1)
    torch.testing.assert_close(of_weight.double(), (known.size * long).sum(1), rtol=1e-5, atol=1e-12)
    of_tile = known.size * known.sigma
    torch.testing.assert_close(of_input.double(), of_tile.norm(dim=1), rtol=1e-5, atol=1e-12)
    wanted = of_tile[:, :, first:].sum(2).flatten()[: known.n]
    torch.testing.assert_close(behind.double(), wanted, rtol=1e-5, atol=1e-12)


def test_errors_add_up_over_all_tiles_of_a_level(known):
    generator = torch.Generator().manual_seed(1)
    shape = known.of.blocks, known.tiles
    level = torch.randint(0, LEVELS + 1, shape, generator=generator, dtype=torch.int32).to(DEVICE)
    score = torch.rand(shape, generator=generator).to(DEVICE)
    out = level[None] <= torch.arange(LEVELS, device=DEVICE)[:, None, None]  # (levels, blocks, tiles)
    of_token = (out[:, :, None] * (known.size * known.sigma)).sum(3)
    of_tile = (out * score.double()).sum(1)
    torch.testing.assert_close(weight_error(score, level).double(), of_tile.norm(dim=1), rtol=1e-5, atol=1e-12)
    found, wanted = input_error(known.of, known.sigma, level).double(), of_token.flatten(1).norm(dim=1)
    assert (found >= wanted * (1 - 1e-6)).all()
    assert (found <= wanted * (1 + 2**-10)).all()  # sigma is rounded up


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_the_mean_field_are_of_float32(known, dtype):
    """Both, also of a head and hidden states of half precision: the coefficients and mean rows are not rounded to it."""
    generator = torch.Generator().manual_seed(2)
    d, uniform = 24, 0.02
    weight, hidden = (
        torch.randn(k, d, generator=generator).to(DEVICE, dtype) for k in (known.tiles * COLUMNS, known.n)
    )
    row_scale, own = (torch.rand(known.n, generator=generator).to(DEVICE) for _ in range(2))
    label = torch.randint(0, len(weight), (known.n,), generator=generator, dtype=torch.int32).to(DEVICE)
    pilot = 2
    tokens: Any = SimpleNamespace(products=known.factor.abs() * hidden.float().norm(dim=1))
    field = MeanField(known.of, tokens, head_tiles(weight, COLUMNS), row_scale, uniform, COLUMNS, pilot)
    before = torch.randn(known.of.blocks * ROWS, d, generator=generator).to(DEVICE)
    accumulator = before.clone()
    norm = field.add_input(accumulator, weight, label, own)
    field.add_weight(hidden)
    assert field.shared is not None

    of_softmax = known.factor[:, None] * known.mass[known.order]
    of_uniform = (uniform * row_scale[:, None].double()).expand_as(of_softmax)
    listed = torch.zeros_like(of_softmax)
    listed[: known.count, pilot:] = 1
    coefficient, size = (of_softmax - of_uniform) * listed, (of_softmax.abs() + of_uniform) * listed
    mean = weight.double().view(known.tiles, COLUMNS, d).mean(1)
    for found, left, of_left, right in (
        (accumulator[: known.n] - before[: known.n].double(), coefficient, size, mean),
        (field.shared[pilot:] * COLUMNS, coefficient.T[pilot:], size.T[pilot:], hidden.double()),
    ):
        allowed = 2**-19 * (of_left @ right.abs()) + 5e-7  # as certified, and float32 of what was there before
        assert ((found - left @ right).abs() <= allowed).all()
    whole = accumulator[: known.n].double() + own[:, None] * weight[label.long()].double()
    whole[known.count :] = 0
    torch.testing.assert_close(norm.double(), whole.norm(dim=1), rtol=1e-5, atol=1e-6)
