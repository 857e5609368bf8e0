"""The errors of sparse gradients beside what certifies them, without the kernels."""

import pytest
import torch

from kernel import linear_cross_entropy
from kernel.benchmark.certificate import SoftmaxTiles
from kernel.benchmark.exact_tiles import tile_errors
from kernel.benchmark.problems import Data
from kernel.fused import pilot_length
from kernel.fused.pilot_length import pilot_tiles


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    v, n, d = 40 * 256, 384, 8
    weight, hidden = (torch.randn(k, d, generator=generator) / 2 for k in (v, n))
    hidden[:, 0], weight[:, 0] = 1, -1.2 * torch.arange(1, v + 1).log()
    target = (hidden @ weight.T).softmax(1).multinomial(1, generator=generator).squeeze(1)
    return Data(hidden.requires_grad_(), weight.requires_grad_(), target)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_no_error_exceeds_its_bound_and_none_is_left_where_all_is_computed(data, label_smoothing):
    rows = list(SoftmaxTiles(data, label_smoothing).rows([0.0, 0.5, 1.0]))
    assert rows[0]["active"] < rows[1]["active"] < 0.6
    for row in rows[:2]:
        for which in ("input", "weight"):
            assert 0 < row[f"{which}_error"] < row[f"{which}_bound"]
    assert list(rows[2].values()) == [1, 0, 0, 0, 0]


def test_what_is_computed_in_any_case_is_the_kernels_pilot(data, monkeypatch):
    """Waves of a device may shorten it."""
    assert SoftmaxTiles(data, 0.1).pilot == pilot_tiles(40, 256, 8, torch.device("cpu"), torch.float32) == 1
    assert pilot_tiles(1024, 256, 640, torch.device("cpu"), torch.float32, of_weight=False) == 32
    monkeypatch.setattr(pilot_length, "_PILOT", 4)
    monkeypatch.setattr(pilot_length, "processors", lambda device: 72)
    tiles = SoftmaxTiles(data, 0.1)
    assert tiles.pilot == 9  # of 10, each of 8 tiles of the interpreter's weight gradient: 72 are a wave
    anyway = tile_errors(tiles, (0.1,)).anyway
    targets = tiles.target // 256
    assert anyway[:, :9].all()
    assert int(anyway[:, 9:].sum()) == len({(i // 128, int(t)) for i, t in enumerate(targets) if t >= 9})
    assert next(tiles.rows([0.0]))["active"] == pytest.approx(float(anyway.double().mean()))


def test_errors_are_those_of_the_gradients(data):
    tiles = SoftmaxTiles(data, 0.1)
    hidden, weight, target = tiles.hidden.clone().requires_grad_(), tiles.weight.clone().requires_grad_(), tiles.target
    loss = linear_cross_entropy(hidden, weight, target, label_smoothing=0.1, reduction="sum")
    exact = torch.autograd.grad(loss, (hidden, weight))
    active = torch.zeros(3, 40, dtype=torch.bool)
    active[:, :2] = active[1, 7] = True
    found = tiles._errors(active)
    with torch.no_grad():
        dz = (hidden @ weight.T).softmax(1) - 0.1 / len(weight)
        own = torch.zeros_like(dz).scatter_(1, target[:, None], -0.9)
        by_tile = dz.view(3, 128, 40, 256)
        sparse = torch.where(active[:, None, :, None], by_tile, by_tile.mean(3, keepdim=True)).view_as(dz) + own
        for ours, whole, error in zip((sparse @ weight, sparse.T @ hidden), exact, found, strict=True):
            torch.testing.assert_close(error, (ours - whole).norm(), rtol=1e-3, atol=0)
