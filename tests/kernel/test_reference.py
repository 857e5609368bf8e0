"""What the definition of the loss promises beyond its value: compilers, torch.func, and rows that hold anything."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import problem, relative_error, value_and_gradients
from torch import Tensor, nn
from torch.func import grad, hessian, vmap

from kernel import linear_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compilers

reference = partial(linear_cross_entropy, label_smoothing=0.1, implementation="reference")


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiles_to_one_graph_that_still_checks(reduction):
    compiled = torch.compile(partial(reference, reduction=reduction), fullgraph=True, backend="aot_eager")
    for n in (20, 27):  # the second makes the number of tokens symbolic
        args = problem(n, 9, 4, bias=True, weighted=True, ignored=0.3)
        got = value_and_gradients(compiled, args)
        for a, b in zip(got, value_and_gradients(partial(reference, reduction=reduction), args), strict=True):
            assert relative_error(a, b) < 1e-12
    bad = args._replace(target=torch.full((27,), 9))
    with pytest.raises(ValueError, match=r"target must be in \[0, 9\) or equal ignore_index=-100, got 9"):
        value_and_gradients(compiled, bad)
    with pytest.raises(ValueError, match=r"token_weight must be finite and at least 0, got -1"):
        value_and_gradients(compiled, args._replace(token_weight=-torch.ones(27)))


class _Head(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach())

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        return reference(hidden, self.weight, target)


def test_exports_with_a_symbolic_number_of_tokens():
    args, other = problem(20, 9, 4, ignored=0.3), problem(31, 9, 4, seed=1)
    tokens = torch.export.Dim("tokens", min=2)
    shapes = {"hidden": {0: tokens}, "target": {0: tokens}}
    hidden = args.input.detach()
    program = torch.export.export(_Head(args.linear_weight), (hidden, args.target), dynamic_shapes=shapes).module()
    got = program(other.input.detach(), other.target)
    torch.testing.assert_close(got, reference(other.input, args.linear_weight, other.target))
    with pytest.raises(ValueError, match="target must be in"):
        program(other.input.detach(), other.target - 200)


def test_vmap_over_batches_tokens_and_heads():
    heads = torch.stack([problem(6, 9, 4, seed=s).linear_weight.detach() for s in range(3)])
    args = [problem(6, 9, 4, seed=s, ignored=0.3, weighted=True) for s in range(3)]
    hidden, target = torch.stack([a.input.detach() for a in args]), torch.stack([a.target for a in args])
    weight = torch.stack([a.token_weight for a in args])

    def loss(h: Tensor, w: Tensor, y: Tensor, g: Tensor) -> Tensor:
        return reference(h, w, y, token_weight=g)

    want = torch.stack([loss(*each) for each in zip(hidden, heads, target, weight, strict=True)])
    torch.testing.assert_close(vmap(loss)(hidden, heads, target, weight), want)
    # targets batched along another axis, one head
    got = vmap(loss, in_dims=(0, None, 1, 0))(hidden, heads[0], target.T, weight)
    torch.testing.assert_close(
        got, torch.stack([loss(h, heads[0], y, g) for h, y, g in zip(hidden, target, weight, strict=True)])
    )
    with pytest.raises(ValueError, match=r"target must be in \[0, 9\) or equal ignore_index=-100, got 9"):
        vmap(loss)(hidden, heads, torch.full_like(target, 9), weight)


def test_gradients_per_token():
    args = problem(6, 9, 4, ignored=0.3)
    hidden, head = args.input.detach(), args.linear_weight.detach()
    per_token = vmap(grad(lambda w, h, y: reference(h, w, y, reduction="sum")), in_dims=(None, 0, 0))
    got = per_token(head, hidden, args.target)
    assert got.shape == (6, 9, 4)
    whole = grad(lambda w: reference(hidden, w, args.target, reduction="sum"))(head)
    torch.testing.assert_close(got.sum(0), whole)
    compiled = torch.compile(per_token, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(head, hidden, args.target), got)


def test_second_derivatives():
    args = problem(3, 4, 2)
    hidden, head = args.input.detach(), args.linear_weight.detach()
    curvature = hessian(lambda w: reference(hidden, w, args.target))(head).reshape(8, 8)
    p = torch.softmax(hidden @ head.T, -1)
    # mean over tokens of (diag p - p p^T) x h h^T, whatever the smoothing
    fisher = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    want = torch.einsum("nij,nk,nl->ikjl", fisher, hidden, hidden).reshape(8, 8) / 3
    torch.testing.assert_close(curvature, want)
