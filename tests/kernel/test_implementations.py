"""What every implementation of the loss owes, whatever path it takes."""

from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch
from helpers import ALL_OPTIONS, call, eager, problem, relative_error, value_and_gradients

from kernel import chunked, linear_cross_entropy
from kernel.blocks import BLOCK_BYTES

pytest.importorskip("triton")
on_host = pytest.mark.skipif(torch.cuda.is_available(), reason="test_fused_cuda.py covers the device")
IMPLEMENTATIONS = ["reference", "chunked", pytest.param("triton", marks=on_host)]
DTYPE = {"triton": torch.float32}  # and float64 of the others
LEAVES = ("input", "linear_weight", "linear_bias")
BUDGETS = [0, 9_000, 2**28]  # one tile a strip; several tiles and some columns kept; everything kept
# Ways to the gradients: chunked forms them ahead or, of token losses, in the backward; triton keeps more or less.
WAYS = [("chunked", {"reduction": reduction}) for reduction in ("none", "mean", "sum")]
WAYS += [pytest.param("triton", {"workspace_bytes": budget}, marks=on_host) for budget in BUDGETS]


@pytest.mark.parametrize("implementation", ["reference", "chunked"])  # the kernels have no float64
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradients_by_finite_differences(reduction, implementation, monkeypatch):
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 8 * 9 * 2)  # two rows a block
    args = problem(5, 9, 4, bias=True, weighted=True, ignored=0.2, seed=1)

    def loss(*leaves):
        moved = args._replace(input=leaves[0], linear_weight=leaves[1], linear_bias=leaves[2])
        return call(moved, reduction=reduction, implementation=implementation, **ALL_OPTIONS)

    assert torch.autograd.gradcheck(loss, (args.input, args.linear_weight, args.linear_bias))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_small_mean_gradients_survive_float16(implementation):
    """Of sure tokens p - q is near 5e-5: divided by N before the product, it would be as small as float16's last digit."""
    args = problem(1024, 8, 4, bias=True)
    with torch.no_grad():
        args.input.abs_().add_(0.5)
        args.linear_weight.mul_(0.1)
        args.linear_bias.copy_(torch.tensor([10.0] + [0.0] * 7))
        args.target.fill_(0)
    args = args.to(torch.float16)
    exact = value_and_gradients(eager, args.to(torch.float64))
    got = value_and_gradients(partial(linear_cross_entropy, implementation=implementation), args)
    z = args.input.double() @ args.linear_weight.double().T + args.linear_bias.double()
    dz = (torch.softmax(z, -1) - torch.nn.functional.one_hot(args.target, 8)) / 2048
    assert relative_error((dz.half().double().T @ args.input.double())[1:], exact[2][1:]) > 0.05
    assert relative_error(got[2][1:], exact[2][1:]) < 0.01


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_ignored_row_may_hold_anything(value, reduction, implementation):
    args = problem(12, 9, 4, bias=True, weighted=True, ignored=0.4).to(DTYPE.get(implementation, torch.float64))
    ignored = args.target == -100
    assert ignored.any()
    spoiled = args._replace(input=torch.where(ignored[:, None], value, args.input.detach()))
    options = {"label_smoothing": 0.1, "softcap": 5.0, "reduction": reduction, "implementation": implementation}
    loss = partial(linear_cross_entropy, **options)
    want, got = value_and_gradients(loss, args), value_and_gradients(loss, spoiled)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-12
    assert not got[1][ignored].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("case", ["all ignored", "no tokens", "no weight"])
def test_nothing_to_learn_from(case, reduction, implementation):
    args = problem(0 if case == "no tokens" else 20, 40, 16, bias=True).to(DTYPE.get(implementation, torch.float64))
    if case == "all ignored":
        args.target.fill_(-100)
    args = args._replace(token_weight=torch.zeros(20) if case == "no weight" else None)
    value = call(args, reduction=reduction, label_smoothing=0.1, z_loss=0.1, implementation=implementation)
    z = args.input @ args.linear_weight.T
    expected = torch.nn.functional.cross_entropy(z, args.target.new_full(args.target.shape, -100), reduction=reduction)
    torch.testing.assert_close(value, expected, equal_nan=True)
    value.sum().backward()
    for leaf in (args.input, args.linear_weight, args.linear_bias):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize(("implementation", "options"), WAYS)
def test_second_backward_gives_the_same_gradient(implementation, options):
    args = problem(33, 130, 20, ignored=0.2).to(torch.float32)
    loss = call(args, implementation=implementation, label_smoothing=0.1, **options).sum()
    first = torch.autograd.grad(loss, args[:2], retain_graph=True)
    copies = [g.clone() for g in first]
    second = torch.autograd.grad(loss, args[:2], retain_graph=True)
    third = torch.autograd.grad(loss, args[:2], 2 * torch.ones(()))
    for a, b, c, d in zip(first, second, third, copies, strict=True):
        assert torch.equal(a, d), "handed-out memory was written again"
        assert relative_error(b, a) < 1e-6
        assert relative_error(c, 2 * a) < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_second_derivatives_are_refused(implementation):
    args = problem(6, 7, 3).to(torch.float32)
    with pytest.raises(RuntimeError, match="no second derivative; use implementation='reference'"):
        torch.autograd.grad(call(args, implementation=implementation), args.input, create_graph=True)


@pytest.fixture
def products(monkeypatch):
    """The arguments for whose gradients work was done since."""
    run_products, seen, run = importlib.import_module("kernel.fused.run_products"), set(), chunked._run
    launch, of = run_products.run_kernel, {f"{name.partition('_')[2] or name}_gradient_kernel": name for name in LEAVES}

    def run_and_note(*args, **options):
        seen.update(name for name, wanted in zip(LEAVES, args[-1], strict=True) if wanted)
        return run(*args, **options)

    def launch_and_note(kernel, *args, **arguments):
        seen.update({of[kernel.__name__]} if kernel.__name__ in of else ())
        return launch(kernel, *args, **arguments)

    monkeypatch.setattr(chunked, "_run", run_and_note)
    monkeypatch.setattr(run_products, "run_kernel", launch_and_note)
    return seen


@pytest.mark.parametrize("frozen", [None, *LEAVES])
@pytest.mark.parametrize(("implementation", "options"), WAYS)
def test_frozen_arguments_get_no_gradient_and_cost_no_work(implementation, options, frozen, products):
    args = problem(33, 70, 17, bias=True).to(torch.float32)
    options = {**options, "label_smoothing": 0.1}
    reference = partial(linear_cross_entropy, implementation="reference", **options)
    exact = value_and_gradients(reference, args.to(torch.float64))
    if frozen:
        getattr(args, frozen).requires_grad_(False)
    value = call(args, implementation=implementation, **options)
    value.backward(torch.linspace(0.5, 2, 33) if value.ndim else torch.tensor(0.5))
    assert products == set(LEAVES) - {frozen}
    for name, want in zip(LEAVES, exact[1:], strict=True):
        gradient = getattr(args, name).grad
        if name == frozen:
            assert gradient is None
        else:
            assert relative_error(gradient.double(), want) < 2e-6


LAYOUTS = {
    "transposed": lambda head: head.T.contiguous().T,
    "every other row": lambda head: torch.stack([head, head], 1).flatten(0, 1)[::2],
    "wide": lambda head: torch.cat([head, head], 1)[:, :16],
    "one row": lambda head: head[:1].expand(head.shape),
    "offset": lambda head: torch.cat([head.new_zeros(1), head.flatten()])[1:].view(head.shape),
}


TARGETS = {
    "gaps": lambda target: torch.stack([target, target.flip(0)], 1)[:, 0],
    "one for every token": lambda target: target[:1].expand(target.shape),  # a stride of 0
}


@pytest.mark.parametrize("workspace_bytes", [9_000, 2**28])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize(
    ("layout", "targets"), [*((name, "gaps") for name in LAYOUTS), ("offset", "one for every token")]
)
def test_tensors_may_lie_as_they_like(layout, targets, implementation, workspace_bytes):
    base = problem(20, 70, 16, bias=True).to(torch.float32)
    target = TARGETS[targets](base.target)
    assert not target.is_contiguous()
    head = LAYOUTS[layout](base.linear_weight.detach())
    assert not head.is_contiguous() or head.data_ptr() % 16
    bias = TARGETS["gaps"](base.linear_bias.detach())
    leaves = [t.requires_grad_() for t in (base.input.detach().T.contiguous().T, head, bias)]
    exact = [t.detach().double().contiguous().requires_grad_() for t in leaves]
    options = {"implementation": implementation, "workspace_bytes": workspace_bytes, "label_smoothing": 0.1}
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], **options)
    got = torch.autograd.grad(loss, leaves)
    want = torch.autograd.grad(eager(*exact[:2], target.contiguous(), linear_bias=exact[2], label_smoothing=0.1), exact)
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() < 1e-6
