"""head_statistics against plain float64 softmaxes of the full logits, and against mpmath where float64 cannot tell."""

import mpmath
import pytest
import torch
from helpers import problem

from kernel import head_statistics
from kernel.blocks import BLOCK_BYTES

TEMPERATURES = (0.05, 0.5, 1.0, 1.7, 20.0)


def expected(args, temperatures, *, softcap=None, logit_scale=1.0):
    """From the full float64 logits, by the definitions and nothing clever."""
    z = logit_scale * args.input.double() @ args.linear_weight.double().T
    if args.linear_bias is not None:
        z = z + args.linear_bias.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    fields = {name: [] for name in ("lse", "entropy", "participation", "log_probability", "confidence", "log1m")}
    for temperature in temperatures:
        log_p = torch.log_softmax(z / temperature, -1)
        p = log_p.exp()
        others = p.scatter(-1, z.argmax(-1, keepdim=True), 0.0).sum(-1)
        fields["lse"].append(torch.logsumexp(z / temperature, -1))
        fields["entropy"].append(-(p * log_p).nan_to_num(0).sum(-1))
        fields["participation"].append(p.square().sum(-1))
        fields["log_probability"].append(log_p.gather(-1, args.target.clamp(min=0).unsqueeze(-1)).squeeze(-1))
        fields["confidence"].append(p.amax(-1))
        fields["log1m"].append(others.log())
    out = {name: torch.stack(values, -1) for name, values in fields.items()}
    target = args.target.clamp(min=0).unsqueeze(-1)
    out["z"], out["target_logit"] = z, z.gather(-1, target).squeeze(-1)
    out["rank"] = (z > out["target_logit"].unsqueeze(-1)).sum(-1)
    return out


def check(args, temperatures, rtol, atol, **options):
    stats = head_statistics(
        args.input, args.linear_weight, args.target, linear_bias=args.linear_bias, temperatures=temperatures, **options
    )
    truth = expected(args, temperatures, **options)
    kept = args.target != -100
    for name in ("lse", "entropy", "participation", "log_probability", "confidence"):
        got, want = getattr(stats, name)[kept].double(), truth[name][kept]
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    reliable = truth["log1m"] > -600  # below, the plain definition underflows
    reliable, got = reliable[kept], stats.log1m_confidence[kept].double()
    torch.testing.assert_close(got[reliable], truth["log1m"][kept][reliable], rtol=rtol, atol=atol)
    z = truth["z"][kept]
    logits = {"max_logit": z.amax(-1), "mean_logit": z.mean(-1), "target_logit": truth["target_logit"][kept]}
    for name, want in logits.items():
        torch.testing.assert_close(getattr(stats, name)[kept].double(), want, rtol=rtol, atol=atol)
    torch.testing.assert_close(stats.argmax[kept], z.argmax(-1))
    torch.testing.assert_close(stats.rank[kept], truth["rank"][kept])
    return stats


@pytest.mark.parametrize("blocks", ["one", "many"])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"softcap": 30.0, "logit_scale": 0.5}])
@pytest.mark.parametrize(("n", "v", "d"), [(1, 2, 1), (1, 1, 3), (16, 256, 32), (17, 257, 33), (5, 900, 8)])
def test_float64_equals_the_definitions(n, v, d, options, blocks, monkeypatch):
    if blocks == "many":  # three rows a block, a ragged one at the end
        monkeypatch.setitem(BLOCK_BYTES, "cpu", 3 * 8 * v)
    check(problem(n, v, d, bias=True), TEMPERATURES, 1e-10, 1e-10, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_lower_precision_is_off_by_the_rounding_of_float32_logits(dtype, softcap):
    args = problem(33, 1000, 24, bias=True).to(dtype)
    # A logit of 10 known to 2e-6 is 200 +- 4e-5 at T = .05.
    check(args, (0.05,), 2e-4, 2e-4, softcap=softcap)
    check(args, (0.5, 1.0, 20.0), 2e-5, 2e-5, softcap=softcap)


def test_one_minus_confidence_does_not_cancel():
    # Three classes with gaps of 3 and 3.5 nats at T = .05: 1 - p is e^-60, far below the spacing of floats next to 1.
    logits = torch.tensor([[4.0, 1.0, 0.5]])
    stats = head_statistics(torch.ones(1, 1), logits.T.contiguous(), torch.tensor([1]), temperatures=(1.0, 0.05, 0.01))
    for i, temperature in enumerate((1.0, 0.05, 0.01)):
        with mpmath.workdps(400):
            e = [mpmath.e ** (mpmath.mpf(z) / mpmath.mpf(temperature)) for z in (4.0, 1.0, 0.5)]
            p = [x / sum(e) for x in e]
            want = {
                "log1m_confidence": mpmath.log(p[1] + p[2]),
                "entropy": -sum(x * mpmath.log(x) for x in p),
                "log_probability": mpmath.log(p[1]),
                "participation": sum(x * x for x in p),
                "confidence": p[0],
                "lse": mpmath.log(sum(e)),
            }
        for name, value in want.items():
            assert getattr(stats, name)[0, i].item() == pytest.approx(float(value), rel=3e-6, abs=1e-37), name
    assert stats.confidence[0, 1] == 1, "the case would prove nothing if confidence were not rounded to 1"


def test_uniform_logits_and_a_single_class():
    stats = head_statistics(torch.zeros(2, 3), torch.randn(7, 3), torch.tensor([0, 6]), temperatures=(0.05, 20.0))
    torch.testing.assert_close(stats.entropy, torch.full((2, 2), 7.0).log())
    torch.testing.assert_close(stats.participation, torch.full((2, 2), 1 / 7))
    assert stats.argmax.tolist() == [0, 0], "the first of equal logits"
    assert stats.rank.tolist() == [0, 6], "equal logits rank in order of their index"
    one = head_statistics(torch.randn(2, 3), torch.randn(1, 3), torch.tensor([0, 0]))
    assert one.confidence.tolist() == [[1.0], [1.0]]
    assert one.entropy.tolist() == [[0.0], [0.0]]
    assert one.log1m_confidence.tolist() == [[-torch.inf], [-torch.inf]]


def test_ranks_follow_the_sorted_logits():
    args = problem(40, 50, 8)
    stats = head_statistics(args.input, args.linear_weight, args.target)
    order = (args.input @ args.linear_weight.T).argsort(dim=-1, descending=True, stable=True)
    torch.testing.assert_close(stats.rank, (order == args.target.unsqueeze(-1)).int().argmax(-1))
    torch.testing.assert_close(stats.rank == 0, stats.argmax == args.target)


@pytest.mark.parametrize("ignored", [0.3, 1.0])
def test_ignored_rows_are_blank_and_change_no_other(ignored):
    args = problem(30, 40, 8, ignored=ignored)
    keep = args.target != -100
    assert (~keep).sum() >= 5
    stats = head_statistics(args.input, args.linear_weight, args.target, top_k=2)
    alone = head_statistics(args.input[keep], args.linear_weight, args.target[keep], top_k=2)
    for name, got, want in zip(stats._fields, stats, alone, strict=True):
        torch.testing.assert_close(got[keep], want, rtol=1e-12, atol=1e-12)
        blank = got[~keep]
        assert (blank.isnan() if got.is_floating_point() else blank == -1).all(), name


def test_shapes_without_target_and_top_k():
    args = problem(12, 40, 8)
    hidden = args.input.reshape(3, 4, 8)
    stats = head_statistics(hidden, args.linear_weight, temperatures=(1.0, 2.0), top_k=5)
    assert stats.log_probability is stats.target_logit is stats.rank is None
    assert {x.shape for x in (stats.lse, stats.entropy, stats.confidence)} == {(3, 4, 2)}
    assert stats.argmax.shape == stats.max_logit.shape == (3, 4)
    top = (hidden @ args.linear_weight.T).topk(5, -1)
    torch.testing.assert_close(stats.top_logits, top.values)
    torch.testing.assert_close(stats.top_indices, top.indices)
    assert head_statistics(hidden, args.linear_weight).top_logits is None
    assert not stats.lse.requires_grad
    empty = head_statistics(hidden[:0], args.linear_weight)
    assert empty.lse.shape == (0, 4, 1)


def test_a_pass_is_bitwise_repeatable_and_wide_autocast_is_cast():
    args = problem(20, 300, 16).to(torch.float32)
    first, second = (head_statistics(args.input, args.linear_weight, args.target) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:11], second[:11], strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        cast = head_statistics(args.input.bfloat16(), args.linear_weight)
    direct = head_statistics(args.input.bfloat16(), args.linear_weight.bfloat16())
    assert torch.equal(cast.lse, direct.lse)


def test_strided_weights():
    args = problem(9, 30, 8)
    weight = args.linear_weight.detach()
    strided = torch.empty(8, 60, dtype=torch.float64)[:, ::2].T.copy_(weight)
    torch.testing.assert_close(head_statistics(args.input, strided).lse, head_statistics(args.input, weight).lse)


H, W, Y = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((H, W, Y), {"temperatures": 1.0}, TypeError, "temperatures must be a sequence of numbers, got float"),
        ((H, W, Y), {"temperatures": ()}, ValueError, "temperatures must not be empty"),
        ((H, W, Y), {"temperatures": (0.0,)}, ValueError, r"temperatures must be in \[1e-06, 1e\+06\], got 0"),
        ((H, W, Y), {"temperatures": (torch.nan,)}, ValueError, "temperatures must be in .*, got nan"),
        ((H, W, Y), {"temperatures": ("1",)}, TypeError, "temperatures must be Python numbers, got str"),
        ((H, W, Y), {"top_k": 6}, ValueError, r"top_k must be in \[0, 5\], got 6"),
        ((H, W, Y), {"top_k": 1.0}, TypeError, "top_k must be an int, got float"),
        ((H, W, Y), {"softcap": -1.0}, ValueError, "softcap must be None or .*, got -1"),
        ((H, W, Y), {"implementation": "x"}, ValueError, "implementation must be one of"),
        ((H, W, Y + 5), {}, ValueError, r"target must be in \[0, 5\) or equal ignore_index=-100, got 5"),
        ((H, W[:, :2], Y), {}, ValueError, "input must have shape"),
        ((H * torch.nan, W, Y), {}, ValueError, "must give finite logits, got nan or infinity"),
        ((H + 1, W + torch.tensor([[0, 0, 0], [torch.inf] * 3, *[[0, 0, 0]] * 3]), Y), {}, ValueError, "finite logits"),
        ((H + 1, W - torch.tensor([[0, 0, 0], [torch.inf] * 3, *[[0, 0, 0]] * 3]), Y), {}, ValueError, "finite logits"),
    ],
)
def test_refusals(arguments, options, error, text):
    with pytest.raises(error, match=text):
        head_statistics(*arguments, **options)


@pytest.mark.parametrize("tokens", [1, 3, 7, 40])
def test_blocks_within_a_product_give_what_one_block_gives(monkeypatch, tokens):
    args = problem(150, 41, 9)
    args.target[::5] = -100
    options = {"softcap": 3.0, "temperatures": (0.5, 1.0), "top_k": 3}
    one = head_statistics(args.input, args.linear_weight, args.target, **options)
    monkeypatch.setitem(BLOCK_BYTES, "cpu", tokens * 41 * args.linear_weight.element_size())
    several = head_statistics(args.input, args.linear_weight, args.target, **options)
    for name, expected in one._asdict().items():
        torch.testing.assert_close(
            getattr(several, name), expected, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )
