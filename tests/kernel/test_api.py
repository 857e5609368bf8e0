"""The public face of the loss: torch's conventions, leading axes, autocast, the module, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import call, problem
from torch import nn

from kernel import LinearCrossEntropy, linear_cross_entropy

IMPLEMENTATIONS = ["auto", "reference", "chunked"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_is_a_drop_in_for_torch(label_smoothing, reduction, implementation):
    args = problem(20, 30, 5, bias=True, ignored=0.3)
    options = {"linear_bias": args.linear_bias, "reduction": reduction, "label_smoothing": label_smoothing}
    got = linear_cross_entropy(*args[:3], **options, implementation=implementation)
    torch.testing.assert_close(got, F.linear_cross_entropy(*args[:3], **options))


def test_another_ignore_index_that_is_a_class():
    args = problem(20, 4, 5)
    got = linear_cross_entropy(*args[:3], ignore_index=2)
    torch.testing.assert_close(got, F.linear_cross_entropy(*args[:3], ignore_index=2))


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (1, 2, 3), (2, 0)])
def test_leading_axes(leading):
    hidden = torch.randn(*leading, 4, dtype=torch.float64)
    head = torch.randn(7, 4, dtype=torch.float64)
    target = torch.zeros(leading, dtype=torch.int64)
    got = linear_cross_entropy(hidden, head, target, reduction="none", token_weight=torch.full(leading, 2.0))
    assert got.shape == leading
    expected = 2 * F.cross_entropy((hidden @ head.T).reshape(-1, 7), target.reshape(-1), reduction="none")
    torch.testing.assert_close(got, expected.reshape(leading))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_mean_is_weighted_and_skips_ignored_rows(implementation):
    args = problem(8, 5, 3)
    target = args.target.clone()
    target[:4] = -100
    weight = torch.arange(8.0)
    got = linear_cross_entropy(*args[:2], target, token_weight=weight, z_loss=0.1, implementation=implementation)
    z = (args.input @ args.linear_weight.T)[4:]
    loss = F.cross_entropy(z, target[4:], reduction="none") + 0.1 * torch.logsumexp(z, -1) ** 2
    torch.testing.assert_close(got, (weight[4:] * loss).sum() / weight[4:].sum())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_softcap_comes_after_bias_and_before_temperature(implementation):
    """One context, two classes, by hand: z = 5 tanh((2 h w + bias) / 5) / 0.5."""
    got = linear_cross_entropy(
        torch.tensor([[1.0]]),
        torch.tensor([[1.0], [0.0]]),
        torch.tensor([0]),
        linear_bias=torch.tensor([0.5, -0.5]),
        logit_scale=2.0,
        softcap=5.0,
        temperature=0.5,
        implementation=implementation,
    )
    z = 5 * torch.tanh(torch.tensor([2.5, -0.5]) / 5) / 0.5
    assert got.item() == pytest.approx((torch.logsumexp(z, 0) - z[0]).item(), rel=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masked_tokens_take_part_in_nothing(implementation):
    """A bias of -inf takes a token out of the vocabulary, as it does in torch's cross entropy."""
    args = problem(6, 5, 3, bias=True)
    mask = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf], dtype=torch.float64)
    bias, target = (args.linear_bias.detach() + mask).requires_grad_(), args.target.clamp_max(3)
    got = linear_cross_entropy(*args[:2], target, linear_bias=bias, implementation=implementation)
    z = (args.input @ args.linear_weight.T + bias)[:, :4]
    torch.testing.assert_close(got, F.cross_entropy(z, target))
    for gradient in torch.autograd.grad(got, (args.input, args.linear_weight, bias)):
        assert gradient.isfinite().all()


def test_one_class_costs_nothing():
    assert call(problem(3, 1, 2), label_smoothing=0.3).item() == 0.0


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_autocast_casts_as_a_linear_layer_does(implementation):
    args = problem(16, 32, 8).to(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*args[:3], implementation=implementation)
    assert loss.dtype == torch.float32
    loss.backward()
    rounded = [t.detach().bfloat16().float().requires_grad_() for t in args[:2]]
    expected = F.cross_entropy(rounded[0] @ rounded[1].T, args.target)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for got, want in zip(args[:2], rounded, strict=True):
        assert got.grad.dtype == torch.float32
        torch.testing.assert_close(got.grad, want.grad.bfloat16().float(), rtol=1e-2, atol=1e-6)


GOOD = {"input": torch.zeros(3, 4), "linear_weight": torch.zeros(5, 4), "target": torch.zeros(3, dtype=torch.int64)}
REFUSED = [
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
    ({"label_smoothing": float("nan")}, ValueError, r"label_smoothing must be in \[0, 1\], got nan"),
    ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a Python number, got str"),
    ({"softcap": 0.0}, ValueError, r"softcap must be None or in \[1e-30, 1e\+30\], got 0.0"),
    ({"softcap": torch.tensor(1.0)}, TypeError, "softcap must be a Python number, got Tensor"),
    ({"temperature": -1}, ValueError, r"temperature must be in \[1e-30, 1e\+30\], got -1.0"),
    ({"temperature": float("inf")}, ValueError, r"temperature must be in \[1e-30, 1e\+30\], got inf"),
    ({"logit_scale": float("inf")}, ValueError, r"logit_scale must be in \[-1e\+30, 1e\+30\], got inf"),
    ({"z_loss": -0.1}, ValueError, r"z_loss must be in \[0, 1e\+30\], got -0.1"),
    ({"ignore_index": 1.0}, TypeError, "ignore_index must be an int, got float"),
    ({"softcap": 1e39}, ValueError, "softcap must be None or in .*, got 1e"),
    ({"temperature": 1e-40}, ValueError, "temperature must be in .*, got 1e-40"),
    ({"implementation": ["chunked"]}, ValueError, r"implementation must be one of .*, got \['chunked'\]"),
    ({"target": None}, TypeError, "target must be a torch.Tensor, got NoneType"),
    ({"target": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "target must be on input's device cpu, got meta"),
    ({"linear_bias": torch.zeros(5, device="meta")}, ValueError, "linear_bias must be on input's device cpu, got meta"),
    ({"token_weight": torch.ones(3, device="meta")}, ValueError, "token_weight must be on input's device cpu, got meta"),
    ({"token_weight": torch.full((3,), 1e39, dtype=torch.float64)}, ValueError, "token_weight must be finite .*, got inf"),
    ({"token_weight": torch.full((3,), 2e38)}, ValueError, "token_weight must have a finite sum, got weights up to 1.9"),
    ({"reduction": "avg"}, ValueError, r"reduction must be one of \('none', 'mean', 'sum'\), got 'avg'"),
    ({"implementation": "fast"}, ValueError, r"implementation must be one of \('auto', .*\), got 'fast'"),
    ({"weight": torch.ones(5)}, TypeError, "'weight': class weights are not supported; token_weight"),
    ({"options": {}}, TypeError, "'options': torch's chunking options are not supported"),
    ({"smoothing": 0.1}, TypeError, "unexpected keyword argument 'smoothing': no such argument"),
    ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, got list"),
    ({"input": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "input must be float16, .*, got torch.int64"),
    ({"input": torch.zeros(3, 4).double()}, TypeError, "linear_weight must have input's dtype torch.float64, got torch.float32"),
    ({"input": torch.zeros(3, 6)}, ValueError, r"input must have shape \(..., 4\).*got \(3, 6\)"),
    ({"input": torch.tensor(1.0)}, ValueError, r"input must have shape \(..., 4\).*got \(\)"),
    ({"linear_weight": torch.zeros(5)}, ValueError, r"linear_weight must have shape \(vocab_size, hidden_size\), got \(5,\)"),
    ({"linear_weight": torch.zeros(0, 4)}, ValueError, r"linear_weight must not be empty, got shape \(0, 4\)"),
    ({"linear_weight": torch.zeros(5, 4, device="meta")}, ValueError, "linear_weight must be on input's device cpu, got meta"),
    ({"target": torch.zeros(3, 5)}, TypeError, "target must hold class indices .* probabilities are not supported"),
    ({"target": torch.zeros(3, dtype=torch.int32)}, TypeError, "target must be int64, got torch.int32"),
    ({"target": torch.zeros(4, dtype=torch.int64)}, ValueError, r"target must have shape \(3,\).*got \(4,\)"),
    ({"target": torch.tensor([0, 5, 1])}, ValueError, r"target must be in \[0, 5\) or equal ignore_index=-100, got 5"),
    ({"target": torch.tensor([0, -1, 1])}, ValueError, r"target must be in \[0, 5\) or equal ignore_index=-100, got -1"),
    ({"linear_bias": torch.zeros(4)}, ValueError, r"linear_bias must have shape \(5,\), got \(4,\)"),
    ({"linear_bias": torch.zeros(5).half()}, TypeError, "linear_bias must have input's dtype torch.float32, got torch.float16"),
    ({"linear_bias": 1.0}, TypeError, "linear_bias must be a torch.Tensor, got float"),
    ({"token_weight": torch.ones(5)}, ValueError, r"token_weight must have shape \(3,\), one weight a token, got \(5,\)"),
    ({"token_weight": torch.ones(3, dtype=torch.int64)}, TypeError, "token_weight must be float16, .*, got torch.int64"),
    ({"token_weight": torch.tensor([1.0, -2.0, 1.0])}, ValueError, "token_weight must be finite and at least 0, got -2.0"),
    ({"token_weight": torch.tensor([1.0, torch.nan, 1.0])}, ValueError, "token_weight must be finite and at least 0, got nan"),
    ({"token_weight": torch.ones(3, requires_grad=True)}, ValueError, "token_weight must not require a gradient"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), REFUSED, ids=lambda x: str(x)[:40])
def test_bad_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text):
        linear_cross_entropy(**{**GOOD, **change})


TIED = nn.Parameter(torch.zeros(6, 4))


class TestModule:
    def test_equals_linear_and_cross_entropy(self):
        torch.manual_seed(0)
        head = LinearCrossEntropy(4, 6, bias=True, label_smoothing=0.1, dtype=torch.float64)
        hidden, target = torch.randn(2, 3, 4, dtype=torch.float64), torch.randint(6, (2, 3))
        z = F.linear(hidden, head.weight, head.bias)
        torch.testing.assert_close(
            head(hidden, target), F.cross_entropy(z.flatten(0, 1), target.flatten(), label_smoothing=0.1)
        )
        assert set(head.state_dict()) == {"weight", "bias"}

    def test_initialises_as_linear(self):
        torch.manual_seed(0)
        head = LinearCrossEntropy(4, 6, bias=True)
        torch.manual_seed(0)
        linear = nn.Linear(4, 6)
        assert torch.equal(head.weight, linear.weight)
        assert torch.equal(head.bias, linear.bias)

    def test_shares_a_tied_weight(self):
        embedding = nn.Embedding(6, 4)
        head = LinearCrossEntropy(4, 6, weight=embedding.weight, implementation="chunked")
        head(torch.randn(3, 4), torch.tensor([0, 1, 2])).backward()
        assert head.weight is embedding.weight
        assert embedding.weight.grad.any()
        assert len(list(head.parameters())) == 1

    @pytest.mark.parametrize(
        ("kwargs", "error", "text"),
        [
            ({"weight": nn.Parameter(torch.zeros(6, 5))}, ValueError, r"weight must have shape \(6, 4\), got \(6, 5\)"),
            ({"weight": torch.zeros(6, 4)}, TypeError, "weight must be a torch.nn.Parameter.*got Tensor"),
            ({"weight": TIED, "bias": True}, ValueError, "bias must be False"),
            ({"weight": TIED, "dtype": torch.float64}, ValueError, "device and dtype must be None"),
            ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
            ({"hidden_size": 4.0}, TypeError, "hidden_size must be an int, got float"),
            ({"options": {}}, TypeError, r"LinearCrossEntropy\(\) got an unexpected .* 'options': torch's"),
            ({"token_weight": None}, TypeError, "'token_weight': it is an argument of forward"),
            ({"foo": 1}, TypeError, "'foo': no such argument"),
            ({"label_smoothing": 2.0}, ValueError, "label_smoothing must be"),
            ({"implementation": "fast"}, ValueError, "implementation must be one of"),
        ],
    )
    def test_bad_arguments_are_named_at_once(self, kwargs, error, text):
        with pytest.raises(error, match=text):
            LinearCrossEntropy(**{"hidden_size": 4, "vocab_size": 6, **kwargs})

    def test_prints_its_options(self):
        assert "4, 6, label_smoothing=0.1" in repr(LinearCrossEntropy(4, 6, label_smoothing=0.1))


def test_import_costs_torch_and_nothing_else():
    code = "import sys, kernel; print(*(m for m in ('triton', 'pandas', 'scipy', 'matplotlib') if m in sys.modules))"
    before = "import sys, torch; print(*(m for m in ('triton', 'pandas', 'scipy', 'matplotlib') if m in sys.modules))"
    run = [
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout
        for c in (code, before)
    ]
    assert run[0] == run[1]
