"""Sparse gradients of the fused kernels on a GPU: bfloat16, repeats, no compilation after the first call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_device import compiled_kernels
from sparse_problems import drawn

from kernel import GradientTolerance, linear_cross_entropy

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("worth_it_at_any_size"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def problem(n=3000, v=40000, d=320, dtype=torch.bfloat16):
    """Text-like: a prior that falls along the vocabulary, tokens that differ in how sure they are."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, device="cuda", generator=generator)

    frequency = 1 / torch.arange(1, v + 1, device="cuda") ** 1.3
    target = torch.multinomial(frequency, n, replacement=True, generator=generator)
    weight, hidden = normal(v, d) / d**0.5, normal(n, d) / 2
    hidden += 10 * torch.rand(n, 1, device="cuda", generator=generator) * weight[target]
    hidden[:, 0], weight[:, 0] = 4, frequency.log() / 4
    return hidden.to(dtype), weight.to(dtype), target


def gradients(tensors, tolerance, **options):
    hidden, weight, target = tensors
    leaves = [t.detach().clone().requires_grad_() for t in (hidden, weight)]
    options = {"label_smoothing": 0.1, "gradient_tolerance": tolerance, **options}
    loss: Any = linear_cross_entropy(*leaves, target, **options)
    loss.backward()
    return [t.grad.double() for t in leaves]


def in_float64(tensors):
    return [t.double() if t.is_floating_point() else t for t in tensors]


def without_workspace(options):
    return {key: value for key, value in options.items() if key != "workspace_bytes"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("options", [{}, {"workspace_bytes": 2**22, "z_loss": 1e-3}, {"workspace_bytes": 2**30}])
def test_errors_stay_within_the_tolerance(dtype, options):
    tensors = problem(dtype=dtype)
    exact = gradients(in_float64(tensors), 0.0, implementation="chunked", **without_workspace(options))
    dense = gradients(tensors, 0.0, **options)
    told = GradientTolerance(0.01)
    found, again = gradients(tensors, told, **options), gradients(tensors, told, **options)
    assert told.input_active < 0.5, told
    for ours, same, plain, whole in zip(found, again, dense, exact, strict=True):
        assert torch.equal(ours, same)
        rounding = (plain - whole).norm() / whole.norm()
        error = (ours - whole).norm() / whole.norm()
        assert error <= (0.01**2 + (1.5 * rounding) ** 2) ** 0.5, (error, rounding, told)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sigma_repeats(dtype):
    """To the bit: memory that the tensor cores read was once written too soon, in some of many tiles."""
    from kernel.fused.head_tiles import head_tiles
    from kernel.fused.launch import launch_table

    weight = torch.randn(65536, 640, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).to(dtype)
    rows = launch_table(weight.device, dtype).logit_gradient.columns
    first = head_tiles(weight, rows).sigma
    for _ in range(20):
        assert torch.equal(head_tiles(weight, rows).sigma, first)


def test_random_problems_are_within_what_is_certified():
    """In bfloat16; test_fused_sparse.py has them in float32."""
    certified = 0
    for seed in range(150):
        tensors, options, tolerance = drawn(seed, torch.bfloat16)
        told = GradientTolerance(tolerance)
        exact = gradients(in_float64(tensors), 0.0, implementation="chunked", **without_workspace(options))
        dense, found = gradients(tensors, 0.0, **options), gradients(tensors, told, **options)
        certified += told.input_active < 1
        bounds = told.input_bound, told.weight_bound
        for ours, plain, whole, bound in zip(found, dense, exact, bounds, strict=True):
            assert bound <= tolerance
            rounding = (plain - whole).norm() / whole.norm()
            error = (ours - whole).norm() / whole.norm()
            assert error <= bound + 2 * rounding, (seed, error, rounding, told)
    assert certified > 15


def test_no_call_but_the_first_compiles():
    """Nor one of which nothing can be certified, so that it takes the dense path after a try."""
    tensors = problem()
    gradients(tensors, 0.01)
    before = compiled_kernels()
    for n, tolerance, workspace_bytes in ((3000, 0.01, 2**27), (2111, 0.003, 2**24), (777, 0.2, 2**30), (600, 0.01, 0)):
        hidden, weight, target = tensors
        gradients((hidden[:n], weight, target[:n]), tolerance, workspace_bytes=workspace_bytes)
    told, (hidden, weight, target) = GradientTolerance(0.001), tensors
    gradients((hidden / 64, weight, target), told, label_smoothing=1.0)
    assert (told.input_active, told.weight_active) == (1, 1), "the dense path"
    assert compiled_kernels() == before
