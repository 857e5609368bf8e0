"""How the backward cuts the vocabulary: laws that every plan keeps, whatever the shape and the budget; the tuner's tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import free_launches
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.fused import launch
from kernel.fused.launch import Launch, LaunchTable, launch_table, processors, set_launch_table, uses_descriptors
from kernel.fused.plan import PEAK_ROWS
from kernel.fused.schedule import schedule
from kernel.fused.strip_times import StripTimes

pytest.importorskip("triton")
HOPPER = launch._TABLES["hopper", 2]
SMALL = launch._TABLES["interpreter", 4]


def plan(n, v, d, workspace_bytes, table=HOPPER, **options):
    defaults = {"keep": True, "direct": True, "consumed": True, "weight_gradient": True}
    count = 132 if table is HOPPER else 3
    return schedule(n, v, d, 2, workspace_bytes, processors=count, table=table, **(defaults | options))


def test_beside_a_reduction_the_widest_strip_of_the_workspace_comes_last():
    from kernel.fused.run_backward import widest_last

    strips = plan(8192, 128000, 2304, 2**27).strips
    found, tail = widest_last(strips), [strip for strip in strips if strip.offset is None]
    assert strips[-1].padded < max(strip.padded for strip in tail), "nothing to be changed here"
    assert found[-1].padded == max(strip.padded for strip in tail)
    assert found[: -len(tail)] == list(strips[: -len(tail)])
    assert sorted(found, key=lambda strip: strip.start) == list(strips)


def overlap(a, b):
    return a[0] < b[1] and b[0] < a[1]


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 3000),
    v=st.integers(1, 3000),
    d=st.integers(1, 300),
    workspace_bytes=st.sampled_from([0, 10_000, 300_000, 2**24, 2**28]),
    keep=st.booleans(),
    direct=st.booleans(),
    consumed=st.booleans(),
    weight_gradient=st.booleans(),
)
def test_plans_cover_the_vocabulary_and_overwrite_nothing_in_use(
    n, v, d, workspace_bytes, keep, direct, consumed, weight_gradient
):
    options = {"keep": keep, "direct": direct, "consumed": consumed, "weight_gradient": weight_gradient}
    with free_launches():
        found = plan(n, v, d, workspace_bytes, table=SMALL, **options)
    tile, block = SMALL.logit_gradient.columns, SMALL.logit_gradient.rows
    covered = sorted((s.start, s.start + s.columns) for s in found.strips)
    by_themselves = [run for run in found.kept if consumed or direct]
    covered += [(run.start, min(run.start + run.columns, v)) for run in reversed(by_themselves)]
    assert covered[0][0] == 0
    assert covered[-1][1] == v
    assert all(a[1] == b[0] for a, b in pairwise(covered))
    assert keep or not found.kept
    assert all(run.width % tile == 0 < run.columns for run in found.kept)
    assert (consumed and weight_gradient) or not found.in_gradient
    scaled = found.kept and direct and weight_gradient
    in_gradient = [(0, n * d)] if scaled and found.scaled_in_gradient else []
    written = []
    for run in by_themselves:
        size = run.rows(n, block) * run.width // run.number
        held = [run.offset + i * size for i in range(run.number)] if run.in_gradient else []
        for i in reversed(range(run.number)):
            first = run.start + i * run.width
            rows = (first * d, min(first + run.width, v) * d)
            for used in [*in_gradient, *((start, start + size) for start in held[: i + 1])]:
                assert used[1] <= v * d
                assert not overlap(rows, used), "rows of the gradient overwrite what is still to be read"
            written.append(rows)
        assert not any(overlap((start, start + size), used) for start in held for used in in_gradient)
    for s in found.strips:
        assert s.padded % tile == 0
        assert s.columns <= s.padded
        assert s.kept == (not by_themselves and s.start >= v - found.columns and found.columns > 0)
        rows = (s.start * d, (s.start + s.columns) * d)
        if s.offset is None:
            assert n * s.padded <= found.workspace
        else:
            dz = (s.offset, s.offset + n * s.padded)
            assert weight_gradient
            assert 0 <= dz[0] <= dz[1] <= v * d
            assert dz[0] % 64 == 0
            assert not any(overlap(dz, used) for used in [*written, rows]), "dz lies on rows that are written"
        run = [other for other in found.strips if other.run_start == s.run_start]
        assert [other.start for other in run] == [s.run_start + i * s.padded for i in range(len(run))]
        assert s.run_columns == len(run) * s.padded
        assert len(run) == 1 or all(o.columns == o.padded == s.padded and o.offset == s.offset for o in run)
        assert len(run) == 1 or not s.kept
        written.append(rows)
    outside = n * sum(run.columns for run in found.kept if not run.in_gradient)
    needed = max(outside, found.workspace) if consumed else outside + found.workspace
    own_scaled = scaled and found.strips and not found.scaled_in_gradient
    assert found.memory >= needed + (n * d if own_scaled else 0)
    assert 2 * found.memory <= max(workspace_bytes, 2 * n * tile)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 3000),
    v=st.integers(1, 3000),
    d=st.integers(1, 300),
    share=st.floats(0.0, 1.1),
    direct=st.booleans(),
    consumed=st.booleans(),
    weight_gradient=st.booleans(),
    default=st.sampled_from([0, 2**27]),
)
def test_plans_with_columns_in_bytes_overwrite_nothing_in_use(
    n, v, d, share, direct, consumed, weight_gradient, default
):
    workspace_bytes = int(share * 2 * n * v)
    options = {"direct": direct, "consumed": consumed, "weight_gradient": weight_gradient, "in_bytes": True}
    with free_launches(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernel.fused.schedule.LEAST_DEFAULT_BYTES", default)  # 0: as of chosen budgets
        schedule.cache_clear()
        found = plan(n, v, d, workspace_bytes, table=SMALL, **options)
    schedule.cache_clear()
    if any(run.in_bytes for run in found.kept):
        overwrites_nothing_in_use(found, n, v, d, workspace_bytes, SMALL, consumed and weight_gradient)


def overwrites_nothing_in_use(found, n, v, d, workspace_bytes, table, in_gradient):
    """Of a plan with columns in bytes: each strip's dz and rows lie where nothing does that a later strip reads."""
    tile, block, consumed = table.logit_gradient.columns, table.logit_gradient.rows, found.consumed
    columns = [(run.start, run.start + run.columns) for run in found.kept]
    assert all(a[0] == b[1] for a, b in pairwise(columns)), "the last ones come first"
    others = [(s.start, s.start + s.padded) for s in found.strips if not s.kept]
    assert sum(b - a for a, b in columns + others) == -(-v // tile) * tile
    # Where columns lie, in bytes, by the first of them; each strip of those in the gradient's memory for itself.
    inside, outside, held, written = {}, {}, 0, []
    for run in found.kept:
        size = (1 if run.in_bytes else 2) * run.rows(n, block) * run.width // run.number
        for i in range(run.number):
            place = 2 * run.offset + i * size, 2 * run.offset + (i + 1) * size
            (inside if run.in_gradient else outside)[run.start + i * run.width] = place
            held = held if run.in_gradient else max(held, place[1])
            assert place[1] <= 2 * (v * d if run.in_gradient else found.held)
    assert not inside or in_gradient
    assert held <= 2 * found.held <= 2 * found.memory
    for run in found.kept:
        of_run = [s for s in found.strips if s.kept and run.start <= s.start < run.start + run.columns]
        assert sum(s.padded for s in of_run) == (run.columns if run.in_bytes else 0)
        for i, s in enumerate(of_run):
            rows = 2 * d * s.start, 2 * d * min(s.start + s.padded, v)
            if s.offset is None:
                assert n * s.padded <= found.workspace
                if consumed:
                    assert not any(overlap((0, 2 * n * s.padded), place) for place in outside.values())
            else:
                dz = 2 * s.offset, 2 * (s.offset + n * s.padded)
                assert s.offset % 64 == 0 <= dz[0]
                assert not any(overlap(dz, place) for place in [*inside.values(), *written, rows])
            for first in [first for first in inside if first >= s.start]:
                del inside[first]
            written.append(rows)
            assert not any(overlap(rows, place) for place in inside.values()), "rows overwrite what is still to be read"
            assert i < len(of_run) - 1 or run.in_gradient or outside.pop(run.start)
        if not run.in_bytes:
            assert run.start + run.columns < v or not found.strips
            assert not [s for s in found.strips if not s.kept], "the hidden states scaled for it replace the others"
    byte_peaks = sum(run.columns // tile * 4 * n * PEAK_ROWS for run in found.kept if run.in_bytes)
    assert consumed or len(found.kept) == 1, "an operator returns the references of one run"
    assert 2 * found.memory + byte_peaks <= max(workspace_bytes, 2 * n * tile)


def test_bytes_lie_under_dz_and_become_dz_in_the_gradient():
    n, v, d = 8192, 256000, 2304
    found = plan(n, v, d, 736 * 2**20, in_bytes=True)
    overwrites_nothing_in_use(found, n, v, d, 736 * 2**20, HOPPER, True)
    last, of_gradient, others = found.kept
    strips = [s for s in found.strips if s.kept]
    assert (last.in_gradient, of_gradient.in_gradient, others.in_gradient) == (False, True, False)
    assert last.offset < n * max(s.padded for s in strips if s.offset is None) == others.offset, "under dz"
    wide = [s for s in strips if s.offset is not None]
    assert wide
    assert all(s.padded > of_gradient.width and s.start >= others.start for s in wide)


# Tokens, vocabulary and hidden size of heads; MiB of the workspace that plans took by default, and the share of the
# columns that they kept by default and with 1 GiB, when the workspace or the gradient's memory held them, never both.
HEADS = {
    "Gemma-2-2B": ((8192, 256000, 2304), 56, 0.212, 0.224),
    "Llama-3-8B": ((4096, 128256, 4096), 32, 0.483, 1.0),
    "Qwen2.5-0.5B": ((16384, 151936, 896), 128, 0.045, 0.108),
    "N 16384": ((16384, 248320, 2048), 64, 0.103, 0.103),
    "V 151936": ((8192, 151936, 4096), 16, 0.313, 0.425),
    "V 262144": ((8192, 262144, 4096), 16, 0.322, 0.322),
    "N 6000": ((6000, 152064, 3584), 41, 0.359, 0.552),
    "D 640": ((12288, 262144, 640), 126, 0.047, 0.083),
}


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("name", list(HEADS))
def test_a_budget_buys_what_it_should(name, direct):
    (n, v, d), *_ = HEADS[name]
    own = (v * d - n * d) // (n + d)  # columns that fit the gradient's memory beside their rows
    least = 0
    for mib in (*range(0, 136, 8), 129, *range(140, 7300, 140)):
        found = plan(n, v, d, mib * 2**20, direct=direct)
        assert 2 * found.memory <= max(mib * 2**20, 2 * n * 256), mib
        # Up to the default memory is weighed against the time; beyond it hardly anything is left of what may be kept.
        assert found.columns >= least - (0.05 if mib <= 128 else 0.02) * v, f"{mib} MiB keep less than a smaller budget"
        least = max(least, found.columns)
        # What lacks is less than a strip: whole tiles and rounds of them, peaks, hidden states scaled for kept columns.
        bought = min(own + mib * 2**20 // (2 * n), v)
        widest = max([s.padded for s in found.strips], default=0)
        if mib <= 128:  # what nobody may have chosen is not all used, least where a column saves little
            assert d < 1000 or found.columns > min(bought, v * 15 // 16) - max(widest, 2 * 256), mib
        else:
            assert found.columns >= bought - min(max(widest, 2 * 256), 0.015 * v + (d if direct else 0)), mib
    assert least >= v


@pytest.mark.parametrize("name", list(HEADS))
def test_more_is_kept_than_in_one_memory_at_equal_memory(name):
    shape, mib, by_default, with_gib = HEADS[name]
    found, default, gib = (plan(*shape, size * 2**20) for size in (mib, 128, 1024))
    assert found.columns / shape[1] > by_default - (0.01 if shape[2] < 1000 else 0)
    assert default.columns >= found.columns
    assert gib.columns / shape[1] >= min(with_gib + 0.09, 1)
    assert 2 * default.memory <= 2**27


def test_products_that_are_left_to_do():
    """4 less the share kept, of the size of the logits': what the columns cost apart from their strips."""
    made = {
        n: [round(4 - plan(*h[0], mib * 2**20).columns / h[0][1], 2) for mib in (128, 1024)] for n, h in HEADS.items()
    }
    assert made == {
        "Gemma-2-2B": [3.72, 3.48],
        "Llama-3-8B": [3.06, 3.0],
        "Qwen2.5-0.5B": [3.93, 3.74],
        "N 16384": [3.89, 3.76],
        "V 151936": [3.5, 3.12],
        "V 262144": [3.51, 3.28],
        "N 6000": [3.39, 3.0],
        "D 640": [3.96, 3.79],
    }


def test_bytes_leave_fewer_products_where_two_do_not_hold_everything():
    sizes = (128, 256, 1024)
    made = {
        n: [round(4 - plan(*h[0], mib * 2**20, in_bytes=True).columns / h[0][1], 2) for mib in sizes]
        for n, h in HEADS.items()
    }
    assert made == {
        "Gemma-2-2B": [3.44, 3.35, 3.01],
        "Llama-3-8B": [3.06, 3.0, 3.0],
        "Qwen2.5-0.5B": [3.93, 3.9, 3.74],
        "N 16384": [3.75, 3.71, 3.53],
        "V 151936": [3.0, 3.0, 3.0],
        "V 262144": [3.0, 3.0, 3.0],
        "N 6000": [3.01, 3.0, 3.0],
        "D 640": [3.96, 3.92, 3.79],
    }


# Heads of which the default keeps columns in bytes: MiB that it takes in all, and percents of the time that it takes
# more than the plan of the fewest microseconds.
CODED = {
    "Gemma-2-2B": (63, 1.2),
    "N 16384": (94, 0.0),
    "V 151936": (101, 0.0),
    "V 262144": (128, 0.0),
    "N 6000": (68, 0.0),
}


@pytest.mark.parametrize("name", list(CODED))
def test_of_plans_in_bytes_the_default_is_the_leanest_of_nearly_the_least_time(name, monkeypatch):
    (n, v, d), *_ = HEADS[name]
    mib, percent = CODED[name]
    times = StripTimes(n, v, d, HOPPER, 132, direct=True, weight_gradient=True)
    found = plan(n, v, d, 2**27, in_bytes=True)
    assert any(run.in_bytes for run in found.kept)
    assert (2 * found.memory + peaks_of(found, n)) / 2**20 == pytest.approx(mib, abs=1)
    monkeypatch.setattr("kernel.fused.schedule._MEMORY_IN_BYTES", 0.0)
    schedule.cache_clear()
    fastest = plan(n, v, d, 2**27, in_bytes=True)
    schedule.cache_clear()
    whole, least = (call(each, times) + times.run * in_both(each) for each in (found, fastest))
    assert 100 * (whole / least - 1) == pytest.approx(percent, abs=0.1)


@pytest.mark.parametrize("v", [131072, 152064, 262144])
def test_the_fewest_tokens_have_a_plan(v):
    """Of one token a column in bytes takes as much, with its share of the peaks, as one in two."""
    for n in (1, 2, 3, 33):
        for workspace_bytes in (0, 2**20, 2**24, 2**27, 2**28):
            found = plan(n, v, 3584, workspace_bytes, in_bytes=True)
            assert n > 1 or not any(run.in_bytes for run in found.kept)


def test_the_default_at_gemma_is_within_1310_mib_over_the_inputs():
    """On the device a call took 7 MiB more than gradients, their float32 sums and what the plan takes."""
    (n, v, d), *_ = HEADS["Gemma-2-2B"]
    found = plan(n, v, d, 2**27, in_bytes=True)
    assert 2 * (n + v) * d + 4 * n * d + 2 * found.memory + peaks_of(found, n) < (1310 - 7) * 2**20


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("name", list(HEADS))
def test_a_larger_budget_is_hardly_slower_by_the_model(name, direct):
    """By what rounds of tiles make of other widths; and two bytes are taken where they hold everything, if less quick."""
    (n, v, d), *_ = HEADS[name]
    least, whole = 1e99, False
    times = StripTimes(n, v, d, HOPPER, 132, direct=direct, weight_gradient=True)
    for mib in (*range(0, 136, 16), *(129 * 2 ** (i / 12) for i in range(72))):
        found = plan(n, v, d, int(mib * 2**20), direct=direct, in_bytes=True)
        assert 2 * found.memory + peaks_of(found, n) <= max(mib * 2**20, 2 * n * 256), mib
        in_bytes = any(run.in_bytes for run in found.kept)
        assert not (whole and in_bytes), "columns in bytes where two would do"
        whole = whole or (found.columns >= v and not in_bytes)
        if not whole or direct:
            assert call(found, times) < 1.02 * least, mib
        least = min(least, call(found, times))
    assert whole


def call(found, times):
    """Modelled time of forward and backward."""
    coded = sum(run.columns for run in found.kept if run.in_bytes)
    return found.microseconds + times.forward + times.stored * found.columns + times.encoded * coded


def in_both(found):
    """Whether columns are kept in both memories."""
    return len({run.in_gradient for run in found.kept}) > 1


def peaks_of(found, n):
    """Bytes of the peaks of columns in bytes: eight for a token and a tile of 256."""
    return sum(run.columns * 8 * n // 256 for run in found.kept if run.in_bytes)


@pytest.mark.parametrize("shape", [(16384, 49152, 576), (8192, 50257, 768)])
def test_small_heads_keep_by_default_only_what_pays_for_its_launches(shape):
    """As many launches serve a fifth of the tokens, where instruction tuning ignores the others."""
    n, v, d = shape
    assert plan(n, v, d, 128 * 2**20).kept == ()
    assert plan(n, v, d, 129 * 2**20).columns > 0


def test_a_few_columns_more_do_not_take_the_memory_of_wide_strips():
    """Hidden states scaled outside the gradient would take 28 MiB of the workspace, for two tiles of columns."""
    narrow, wide = (plan(16384, 151936, 896, mib * 2**20) for mib in (32, 64))
    assert wide.scaled_in_gradient
    assert wide.columns == narrow.columns
    assert wide.microseconds < 0.93 * narrow.microseconds


LEANER = {  # heads where less memory for all columns costs a percent at most: what it is to what one piece takes
    "Gemma-2-2B": 0.75,
    "N 16384": 0.89,
    "V 151936": 0.58,
    "V 262144": 0.57,
}


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("name", list(HEADS))
def test_all_columns_are_kept_in_one_piece_or_with_less_memory_in_nearly_its_time(name, direct):
    (n, v, d), *_ = HEADS[name]
    tiles = -(-v // 256)
    size = 256 * tiles * (2 * n + (0 if direct else -(-4 * n // 256)))  # of float32 peaks a tile has one a token
    whole, less = (plan(n, v, d, budget, direct=direct) for budget in (size, size - 1))
    assert whole.strips == ()
    assert whole.columns == less.columns == 256 * tiles
    assert less.in_gradient
    assert less.memory <= whole.memory
    if name in LEANER or (name == "D 640" and not direct):
        assert whole.memory < LEANER.get(name, 0.96) * 256 * n * tiles
        assert whole.scaled_in_gradient != direct, "rows of the first columns would overwrite the hidden states"
        times = StripTimes(n, v, d, HOPPER, 132, direct=direct, weight_gradient=True)
        forward = times.forward + times.stored * whole.columns
        assert whole.microseconds + times.run + forward < 1.01 * (times.kept(256 * tiles, 1) + forward)
    else:
        assert [(run.start, run.width, run.in_gradient) for run in whole.kept] == [(0, 256 * tiles, False)]
        assert whole.memory == 256 * n * tiles  # the scaled hidden states take the place of the packed ones


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 20000),
    v=st.integers(1, 300000),
    d=st.integers(1, 8000),
    direct=st.booleans(),
    budgets=st.lists(st.integers(0, 2**33), min_size=2, max_size=4).map(lambda b: sorted([*b, 2**27, 2**27 + 1])),
)
def test_a_larger_budget_never_keeps_less(n, v, d, direct, budgets):
    columns = [plan(n, v, d, budget, direct=direct).columns for budget in budgets]
    assert columns == sorted(columns)


@pytest.mark.parametrize(("n", "v", "d"), [(1, 7000, 64), (333, 50257, 768), (8192, 256000, 2304)])
@pytest.mark.parametrize("direct", [True, False])
def test_widths_are_the_fastest_within_every_limit(n, v, d, direct):
    times = StripTimes(n, v, d, HOPPER, 132, direct=direct, weight_gradient=True)
    widths = range(256, 16384 + 1, 256)
    for limit in (20000, *reversed(widths), 1000, 1, 0):  # whatever was asked before
        allowed = [w for w in widths if w <= min(limit, -(-v // 256) * 256)] or [256]
        for kept in (False, True):
            fastest = min(allowed, key=lambda w: (times.microseconds(w, kept) / w, -w))
            assert times.width(limit, kept) == fastest


def test_without_their_own_memory_columns_are_kept_in_the_workspace_alone():
    n, v, d = 8192, 256000, 2304
    half, large = (plan(n, v, d, size, consumed=False) for size in (2**31, 2 * n * (v + 20000)))
    assert not half.in_gradient
    assert 0.4 * v < half.columns < 0.5 * v
    assert half.memory == n * half.columns + half.workspace
    assert large.columns == v
    assert large.strips == ()
    for budget in (2 * n * v, 2 * n * (v + 20000)):  # codes take a strip of dz beside them
        coded = plan(n, v, d, budget, consumed=False, direct=False)
        assert 2 * coded.memory <= budget
        assert coded.columns > 0.9 * v
        assert max(s.padded for s in coded.strips) > 2000


def test_frozen_weight_has_no_gradient_memory():
    found = plan(512, 3000, 64, 2**20, weight_gradient=False)
    assert not found.in_gradient
    assert all(s.offset is None for s in found.strips)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.zeros(8, 16), True),
        (lambda: torch.zeros(8, 6), False),  # 24-byte rows
        (lambda: torch.zeros(16, 8).T, False),
        (lambda: torch.zeros(8, 32)[:, :16], True),
        (lambda: torch.zeros(129)[1:].view(8, 16), False),  # 4 bytes off
        (lambda: torch.zeros(1, 16).expand(8, 16), False),  # stride 0
    ],
)
def test_what_tensor_descriptors_can_take(make, expected):
    assert uses_descriptors(make()) is expected


def test_tables_can_be_replaced_and_restored():
    cpu = torch.device("cpu")
    original = launch_table(cpu, torch.float32)
    other = LaunchTable(*[Launch(16, 16, 16, warps=4, stages=1)] * 4)
    set_launch_table(cpu, torch.float32, other)
    try:
        assert launch_table(cpu, torch.float32) is other
        assert launch_table(cpu, torch.float16) is not other
    finally:
        set_launch_table(cpu, torch.float32, None)
    assert launch_table(cpu, torch.float32) is original
    assert processors(cpu) == 3


@pytest.mark.parametrize(
    ("hidden_size", "transposed"),
    [
        *((576, True), (640, True), (641, False), (768, False), (896, True), (1152, True), (2176, True), (2304, False)),
        *((128, True), (129, False), (None, False)),
    ],
)
def test_tiles_of_both_gradients_are_transposed_where_wide_ones_compute_more_columns(hidden_size, transposed):
    wide = launch._fitting("hopper", 2, None)
    table = launch._fitting("hopper", 2, hidden_size)
    assert (table.forward, table.logit_gradient) == (wide.forward, wide.logit_gradient)
    for found, plain in ((table.weight_gradient, wide.weight_gradient), (table.input_gradient, wide.input_gradient)):
        assert (plain.rows, plain.columns, plain.transposed) == (128, 256, False)
        assert found == (replace(plain, rows=256, columns=128, transposed=True) if transposed else plain)


@pytest.mark.parametrize(("family", "itemsize"), [("hopper", 4), ("ampere", 2), ("ampere", 4)])
def test_square_tiles_are_never_transposed(family, itemsize):
    assert {launch._fitting(family, itemsize, d) for d in (32, 64, 640)} == {launch._fitting(family, itemsize, None)}


def test_a_table_that_was_set_is_used_for_every_hidden_size():
    cpu = torch.device("cpu")
    other = LaunchTable(*[Launch(16, 32, 16, warps=4, stages=1)] * 4)
    assert launch_table(cpu, torch.float32, 16) != other
    set_launch_table(cpu, torch.float32, other)
    try:
        assert launch_table(cpu, torch.float32, 16) is other
    finally:
        set_launch_table(cpu, torch.float32, None)


def test_tuner(tmp_path):
    from kernel.fused import tuner

    cpu = torch.device("cpu")
    candidates = [Launch(32, 32, 16, warps=4, stages=1), Launch(7, 32, 16, warps=4, stages=1)]  # the second cannot run
    try:
        best = tuner.tune(20, 40, 16, dtype=torch.float32, device=cpu, repeats=1, candidates=candidates)
        assert launch_table(cpu, torch.float32) == best
        tuner.save(best, tmp_path / "table.json")
        set_launch_table(cpu, torch.float32, None)
        assert tuner.load(tmp_path / "table.json", cpu, torch.float32) == best
        assert all(getattr(best, name).rows != 7 for name in ("forward", "weight_gradient", "input_gradient"))
    finally:
        set_launch_table(cpu, torch.float32, None)


def test_the_tuner_tries_transposed_tiles_of_both_gradients_alone():
    from kernel.fused import tuner

    table = launch._fitting("hopper", 2, None)
    for name in ("forward", "logit_gradient", "weight_gradient", "input_gradient"):
        tried = [getattr(found, name) for found in tuner._neighbours(table, name, tuner.CANDIDATES)]
        tall = [found for found in tried if found.rows > found.columns]
        assert bool(tall) == ("gradient" in name and name != "logit_gradient")
        assert all(found.transposed for found in tall)
        assert not any(found.transposed for found in tried if found not in tall)
