"""Gradients that leave tiles out: the error is measured against the dense ones, and may never exceed what is certified."""

import copy
import math
from typing import Any

import pytest
import torch

from kernel import GradientTolerance, linear_cross_entropy, sparse_products, sparse_tiles, tiled_products
from kernel.blocks import BLOCK_BYTES


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 x 16, of which small problems have many, tried every other block."""
    monkeypatch.setattr(sparse_tiles, "TILE_TOKENS", 16)
    monkeypatch.setattr(sparse_tiles, "TILE_ROWS", 16)
    monkeypatch.setattr(tiled_products, "_PAUSE", 1)


def single(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


def gradients(hidden, weight, target, told, *, upstream=None, of_entropy=0.0, **options):
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    options |= {"gradient_tolerance": told, "implementation": "chunked", "return_statistics": True}
    loss, of = linear_cross_entropy(h, w, target, **options)
    loss = loss.sum() if upstream is None else (loss * upstream).sum()
    (loss + of_entropy * of.entropy.nan_to_num().sum()).backward()
    return h.grad, w.grad


class Draw:
    """Random problems: peaked and flat, sorted and not, near the smoothed optimum, capped, with every option."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def of(self, *values):
        return values[int(torch.randint(len(values), (), generator=self.generator))]

    def between(self, low, high):
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def problem(self):
        n, v, d = self.of(40, 90, 150), self.of(10, 100, 333, 800), self.of(1, 8, 40)
        weight, hidden = self.normal(v, d) / d**0.5, self.normal(n, d) * self.between(0, 2)
        frequency = 1 / torch.arange(1, v + 1, dtype=torch.float64) ** self.between(0.5, 2)
        target = torch.multinomial(frequency, n, replacement=True, generator=self.generator)
        if self.of(True, True, False):  # a prior, as trained heads have
            hidden[:, 0], weight[:, 0] = 1.0, frequency.log() * self.between(0.5, 2)
        hidden += self.between(0, 6) * weight[target] * self.of(0, 1)
        if self.of(True, False, False):
            order = torch.randperm(v, generator=self.generator)
            weight, target = weight[order], order.argsort()[target]
        options = {"label_smoothing": self.of(0.0, 0.0, 0.1, 0.5)}
        kind = self.of("plain", "plain", "uniform", "capped", "mixed")
        if kind == "uniform":  # p near b / V, where every term of dz is small
            hidden, options = 1e-3 * hidden, {"label_smoothing": self.of(0.9, 1.0)}
        elif kind == "capped":
            options["softcap"] = self.between(1, 10)
        elif kind == "mixed":
            options |= {"z_loss": 0.01, "confidence_penalty": self.of(0.0, 0.2), "temperature": self.between(0.5, 2)}
        if self.of(True, False):
            target[torch.rand(n, generator=self.generator) < 0.3] = -100
        if self.of(True, False):
            options["token_weight"] = torch.rand(n, generator=self.generator, dtype=torch.float64)
        if self.of(True, False, False):
            options["linear_bias"] = self.normal(v)
        options["reduction"] = self.of("mean", "sum", "none")
        if options["reduction"] == "none":
            options["upstream"] = self.normal(n)
        options["of_entropy"] = self.of(0.0, 0.0, 0.0, 0.1)
        return (hidden, weight, target), options


def test_no_error_exceeds_what_is_certified(small_tiles, monkeypatch):
    draw, passes, shares, ratios = Draw(0), [], [], []
    complete = sparse_products.SparseProducts.complete
    monkeypatch.setattr(
        sparse_products.SparseProducts, "complete", lambda self: passes.append(complete(self)) or passes[-1]
    )
    for i in range(200):
        tensors, options = draw.problem()
        if i % 4 == 3:  # what float32 rounds is no error
            hidden, weight, target = tensors
            tensors, options = (single(hidden), single(weight), target), {k: single(v) for k, v in options.items()}
        told = GradientTolerance(10 ** draw.between(-4, -0.02))
        monkeypatch.setitem(BLOCK_BYTES, "cpu", draw.of(2**14, 2**18, 2**24))
        monkeypatch.setattr(tiled_products, "_GUESS", draw.of(0.7, 0.7, 20.0))  # too bold a one is put right
        exact, found = gradients(*tensors, 0.0, **options), gradients(*tensors, told, **options)
        bounds = told.input_bound, told.weight_bound
        for ours, whole, bound in zip(found, exact, bounds, strict=True):
            assert bound <= told.tolerance
            error, norm = (ours - whole).norm().item(), whole.norm().item()
            rounding = 1e-10 if whole.dtype == torch.float64 else 1e-4
            assert error <= (bound + rounding) * norm + 0.01 * rounding, (i, error, norm, told, options)
            ratios += [error / (bound * norm)] if bound > 1e-8 else []
        shares += [told.input_active, told.weight_active]
    assert sum(share < 0.5 for share in shares) > 40  # and it does leave out
    assert passes.count(False) > 5  # by second passes, too
    assert max(ratios) > 0.9  # as exact as a bound can be, where one row is all there is
    assert sorted(ratios)[len(ratios) // 2] > 0.1


@pytest.mark.parametrize(
    ("factor", "options"),
    [
        ({"hidden": 60.0}, {}),  # fitted tokens: every other logit is 60 or more below the target's
        ({"hidden": 500.0}, {}),
        ({"hidden": 0.005}, {"softcap": 0.01, "linear_bias": 0.25}),  # all logits at the cap
        ({}, {"token_weight": 1e-25, "reduction": "sum"}),
        ({}, {"token_weight": 1e-38, "reduction": "sum"}),
        ({}, {"token_weight": 1e20, "reduction": "sum"}),
        ({"head": 1e-25, "hidden": 1e25}, {}),
        ({"head": 1e34, "hidden": 1e-34}, {}),
        ({"head": 1e-25}, {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_are_tiny_or_huge(small_tiles, factor, options, dtype):
    """Their squares leave float32: the certificate must not call that 0, nor anything raise."""
    generator = torch.Generator().manual_seed(0)
    target, noise = torch.randint(200, (90,), generator=generator), torch.randn(290, 200, generator=generator) / 500
    weight = torch.eye(200, dtype=torch.float64) + noise[:200]
    hidden = weight[target] + noise[200:]
    for name, size in (("token_weight", 90), ("linear_bias", 200)):
        options = {**options, **({name: torch.full((size,), options[name], dtype=dtype)} if name in options else {})}
    h, w = (hidden * factor.get("hidden", 1)).to(dtype), (weight * factor.get("head", 1)).to(dtype)
    told = GradientTolerance(0.01)
    exact, found = gradients(h, w, target, 0.0, **options), gradients(h, w, target, told, **options)
    for ours, whole, bound in zip(found, exact, (told.input_bound, told.weight_bound), strict=True):
        ours, whole = ours.double(), whole.double()
        size = whole.abs().max().clamp(min=1e-300)
        error = ((ours - whole) / size).norm() / (whole / size).norm().clamp(min=1e-300)
        rounding = 1e-4 if size > 1e-36 else 0.3  # denormal numbers have few digits
        assert bound <= 0.01
        assert error <= bound + rounding, (error, told)


def test_rare_classes_side_by_side_leave_most_tiles_out():
    generator = torch.Generator().manual_seed(0)
    n, v, d = 512, 16384, 32
    frequency = 1 / torch.arange(1, v + 1) ** 1.5
    target = torch.multinomial(frequency, n, replacement=True, generator=generator)
    weight, hidden = torch.randn(v, d, generator=generator) / d**0.5, torch.randn(n, d, generator=generator) / 2
    hidden += 5 * weight[target]
    hidden[:, 0], weight[:, 0] = 1.0, frequency.log()
    told, order = GradientTolerance(0.01), torch.randperm(v, generator=generator)
    options = {"label_smoothing": 0.1}
    exact, found = gradients(hidden, weight, target, 0.0, **options), gradients(hidden, weight, target, told, **options)
    assert max(told.input_active, told.weight_active) < 0.4  # the first block of four is dense
    for ours, whole in zip(found, exact, strict=True):
        assert 0 < (ours - whole).norm() < 0.01 * whole.norm()
    gradients(hidden, weight[order], order.argsort()[target], told, **options)
    assert min(told.input_active, told.weight_active) > 0.9
    assert repr(told).startswith("GradientTolerance(tolerance=0.01, input_active=")


def test_what_is_constant_in_a_tile_is_exact(small_tiles):
    """Only the uniform term and the targets are left of dz where all logits are equal: every tile may be left out."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(160, 5, generator=generator, dtype=torch.float64)
    hidden, target = torch.zeros(64, 5, dtype=torch.float64), torch.randint(160, (64,), generator=generator)
    hidden[:, 0], weight[:, 0] = 1, 0
    told = GradientTolerance(1e-9)
    exact = gradients(hidden, weight, target, 0.0, label_smoothing=0.1)
    found = gradients(hidden, weight, target, told, label_smoothing=0.1)
    assert (told.input_active, told.weight_active) == (0.25, 0.25)  # the first of four blocks
    for ours, whole in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-14)


def test_the_bound_of_a_tile_is_never_below_its_largest_singular_value():
    generator = torch.Generator().manual_seed(0)
    for rows, d, rank in ((16, 5, 5), (16, 40, 40), (16, 40, 2), (16, 1, 1)):
        tiles = torch.randn(20, rows, rank, generator=generator) @ torch.randn(20, rank, d, generator=generator)
        true = torch.linalg.matrix_norm(tiles - tiles.mean(1, keepdim=True), 2)
        ratio = sparse_tiles.spectral(tiles) / true
        assert ratio.min() > 1 - 1e-4
        assert ratio.max() < rows ** (1 / 16) + 1e-4
    assert sparse_tiles.spectral(torch.zeros(3, 16, 4)).max() < 1e-12


def test_other_paths_stay_exact_and_say_so():
    told = GradientTolerance(0.1)
    linear_cross_entropy(
        *(torch.eye(3), torch.eye(3), torch.arange(3)), gradient_tolerance=told, implementation="reference"
    )
    assert (told.input_active, told.weight_active, told.input_bound, told.weight_bound) == (1, 1, 0, 0)
    for wrong in (1.0, GradientTolerance(-0.1), float("nan")):
        with pytest.raises(ValueError, match=r"gradient_tolerance must be in \[0, 1\), got"):
            linear_cross_entropy(torch.eye(3), torch.eye(3), torch.arange(3), gradient_tolerance=wrong)
    wrong: Any = "0.1"
    with pytest.raises(TypeError, match="gradient_tolerance must be a Python number, got str"):
        linear_cross_entropy(torch.eye(3), torch.eye(3), torch.arange(3), gradient_tolerance=wrong)


def test_what_the_backward_computes_is_not_told_before():
    told, hidden = GradientTolerance(0.1), torch.ones(3, 2, requires_grad=True)
    assert copy.deepcopy([told])[0] is told
    options: dict[str, Any] = {"gradient_tolerance": told, "implementation": "chunked", "reduction": "none"}
    loss = linear_cross_entropy(hidden, torch.ones(300, 2), torch.arange(3), **options)
    assert [math.isnan(told.input_active), math.isnan(told.input_bound), told.weight_active] == [True, True, 1]
    loss.sum().backward()
    assert (told.input_active, told.input_bound) == (1, 0)
    with torch.no_grad():
        linear_cross_entropy(hidden, torch.ones(300, 2), torch.arange(3), **options)
    assert told.input_active == 1


def test_a_gradient_that_mostly_cancels_is_put_right(small_tiles):
    """The first block alone would allow to leave out the others, which take most of it back."""
    pattern = torch.zeros(33, dtype=torch.float64)
    pattern[:2] = torch.tensor([1.0, -1.0])
    dz = pattern * torch.tensor([1.0, -0.2, -0.2, -0.2], dtype=torch.float64).repeat_interleave(16).unsqueeze(1)
    hidden, labels = torch.ones(64, 1, dtype=torch.float64), torch.full((64,), 32)
    out = torch.zeros(33, 1, dtype=torch.float64)
    products = sparse_products.SparseProducts(
        *(hidden, torch.ones_like(out), labels, torch.ones_like(hidden)),
        tolerance=0.9,
        grad_hidden=None,
        grad_weight=out,
    )
    exact = dz.T @ hidden
    products.add(slice(0, 64), dz.clone())
    assert (out - exact).norm() > 1.2 * exact.norm()
    assert not products.complete()
    products.add_missing(slice(0, 64), dz.clone())
    assert (out - exact).norm() <= 0.9 * exact.norm()
