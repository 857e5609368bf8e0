"""The workspace that nobody chose: how large it is, that None is it in every way to call the loss, what it changes."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
from helpers import problem, relative_error, value_and_gradients

from kernel import LinearCrossEntropy, linear_cross_entropy
from kernel.fused import default_workspace_bytes, launch
from kernel.options import LossOptions

pytest.importorskip("triton")
schedule, calls, arguments, backward_chunks, operators, strip_times = (
    importlib.import_module(f"kernel.fused.{name}")
    for name in ("schedule", "call", "arguments", "backward_chunks", "operators", "strip_times")
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter")
HOPPER = {"table": launch._TABLES["hopper", 2], "processors": 132, "weight_gradient": True}
KEPT = {"keep": True, "direct": True, "in_bytes": True, "consumed": True}
MIB = 2**20
HEADS = [  # of more than 8192 tokens
    (9000, 256000, 2304),
    (12288, 262144, 640),
    (16384, 49152, 576),
    (16384, 151936, 896),
    (16384, 248320, 2048),
    (32768, 32768, 1024),
    (32768, 128256, 4096),
]


def ours(*args, **options):
    return linear_cross_entropy(*args, implementation="triton", **options)


@pytest.mark.parametrize(
    ("tokens", "mib"),
    [(0, 128), (1, 128), (8192, 128), (12288, 192), (16384, 256), (32768, 512), (32769, 512), (2**20, 512)],
)
def test_sixteen_kib_a_token_within_bounds(tokens, mib):
    assert default_workspace_bytes(tokens) == mib * MIB


def test_each_512_tokens_beyond_8192_add_to_a_strip_of_8192_columns():
    assert default_workspace_bytes(8704) - default_workspace_bytes(8192) == 2 * 8192 * 512
    assert default_workspace_bytes(8192) == default_workspace_bytes(8703) < default_workspace_bytes(8704)


def lossy(n, v, d, workspace_bytes, **options):
    tensors = [torch.empty(*size, dtype=torch.bfloat16, device="meta") for size in ((n, d), (v, d))]
    head = arguments.Head(*tensors, None, torch.empty(n, dtype=torch.int64, device="meta"))
    return calls.LossCall(head, arguments.Scalars.of(LossOptions(**options)), workspace_bytes)


@pytest.fixture
def on_hopper(monkeypatch):
    monkeypatch.setattr(calls, "launch_table", lambda *_: HOPPER["table"])
    monkeypatch.setattr(calls, "processors", lambda _: 132)


@pytest.mark.usefixtures("on_hopper")
def test_none_is_the_default_of_all_tokens_whatever_a_chunk_has():
    call = lossy(131072, 32768, 1024, None)
    assert call.budget == 512 * MIB
    of_chunk = call.plan(keep=False, consumed=True, weight_gradient=True, tokens=8192, sums=True)
    assert 2 * of_chunk.workspace > default_workspace_bytes(8192)
    assert lossy(16384, 32768, 1024, 0).budget == 0, "a number is a choice"


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("shape", HEADS)
def test_chunks_of_tokens_are_for_a_chosen_workspace(shape):
    """A number is a choice, that of the default, too: at some heads chunks are faster with it."""
    assert lossy(*shape, None).chunks().rows == shape[0]


@pytest.mark.usefixtures("on_hopper")
def test_the_defaults_own_number_is_a_choice():
    shape = 65536, 32768, 1024
    assert lossy(*shape, None).chunks().rows == shape[0]
    assert lossy(*shape, default_workspace_bytes(shape[0])).chunks().rows < shape[0]


def planned(shape, workspace_bytes=None, *, default=False):
    return schedule.schedule(*shape, 2, workspace_bytes, **HOPPER, **KEPT, default=default)


def microseconds(shape, plan):
    return backward_chunks._of_whole(shape[0], plan, *shape[1:], HOPPER["table"], 132, True)


@pytest.mark.parametrize("shape", [(1, 50257, 768), (4096, 128256, 4096), (8192, 256000, 2304), (8192, 50257, 768)])
def test_up_to_8192_tokens_the_default_plans_as_128_mib(shape):
    assert default_workspace_bytes(shape[0]) == 128 * MIB
    assert planned(shape, 128 * MIB, default=True) == planned(shape, 128 * MIB)


@pytest.mark.parametrize("shape", HEADS)
def test_more_tokens_take_less_time_by_the_model_than_with_128_mib(shape):
    size = default_workspace_bytes(shape[0])
    few, many = planned(shape, 128 * MIB, default=True), planned(shape, size, default=True)
    assert 2 * many.memory <= size
    assert microseconds(shape, many) <= microseconds(shape, few)
    assert microseconds(shape, many) < 1.01 * microseconds(shape, planned(shape, size)), "hardly more than if chosen"


@pytest.mark.usefixtures("on_hopper")
def test_the_frequent_words_are_computed_anew_however_large_the_default():
    shape = 16384, 8192, 1024  # all columns fit in two bytes
    budgets = None, default_workspace_bytes(shape[0])
    default, chosen = (lossy(*shape, of).plan(keep=True, consumed=True, weight_gradient=True) for of in budgets)
    assert (chosen.columns, chosen.kept[-1].start) == (8192, 0)
    assert default.columns > 0
    assert default.kept[-1].start >= 8192 // 16


def test_of_more_tokens_the_strips_at_vocabulary_248320_are_not_those_of_64_mib():
    """There the leanest plan, which a percent of the time for five of the memory makes the best, was 3.8% slower."""
    plan = planned((16384, 248320, 2048), 256 * MIB, default=True)
    assert 2 * plan.memory > 128 * MIB


@no_gpu
@pytest.mark.parametrize("options", [{}, {"z_loss": 1e-3, "softcap": 5.0}])
def test_none_has_the_gradients_of_its_number(options, monkeypatch):
    """In eager and in compiled code; the number is told of all tokens, ignored ones among them."""
    monkeypatch.setattr("kernel.api.check_target_range", lambda *args: None)
    asked = []

    def default(tokens):
        asked.append(tokens)
        return 9_000

    monkeypatch.setattr(calls, "default_workspace_bytes", default)
    args = problem(40, 130, 20, bias=True, ignored=0.3).to(torch.float32)
    options = {"label_smoothing": 0.1, **options}
    want = value_and_gradients(ours, args, workspace_bytes=9_000, **options)
    assert not asked
    for loss in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        asked.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own
            found = [value_and_gradients(loss, args, **given, **options) for given in ({}, {"workspace_bytes": None})]
        assert set(asked) == {40}
        for got in found:
            for a, b in zip(got, want, strict=True):
                assert torch.equal(a, b) if loss is ours else relative_error(a, b) < 1e-6


@no_gpu
def test_compiled_code_is_as_general_in_the_tokens_as_with_a_number(monkeypatch):
    """The default depends on the tokens where plans are made, not in the graph: no guard or graph more."""
    monkeypatch.setattr("kernel.api.check_target_range", lambda *args: None)

    def compilations(**given):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(lambda *args: ours(*args, **given), fullgraph=True, backend=counter)
        for n in (20, 27, 33, 41):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                compiled(*problem(n, 70, 16).to(torch.float32)[:3]).backward()
        return counter.frame_count

    assert compilations() == compilations(workspace_bytes=2**27)


def test_an_operator_is_told_a_number_that_no_workspace_has():
    hidden, weight = torch.zeros(3, 4), torch.zeros(5, 4)
    numbers, ignore_index = arguments.Scalars.of(LossOptions()).pack()
    kinds = {"keep": False, "weight_gradient": True, "return_statistics": False}
    target = torch.zeros(3, dtype=torch.int64)
    for told, budget in ((operators.BY_DEFAULT, 128 * MIB), (0, 0), (7, 7)):
        call, *_ = operators._packed_call(hidden, weight, None, target, numbers, [ignore_index, told], **kinds)
        assert call.budget == budget


def test_where_nobody_chooses_none_is_passed_on():
    assert LinearCrossEntropy(4, 5).options["workspace_bytes"] is None
    assert LinearCrossEntropy(4, 5, workspace_bytes=0).options["workspace_bytes"] == 0
    assert "workspace_bytes=None" in repr(LinearCrossEntropy(4, 5))


@pytest.mark.parametrize("implementation", ["reference", "chunked", "auto"])
def test_others_take_none_too(implementation):
    args = problem(3, 5, 4).to(torch.float32)
    found = [
        linear_cross_entropy(*args[:3], implementation=implementation, workspace_bytes=size) for size in (None, 2**27)
    ]
    assert torch.equal(*found)
