"""The fused kernels in Triton's interpreter, or on a CUDA device where there is one: values, gradients, traps."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    ALL_OPTIONS,
    OPTIONS,
    Problem,
    assert_within_budget,
    eager,
    ours,
    problem,
    relative_error,
    value_and_gradients,
)

from kernel import chunked, fused, linear_cross_entropy
from kernel.options import LossOptions

triton = pytest.importorskip("triton")
tl = triton.language
LossCall = importlib.import_module("kernel.fused.call").LossCall
StripColumns = importlib.import_module("kernel.fused.run_strip").StripColumns
last_rounds, tiles, compile_ahead, weight_gradient, launches, run_products, arguments = (
    importlib.import_module(f"kernel.fused.{name}")
    for name in ("last_round", "tiles", "compile_ahead", "weight_gradient", "launch", "run_products", "arguments")
)
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_fused_cuda.py covers the device"),
    pytest.mark.usefixtures("kept_in_strips"),
]

TILE = (16, 32, 16)  # tokens, vocabulary, hidden size of the interpreter's tiles
SHAPES = [(1, 1, 1), (1, 2, 3), TILE, (17, 33, 17), (40, 130, 20), (33, 200, 32)]  # one, a tile, one past, several
BUDGETS = [0, 9_000, 2**30]  # what the gradient's memory holds is kept; some columns more; everything


def check(args: Problem, *, dtype: torch.dtype = torch.float32, floor: float = 2e-6, **options: object) -> None:
    plain = {k: v for k, v in options.items() if k != "workspace_bytes"}
    exact = value_and_gradients(eager, args.to(torch.float64), **plain)
    budget = value_and_gradients(eager, args.to(dtype), **plain)
    assert_within_budget(value_and_gradients(ours, args.to(dtype), **options), budget, exact, floor=floor)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("workspace_bytes", BUDGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients(shape, workspace_bytes, options):
    args = problem(*shape, bias=True, weighted=True, ignored=0.3, seed=3)
    check(args, workspace_bytes=workspace_bytes, floor=2e-6 if shape[0] > 1 else 1e-5, **options)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.6])
def test_reductions_and_optional_tensors(ignored, weighted, bias, reduction):
    args = problem(37, 70, 18, bias=bias, weighted=weighted, ignored=ignored)
    check(args, label_smoothing=0.1, reduction=reduction, workspace_bytes=9_000)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, ALL_OPTIONS], ids=["b", "all"])
@pytest.mark.parametrize("workspace_bytes", BUDGETS)
@pytest.mark.parametrize("shape", [(33, 70, 17), (32, 96, 32)], ids=["pointers", "descriptors"])
def test_float16(shape, workspace_bytes, options):
    args = problem(*shape, bias=True, weighted=True, ignored=0.3)
    check(args, dtype=torch.float16, workspace_bytes=workspace_bytes, floor=4e-4, **options)


# A kept softmax overflows here, and is noticed and repaired; NumPy reports the overflow that a device does not.
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@overflows
@pytest.mark.parametrize("workspace_bytes", BUDGETS)
def test_large_logits(workspace_bytes):
    args = problem(33, 100, 20, scale=60.0)  # float32 logits of 200 are off by 1e-5
    check(args, workspace_bytes=workspace_bytes, label_smoothing=0.1, floor=3e-5)


@overflows
@pytest.mark.parametrize("workspace_bytes", BUDGETS)
def test_targets_of_vanishing_probability(workspace_bytes):
    args = problem(20, 70, 16, scale=100.0)
    z = (args.input @ args.linear_weight.T).detach()
    args = args._replace(target=z.argmin(-1))
    assert torch.nn.functional.cross_entropy(z, args.target) > 200
    check(args, workspace_bytes=workspace_bytes, label_smoothing=0.1, floor=3e-5)


@pytest.mark.parametrize("workspace_bytes", [0, 2**30])
@pytest.mark.parametrize(
    "targets", [(31, 63, 69), (0, 32, 64), (15, 47), (16, 48)], ids=["last", "first", "end", "next"]
)
def test_a_target_alone_at_the_edge_of_what_is_asked_for_one(targets, workspace_bytes):
    """The last and the first columns of tiles of 32 and of their halves; the other tokens are ignored or do not exist."""
    args = problem(11, 70, 18)
    args.target[:] = -100
    args.target[1 : 2 * len(targets) : 2] = torch.tensor(targets)
    check(args, label_smoothing=0.1, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("softcap", [0.5, 30.0, 1000.0])
def test_softcap_from_linear_to_saturated(softcap):
    for workspace_bytes in BUDGETS:
        check(problem(20, 70, 16, scale=5.0), softcap=softcap, label_smoothing=0.1, workspace_bytes=workspace_bytes)


def test_padding_takes_no_mass_under_a_softcap():
    args = problem(16, 33, 16, scale=0.1)  # 31 padded columns, all logits near 0: a leak would change lse by ln 2
    check(args, softcap=1.0, label_smoothing=0.5)


def test_loss_without_gradients():
    for shape in SHAPES:
        args = problem(*shape, bias=True, ignored=0.4, seed=3).to(torch.float32)
        want = eager(*(t.double() for t in args[:2]), args.target, linear_bias=args.linear_bias.double(), **ALL_OPTIONS)
        with torch.no_grad():
            got = ours(*args[:3], linear_bias=args.linear_bias, **ALL_OPTIONS)
        assert got.isnan() if want.isnan() else abs(got.item() / want.item() - 1) < 1e-5


def test_kept_tokens_are_numbered_over_several_blocks():
    from kernel.fused.rows import index_rows

    target = torch.randint(-1, 2, (9000,), generator=torch.Generator().manual_seed(0))
    rows = index_rows(target, -1)
    want = (target != -1).nonzero().squeeze(1)
    assert rows.number.item() == len(want)
    assert torch.equal(rows.source[: len(want)].long(), want)
    assert torch.equal(rows.position[want].long(), torch.arange(len(want)))
    assert (rows.position[target == -1] == -1).all()


@pytest.mark.parametrize("workspace_bytes", BUDGETS)
def test_repeats_are_bitwise_equal(workspace_bytes):
    args = problem(40, 130, 20, weighted=True, ignored=0.2).to(torch.float32)
    first, second = (value_and_gradients(ours, args, workspace_bytes=workspace_bytes, **ALL_OPTIONS) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))


def test_both_memories_keep_columns_and_a_second_backward_computes_them_anew(monkeypatch):
    plans, plan = [], LossCall.plan
    monkeypatch.setattr(LossCall, "plan", lambda self, **kinds: plans.append(plan(self, **kinds)) or plans[-1])
    for options in ({"label_smoothing": 0.1}, {"softcap": 3.0, "label_smoothing": 0.1}):
        args = problem(20, 200, 24, bias=True, ignored=0.2).to(torch.float32)
        plans.clear()
        leaves = (args.input, args.linear_weight, args.linear_bias)
        value = ours(*args[:3], linear_bias=args.linear_bias, workspace_bytes=9_000, **options)
        of_gradient, of_workspace = plans[0].kept
        assert of_gradient.in_gradient > of_workspace.in_gradient
        assert of_gradient.number > 1
        assert plans[0].strips
        first = torch.autograd.grad(value, leaves, retain_graph=True)
        kept = [g.clone() for g in first]
        second = torch.autograd.grad(value, leaves)
        assert plans[-1].kept == ()
        for a, b, c in zip(first, second, kept, strict=True):
            assert torch.equal(a, c)
            assert relative_error(a, b) < 2e-6


def test_everything_is_kept_in_one_piece_or_in_both_memories(monkeypatch):
    schedules = importlib.import_module("kernel.fused.schedule")
    monkeypatch.setattr(schedules, "LEAST_DEFAULT_BYTES", 0)  # as of chosen budgets: nothing is computed anew
    monkeypatch.setattr("kernel.fused.strip_times._RUN", 150.0)  # else a part would lie in the gradient always
    plans, plan = [], LossCall.plan
    monkeypatch.setattr(LossCall, "plan", lambda self, **kinds: plans.append(plan(self, **kinds)) or plans[-1])
    for options in ({"label_smoothing": 0.1}, {"softcap": 3.0, "label_smoothing": 0.1}):
        args = problem(20, 200, 24, bias=True, ignored=0.2)
        for budget, pieces in ((224 * (20 * 4 + 3), 1), (20 * 200 * 4, 2)):
            plans.clear()
            check(args, workspace_bytes=budget, **options)
            assert len(plans[0].kept) == pieces
            assert not plans[0].strips
            assert plans[0].columns == 224
            assert plans[0].memory * 4 <= budget


@pytest.mark.parametrize("workspace_bytes", [0, 2**30])
def test_no_confidence_is_above_one(workspace_bytes):
    generator = torch.Generator().manual_seed(0)
    weight, target = torch.randn(300, 40, generator=generator), torch.randint(300, (70,), generator=generator)
    hidden = 4 * weight[target] + 0.1 * torch.randn(70, 40, generator=generator)  # p = 1 but for what sums round
    _, of = linear_cross_entropy(
        hidden.requires_grad_(), weight, target, implementation="triton", reduction="none", return_statistics=True,
        workspace_bytes=workspace_bytes,
    )  # fmt: skip
    assert of.confidence.max() <= 1
    assert of.confidence.min() > 0.9


# What else the softmax sums over, in nats above the lse: nothing; as much, as if the head had other rows elsewhere; so
# much that the rows' factor vanishes beside the target's part; all but the target's logit cancels.
@pytest.mark.parametrize("elsewhere", [None, 0.0, 150.0, "target alone"])
def test_a_kept_softmax_is_used_for_gradients_of_statistics(elsewhere, monkeypatch):
    used, usable = [], LossCall.usable
    monkeypatch.setattr(LossCall, "usable", lambda *given: used.append(usable(*given)) or used[-1])
    args = problem(20, 130, 16, bias=True, ignored=0.3)
    present = args.target != -100

    def total(*tensors, **options):
        loss, of = linear_cross_entropy(*tensors, reduction="none", return_statistics=True, **options)
        log_p, lse = of.log_probability[present], of.lse[present]
        if elsewhere == "target alone":
            return 0.3 * (log_p + lse).square().mean()
        whole = lse if elsewhere is None else torch.logaddexp(lse, lse.detach() + elsewhere)
        return 0.5 * loss[present].mean() + (whole - log_p - lse).mean()

    gradients = {}
    for implementation, dtype in (
        ("reference", torch.float64),
        ("reference", torch.float32),
        ("triton", torch.float32),
    ):
        made = args.to(dtype)
        options = {"linear_bias": made.linear_bias, "label_smoothing": 0.1, "implementation": implementation}
        if implementation == "triton":
            options["workspace_bytes"] = 6_000
        leaves = made.input, made.linear_weight, made.linear_bias
        gradients[implementation, dtype] = torch.autograd.grad(total(*made[:3], **options), leaves)
    exact, eager_ones, got = gradients.values()
    assert used[0][0].kept
    assert used[0][0].strips
    for ours_, whole, plain in zip(got, exact, eager_ones, strict=True):
        assert relative_error(ours_, whole) < max(2e-6, 2 * relative_error(plain, whole))


@pytest.mark.parametrize("need", [(True, True, True), (True, False, False), (False, True, False)])
@pytest.mark.parametrize("workspace_bytes", [0, 2**20])
def test_registered_operators(need, workspace_bytes):
    from kernel.fused.operators import fused_forward

    args = problem(20, 70, 16, bias=True, ignored=0.3).to(torch.float32)
    tensors = [
        t.detach().requires_grad_(n)
        for t, n in zip((args.input, args.linear_weight, args.linear_bias), need, strict=True)
    ]
    numbers = [0.1, 0.0, 1.0, 1.0, 1e-3, 0.2]
    arguments = (*tensors, args.target, numbers, [-100, workspace_bytes], [True, need[1], True])
    torch.library.opcheck(
        fused_forward, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
    loss, statistics, classes, *_ = fused_forward(*arguments)
    upstream = torch.linspace(1, 2, 20)
    leaves, kept = [t for t in tensors if t.requires_grad], args.target != -100
    options = LossOptions(label_smoothing=0.1, z_loss=1e-3, confidence_penalty=0.2, reduction="none")
    expected, of = chunked.loss(tensors[0], tensors[1], args.target, tensors[2], None, options, return_statistics=True)
    assert relative_error(loss, expected) < 1e-6
    assert torch.equal(classes, of.argmax)
    torch.testing.assert_close(statistics, torch.stack(of[:4]), equal_nan=True)
    got = torch.autograd.grad(loss, leaves, upstream, retain_graph=True)
    want = torch.autograd.grad(expected, leaves, upstream, retain_graph=True)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 2e-6
    got = torch.autograd.grad((statistics[2] * upstream)[kept].sum(), leaves)
    want = torch.autograd.grad((of.entropy * upstream)[kept].sum(), leaves)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("workspace_bytes", [0, 2**20])
def test_one_graph_without_breaks(workspace_bytes, monkeypatch):
    # On the CPU the ranges are checked on the host, which no graph can hold; on a device they are not.
    monkeypatch.setattr("kernel.api.check_target_range", lambda *args: None)
    monkeypatch.setattr("kernel.api.check_token_weight_range", lambda *args: None)

    def loss(*args, **options):
        return ours(*args, label_smoothing=0.1, workspace_bytes=workspace_bytes, **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for n in (20, 27):  # the second makes the number of tokens symbolic
        args = problem(n, 70, 16, bias=True, weighted=True, ignored=0.3).to(torch.float32)
        want = value_and_gradients(loss, args)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own
            got = value_and_gradients(compiled, args)
        for a, b in zip(got, want, strict=True):
            assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize("wrong", [5, -1])
def test_targets_out_of_range_are_noticed_on_the_way(wrong):
    from kernel.fused.rows import index_rows

    right = torch.tensor([0, 4, -100, 3])
    assert index_rows(right, -100, 5).position.tolist() == [0, 1, -1, 2]
    with pytest.raises(RuntimeError, match=r"target must be in \[0, 5\) or equal ignore_index"):
        index_rows(torch.tensor([0, 4, -100, wrong]), -100, 5)
    assert index_rows(torch.tensor([0, wrong]), wrong, 5).position.tolist() == [0, -1]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("workspace_bytes", [0, 6_400, 20_000])
@pytest.mark.parametrize("ignored", [0.7, 0.9])
def test_strips_merged_where_few_tokens_are_kept(ignored, workspace_bytes, options):
    args = problem(70, 500, 20, bias=True, weighted=True, ignored=ignored, seed=1)
    check(args, workspace_bytes=workspace_bytes, **options)


@triton.jit
def last_round(found, row_blocks, column_blocks, programs, memory_blocks, MAX_CUTS, STEPS, PIECE):
    whole, cuts = last_rounds.last_round(row_blocks, column_blocks, programs, memory_blocks, MAX_CUTS, STEPS, PIECE)
    tl.store(found, whole)
    tl.store(found + 1, cuts)


@pytest.mark.parametrize("column_blocks", [1, 3, 9])
def test_cuts_of_the_last_round_fit_the_memory_and_take_the_least_time(column_blocks):
    programs, most, steps, piece = 132, *last_rounds.CUTS.values()
    chosen = set()
    sizes = ((64, 64), (64, 13), (44, 44), (128, 26), (9, 9), (200, 3), (5, 0))
    of_chunks = ((8, 8, 120), (24, 24, 72), (6, 6, 122), (16, 5, 16))  # with room that other tokens take
    for n_blocks, kept_blocks, *room in (*sizes, *of_chunks):
        memory = n_blocks + last_rounds.extra_row_blocks(n_blocks, column_blocks, programs, *room)
        assert not room or memory <= n_blocks + room[0]
        found = torch.zeros(2, dtype=torch.int32)
        last_round[(1,)](found, kept_blocks, column_blocks, programs, memory, **last_rounds.CUTS)
        whole, cuts = found.tolist()
        rest = kept_blocks * column_blocks - whole
        assert whole % programs == 0
        assert 0 <= rest < programs
        cut_rows = kept_blocks - whole // column_blocks
        time = {
            c: -(-rest * c // programs) * (-(-steps // c) + piece)
            for c in range(1, most + 1)
            if kept_blocks + (c - 1) * cut_rows <= memory
        }
        assert cuts in time, "pieces beyond the accumulator"
        assert time[cuts] == min(time.values())
        assert kept_blocks < n_blocks or n_blocks + (cuts - 1) * cut_rows == memory, "a block that no call writes"
        chosen.add(cuts)
    assert len(chosen) > 1


@triton.jit
def merged_span(found, row_count, n, width, offset, run_columns, BLOCK_ROWS: tl.constexpr):
    rows, first, columns = tiles.merged_strip(row_count, n, width, offset, run_columns, BLOCK_ROWS)
    tl.store(found, rows)
    tl.store(found + 1, first)
    tl.store(found + 2, columns)


def test_merged_strips_are_as_many_as_memory_holds():
    expected = {  # of 100 rows, strips of 64 columns, 5 of them
        100: [(112, 64 * i, 64) for i in range(5)],
        51: [(64, 64 * i, 64) for i in range(5)],
        48: [(48, 0, 128), (48, 128, 128), (48, 256, 64), (48, 320, 0), (48, 320, 0)],
        3: [(16, 0, 320), *[(16, 320, 0)] * 4],
        0: [(0, 0, 320), *[(0, 320, 0)] * 4],
    }
    for count, spans_ in expected.items():
        found = torch.full((5, 3), -1, dtype=torch.int32)
        for strip in range(5):
            merged_span[(1,)](found[strip], count, 100, 64, 64 * strip, 320, BLOCK_ROWS=16)
        assert [tuple(row) for row in found.tolist()] == spans_, count


def test_reasons_why_it_cannot_run(monkeypatch):
    cpu = torch.device("cpu")
    assert fused.available(cpu, torch.float32) is None
    assert "bit patterns" in fused.available(cpu, torch.bfloat16)
    assert "float64" in fused.available(cpu, torch.float64)
    assert "CUDA" in fused.available(torch.device("meta"), torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in fused.available(cpu, torch.float32)
    args = problem(2, 3, 4).to(torch.float32)
    with pytest.raises(ValueError, match=r"implementation='triton' cannot run here: on the CPU"):
        ours(*args[:3])


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-1, ValueError, "None or at least 0, got -1"),
        (1.5, TypeError, "None or an int, got float"),
        (True, TypeError, "None or an int, got bool"),
    ],
)
def test_workspace_bytes_is_checked(value, error, text):
    args = problem(2, 3, 4).to(torch.float32)
    with pytest.raises(error, match=f"workspace_bytes must be {text}"):
        ours(*args[:3], workspace_bytes=value)


@triton.jit
def pieces_of(out, splits, columns, strip_columns):
    tl.store(out, weight_gradient._pieces(splits, columns, strip_columns))


@pytest.fixture
def narrow_strips(monkeypatch):
    """Multiprocessors for several pieces of each sum, and the launches that cut them and join the pieces."""
    launched = []

    def run(kernel, grid, **arguments):
        launched.append((kernel.__name__, arguments.get("splits")))
        return compile_ahead.run_kernel(kernel, grid, **arguments)

    monkeypatch.setattr("kernel.fused.gradients.processors", lambda device: 20)
    monkeypatch.setattr("kernel.fused.run_products.run_kernel", run)
    return launched


@pytest.mark.parametrize(
    ("ignored", "dtype", "d"),
    [(0.0, torch.float32, 9), (0.5, torch.float16, 8), (0.95, torch.float32, 8)],
    ids=["all tokens", "several strips in a launch", "as many strips as pieces"],
)
@pytest.mark.parametrize("workspace_bytes", [0, 2**30], ids=["strips", "kept"])
def test_few_tiles_are_summed_in_pieces(ignored, dtype, d, workspace_bytes, narrow_strips):
    args = problem(300, 70, d, bias=True, weighted=True, ignored=ignored)
    floor = 2e-6 if dtype == torch.float32 else 4e-4
    check(args, dtype=dtype, workspace_bytes=workspace_bytes, floor=floor, label_smoothing=0.1)
    splits = [number for name, number in narrow_strips if name == "weight_gradient_kernel"]
    assert max(splits) > 1
    joined = [number for name, number in narrow_strips if name == "join_sums_kernel"]
    assert joined == [number for number in splits if number > 1]


def test_pieces_are_added_in_one_order(narrow_strips):
    args = problem(300, 70, 8, bias=True, ignored=0.1).to(torch.float32)
    first, again = (value_and_gradients(ours, args, workspace_bytes=0) for _ in range(2))
    assert any(name == "join_sums_kernel" for name, _ in narrow_strips)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None and b is not None)


def test_pieces_of_several_strips_take_the_memory_of_one():
    """The device cuts fewer pieces where few tokens are kept; the host has made memory for one strip's."""
    found = {}
    for splits in (2, 3, 5, 7):
        for columns in (0, 32, 64, 96, 160, 320):
            out = torch.zeros(1, dtype=torch.int32)
            pieces_of[(1,)](out, splits, columns, 32)
            found[splits, columns] = number = int(out.item())
            assert number >= 1
            assert number == 1 or number * columns <= splits * 32
    assert (found[7, 32], found[7, 64], found[7, 96], found[7, 160]) == (7, 3, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("workspace_bytes", BUDGETS)
@pytest.mark.parametrize("d", [16, 40, 48])
def test_tiles_of_both_gradients_are_transposed_where_the_last_wide_one_is_half_full(d, workspace_bytes, dtype):
    table = launches.launch_table(torch.device("cpu"), dtype, d)
    assert table.weight_gradient.transposed
    assert table.input_gradient.transposed
    args = problem(41, 130, d, bias=True, weighted=True, ignored=0.3, seed=5)
    floor = 2e-6 if dtype == torch.float32 else 2e-3
    check(args, dtype=dtype, floor=floor, label_smoothing=0.1, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of products of what is not read
def test_tiles_of_the_input_gradient_may_reach_behind_what_dz_was_written_for(transposed, monkeypatch, request):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # new tensors are full of NaN
    cpu = torch.device("cpu")
    table = launches.launch_table(cpu, torch.float32, 16)
    tall = replace(table.input_gradient, rows=64, columns=16, transposed=transposed)
    request.addfinalizer(lambda: launches.set_launch_table(cpu, torch.float32, None))
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    torch.use_deterministic_algorithms(True, warn_only=True)
    launches.set_launch_table(cpu, torch.float32, replace(table, input_gradient=tall))
    for workspace_bytes in BUDGETS:
        check(problem(70, 130, 16, bias=True, ignored=0.3), label_smoothing=0.1, workspace_bytes=workspace_bytes)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("descriptor", [False, True])
def test_tiles_of_the_input_gradient_may_reach_behind_the_accumulator(descriptor):
    """Listed tiles have one of whole tiles of dz, which may be less than a tile of this product has rows."""
    cpu = torch.device("cpu")
    table = launches.launch_table(cpu, torch.float32, 16)
    tall = replace(table.input_gradient, rows=64, columns=16, transposed=True)
    dz, weight, memory = torch.full((64, 64), torch.nan), torch.ones(64, 16), torch.zeros(64, 16)
    dz[:23] = 1
    state = SimpleNamespace(
        table=replace(table, input_gradient=tall),
        accumulator=memory[:32],
        head=SimpleNamespace(weight=weight),
        tiles=arguments.Tiles(descriptor),
        number=torch.tensor([23], dtype=torch.int32),
        programs=3,
        hidden_size=16,
        memory_blocks=0,
        vocab_size=64,
    )
    run_products.add_input(state, dz, StripColumns(0, 64, 0, 64), torch.ones(23))
    assert torch.equal(memory[:23], torch.full((23, 16), 64.0))
    assert not memory[32:].any()
