"""The loss in chunks of tokens: values and gradients, what is refused, when chunks are chosen, what a plan may write."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from chunks import exact_of_kept, float16_errors
from helpers import ALL_OPTIONS, call, eager, free_launches, ours, problem, relative_error, value_and_gradients
from torch.utils.checkpoint import checkpoint

from kernel.fused import last_round, launch
from kernel.fused.plan import PEAK_ROWS
from kernel.fused.schedule import schedule
from kernel.options import LossOptions

pytest.importorskip("triton")
calls, run_chunks, token_chunks, chunk_times, arguments = (
    importlib.import_module(f"kernel.fused.{name}")
    for name in ("call", "run_chunks", "token_chunks", "chunk_times", "arguments")
)
Chunks, ChunkTimes = chunk_times.Chunks, chunk_times.ChunkTimes
HOPPER = launch._TABLES["hopper", 2]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="test_token_chunks_cuda.py covers the device")


@pytest.fixture
def cut(monkeypatch):
    """Cuts the tokens of every loss that may be cut; returns the sizes of the chunks that were computed."""
    seen, forward = [], run_chunks.forward

    def cut(rows):
        monkeypatch.setattr(calls.LossCall, "chunks", lambda self: Chunks(rows))

    def counted(*args, chunk, **kwargs):
        seen.append(len(chunk.source))
        return forward(*args, chunk=chunk, **kwargs)

    monkeypatch.setattr(run_chunks, "forward", counted)
    cut.seen = seen
    with free_launches():
        yield cut


@no_gpu
@pytest.mark.parametrize(
    ("rows", "d", "workspace_bytes", "options"),  # of 16 and 40 columns tiles of both gradients are transposed
    [
        (16, 16, 6_000, {"label_smoothing": 0.1}),
        (32, 40, 6_000, {"softcap": 3.0, "label_smoothing": 0.1, "reduction": "sum"}),
        (16, 20, 0, ALL_OPTIONS),
    ],
    ids=["smoothed", "capped sum", "all"],
)
def test_loss_and_gradients(rows, d, workspace_bytes, options, cut):
    """The upstream gradient is 1/2; the last chunk is shorter, and the tokens kept differ from chunk to chunk."""
    args = problem(41, 71, d, bias=True, weighted=True, ignored=0.3, seed=1)
    with torch.no_grad():
        args.target[16:30] = -100
    exact = value_and_gradients(eager, args, **options)
    cut(rows)
    args = args.to(torch.float32)
    got = value_and_gradients(ours, args, workspace_bytes=workspace_bytes, **options)
    assert cut.seen == [len(part) for part in args.target.split(rows)]
    for a, b in zip(got, exact, strict=True):
        assert relative_error(a, b) < 2e-6
    if options.keys() == {"label_smoothing"}:
        again = value_and_gradients(ours, args, workspace_bytes=workspace_bytes, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.fixture
def half(cut, monkeypatch):
    """Cuts sixteen tokens of float16, whose kernels are those of bfloat16, which the interpreter cannot multiply."""
    monkeypatch.setattr(calls.LossCall, "serves_chunks", lambda *args: True)

    cut(16)
    return float16_errors


@no_gpu
@pytest.mark.parametrize("d", [16, 20, 40])
def test_sixteen_chunks_round_the_sums_to_float16(d, half, cut):
    """By 0.0006: to bfloat16 they would be 0.0050 off; products alone are 0.0003."""
    args = problem(256, 40, d, seed=1)
    errors, got = half(args, label_smoothing=0.1)
    assert set(cut.seen) == {16}
    assert errors[1] < 4e-4
    assert 3e-4 < errors[2] < 9e-4
    again = value_and_gradients(ours, args.to(torch.float16), label_smoothing=0.1)
    assert all(torch.equal(a, b) for a, b in zip(got, again[:3], strict=True))


@no_gpu
def test_sums_are_complete_where_the_last_chunks_have_no_token(half, cut):
    """Ignored ones hold what is no number; an infinite hidden state among the kept is seen in all of the gradient."""
    args = problem(96, 40, 16, seed=1)
    with torch.no_grad():
        args.target[torch.randperm(96)[:50]] = -100
        args.input[args.target == -100] = torch.nan
    options = {"softcap": 3.0, "label_smoothing": 0.1}
    exact = exact_of_kept(args, **options)
    errors, _ = half(args, exact, **options)
    assert set(cut.seen) == {16}
    assert max(errors) < 8e-4
    with torch.no_grad():
        args.input[(args.target >= 0).nonzero()[20], 3] = torch.inf
    with np.errstate(invalid="ignore"):
        assert not half(args, exact)[1][2].isfinite().any()


@no_gpu
def test_tokens_of_very_different_weight(half):
    args = problem(64, 40, 16, seed=1, weighted=True)
    with torch.no_grad():
        args.token_weight.mul_(torch.logspace(-9, 0, 64)[torch.randperm(64)])
    errors, _ = half(args, label_smoothing=0.1, reduction="sum")
    assert max(errors) < 8e-4


@no_gpu
def test_a_factor_of_one_leaves_the_gradients_as_they_are_and_others_join(cut):
    args = problem(24, 40, 16, seed=1).to(torch.float32)
    leaves = args.input, args.linear_weight
    cut(16)
    whole = torch.autograd.grad(ours(*args[:3]), leaves)
    for a, b in zip(torch.autograd.grad(torch.tensor(-3.0) * ours(*args[:3]), leaves), whole, strict=True):
        torch.testing.assert_close(a, -3 * b)
    ours(*args[:3]).backward()
    for leaf, b in zip(leaves, whole, strict=True):
        assert torch.equal(leaf.grad, b)
    (2 * ours(*args[:3]) + args.input.square().sum()).backward()  # joins what is there
    torch.testing.assert_close(args.input.grad, 3 * whole[0] + 2 * args.input.detach())
    torch.testing.assert_close(args.linear_weight.grad, 3 * whole[1])


@no_gpu
@pytest.mark.parametrize("workspace_bytes", [2**27, 2**28])
def test_a_trainers_number_of_items_comes_in_before_the_products(workspace_bytes, cut, monkeypatch):
    """So that no other factor than 1 is left for the backward, which would read and write every gradient once more."""
    from tiny_models import make

    from kernel.huggingface import fuse_loss

    factors, scale = [], run_chunks.scale
    monkeypatch.setattr(run_chunks, "scale", lambda gs, f: factors.append(f.item()) or scale(gs, f))
    model, tokens = make(), torch.arange(40).view(2, 20)
    fuse_loss(model, label_smoothing=0.1, implementation="triton", workspace_bytes=workspace_bytes, verify=False)
    cut(16)
    for number in (76, torch.tensor(76)):
        model(tokens, labels=tokens, num_items_in_batch=number).loss.backward()
    assert (factors, cut.seen) == ([1.0, 1.0], [16, 16, 8] * 2)


@no_gpu
def test_a_second_backward_computes_the_gradients_again(cut):
    args = problem(24, 40, 16, seed=1).to(torch.float32)
    leaves = args.input, args.linear_weight
    cut(16)
    loss = ours(*args[:3])
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [g.clone() for g in first]
    assert len(cut.seen) == 2
    for a, b, c in zip(torch.autograd.grad(2 * loss, leaves, retain_graph=True), first, kept, strict=True):
        torch.testing.assert_close(a, 2 * b)
        assert torch.equal(b, c)
    assert len(cut.seen) == 4
    with torch.no_grad():
        args.linear_weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(ours(*args[:3]), leaves, create_graph=True)
    loss = ours(*args[:3])
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@no_gpu
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoint(use_reentrant, cut):
    """Without re-entering the gradients of the first forward serve, with it those of the one in the backward."""
    args = problem(17, 40, 16, seed=1).to(torch.float32)
    leaves = args.input, args.linear_weight
    cut(16)
    want = torch.autograd.grad(ours(*args[:3]), leaves)
    (checkpoint(ours, *args[:3], use_reentrant=use_reentrant) * 2).backward()
    for leaf, b in zip(leaves, want, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * b)
    assert cut.seen == [16, 1] * 2


@no_gpu
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_token_kept(reduction, cut):
    args = problem(24, 40, 16, bias=True, ignored=2.0).to(torch.float32)
    cut(16)
    value, *gradients = value_and_gradients(ours, args, reduction=reduction, label_smoothing=0.1)
    assert len(cut.seen) == 2
    assert value.isnan() if reduction == "mean" else value == 0
    assert not any(g.any() for g in gradients)


@no_gpu
def test_rows_that_do_not_follow_each_other_and_frozen_arguments(cut):
    args = problem(24, 40, 16, bias=True, seed=1).to(torch.float32)
    want = torch.autograd.grad(ours(*args[:3], linear_bias=args.linear_bias), args[1])[0]
    spread = torch.zeros(16, 24).T.copy_(args.input.detach())
    cut(16)
    options = {"linear_bias": args.linear_bias.detach()}
    (got,) = torch.autograd.grad(ours(spread, args.linear_weight, args.target, **options), args[1])
    assert len(cut.seen) == 2
    torch.testing.assert_close(got, want)
    ours(args.input, args.linear_weight.detach(), args.target).backward()  # of the hidden states alone: not worth it
    assert len(cut.seen) == 2


@no_gpu
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"return_statistics": True},
        {"gradient_tolerance": 0.1},
        {"no_grad": True},
        {"half": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_not_cut(options, cut):
    options = dict(options)
    dtype = torch.float16 if options.pop("half", False) else torch.float32
    args = problem(24, 40, 16).to(dtype)
    cut(16)
    with torch.set_grad_enabled(not options.pop("no_grad", False)):
        call(args, implementation="triton", **options)
    assert cut.seen == []


HEADS = {
    "Gemma-2-2B": (8192, 256000, 2304),
    "Llama-3-8B": (4096, 128256, 4096),
    "Qwen2.5-0.5B": (16384, 151936, 896),
    "N 16384": (16384, 248320, 2048),
    "D 640": (12288, 262144, 640),
    "GPT-2": (8192, 50257, 768),
}
BFLOAT16 = {"direct": True, "in_bytes": True, "default": False, "keep": True, "processors": 132, "table": HOPPER}


def chosen(shape, mib, **kinds):
    return token_chunks.token_chunks(*shape, 2, int(mib * 2**20), **(BFLOAT16 | kinds))


def test_chunks_are_chosen_where_they_save_time_by_the_model():
    found = {name: -(-shape[0] // chosen(shape, 1150).rows) for name, shape in HEADS.items()}
    assert {name for name, chunks in found.items() if chunks > 2} >= {"Qwen2.5-0.5B", "N 16384", "D 640"}
    assert found["Llama-3-8B"] == found["GPT-2"] == 1, "all is kept without"
    for shape in HEADS.values():
        assert chosen(shape, 1150, default=True).rows == shape[0], "nobody chose that budget"


def plan_bytes(plan, rows):
    """Bytes of a plan of bfloat16 outside the gradients, with the peaks of columns in bytes."""
    return 2 * plan.memory + sum(run.columns // 256 * 4 * rows * PEAK_ROWS for run in plan.kept if run.in_bytes)


def test_random_problems_fit_their_budgets():
    """Some are cut and some are not; a budget below a tile of dz for all rows of a chunk is that tile."""
    random, cuts = np.random.default_rng(0), []
    for _ in range(30):
        n, v, d = (int(2 ** random.uniform(*of)) for of in ((11, 17), (12, 18), (6, 12)))
        kinds = [{}, {"in_bytes": False}, {"in_bytes": False, "direct": False}][random.integers(3)]
        table = launch._fitting("hopper", 2, d)
        budget = int(2 ** random.uniform(22, 32))
        (rows,) = token_chunks.token_chunks(n, v, d, 2, budget, **(BFLOAT16 | kinds | {"table": table}))
        common = {kind: (BFLOAT16 | kinds)[kind] for kind in ("direct", "in_bytes", "processors")}
        times = ChunkTimes(n, v, d, 2, common | {"table": table})
        plans = times.plans(rows, budget)
        assert 0 < rows <= n
        assert rows == n or rows % 128 == 0
        assert -(-n // rows) <= 32
        for plan in plans[: 1 + (rows < n)]:
            assert plan_bytes(plan, rows) <= max(budget, 2 * rows * 256)
        cuts.append(rows < n)
    assert 6 <= sum(cuts) <= 24


def test_the_last_chunk_is_counted_as_it_is():
    """256 tokens more than seven chunks of 2304 take what the launches of a chunk do and little else."""
    _, v, d = HEADS["Qwen2.5-0.5B"]
    kinds = {kind: BFLOAT16[kind] for kind in ("direct", "in_bytes", "processors", "table")}
    times = [ChunkTimes(n, v, d, 2, kinds) for n in (7 * 2304, 7 * 2304 + 256, 8 * 2304)]
    seven, some, eight = (time.in_chunks(2304, time.plans(2304, 2**30)) for time in times)
    assert 0 < some - seven - times[0].apart < 0.25 * (eight - seven - times[0].apart)


@pytest.mark.parametrize("name", list(HEADS))
def test_every_choice_fits_its_budget_and_more_memory_is_no_slower(name):
    shape = n, _, _ = HEADS[name]
    kinds = {kind: BFLOAT16[kind] for kind in ("direct", "in_bytes", "processors", "table")}
    times = ChunkTimes(*shape, 2, kinds)
    least = float("inf")
    for mib in (32, 96, 256, 600, 1024, 2048, 4096):
        (rows,) = chosen(shape, mib)
        plans = first, later = times.plans(rows, mib * 2**20)
        assert rows == n or (rows % 128 == 0 and 32 * rows >= n)
        assert all(plan_bytes(plan, rows) <= mib * 2**20 for plan in plans)
        assert not later.in_gradient
        assert not (later.scaled_in_gradient and later.kept and later.strips)
        assert all(strip.offset is None for strip in later.strips)
        time = times.microseconds(n, first) if rows == n else times.in_chunks(rows, plans)
        assert time < 1.03 * least
        least = min(least, time)


def test_few_tiles_of_the_input_gradient_occupy_the_device():
    """768 tokens of hidden size 896 are 24 tiles, cut into five; 1024 are 32 in four; 3072 of 640 72 in five or three."""
    for blocks, columns, room, least in ((6, 4, 122, 0.78), (8, 4, 120, 0.87), (24, 3, 200, 0.78), (24, 3, 72, 0.75)):
        assert blocks * columns / 132 / last_round.rounds(blocks, columns, 132, room) > least


def test_of_many_lengths_few_have_a_plan_of_their_own():
    shape = HEADS["Qwen2.5-0.5B"]
    sizes = {chosen((n, *shape[1:]), 1150).rows for n in range(shape[0] - 511, shape[0] + 1)}
    assert len(sizes) == 1


def test_softcaps_and_float32_are_cut_too():
    shape = HEADS["N 16384"]
    assert chosen(shape, 2048, direct=False, in_bytes=False).rows < shape[0]
    table = launch._TABLES["hopper", 4]
    one = BFLOAT16 | {"in_bytes": False, "table": table}
    assert token_chunks.token_chunks(*shape, 4, 4 * 2**30, **one).rows < shape[0]
    assert token_chunks.token_chunks(*shape, 2, 2**31, **(BFLOAT16 | {"keep": False})).rows == shape[0]


def test_plans_of_later_chunks_leave_the_gradient_alone():
    small = launch._TABLES["interpreter", 4]
    for n, v, d, share in ((48, 700, 24, 0.3), (16, 200, 64, 0.6), (100, 900, 8, 1.2), (33, 130, 20, 0.0)):
        for direct in (True, False):
            kinds = {"keep": True, "direct": direct, "consumed": True, "weight_gradient": True, "processors": 3}
            with free_launches():
                plan = schedule(n, v, d, 4, int(share * 4 * n * v), table=small, sums=True, **kinds)
            assert not plan.in_gradient
            assert all(strip.offset is None for strip in plan.strips)
            assert 4 * plan.memory <= max(int(share * 4 * n * v), 4 * n * 32)
            covered = sum(strip.padded for strip in plan.strips) + plan.columns
            assert covered == -(-v // 32) * 32


@pytest.mark.parametrize(
    ("dtype", "z_loss", "served"),
    [
        (torch.float32, 0.1, True),
        (torch.bfloat16, 0.0, True),
        (torch.bfloat16, 0.1, False),
        (torch.float16, 0.0, False),
    ],
)
def test_what_sums_may_become_is_known_where_tokens_are_cut(dtype, z_loss, served):
    hidden, weight = torch.zeros(3, 4, dtype=dtype), torch.zeros(5, 4, dtype=dtype)
    head = arguments.Head(hidden, weight, None, torch.zeros(3, dtype=torch.int64))
    call = calls.LossCall(head, arguments.Scalars.of(LossOptions(z_loss=z_loss)), 2**30)
    assert call.serves_chunks((True, True, False), False, False) is served
