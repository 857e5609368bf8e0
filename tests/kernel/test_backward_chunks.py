"""The backward in chunks of tokens: gradients, memory, when chunks are chosen, what is not cut."""

from __future__ import annotations

import importlib
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from chunks import exact_of_kept, float16_errors
from helpers import ALL_OPTIONS, Peak, eager, free_launches, ours, problem, relative_error, value_and_gradients

from kernel import linear_cross_entropy
from kernel.fused import backward_chunks, default_workspace_bytes, launch
from kernel.fused.schedule import schedule
from kernel.options import LossOptions

pytest.importorskip("triton")
calls, run_backward_chunks, arguments = (
    importlib.import_module(f"kernel.fused.{name}") for name in ("call", "run_backward_chunks", "arguments")
)
HOPPER = launch._TABLES["hopper", 2]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="test_backward_chunks_cuda.py covers the device")


@pytest.fixture
def cut(monkeypatch):
    """Cuts the tokens of every backward that may be cut; returns the sizes of the chunks that were computed."""
    seen, pack = [], run_backward_chunks.pack_hidden
    serves = calls.LossCall.serves_backward_chunks

    def cut(rows):
        def chosen(self, whole, needs):
            return min(rows, len(self.head.target)) if serves(self, needs) else len(self.head.target)

        monkeypatch.setattr(calls.LossCall, "backward_rows", chosen)

    def counted(hidden, chunk, packed):
        seen.append(len(packed))
        pack(hidden, chunk, packed)

    monkeypatch.setattr(run_backward_chunks, "pack_hidden", counted)
    cut.seen = seen
    with free_launches():
        yield cut


@no_gpu
@pytest.mark.parametrize(
    ("rows", "workspace_bytes", "options"),
    [
        (16, 6_000, {"label_smoothing": 0.1}),
        (32, 6_000, {"softcap": 3.0, "label_smoothing": 0.1, "reduction": "sum"}),
        (16, 0, {"label_smoothing": 0.1, "reduction": "none"}),
        (16, 2**20, ALL_OPTIONS),
    ],
    ids=["mean", "capped sum", "none", "all"],
)
def test_loss_and_gradients(rows, workspace_bytes, options, cut):
    """Token weights, a bias and ignored tokens, of which a chunk in the middle has no others."""
    args = problem(40, 70, 16, bias=True, weighted=True, ignored=0.3, seed=1)
    with torch.no_grad():
        args.target[16:30] = -100
    exact = value_and_gradients(eager, args, **options)
    args = args.to(torch.float32)
    whole = value_and_gradients(ours, args, workspace_bytes=workspace_bytes, **options)
    assert cut.seen == []
    cut(rows)
    got = value_and_gradients(ours, args, workspace_bytes=workspace_bytes, **options)
    assert cut.seen == [len(part) for part in args.target.split(rows)]
    assert torch.equal(got[0], whole[0]), "the forward is the same but for what it keeps"
    for a, b in zip(got, exact, strict=True):
        assert relative_error(a, b) < 2e-6
    again = value_and_gradients(ours, args, workspace_bytes=workspace_bytes, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@no_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "need", [(True, False, True), (True, False, False), (False, False, True), (False, True, False)]
)
def test_frozen_arguments(need, dtype, cut):
    """A head that is frozen has no sums that chunks share, so that float16 is cut, too."""
    args = problem(40, 70, 16, bias=True, ignored=0.3, seed=1)
    names = "input", "linear_weight", "linear_bias"

    def gradients(loss, to):
        given = args.to(to)
        tensors = [
            tensor if needed else tensor.detach()
            for tensor, needed in zip((given.input, given.linear_weight, given.linear_bias), need, strict=True)
        ]
        value = loss(*tensors[:2], given.target, linear_bias=tensors[2], label_smoothing=0.1, softcap=3.0)
        return torch.autograd.grad(value, [t for t in tensors if t.requires_grad])

    exact = gradients(eager, torch.float64)
    cut(16)
    got = gradients(ours, dtype)
    assert cut.seen == ([] if dtype == torch.float16 and need[1] else [16, 16, 8])
    for a, b, name in zip(got, exact, [n for n, needed in zip(names, need, strict=True) if needed], strict=True):
        assert relative_error(a.double(), b) < (2e-6 if dtype == torch.float32 else 1e-3), name


@pytest.fixture
def half(cut, monkeypatch):
    """Cuts backwards of float16, whose kernels are those of bfloat16, which the interpreter cannot multiply."""
    monkeypatch.setattr(calls.LossCall, "serves_backward_chunks", lambda *args: True)
    monkeypatch.setattr(calls.LossCall, "backward_rows", lambda *args: 16)

    return float16_errors


@no_gpu
def test_sums_of_half_precision_are_float16_between_chunks(half, cut):
    """By 0.0006: to bfloat16 they would be 0.0050 off; products alone are 0.0003."""
    args = problem(256, 40, 16, seed=1)
    errors, got = half(args, label_smoothing=0.1)
    assert cut.seen == [16] * 16
    assert errors[1] < 4e-4
    assert 3e-4 < errors[2] < 9e-4
    _, again = half(args, label_smoothing=0.1)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@no_gpu
def test_an_outlier_hides_no_row_of_a_word_that_never_occurs(half):
    """One of 128 tokens has 10^6 times the others' hidden states in a column, and says nothing of the rare half."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (0.5 * torch.randn(size, 16, generator=generator) for size in (128, 32))
    hidden[:, 3] *= 2**-6
    hidden[5], hidden[5, 0], hidden[5, 3] = 0, 40, 30000
    weight[:, 3], weight[:16, 0], weight[16:, 0] = 0, 1, -1
    bias = torch.where(torch.arange(32) < 16, 0.0, -6.0)
    target = torch.randint(16, (128,), generator=generator)
    of_rare = {}
    for dtype, choice in ((torch.float64, "reference"), (torch.float16, "triton")):
        leaf = weight.half().to(dtype).requires_grad_()
        given = hidden.half().to(dtype).requires_grad_(), leaf, target
        loss = linear_cross_entropy(*given, linear_bias=bias.to(dtype), reduction="sum", implementation=choice)
        of_rare[choice] = torch.autograd.grad(loss, leaf)[0][16:, 3]
    assert relative_error(of_rare["triton"], of_rare["reference"]) < 0.005


@no_gpu
@pytest.mark.parametrize("upstream", [1.0, 8192.0])
def test_a_column_of_zeros_stays_one(upstream, half):
    args = problem(64, 40, 16, seed=1)
    hidden = (2**-6 * args.input.detach()).half()
    hidden[:, 3] = 0
    leaf = args.linear_weight.detach().half().requires_grad_()
    loss = ours(hidden.requires_grad_(), leaf, args.target, reduction="sum")
    (gradient,) = torch.autograd.grad(upstream * loss, leaf)
    assert gradient.isfinite().all()
    assert not gradient[:, 3].any()


@no_gpu
@pytest.mark.parametrize("ignored", [0.0, 0.5])
def test_float16_sums_leave_room_for_a_z_loss(ignored, half, cut):
    """Here it multiplies dz by more than 100, all of one sign: without room sums would be infinite."""
    args = problem(64, 8, 16, seed=1, weighted=True, ignored=ignored)
    with torch.no_grad():
        args.input.copy_(torch.ones(64, 16))
        args.linear_weight.copy_(torch.full((8, 16), 0.5))
        args.linear_weight[0] += 0.5
        args.input[args.target == -100] = torch.nan
        args.target[args.target >= 0] = 0
    options = {"z_loss": 4.0, "reduction": "sum"}
    errors, _ = half(args, exact_of_kept(args, **options), **options)
    assert cut.seen == [16] * 4
    assert max(errors) < 1e-3


@no_gpu
def test_what_is_no_number_is_seen_in_the_whole_of_the_sums(half):
    args = problem(96, 40, 16, seed=1)
    with torch.no_grad():
        args.input[20, 3] = torch.inf
    with np.errstate(invalid="ignore"):
        _, got = half(args, label_smoothing=0.1)
    assert not got[2].isfinite().any()


@no_gpu
def test_a_second_backward_gives_the_same_again(cut):
    args = problem(40, 40, 16, seed=1).to(torch.float32)
    leaves = args.input, args.linear_weight
    cut(16)
    loss = ours(*args[:3])
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for a, b in zip(torch.autograd.grad(loss, leaves), first, strict=True):
        assert torch.equal(a, b)
    assert cut.seen == [16, 16, 8] * 2
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(ours(*args[:3]), leaves, create_graph=True)


@no_gpu
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_token_kept(reduction, cut):
    args = problem(24, 40, 16, bias=True, ignored=2.0).to(torch.float32)
    cut(16)
    value, *gradients = value_and_gradients(ours, args, reduction=reduction, label_smoothing=0.1)
    assert cut.seen == [16, 8]
    assert value.isnan() if reduction == "mean" else value == 0
    assert not any(g.any() for g in gradients)


@no_gpu
def test_rows_that_do_not_follow_each_other(cut):
    args = problem(24, 40, 16, seed=1).to(torch.float32)
    want = torch.autograd.grad(ours(*args[:3]), args[:2])
    spread = torch.zeros(16, 24).T.copy_(args.input.detach()).requires_grad_()
    cut(16)
    got = torch.autograd.grad(ours(spread, *args[1:3]), (spread, args.linear_weight))
    assert cut.seen == [16, 8]
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-6


@no_gpu
def test_compiled_code_is_cut_too(cut, monkeypatch):
    from kernel.fused.operators import fused_forward

    monkeypatch.setattr("kernel.api.check_target_range", lambda *args: None)
    args = problem(40, 70, 16, bias=True, ignored=0.3, seed=1)
    exact = value_and_gradients(eager, args, label_smoothing=0.1)
    args = args.to(torch.float32)
    cut(16)
    compiled = torch.compile(partial(ours, label_smoothing=0.1), fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own
        got = value_and_gradients(compiled, args)
    assert cut.seen == [16, 16, 8]
    for a, b in zip(got, exact, strict=True):
        assert relative_error(a, b) < 2e-6
    numbers = [0.1, 0.0, 1.0, 1.0, 0.0, 0.0]
    given = (args.input, args.linear_weight, args.linear_bias, args.target, numbers, [-100, 2**20])
    for statistics in (False, True):
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(fused_forward, (*given, [True, True, statistics]), test_utils=tests)
        loss, *_, columns, _ = fused_forward(*given, [True, True, statistics])
        assert bool(columns.numel()) is statistics, "what is cut keeps nothing"
        loss.sum().backward()
    assert cut.seen == [16, 16, 8] * 2, "a loss with statistics is not cut"


@no_gpu
@pytest.mark.parametrize("options", [{"return_statistics": True}, {"gradient_tolerance": 0.1}, {"no_grad": True}])
def test_what_is_not_cut(options, cut):
    options = dict(options)
    args = problem(80, 300, 8).to(torch.float32)
    cut(16)
    with torch.set_grad_enabled(not options.pop("no_grad", False)):
        found = ours(*args[:3], **options)
    value = found[0] if isinstance(found, tuple) else found
    if value.requires_grad:
        value.backward()
    assert cut.seen == []


@no_gpu
def test_memory_is_less_than_of_all_tokens_at_once(cut):
    """A tenth of the float32 sums and of the packed hidden states; the workspace is the same."""
    args = problem(320, 70, 64).to(torch.float32)

    def peak():
        with Peak() as peak:
            ours(*args[:3], workspace_bytes=320 * 32 * 4).backward()
        args.input.grad = args.linear_weight.grad = None
        return peak.bytes

    whole = peak()
    cut(32)
    assert peak() < whole - 4 * 64 * (320 - 3 * 32)


HEADS = [
    (8192, 256000, 2304),
    (4096, 128256, 4096),
    (16384, 151936, 896),
    (16384, 49152, 576),
    (8192, 50257, 768),
    (12288, 262144, 640),
    (6000, 152064, 3584),
    (8192, 151936, 4096),
    (16384, 248320, 2048),
    (8192, 262144, 4096),
]


def planned(shape, workspace_bytes=None, weight_gradient=True):
    """Tokens of a chunk and the plan of all tokens of a head on a device with 132 multiprocessors; None: by default."""
    kinds = {"table": HOPPER, "processors": 132, "weight_gradient": weight_gradient}
    kept = {"keep": True, "direct": True, "in_bytes": True, "consumed": True, "default": workspace_bytes is None}
    workspace_bytes = default_workspace_bytes(shape[0]) if workspace_bytes is None else workspace_bytes
    whole = schedule(*shape, 2, workspace_bytes, **kinds, **kept)
    return backward_chunks.backward_rows(*shape, 2, workspace_bytes, whole=whole, **kinds), whole


def test_chunks_are_chosen_where_they_save_time_by_the_model():
    whole = {shape: shape[0] for shape in HEADS}
    assert {shape: planned(shape)[0] for shape in HEADS} == whole
    assert {shape: planned(shape, 2**27)[0] for shape in HEADS} == whole | {(16384, 49152, 576): 8192}
    many = {n: n for n in (2048, 8192, 16384)}
    found = {n: planned((n, 32768, 1024), 2**27)[0] for n in (*many, 32768, 65536, 131072)}
    assert found == many | {32768: 16384, 65536: 16384, 131072: 16384}
    found = {n: planned((n, 32768, 1024))[0] for n in (*many, 32768, 65536, 131072)}
    assert found == many | {32768: 32768, 65536: 16384, 131072: 16384}, "the default is larger"
    assert planned((131072, 32768, 1024), weight_gradient=False)[0] < 131072


@pytest.mark.parametrize("shape", [(32768, 256000, 3584), (16384, 151936, 4096), (8704, 256000, 3584)])
def test_one_chunk_is_not_taken_for_next_to_no_time(shape):
    """Of a frozen head, whose chunks share no sums: with the larger default one of all tokens is nearly as fast."""
    rows, whole = planned(shape, weight_gradient=False)
    assert rows < shape[0]
    times = backward_chunks._of_whole(shape[0], whole, *shape[1:], HOPPER, 132, False)
    forward, _, widest, backward = backward_chunks._of_chunk(
        rows, default_workspace_bytes(shape[0]) // (2 * rows), *shape[1:], HOPPER, 132, False
    )
    assert (forward + backward) * shape[0] / rows < 1.01 * times
    of_chunk = rows * (6 * shape[2] + 2 * widest)
    assert 1.5 * of_chunk < 4 * shape[0] * shape[2] + 2 * whole.memory


def test_time_is_linear_in_the_tokens_by_the_model():
    each = []
    for n in (8192, 16384, 20000, 24000, 32768, 50000, 65536, 100000, 131072, 262144):
        problem = 32768, 1024, HOPPER, 132, True
        rows, whole = planned((n, *problem[:2]))
        if rows == n:
            each.append(backward_chunks._of_whole(n, whole, *problem) / n)
        else:
            forward, _, _, backward = backward_chunks._of_chunk(
                rows, default_workspace_bytes(n) // (2 * rows), *problem
            )
            each.append((forward + backward) / rows)
    assert max(each) < 1.13 * min(each)


def test_of_many_lengths_few_have_a_plan_of_their_own():
    def sizes(last, *head, **kinds):
        return {planned((n, *head), **kinds)[0] for n in range(last - 511, last + 1, 7)}

    assert len(sizes(131072, 32768, 1024)) == 1
    backward_chunks._of_chunk.cache_clear()
    sizes(16384, 151936, 4096, weight_gradient=False)  # where the default grows with the tokens
    assert 0 < backward_chunks._of_chunk.cache_info().misses <= 2 * len(backward_chunks._CHUNKS), "of two budgets"


@pytest.mark.parametrize(
    ("dtype", "weight_gradient", "whole", "served"),
    [
        (torch.float32, True, 0, True),
        (torch.bfloat16, True, 0, True),
        (torch.float16, True, 0, False),
        (torch.float16, False, 0, True),
        (torch.bfloat16, True, 10, False),
    ],
)
def test_which_losses_may_be_cut(dtype, weight_gradient, whole, served):
    hidden, weight = torch.zeros(3, 4, dtype=dtype), torch.zeros(5, 4, dtype=dtype)
    head = arguments.Head(hidden, weight, None, torch.zeros(3, dtype=torch.int64))
    scalars = arguments.replace(arguments.Scalars.of(LossOptions(z_loss=0.1)), whole=whole)
    call = calls.LossCall(head, scalars, 2**30)
    assert call.serves_backward_chunks((True, weight_gradient, False)) is served
