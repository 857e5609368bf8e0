"""The Triton path of head_statistics, in the interpreter or on a CUDA device, against the chunked float64 one."""

from __future__ import annotations

import pytest
import torch
from helpers import problem
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import head_statistics
from kernel.statistics import fused as fused_statistics

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = (16, 32, 16)
SHAPES = [(1, 1, 1), (1, 2, 3), TILE, (17, 33, 17), (40, 130, 20), (33, 200, 32)]  # one, a tile, one past, several
SCORES = ("lse", "entropy", "participation", "log_probability", "confidence", "log1m_confidence")


def both(args, dtype=torch.float32, **options):
    """Statistics of the rounded inputs: float64 from the chunked path, and ours."""
    exact, low = args.to(dtype).to(torch.float64), args.to(dtype, DEVICE)
    truth = head_statistics(*exact[:3], linear_bias=exact.linear_bias, implementation="chunked", **options)
    stats = head_statistics(*low[:3], linear_bias=low.linear_bias, implementation="triton", **options)
    return [None if x is None else x.cpu() for x in stats], truth


def check(args, dtype=torch.float32, tolerance=2e-5, **options):
    ours, truth = both(args, dtype, **options)
    for name, got, want in zip(truth._fields, ours, truth, strict=True):
        assert (got is None) == (want is None), name
        if got is None:
            continue
        assert got.shape == want.shape
        about = {"equal_nan": True, "msg": lambda text, name=name: f"{name}: {text}"}
        torch.testing.assert_close(got.to(want.dtype), want, rtol=tolerance, atol=tolerance, **about)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"softcap": 30.0, "logit_scale": -0.5}], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape, bias, options):
    args = problem(*shape, bias=bias, ignored=0.3 if shape[0] > 1 else 0)
    check(args, temperatures=(0.5, 1.0, 20.0), **options)


@pytest.mark.parametrize("ignored", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(33, 70, 17), (32, 96, 32)], ids=["pointers", "descriptors"])
def test_float16_and_ignored_tokens(shape, ignored):
    check(problem(*shape, bias=True, ignored=ignored), torch.float16, temperatures=(0.7, 1.0))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 17])
def test_any_number_of_temperatures(count):
    temperatures = tuple(torch.logspace(-1.3, 1.3, count).tolist())
    check(problem(20, 70, 16), temperatures=temperatures, tolerance=2e-4)  # T = .05: logits of 200


def test_low_temperatures_neither_cancel_nor_underflow():
    # Gaps of 6 to 60 nats at T = .05, most of them beyond float32's exponents: confidence rounds to 1.
    args = problem(24, 100, 8, scale=6.0)
    ours, truth = both(args, temperatures=(0.05,))
    stats = dict(zip(truth._fields, ours, strict=True))
    assert (stats["confidence"] == 1).float().mean() > 0.5
    assert (stats["log1m_confidence"] < -100).any()
    for name in ("log1m_confidence", "entropy", "lse"):
        want = getattr(truth, name)
        normal = want.abs() > 1e-35
        torch.testing.assert_close(stats[name].double()[normal], want[normal], rtol=2e-4, atol=0)


@settings(max_examples=25 if DEVICE == "cpu" else 5, deadline=None)  # each compiles kernels of its own on a device
@given(st.integers(1, 40), st.integers(1, 100), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_ragged_shapes(n, v, d, bias, seed):
    check(problem(n, v, d, bias=bias, seed=seed, ignored=0.2), temperatures=(0.3, 1.0), tolerance=5e-5)


def test_strides_without_target_and_equal_logits():
    args = problem(20, 70, 16).to(torch.float32)
    hidden = args.input.detach().T.contiguous().T.to(DEVICE)
    weight = torch.cat([args.linear_weight, args.linear_weight], 1).detach().to(DEVICE)[:, :16]
    ours = head_statistics(hidden, weight, implementation="triton")
    want = head_statistics(args.input, args.linear_weight, implementation="chunked")
    torch.testing.assert_close(ours.lse.cpu(), want.lse)
    assert ours.rank is ours.log_probability is ours.target_logit is None
    zero, target = torch.zeros(2, 16, device=DEVICE), torch.tensor([0, 69], device=DEVICE)
    tied = head_statistics(zero, weight, target, implementation="triton")
    assert tied.argmax.tolist() == [0, 0]
    assert tied.rank.tolist() == [0, 69]
    assert head_statistics(zero[:0], weight, implementation="triton").lse.shape == (0, 1)


def test_targets_and_biases_with_gaps_between_their_numbers():
    hidden, weight, target, bias, _ = problem(20, 70, 16, bias=True).to(torch.float32, DEVICE)
    ours = head_statistics(
        hidden, weight, torch.stack([target, target.flip(0)], 1)[:, 0],
        linear_bias=torch.stack([bias, bias + 9], 1)[:, 0], implementation="triton",
    )  # fmt: skip
    want = head_statistics(hidden, weight, target, linear_bias=bias, implementation="chunked")
    torch.testing.assert_close(ours.lse, want.lse)
    torch.testing.assert_close(ours.log_probability, want.log_probability)


@pytest.mark.parametrize("shape", [(40, 400, 4), (40, 96, 16)], ids=["pointers", "descriptors"])
def test_equal_logits_rank_in_order_of_their_class(shape):
    # Logits of whole numbers are exact: most tokens have several largest ones, and classes equal to their target
    # before it and after it, in its tile and in others, above zero, at zero and below.
    args = problem(*shape, ignored=0.1)
    args = args._replace(input=args.input.detach().sign(), linear_weight=args.linear_weight.detach().sign())
    ours, truth = both(args, torch.float16)
    z = args.input @ args.linear_weight.T
    assert ((z == z.max(1, keepdim=True).values).sum(1) > 1).float().mean() > 0.2
    stats = dict(zip(truth._fields, ours, strict=True))
    assert torch.equal(stats["argmax"], truth.argmax)
    assert torch.equal(stats["rank"], truth.rank)
    for name in ("confidence", "entropy", "participation"):  # several tiles a group: the sums are rescaled on the way
        torch.testing.assert_close(stats[name].double(), getattr(truth, name), rtol=1e-5, atol=0, equal_nan=True)


def test_target_at_the_top_has_rank_zero_and_no_positive_log_probability():
    args = problem(40, 300, 33, scale=8.0)
    args.target.copy_((args.input @ args.linear_weight.T).argmax(-1))
    ours, truth = both(args, torch.float16, temperatures=(0.05, 1.0))
    stats = dict(zip(truth._fields, ours, strict=True))
    assert (stats["log_probability"] <= 0).all()
    torch.testing.assert_close(stats["rank"] == 0, stats["argmax"] == args.target)
    assert (stats["rank"] == 0).all()


def test_bitwise_repeatable():
    args = problem(40, 130, 20, ignored=0.2).to(torch.float32)
    tensors = [t.to(DEVICE) for t in args[:3]]
    first, second = (head_statistics(*tensors, temperatures=(0.3, 1.0), implementation="triton") for _ in range(2))
    for a, b in zip(first[:11], second[:11], strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def test_refusals(monkeypatch):
    args = problem(4, 5, 3).to(torch.float32)
    tensors = [t.to(DEVICE) for t in args[:3]]
    with pytest.raises(ValueError, match="implementation='triton' has no top_k, got 2"):
        head_statistics(*tensors, top_k=2, implementation="triton")
    with pytest.raises(ValueError, match="implementation='triton' cannot run here: it takes float16, bfloat16 and"):
        head_statistics(tensors[0].double(), tensors[1].double(), implementation="triton")
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="must give finite logits"):
            head_statistics(tensors[0] * torch.nan, tensors[1], implementation="triton")
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
            head_statistics(*tensors, implementation="triton")


def test_auto_is_chunked_on_the_cpu(monkeypatch):
    monkeypatch.setitem(head_statistics.__globals__["_IMPLEMENTATIONS"], "triton", None)
    args = problem(4, 5, 3).to(torch.float32)
    assert head_statistics(args.input, args.linear_weight).lse.shape == (4, 1)


def test_memory_of_the_partials_is_bounded():
    # What the docstring states, at the largest pass on a device: 1,056 units of 128 tokens, 27 floats and 2 integers.
    partials = fused_statistics.MAX_UNITS * 128 * 4 * (3 + 3 * fused_statistics.MAX_TEMPERATURES + 2)
    results = 8192 * (4 * 6 * 8 + 4 * 3 + 8 * 2)
    assert partials + results < 20 * 2**20
