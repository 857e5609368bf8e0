"""The order of a sparse backward: tokens by reach, and a pilot of whole waves, in one strip or in several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_problems import COLUMNS, DEVICE, ROWS, text_like

from kernel import GradientTolerance, linear_cross_entropy
from kernel.fused.launch import blocks, launch_table

pytest.importorskip("triton")

from kernel.fused import call, pilot_length, run_sparse, sparse_state
from kernel.fused.launch import _fitting
from kernel.fused.pilot_length import _in_waves
from kernel.fused.run_sparse import sparse_backward
from kernel.fused.sparse_state import SparseState

pytestmark = pytest.mark.usefixtures("worth_it_at_any_size")
BOTH = (True, True)


def gradients(tensors, tolerance, needs=BOTH):
    """Of the input and the head, those that are needed."""
    leaves = [t.clone().requires_grad_(need) for t, need in zip(tensors, needs, strict=False)]
    options = {"label_smoothing": 0.1, "workspace_bytes": 0, "implementation": "triton"}
    loss: Any = linear_cross_entropy(*leaves, tensors[2], gradient_tolerance=tolerance, **options)
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])


def pilot_of(vocab_size, hidden_size, programs=132):
    """On Hopper, in half precision."""
    launch = _fitting("hopper", 2, hidden_size).weight_gradient
    return _in_waves(vocab_size // 256 // 32, 256, hidden_size, launch, programs)


def test_a_pilot_is_whole_waves_where_that_takes_a_fifth_at_most():
    assert (
        pilot_of(262144, 640) == 26
    )  # Gemma-3-270M: 130 of 132 programs have a tile, where 32 have 28 in a second wave
    assert pilot_of(128256, 2048) == 15  # Llama-3.2-1B: one wave would be 8
    launch = launch_table(torch.device("cpu"), torch.float32).weight_gradient
    shortened = 0
    for programs in (1, 3, 7, 132):
        for of_tile in (1, 3, 8):
            for pilot in range(1, 200):
                found = _in_waves(pilot, launch.rows, of_tile * launch.columns, launch, programs)
                assert 4 * pilot <= 5 * found <= 5 * pilot
                waves = blocks(found * of_tile, programs)
                if found < pilot:  # the most tiles of fewer waves
                    shortened += 1
                    assert waves < blocks(pilot * of_tile, programs)
                    assert (found + 1) * of_tile > waves * programs
                elif waves > 1:  # fewer waves would have too few tiles
                    most = pilot * of_tile // programs * programs // of_tile
                    assert most == pilot or 5 * most < 4 * pilot
    assert shortened > 100


# Sizes, gradients, least bytes for dz, and what follows: whether it lies in the head's gradient, and is in one piece.
PLACES = [
    ({"d": ROWS // 2}, BOTH, 0, (False, False)),
    ({"d": 3 * ROWS}, BOTH, 0, (True, True)),
    ({"d": 3 * ROWS // 2}, BOTH, 2**25, (False, True)),  # two tiles of its weight's gradient for each of the pilot
    ({"d": ROWS // 2}, (True, False), 0, (False, False)),
]


@pytest.mark.parametrize("index", range(len(PLACES)))
def test_a_pilot_of_several_tiles(index, monkeypatch):
    """In one strip or in several, in the workspace or in the head's gradient."""
    shape, needs, least, (in_gradient, whole_pilot) = PLACES[index]
    states = []

    def noted(*args):
        states.append(SparseState(*args))
        return states[-1]

    monkeypatch.setattr(pilot_length, "_PILOT", 4)
    monkeypatch.setattr(sparse_state, "_LEAST_BYTES", least)
    monkeypatch.setattr(run_sparse, "SparseState", noted)
    tensors, told = text_like(1, tokens=6.2, tiles=20, **shape), GradientTolerance(0.05)
    exact, found = gradients(tensors, 0.0, needs), gradients(tensors, told, needs)
    (state,) = states
    of_waves = DEVICE == "cpu" and index == 2  # 10 tiles are 4 waves of the interpreter's 3 programs, 8 are 3
    assert state.pilot == (4 if of_waves else 5)
    assert state.pilot_in_gradient == in_gradient
    assert state.pilot_width == (state.pilot if whole_pilot else 1) * COLUMNS
    assert state.pilot / state.tiles < told.input_active < 0.5
    for ours, whole, bound in zip(found, exact, (told.input_bound, told.weight_bound), strict=False):
        assert 0 < (ours - whole).norm() <= (bound + 1e-5) * whole.norm()
    if needs[1]:  # computed as it is
        end = state.pilot * COLUMNS
        torch.testing.assert_close(found[1][:end], exact[1][:end], rtol=1e-4, atol=1e-7)


def test_tokens_of_like_reach_leave_more_tiles_out(monkeypatch):
    """A quarter of them, in every block, has its mass in all of the vocabulary, and the others at its beginning."""
    hidden, weight, target = text_like(0, tokens=8, tiles=12, prior=2.0, sure=0.0)
    generator = torch.Generator().manual_seed(0)
    broad = torch.randn(hidden[::4].shape, generator=generator).to(hidden)
    broad[:, 0] = 0
    hidden[::4] = broad

    def shuffled(head, scalars, upstream, found, *args):
        reach = torch.randperm(len(found.reach), generator=generator).to(found.reach)
        return sparse_backward(head, scalars, upstream, found._replace(reach=reach), *args)

    monkeypatch.setattr(call, "most_active", lambda *args, **kwargs: 1.0)
    sorted_by_reach, in_any_order = GradientTolerance(0.05), GradientTolerance(0.05)
    gradients((hidden, weight, target), sorted_by_reach)
    monkeypatch.setattr(call, "sparse_backward", shuffled)
    gradients((hidden, weight, target), in_any_order)
    assert sorted_by_reach.input_active < 0.7 * in_any_order.input_active
