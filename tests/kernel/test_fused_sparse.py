"""Sparse gradients of the fused kernels, in the interpreter: the measured error never exceeds what is certified."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from sparse_problems import COLUMNS, DEVICE, ROWS, drawn, text_like

from kernel import GradientTolerance, linear_cross_entropy

pytest.importorskip("triton")

from kernel.fused import call, run_listed
from kernel.fused.head_tiles import head_tiles
from kernel.fused.listed_pieces import block_pieces
from kernel.fused.listed_rounds import ROUND_FIELDS, Room, rounds_of
from kernel.fused.run_listed import ListedRun
from kernel.fused.sparse_times import most_active
from kernel.fused.tile_lists import ListedTiles
from kernel.fused.tries import Tries

pytestmark = pytest.mark.usefixtures("worth_it_at_any_size")


def gradients(tensors, tolerance, *, frozen=(), upstream=None, again=False, **options):
    hidden, weight, target = tensors
    leaves = [t.detach().clone().requires_grad_(i not in frozen) for i, t in enumerate((hidden, weight))]
    options = {"label_smoothing": 0.1, "implementation": "triton", **options}
    loss: Any = linear_cross_entropy(*leaves, target, gradient_tolerance=tolerance, **options)
    loss = loss if upstream is None else (loss * upstream).sum()
    found = torch.autograd.grad(loss, [t for t in leaves if t.requires_grad], retain_graph=again)
    return found + torch.autograd.grad(loss, leaves) if again else found


PROBLEMS = [
    ({}, {}, 0.05),
    ({}, {"reduction": "none", "label_smoothing": 0.0, "frozen": (1,), "workspace_bytes": 0}, 0.05),
    ({"rest": 0}, {"frozen": (0,), "z_loss": 0.01, "temperature": 0.7, "reduction": "sum"}, 0.1),
    ({"prior": 0.0, "sure": 0.0, "flat": 0.05}, {"label_smoothing": 0.9}, 0.1),  # p near b / V, also in sum
    (
        {"sure": 90.0},
        {"workspace_bytes": 2**28},
        0.05,
    ),  # tiles 2^-64 below the target, whose softmax would vanish as a kept one
    ({"prior": 0.0, "sure": 0.0}, {"label_smoothing": 1.0}, 0.05),  # cancels: nothing can be certified
]


@pytest.mark.parametrize("index", range(len(PROBLEMS)))
def test_no_error_exceeds_what_is_certified(index):
    """The last problem has to take the dense path, the others leave more than half of the tiles out."""
    shape, options, tolerance = PROBLEMS[index]
    tensors = text_like(index, **shape)
    generator = torch.Generator().manual_seed(index)
    tensors[2][torch.rand(len(tensors[2]), generator=generator).to(DEVICE) < 0.2] = -100
    if options.get("reduction") == "none":
        options = {**options, "upstream": torch.randn(len(tensors[2]), generator=generator).to(DEVICE)}
    told = GradientTolerance(tolerance)
    exact, found = gradients(tensors, 0.0, **options), gradients(tensors, told, **options)
    shares = [(told.input_active, told.input_bound), (told.weight_active, told.weight_bound)]
    shares = [s for i, s in enumerate(shares) if i not in options.get("frozen", ())]
    for ours, whole, (active, bound) in zip(found, exact, shares, strict=True):
        assert bound <= tolerance
        if active == 1:
            assert bound == 0
            assert torch.equal(ours, whole)  # the dense path itself
        else:
            assert 0 < (ours - whole).norm() <= (bound + 1e-5) * whole.norm()
    leaves_out = index < len(PROBLEMS) - 1  # where that can be certified
    assert (shares[0][0] < 0.5) == leaves_out, told


def test_no_error_of_random_problems_exceeds_what_is_certified():
    """Few in the interpreter, where each takes a second; a device has many, and those in bfloat16 of the next file."""
    certified, number = 0, 200 if DEVICE == "cuda" else 4
    for seed in range(number):
        tensors, options, tolerance = drawn(seed)
        told = GradientTolerance(tolerance)
        exact, found = gradients(tensors, 0.0, **options), gradients(tensors, told, **options)
        certified += told.input_active < 1
        bounds = told.input_bound, told.weight_bound
        for ours, whole, bound in zip(found, exact, bounds, strict=True):
            assert bound <= tolerance
            assert (ours - whole).norm() <= (bound + 1e-5) * whole.norm(), (seed, told)
    assert number / 10 < certified < number


def test_after_a_failed_try_losses_are_dense_from_the_start(monkeypatch):
    """As those without a tolerance, to the bit, with columns that the forward kept; 31 of them, then comes another try."""
    tensors, told, tried = text_like(5, prior=0.0, sure=0.0), GradientTolerance(0.05), []
    monkeypatch.setattr(call, "sparse_backward", lambda *args: tried.append(args))  # returns None: many tiles remain
    whole = gradients(tensors, 0.0, workspace_bytes=2**28)
    _, found = (gradients(tensors, told, workspace_bytes=2**28) for _ in range(2))
    assert len(tried) == 1
    assert all(torch.equal(ours, exact) for ours, exact in zip(found, whole, strict=True))
    assert (told.input_active, told.weight_bound) == (1, 0)
    gradients(tensors, GradientTolerance(0.05))  # keeps a count of its own
    assert len(tried) == 2


def share(tokens=12288, vocab_size=262144, hidden_size=640, kept=0.0, products=2, **options):
    sizes = {"itemsize": 2, "tile": 256, "processors": 132, **options}
    return most_active(tokens, vocab_size, hidden_size, kept=kept, products=products, **sizes)


def test_a_sparse_call_is_worth_it_where_it_saves_more_than_it_takes():
    """On large problems; where a dense call keeps its columns, or little is to be computed, with fewer tiles or never."""
    assert share() == 0.5
    for changed in ("tokens", "vocab_size", "hidden_size"):
        sizes = {"tokens": 2048, "vocab_size": 49152, "hidden_size": 256}
        growing = [share(**{**sizes, changed: sizes[changed] * 2**i}) for i in range(8)]
        assert growing == sorted(growing)
        assert growing[0] == 0 < growing[-1], changed
    falling = [share(tokens=4096, kept=k / 4) for k in range(5)]
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < falling[0]
    assert share(tokens=4096, products=1, kept=1.0) < falling[-1]
    assert share(tokens=600, vocab_size=40000, hidden_size=320) == 0


def test_tries_become_rare_and_a_success_ends_that():
    tries = Tries()
    waits = []
    for _ in range(8):
        tries.note("kind", failed=True)
        assert tries.due("another kind")
        waits.append(next(i for i in range(2000) if tries.due("kind")))
    assert waits == [31, 62, 124, 248, 496, 992, 992, 992]
    for _ in range(5):  # losses before the first backward of them
        tries.note("several", failed=True)
    assert next(i for i in range(2000) if tries.due("several")) == 31
    tries.note("kind", failed=False)
    assert all(tries.due("kind") for _ in range(3))
    for kind in range(1000):
        tries.note(kind, failed=True)
    assert tries.due("kind")
    assert not tries.due(999)
    assert tries.due(0)  # forgotten


def test_repeats_are_bitwise_equal_and_a_second_backward_gives_the_same():
    tensors = text_like(1)
    told = GradientTolerance(0.05)
    first = gradients(tensors, told, again=True)
    assert told.input_active < 0.5
    for ours, other in zip(first, gradients(tensors, told) * 2, strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"bias": True}])
def test_what_cannot_be_certified_is_exact(options):
    hidden, weight, target = text_like(0, tokens=4, tiles=8)
    if options.pop("bias", False):
        options["linear_bias"] = torch.zeros(len(weight), device=DEVICE, requires_grad=True)
    told, tensors = GradientTolerance(0.1), (hidden, weight, target)
    for ours, whole in zip(gradients(tensors, told, **options), gradients(tensors, 0.0, **options), strict=True):
        assert torch.equal(ours, whole)
    assert (told.input_active, told.weight_active, told.input_bound, told.weight_bound) == (1, 1, 0, 0)


def test_what_the_backward_computes_is_not_told_before():
    hidden, weight, target = text_like(0)
    told = GradientTolerance(0.01)
    options = {"gradient_tolerance": told, "implementation": "triton"}
    linear_cross_entropy(hidden.requires_grad_(), weight, target, **options)
    assert [math.isnan(told.input_active), told.weight_active] == [True, 1]
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, target, **options)
    assert told.input_active == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sigma_is_never_below_the_largest_singular_value(dtype):
    """Also where a tile's rows are equal, differ by little of what they share, or are small."""
    weight = text_like(0, d=24)[1]
    weight[:COLUMNS] = weight[0]
    weight[COLUMNS : 2 * COLUMNS] += 20
    weight[2 * COLUMNS : 3 * COLUMNS] *= 1e-3
    weight = weight.to(dtype)
    found = head_tiles(weight, COLUMNS)
    whole = weight[: len(found.sigma) * COLUMNS].unflatten(0, (-1, COLUMNS)).double()
    true = torch.linalg.matrix_norm(whole - whole.mean(1, keepdim=True), 2)
    torch.testing.assert_close(found.mean.double(), whole.mean(1), rtol=1e-5, atol=1e-6)
    assert (found.sigma >= true).all()
    rounding = 0.01 * torch.linalg.matrix_norm(whole)
    assert (found.sigma <= true * COLUMNS**0.125 * 1.02 + rounding).all()


@pytest.mark.parametrize("hidden_size", [0, 5, 29, 64])
@pytest.mark.parametrize(("capacity", "most"), [(7, 500), (20, 140), (1000, 500), (20, 50)])
def test_every_active_tile_is_listed_once(capacity, most, hidden_size):
    """In rounds whose dz fits the workspace, or what the weight's gradient has behind the rows that are written."""
    generator = np.random.default_rng(0)
    active = generator.random((7, 30)) < np.linspace(0.9, 0.0, 30)
    memory = torch.empty(1 + ROUND_FIELDS * 30, dtype=torch.int32, device=DEVICE)
    certified = torch.tensor([float(most != 50)], device=DEVICE)
    room = Room.of(capacity, hidden_size, 16, 28, gradient=hidden_size > 0)
    room = room._replace(programs=hidden_size // 2, column_blocks=5 if hidden_size != 5 else 1)
    found = ListedTiles(torch.from_numpy(active).to(DEVICE, torch.uint8), certified, room, 2, most, memory)
    found.make()
    rounds = rounds_of(memory.tolist())
    wanted = [(int(t), int(b)) for t, b in zip(*np.nonzero(active.T), strict=True) if t >= 2]
    if len(wanted) > most:
        assert rounds == []
        return
    tile_of, block_of = (list_of.tolist()[: len(wanted)] for list_of in (found.tile_of, found.block_of))
    assert list(zip(tile_of, block_of, strict=True)) == wanted
    assert [r.first_tile for r in rounds] + [30] == [2] + [r.first_tile + r.tiles for r in rounds]
    slot_of, own_tile = found.slot_of.flatten().tolist(), found.own_tile.flatten().tolist()
    pieces = block_pieces(found, 0, len(rounds), 12)
    for index, part in enumerate(rounds):
        end = part.first_tile + part.tiles
        if part.in_gradient:
            assert part.start == end * hidden_size  # behind the rows that the round writes
            assert part.start + part.number * 16 <= 30 * hidden_size
        else:
            assert part.number <= capacity
        assert index or part.in_gradient == room.first_in_gradient
        if room.programs:  # few waves are filled to a half at least
            waves, beyond = divmod(part.tiles * room.column_blocks, room.programs)
            assert waves not in (1, 2, 3) or part.tiles == 1 or beyond == 0 or 2 * beyond >= room.programs
        cut, joined = pieces.numbers[index].tolist()
        owner, lengths, seen = {}, [], []
        for begin, length, target in pieces.pieces[index, :cut].tolist():
            slots = slot_of[begin : begin + length]
            assert [tile_of[s] for s in slots] == own_tile[begin : begin + length]
            assert target not in owner
            (owner[target],) = {block_of[s] for s in slots}
            assert target in (owner[target], *range(7, 7 + 12))
            lengths.append(length)
            seen += slots
        assert sorted(seen) == list(range(part.first, part.first + part.number))
        assert all(later <= sooner + 1 for sooner, later in itertools.pairwise(lengths))  # of a block equal ones
        extra = {t: b for t, b in owner.items() if t >= 7}
        for block, first, number in pieces.joins[index, :joined].tolist():
            assert [extra.pop(t) for t in range(first, first + number)] == [block] * number
        assert not extra


def test_the_layout_of_the_head_changes_no_bound():
    """A transposed head is read by its strides as both factors of its tiles' products."""
    hidden, weight, target = text_like(0)
    turned = weight.T.contiguous().T
    told = [GradientTolerance(0.05) for _ in range(2)]
    plain, found = (gradients((hidden, w, target), t) for w, t in zip((weight, turned), told, strict=True))
    assert told[0].input_active < 0.5
    assert vars(told[0]) == vars(told[1])
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("kept", "ignored"), [(16, 128), (64, 128), (80, 128)])
def test_sums_of_the_pilot_are_whole_where_tokens_are_ignored(kept, ignored):
    """Its rows cancel in halves: pieces of a sum, cut as the kept tokens leave room, would have large norms."""
    generator = torch.Generator().manual_seed(0)
    n, v, d = kept + ignored, 12 * COLUMNS, 16
    weight, hidden = torch.randn(v, d, generator=generator) * 0.3, torch.randn(n, d, generator=generator)
    weight[:, :2], weight[:COLUMNS], hidden[:, 0], hidden[:, 1] = 0, 0, 0, 1
    weight[: COLUMNS // 2, 0], weight[COLUMNS // 2 : COLUMNS, 0], weight[:COLUMNS, 1] = 200, -200, 2
    target = torch.randint(COLUMNS, 2 * COLUMNS, (n,), generator=generator)
    target[kept:] = -100
    tensors, told = [t.to(DEVICE) for t in (hidden, weight, target)], GradientTolerance(0.05)
    options = {"frozen": (1,), "label_smoothing": 0.0, "reduction": "sum"}
    (exact,), (found,) = (gradients(tensors, tolerance, **options) for tolerance in (0.0, told))
    assert (found - exact).norm() <= max(told.input_bound, 1e-6) * exact.norm()


def test_float32_of_very_many_tokens_is_exact():
    """The mean field's sums on tensor cores are truncated in every step, of which there are as many as tokens."""
    from kernel.fused.run_sparse import Sparse

    sparse = Sparse(0.003, None)
    assert sparse._sums_are_exact_enough(8192, 1024, 4)
    assert not sparse._sums_are_exact_enough(131072, 1024, 4)
    assert sparse._sums_are_exact_enough(131072, 1024, 2)


def test_rounds_may_lie_in_the_weights_gradient(monkeypatch):
    """Behind what they write: a small workspace then takes few rounds, and no bit of that gradient changes.

    Two rounds are cut into pieces at once, so that there are several groups of them.
    """
    go_on, found = ListedRun.go_on, {}
    monkeypatch.setattr(run_listed, "_PIECES_OF", 2)
    tensors = text_like(1, d=3 * ROWS // 2, tokens=6.2, tiles=16)
    for size in (0, 2**28):
        places = []

        def noted(run, first, in_gradient, places=places):
            assert first == len(places)
            places.extend(in_gradient)
            go_on(run, first, in_gradient)

        monkeypatch.setattr(ListedRun, "go_on", noted)
        told = GradientTolerance(0.006)
        found[size] = gradients(tensors, told, workspace_bytes=size), places
        assert told.input_active < 0.5
    (small, several), (large, one) = found.values()
    assert len(several) >= 3
    assert {*several} == {True, False}
    assert one == [False]
    exact = gradients(tensors, 0.0)
    assert torch.equal(small[1], large[1])
    torch.testing.assert_close(small[0], large[0], rtol=1e-5, atol=1e-7)
    assert (small[1] - exact[1]).norm() <= 0.006 * exact[1].norm()
