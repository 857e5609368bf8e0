"""Kernels that begin before the one ahead of them has ended give the bits that they give one after another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import Problem, ours
from helpers import value_and_gradients as gradients

from kernel.fused.launch import launch_table, set_launch_table

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
BF16 = torch.bfloat16
MIB = 2**20


def problem(n, v, d, ignored=0.0, bias=False):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(n, d, device="cuda", generator=generator)
    weight = torch.randn(v, d, device="cuda", generator=generator) * (2 / d**0.5)
    target = torch.randint(v, (n,), device="cuda", generator=generator)
    target[torch.rand(n, device="cuda", generator=generator) < ignored] = -100
    return Problem(hidden, weight, target, weight[:, 0].clone() if bias else None, None).to(BF16)


@pytest.fixture
def one_after_another():
    """Computes something for a hidden size without early launches."""
    device = torch.device("cuda")

    def run(compute, hidden_size):
        table = launch_table(device, BF16, hidden_size)
        if not (table.input_gradient.early and table.logit_gradient.early):
            pytest.skip("kernels begin early on Hopper")
        late = {name: replace(getattr(table, name), early=False) for name in ("input_gradient", "logit_gradient")}
        set_launch_table(device, BF16, replace(table, **late))
        try:
            return compute()
        finally:
            set_launch_table(device, BF16, None)

    return run


@pytest.mark.parametrize(
    ("options", "ignored"),  # with few kept tokens one launch does several strips
    [({"label_smoothing": 0.1}, 0.0), ({"softcap": 30.0, "z_loss": 1e-4}, 0.0), ({"label_smoothing": 0.1}, 0.8)],
    ids=["all", "all, capped", "few"],
)
@pytest.mark.parametrize(
    ("shape", "budgets"),
    [
        ((4096, 20000, 256), (0, 4 * MIB, 24 * MIB, 512 * MIB)),  # tokens beyond the hidden size, sums that are cut
        ((1000, 50000, 1024), (0, 3 * MIB, 16 * MIB, 200 * MIB)),  # dz in the gradient's memory
        ((300, 5000, 72), (0, MIB)),
    ],
    ids=str,
)
def test_bits_are_those_of_kernels_one_after_another(shape, budgets, ignored, options, one_after_another):
    args = problem(*shape, ignored, bias=shape[2] == 72)
    side = torch.cuda.Stream()
    noise = torch.ones(2**24, device="cuda")
    for budget in budgets:

        def compute(budget=budget):
            return gradients(ours, args, workspace_bytes=budget, **options)

        expected = one_after_another(compute, shape[2])
        for index in range(50):
            with torch.cuda.stream(side):  # what else the device does changes which programs wait for which
                for _ in range(index % 4):
                    noise.mul_(1.0)
            found = compute()
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_a_frozen_input_or_head_waits_as_well(frozen, one_after_another):
    args = problem(2000, 30000, 512)
    leaf = args.linear_weight if frozen == "input" else args.input
    other = args.input if frozen == "input" else args.linear_weight
    other.requires_grad_(False)

    def compute():
        leaf.grad = None
        ours(args.input, args.linear_weight, args.target, workspace_bytes=2 * MIB).backward()
        return leaf.grad

    expected = one_after_another(compute, 512)
    assert all(torch.equal(compute(), expected) for _ in range(50))


def test_a_graph_of_early_launches_repeats_its_bits(one_after_another):
    args = problem(3000, 20000, 512)

    def compute():
        args.input.grad = args.linear_weight.grad = None
        ours(args.input, args.linear_weight, args.target, workspace_bytes=4 * MIB).backward()
        return args.input.grad, args.linear_weight.grad

    expected = [t.clone() for t in one_after_another(compute, 512)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compute()
    for _ in range(50):
        for t in found:
            t.zero_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
