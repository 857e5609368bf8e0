"""How few tiles any choice could compute, beside all choices of small problems and gradients of another path."""

import csv
import json

import pytest
import torch

from kernel import linear_cross_entropy
from kernel.benchmark import sparse_floor
from kernel.benchmark.certificate import SoftmaxTiles
from kernel.benchmark.exact_tiles import tile_errors
from kernel.benchmark.fewest_tiles import error, minorants, most_left_out
from kernel.benchmark.problems import Data

GROUPS, TILES = 2, 6


def parts(seed, shared):
    """Errors of tiles, of sizes that differ a lot, with a direction that they share, and may cancel in."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(GROUPS, TILES, 8, dtype=torch.float64, generator=generator)
    found[:, :, 0] += shared
    return found * torch.logspace(-1, 1, GROUPS * TILES, dtype=torch.float64).view(TILES, GROUPS).T.unsqueeze(2)


def every_choice(found):
    """How many tiles each choice leaves out, and the norm of its error."""
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * (GROUPS * TILES))
    changed = torch.einsum("kgt,gtd->kgd", masks.view(-1, GROUPS, TILES), found)
    return masks.sum(1), changed.flatten(1).norm(dim=1)


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_choice_leaves_more_out_than_the_bound_which_is_close(seed, shared):
    found = parts(seed, shared)
    numbers, errors = every_choice(found)
    gram = found @ found.mT
    path = list(minorants(gram, torch.logspace(3, -4, 80, dtype=torch.float64).tolist()))
    for allowed in (0.1, 0.5, 1.0, 2.0, 5.0, 20.0):
        most = int(numbers[errors <= allowed].max())
        bound, _ = most_left_out(path, allowed)
        assert most <= bound <= most + 3


def test_a_minorant_lies_below_the_error_of_every_choice():
    found = parts(0, 3.0)
    _, errors = every_choice(found)
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * (GROUPS * TILES))
    for cost, constant in minorants(found @ found.mT, [10.0, 1.0, 0.1]):
        least = masks @ cost.flatten() - constant
        assert (least <= errors.square() * (1 + 1e-9) + 1e-12).all()
    assert error(found @ found.mT, masks[77].view(GROUPS, TILES)) == pytest.approx(float(errors[77]))


def test_orthogonal_errors_leave_out_as_many_as_their_squares_allow():
    gram = torch.diag_embed(torch.tensor([[1.0, 4.0, 9.0], [2.0, 3.0, 100.0]], dtype=torch.float64))
    path = list(minorants(gram, torch.logspace(3, -2, 60, dtype=torch.float64).tolist()))
    for allowed, most in ((0.99, 0), (1.0, 1), (2.99, 1), (3.01, 2), (6.01, 3), (19.01, 5), (119.01, 6)):
        assert most_left_out(path, allowed**0.5)[0] == most


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    v, n, d = 12 * 256, 384, 8
    weight, hidden = (torch.randn(k, d, generator=generator) / 2 for k in (v, n))
    hidden[:, 0], weight[:, 0] = 1, -1.2 * torch.arange(1, v + 1).log()
    target = (hidden @ weight.T).softmax(1).multinomial(1, generator=generator).squeeze(1)
    return Data(hidden.requires_grad_(), weight.requires_grad_(), target)


@pytest.fixture(scope="module")
def found(data):
    return tile_errors(SoftmaxTiles(data, 0.0), (0.1, 0.0))


@pytest.mark.parametrize("label_smoothing", [0.1, 0.0])
def test_errors_are_those_of_the_gradients(data, found, label_smoothing):
    tiles = SoftmaxTiles(data, 0.0)
    hidden, weight = (x.double().requires_grad_() for x in (tiles.hidden, tiles.weight))
    options = {"label_smoothing": label_smoothing, "reduction": "sum", "implementation": "reference"}
    loss = linear_cross_entropy(hidden, weight, tiles.target, **options)
    exact = torch.autograd.grad(loss, (hidden, weight))
    assert found.norms[label_smoothing] == pytest.approx([float(x.norm()) for x in exact], rel=1e-6)
    left_out = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    assert (left_out & found.anyway)[:, 1:].any()  # tiles with targets are among them
    with torch.no_grad():
        dz = (hidden @ weight.T).softmax(1) - label_smoothing / len(weight)
        target = torch.zeros_like(dz, dtype=torch.bool).scatter_(1, tiles.target[:, None], True)
        dz -= (1 - label_smoothing) * target
        others = (~target).double().view(384, 12, 256)
        mean = (dz.view(384, 12, 256) * others).sum(2, keepdim=True) / others.sum(2, keepdim=True)
        out = left_out.repeat_interleave(128, 0)[:, :, None] & ~target.view(384, 12, 256)
        sparse = torch.where(out, mean, dz.view(384, 12, 256)).view_as(dz)
        errors = [float((a - b).norm()) for a, b in zip((sparse @ weight, sparse.T @ hidden), exact, strict=True)]
    mask = left_out.double()
    assert error(found.of_input, mask) == pytest.approx(errors[0], rel=1e-5)
    assert error(found.of_weight, mask.T.contiguous()) == pytest.approx(errors[1], rel=1e-5)


def test_bounds_lie_above_errors(found):
    """Of each tile by itself."""
    own = found.of_input.diagonal(dim1=1, dim2=2), found.of_weight.diagonal(dim1=1, dim2=2).T
    assert (own[0].sqrt() <= found.input_bound.norm(dim=1)).all()
    assert (own[1].sqrt() <= found.weight_bound).all()


def test_knowing_less_computes_more(found):
    floors, before = sparse_floor.Floors(found), 1.0
    for tolerance in (0.001, 0.003, 0.01):
        row = floors.row(0.1, tolerance)
        assert row["floor"] == max(row["floor_of_input"], row["floor_of_weight"])
        assert 0 < row["floor"] <= row["oracle"] <= row["certified"] <= before
        assert row["oracle"] <= row["floor"] + 0.1
        assert 0 < max(row["oracle_input_error"], row["oracle_weight_error"]) <= tolerance
        assert row["anyway"] <= row["certified"]
        before = row["certified"]


def test_the_command_writes_its_table(tmp_path, capsys):
    out = tmp_path / "floor.csv"
    options = ["--problem", "SmolLM2-135M", "--scale", "24", "--device", "cpu", "--output", str(out)]
    assert sparse_floor.main(options) == 0, capsys.readouterr()
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["label_smoothing"], row["tolerance"]) for row in rows] == [
        (b, tolerance) for b in ("0.1", "0.0") for tolerance in ("0.001", "0.003", "0.01")
    ]
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["command"].endswith("sparse_floor --problem SmolLM2-135M --scale 24 --device cpu")
    assert sparse_floor.main(["--device", "cpu", "--output", str(out)]) == 2
    assert "give --states, --problem or both." in capsys.readouterr().err
