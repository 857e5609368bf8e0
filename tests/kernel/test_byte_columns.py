"""Columns of the softmax in one byte: codes, gradients at every kind of plan, what may not change with them."""

from __future__ import annotations

import importlib
import math

import fuzz
import pytest
import torch
from helpers import eager, free_launches, ours, problem, relative_error, value_and_gradients

from kernel import linear_cross_entropy
from kernel.benchmark import byte_codes
from kernel.fused.launch import Launch, LaunchTable, set_launch_table
from kernel.fused.plan import peaks_of

triton = pytest.importorskip("triton")
tl = triton.language
LossCall = importlib.import_module("kernel.fused.call").LossCall
forward = importlib.import_module("kernel.fused.run_forward").forward
arguments, byte_columns, byte_peaks, schedule = (
    importlib.import_module(f"kernel.fused.{name}") for name in ("arguments", "byte_columns", "byte_peaks", "schedule")
)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_fused_cuda.py covers the device")
INPUT, WEIGHT, RARE = 0.0030, 0.0030, 0.0050
MIXED = {"z_loss": 1e-3, "confidence_penalty": 0.1}  # what adds to the gradient of a logit


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """Plans of the losses of a test. Bytes serve what the interpreter multiplies, too, at budgets as small as its sizes."""
    found, plan = [], LossCall.plan
    monkeypatch.setattr(arguments, "BYTES_SERVE", frozenset({torch.float16, torch.float32}))
    monkeypatch.setattr(LossCall, "plan", lambda self, **kinds: found.append(plan(self, **kinds)) or found[-1])
    monkeypatch.setattr(schedule, "LEAST_DEFAULT_BYTES", 0)
    schedule.schedule.cache_clear()
    with free_launches():
        yield found
    schedule.schedule.cache_clear()


@triton.jit(do_not_specialize=["tile"])
def coded(z, reference, p, tile, n: tl.constexpr, COLUMNS: tl.constexpr, PEAKS: tl.constexpr):
    """What bytes of logits in bits are decoded to, relative to the tile's largest."""
    row = tl.arange(0, n)
    at = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    bits = tl.reshape(tl.load(z + at), (n, PEAKS, COLUMNS // PEAKS))
    peaks = tl.maximum(tl.max(bits, 2), -1e37)
    largest, peaks, numbers, gains, shifts = byte_peaks.coded_peaks(peaks, tl.min(bits, 2))
    root = tl.exp2(bits * 0.25 - (peaks * 0.25)[:, :, None])
    code = byte_columns.to_byte(root, gains[:, :, None], shifts[:, :, None]).to(tl.float32)
    byte_peaks.store_peaks(reference, tile, n, row, row < n, largest, numbers, PEAKS)
    peaks, gains = byte_peaks.load_peaks(reference, tile, n, row, row < n, PEAKS)
    root = (code + (gains - 255.0)[:, :, None]) / gains[:, :, None]
    root *= root
    found = root * root * tl.exp2(peaks - largest[:, None])[:, :, None]
    tl.store(p + at, tl.reshape(found, (n, COLUMNS)))


def rows_of_logits(spread, shift, columns, peaks):
    """In bits: of one spread; and rows with a large one, a small one, -inf, -inf alone, and of blocks far apart."""
    z = spread * torch.randn(32, columns) + shift
    z[1, 5] += 7
    z[2, 9] -= 3
    z[3, 3], z[4, columns // 2 :], z[5] = -math.inf, -math.inf, -math.inf
    z[6:20] += 4 * torch.rand(14, peaks, 1).repeat(1, 1, columns // peaks).view(14, -1)
    return z


@pytest.mark.parametrize("columns", [32, 128, 256])
def test_codes_are_off_by_half_a_step_of_the_fourth_root(columns):
    """A step is 1 / 255 of the peak, or what covers the logits, where they lie close to each other, in 255."""
    peaks = peaks_of(columns)
    seen = set()
    for spread in (0.0, 1e-7, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0):
        for shift in (0.0, 1000.0):
            z, p, reference = (
                rows_of_logits(spread, shift, columns, peaks),
                torch.zeros(32, columns),
                torch.zeros(3, 32),
            )
            coded[(1,)](z, reference, p, 0, 32, columns, peaks)
            z, p = z.double().view(32, peaks, -1), p.double().view(32, peaks, -1)
            largest, peak, lowest = z.amax((1, 2))[:, None], z.amax(2), z.amin(2)
            exact = torch.exp2(z - largest[..., None]).nan_to_num(0)
            # The finest that covers the spread with an eighth for rounding the peak up, within 4 times as much of the
            # tile's largest.
            covers = torch.maximum((peak - lowest) * 8 / 7 + shift / 2**21, (largest - peak) / 4) * 1.0001
            which = torch.floor(torch.log2(8 / covers.clamp(min=1e-9))).nan_to_num(-1).clamp(-1, 5)
            seen |= set(which.flatten().tolist())
            gains = torch.where(which < 0, 255, 127 + 184 * 2**which)
            off = (p**0.25 - exact**0.25).abs() / exact.amax(2, keepdim=True).clamp(min=2**-15) ** 0.25
            assert (off * gains[..., None]).max() < 0.5 * 2**0.25  # a peak may be a bit too high
    assert seen == set(range(-1, 6))


def test_the_study_of_codes_decodes_what_the_kernels_do():
    """But for a code or a peak that float32 rounds to the other side."""
    for spread in (0.01, 0.03, 0.3, 1.0, 3.0):
        z = rows_of_logits(spread, 0.0, 256, 4)[6:]
        z = torch.cat([z, z[:6]])  # 32 rows, none of which has -inf
        p, reference = torch.zeros(32, 256), torch.zeros(3, 32)
        coded[(1,)](z, reference, p, 0, 32, 256, 4)
        largest, nats = z.double().amax(1, keepdim=True), math.log(2)
        study = byte_codes.by_gain(z.double() * nats, z.double() * nats, largest * nats)
        off = (p**0.25 - study**0.25).abs()
        assert off.max() < 1 / 200
        assert (off > 1e-6).double().mean() < 0.001


@pytest.mark.parametrize("sign", [-1, 1])
def test_codes_of_logits_that_float32_hardly_resolves_stay_in_their_byte(sign):
    """Of 2^20 bits it tells an eighth of a bit: a peak rounded up by more than its codes reach would wrap around."""
    for spread in (0.0, 0.1, 0.3, 1.0, 3.0):
        z, p, reference = sign * 2.0**20 + spread * torch.randn(32, 256), torch.zeros(32, 256), torch.zeros(3, 32)
        coded[(1,)](z, reference, p, 0, 32, 256, 4)
        exact = torch.exp2(z - z.amax(1, keepdim=True))
        assert ((p**0.25 - exact**0.25).abs() < 0.5 / 255 * 1.2 + 0.125 / 4).all()


@pytest.mark.parametrize("shift", [-3000.0, 22_720.0])
def test_a_constant_added_to_all_logits_changes_no_code(shift, plans):
    """But by what float32 makes of the logits themselves: the largest of a token's columns has the last code."""
    args = problem(24, 250, 24, bias=True, seed=3).to(torch.float32)
    with torch.no_grad():
        args.linear_bias.add_(shift)
    exact = value_and_gradients(eager, args.to(torch.float64), label_smoothing=0.1)
    got = value_and_gradients(ours, args, workspace_bytes=7_000, label_smoothing=0.1)
    assert any(run.in_bytes for run in plans[0].kept)
    for a, b in zip(got, exact, strict=True):
        assert relative_error(a, b) < 0.0010
    call = LossCall(arguments.Head(*(t.detach() for t in (args.input, args.linear_weight, args.linear_bias)), args.target),
                    arguments.Scalars(0.1, 0.0, 1.0, 1.0, 0.0, 0.0, -100), 7_000)  # fmt: skip
    held = call.held(call.plan(keep=True, consumed=True, weight_gradient=True))
    forward(call.head, call.scalars, held.kept, packed=True, return_statistics=False)
    (strips, *_) = held.kept
    codes = strips.columns.view(strips.number, -1, strips.width // 32, 32)[:, :24]
    assert codes.amax(-1).min() == 255


@pytest.mark.parametrize("options", [{}, MIXED], ids=["plain", "mixed"])
def test_a_target_of_nearly_all_mass_hides_no_runner_up_beside_it(options, plans):
    """It would if the 32 columns of both were coded relative to the target, 6 nats above: in steps of 7%."""
    args = problem(16, 256, 24, seed=0).to(torch.float32)
    with torch.no_grad():
        args.target.copy_(torch.arange(16) * 16 + 2)
        args.linear_weight.mul_(0.02)
        directions = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))[0][:16]
        args.input.copy_(20 * directions)
        args.linear_weight[args.target] = 0.6 * directions
        args.linear_weight[args.target + 1] = 0.3 * directions
    exact = value_and_gradients(eager, args.to(torch.float64), **options)
    got = value_and_gradients(ours, args, workspace_bytes=3_600, **options)
    assert any(run.in_bytes for run in plans[0].kept)
    for a, b in zip(got[:3], exact[:3], strict=True):
        assert relative_error(a, b) < 0.0004


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, MIXED], ids=["smoothed", "mixed"])
def test_gradients_are_within_the_bounds_and_repeat(options, dtype, plans):
    args = problem(24, 250, 24, bias=True, weighted=True, ignored=0.3, seed=3).to(dtype)
    exact = value_and_gradients(eager, args.to(torch.float64), **options)
    rare = torch.ones(250, dtype=torch.bool)
    rare[args.target[args.target != -100]] = False
    budget = 3_500 if dtype == torch.float16 else 7_000
    got, again = (value_and_gradients(ours, args, workspace_bytes=budget, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    (of_gradient, *_) = plans[0].kept
    assert of_gradient.in_gradient
    assert of_gradient.in_bytes
    assert relative_error(got[0], exact[0]) < 1e-6
    for a, b, most in zip(got[1:], exact[1:], (INPUT, WEIGHT, WEIGHT), strict=True):
        assert relative_error(a, b) < most
    assert relative_error(got[2][rare], exact[2][rare]) < RARE


def test_two_bytes_for_the_rest_and_one_for_what_they_do_not_hold(plans):
    args = problem(32, 320, 16, bias=True, seed=1).to(torch.float32)
    exact = value_and_gradients(eager, args.to(torch.float64), label_smoothing=0.1)
    seen = set()
    for workspace_bytes in (16_000, 20_000):
        plans.clear()
        got = value_and_gradients(ours, args, workspace_bytes=workspace_bytes, label_smoothing=0.1)
        (found,) = plans
        assert found.columns == 320
        seen.add(tuple((run.in_gradient, run.in_bytes) for run in found.kept))
        for a, b in zip(got, exact, strict=True):
            assert relative_error(a, b) < INPUT
    assert seen == {((True, True), (False, True)), ((True, True), (False, False))}


def test_tiles_of_several_peaks(plans):
    cpu = torch.device("cpu")
    args = problem(20, 700, 16, ignored=0.2, seed=2).to(torch.float32)
    exact = value_and_gradients(eager, args.to(torch.float64), label_smoothing=0.1)
    set_launch_table(cpu, torch.float32, LaunchTable(*[Launch(16, 128, 16, warps=4, stages=1)] * 4))
    try:
        got = value_and_gradients(ours, args, workspace_bytes=18_000, label_smoothing=0.1)
    finally:
        set_launch_table(cpu, torch.float32, None)
    assert any(run.in_bytes for run in plans[0].kept)
    for a, b in zip(got[:3], exact[:3], strict=True):
        assert relative_error(a, b) < INPUT


def test_padding_coarsens_no_rows_at_the_end_of_the_head(plans):
    """Near an optimum, where logits are close; 20 of the last 64 columns are padding."""
    n, v, d, smoothing = 20, 300, 24, 0.1
    hidden = math.sqrt(d) * torch.eye(d)[:n]
    target = torch.randperm(256)[:n]
    weight = 0.03 * torch.randn(v, d) / math.sqrt(d)
    weight[target] = math.log((1 - smoothing) * v / smoothing + 1) / math.sqrt(d) * torch.eye(d)[:n]
    found, cpu = {}, torch.device("cpu")
    set_launch_table(cpu, torch.float32, LaunchTable(*[Launch(16, 64, 16, warps=4, stages=1)] * 4))
    try:
        for dtype, options in (
            (torch.float64, {"implementation": "reference"}),
            (torch.float32, {"workspace_bytes": 8_000}),
        ):
            leaf = weight.to(dtype, copy=True).requires_grad_()
            loss = linear_cross_entropy(
                hidden.to(dtype), leaf, target, label_smoothing=smoothing, **{"implementation": "triton", **options}
            )
            (found[dtype],) = torch.autograd.grad(loss, leaf)
    finally:
        set_launch_table(cpu, torch.float32, None)
    assert any(run.in_bytes and run.start + run.columns >= v for run in plans[0].kept)
    assert relative_error(found[torch.float32][256:], found[torch.float64][256:]) < 0.02


def test_columns_under_dz_and_strips_that_the_gradient_holds_wider(plans, monkeypatch):
    """Where the model finds that quick: here each plan with strips in the gradient's memory is the quickest."""
    planner = importlib.import_module("kernel.fused.planner")
    made = planner.in_bytes

    def wide(*sizes):
        found = [p for p in made(*sizes) if any(s.kept and s.offset == 0 for s in p.series)]
        return [p._replace(time=0.0) for p in found if len(p.kept) == 3]

    monkeypatch.setattr(planner, "in_bytes", wide)
    monkeypatch.setattr(planner.Planner, "near", lambda *_: float("inf"))  # else slow ones are not made
    args = problem(48, 990, 12, ignored=0.2, bias=True, seed=2).to(torch.float16)
    exact = value_and_gradients(eager, args.to(torch.float64), label_smoothing=0.1)
    got = value_and_gradients(ours, args, workspace_bytes=19_200, label_smoothing=0.1)
    (last, _, others), strips = plans[0].kept, plans[0].strips
    assert not last.in_gradient
    assert not others.in_gradient
    assert any(s.kept and s.offset == 0 for s in strips)
    assert any(not s.kept for s in strips), "four parts of the forward's sweep"
    for a, b in zip(got, exact, strict=True):
        assert relative_error(a, b) < 0.0015


def test_a_second_backward_and_gradients_of_statistics(plans):
    args = problem(24, 250, 24, seed=3).to(torch.float32)
    leaves = args.input, args.linear_weight

    def total(*given, **options):
        loss, of = linear_cross_entropy(*given, reduction="none", return_statistics=True, **options)
        return loss.mean() + 0.1 * (of.log_probability - of.lse).mean(), of.entropy.mean()

    loss, entropy = total(*args[:3], implementation="triton", workspace_bytes=7_000)
    assert any(run.in_bytes for run in plans[0].kept)
    double = args.to(torch.float64)
    loss64, entropy64 = total(*double[:3], implementation="reference")
    want = [torch.autograd.grad(x, double[:2], retain_graph=True) for x in (loss64, entropy64)]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(entropy, leaves)
    for got, exactly, most in ((first, want[0], INPUT), (second, want[1], 2e-6)):  # the second computes logits anew
        for a, b in zip(got, exactly, strict=True):
            assert relative_error(a, b) < most


def test_the_registered_operators_keep_bytes_and_leave_them(plans):
    from kernel.fused.operators import fused_forward

    args = problem(32, 320, 16, bias=True, ignored=0.3, seed=1).to(torch.float32)
    tensors = args.input, args.linear_weight, args.linear_bias
    # Of this budget the eager function keeps some columns in bytes and others as they are, an operator one kind.
    arguments_ = (*tensors, args.target, [0.1, 0.0, 1.0, 1.0, 0.0, 0.0], [-100, 19_000], [True, True, False])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(fused_forward, arguments_, test_utils=tests)
    loss = fused_forward(*arguments_)[0]
    assert any(run.in_bytes for run in plans[-1].kept)
    leaves = args.to(torch.float64)
    options = {"linear_bias": leaves.linear_bias, "label_smoothing": 0.1, "reduction": "none"}
    want = torch.autograd.grad(eager(*leaves[:3], **options).sum(), (leaves.input, leaves.linear_weight))
    first = torch.autograd.grad(loss.sum(), tensors[:2], retain_graph=True)
    second = torch.autograd.grad(loss.sum(), tensors[:2])
    for a, b, c in zip(first, second, want, strict=True):
        assert torch.equal(a, b)
        assert relative_error(a, c) < INPUT


@pytest.mark.filterwarnings("ignore:(invalid value encountered|All-NaN slice):RuntimeWarning")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen_in_the_gradients(wrong, plans):
    args = problem(24, 250, 24, seed=3).to(torch.float32)
    with torch.no_grad():
        args.input[3, 5] = wrong
    got = value_and_gradients(ours, args, workspace_bytes=7_000)
    assert any(run.in_bytes for run in plans[0].kept)
    assert not torch.isfinite(got[0])
    assert not torch.isfinite(got[1][3]).any()
    assert not torch.isfinite(got[2]).all(1).any()


def test_up_to_the_default_budget_only_the_first_columns_are_not_in_two_bytes(plans, monkeypatch):
    monkeypatch.setattr(schedule, "LEAST_DEFAULT_BYTES", 20_000)
    args = problem(24, 250, 24, seed=3).to(torch.float32)
    for workspace_bytes in (7_000, 20_000, 20_001):
        ours(*args[:3], workspace_bytes=workspace_bytes)
    assert [[run.in_bytes for run in plan.kept] for plan in plans] == [[True], [True, True], [False, False]]
    assert plans[1].columns >= 250


def test_under_a_softcap_and_in_other_dtypes_nothing_is_in_bytes(monkeypatch):
    scalars = arguments.Scalars(0.1, 30.0, 1.0, 1.0, 0.0, 0.0, -100)
    assert not scalars.in_bytes(torch.float16)
    monkeypatch.undo()
    plain = arguments.Scalars(0.1, 0.0, 1.0, 1.0, 0.0, 0.0, -100)
    serve = [dtype for dtype in (torch.bfloat16, torch.float16, torch.float32) if plain.in_bytes(dtype)]
    assert serve == [torch.bfloat16]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of what keep.py repairs
@pytest.mark.parametrize("index", [1, 5, 8])
def test_random_calls(index, monkeypatch):
    monkeypatch.setitem(fuzz.EPSILON, torch.float16, fuzz.EPSILON[torch.bfloat16])
    family = fuzz.replace(fuzz.FAMILIES[index], dtype=torch.float16)
    draw = fuzz.Draw(family, seed=100 + index, device="cpu", most=(40, 160, 32), tile=32)
    for trial in range(3):
        call = draw.call(first=True)
        found = fuzz.errors(call, family)
        assert max(found.values()) <= 1, (trial, found, call.said, call.options)
