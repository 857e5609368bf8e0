"""Maps of the features that are the same for all tokens, against scipy's minimiser, each other and planted ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from analysis.language_models.features import HiddenStates, ModelHead
from analysis.study.real_tuning import responses
from analysis.study.real_tuning.responses import mapped_falls, shared_falls, solved_and_checked
from analysis.study.real_tuning.shared_maps import RANK, MapSolver


def tokens(n, d, v, *, seed=0, change=None, document=20, sure=1.5):
    """Features and a head in float64, and targets drawn from the head after a change of the features."""
    g = torch.Generator().manual_seed(seed)
    w, h = torch.randn(v, d, generator=g).double(), torch.randn(n, d, generator=g).double()
    moved = h if change is None else change(h)
    y = torch.distributions.Categorical(logits=sure * moved @ w.T / d**0.5).sample()
    nothing = torch.zeros(n, dtype=torch.bool)
    known = HiddenStates(h, y, torch.arange(n) // document, nothing, nothing)
    return known, ModelHead(w, None, 1 / d**0.5, None)


def loss(known, head, moved, b):
    return F.cross_entropy(head.logit_scale * moved @ head.weight.T, known.target, label_smoothing=b)


@pytest.mark.parametrize("b", [0.0, 0.2])
def test_the_affine_map_is_scipys(b):
    """In other unknowns: a scale, a shift, and any matrix, whose movement is paid for by its mean square."""
    known, head = tokens(80, 3, 7)
    ridge = 0.3
    predicted = (head.logit_scale * known.hidden @ head.weight.T).softmax(-1).mean(0)
    spread = torch.cov(head.weight.T, correction=0, aweights=(predicted + 1 / 7) / 2)
    norm = torch.einsum("nd,de,ne->n", known.hidden, spread, known.hidden).mean()

    def objective(x):
        a = torch.tensor(x, requires_grad=True)
        s, c, m = a[0], a[1:4], a[4:].reshape(3, 3)
        turned = known.hidden @ m.T
        price = ridge * ((turned @ spread) * turned).sum(-1).mean() / norm + 0.03 * (s**2 + c @ spread @ c / norm)
        total = loss(known, head, (1 + s) * known.hidden + c + turned, b) + price / 2
        total.backward()
        return total.item(), a.grad.numpy()

    best = minimize(objective, np.zeros(13), jac=True, method="BFGS", options={"gtol": 1e-9})
    found, _ = MapSolver(known.hidden, known.target, head, "affine").solve(b, ridge)
    assert found.converged
    assert -1e-9 < found.loss - best.fun <= found.gap * found.loss  # the gradient bounds what is left
    s, c, m = best.x[0], torch.tensor(best.x[1:4]), torch.tensor(best.x[4:].reshape(3, 3))
    there = (1 + s) * known.hidden + c + known.hidden @ m.T
    z, own = (head.logit_scale * x @ head.weight.T for x in (there, found(known.hidden)))
    confidence, sure = (x.softmax(-1).amax(-1).mean().item() for x in (z, own))
    assert sure == pytest.approx(confidence, abs=2e-2)


def test_maps_of_more_unknowns_reach_lower_losses():
    known, head = tokens(300, 6, 11)
    least = {
        kind: MapSolver(known.hidden, known.target, head, kind).solve(0.1, 0.01)[0]
        for kind in ("scale", "gain", "low_rank", "affine")
    }
    plain = loss(known, head, known.hidden, 0.1).item()
    assert all(found.converged for found in least.values())
    close = 1e-3 * plain
    assert least["scale"].loss < plain
    assert least["gain"].loss < least["scale"].loss + close
    assert least["affine"].loss < least["gain"].loss + close
    assert least["affine"].loss < least["low_rank"].loss + close


def test_a_scale_falls_as_the_one_that_is_not_paid_for():
    known, head = tokens(400, 6, 11)
    solver = MapSolver(known.hidden, known.target, head, "scale")
    sure = {b: solver.solve(b, 1.0)[0](known.hidden) for b in (0.0, 0.2)}
    at = {b: (head.logit_scale * h @ head.weight.T).softmax(-1).amax(-1).mean().item() for b, h in sure.items()}
    whole = HiddenStates(known.hidden.float(), *known[1:])
    single = head._replace(weight=head.weight.float())
    free = shared_falls(whole, single, {"seen": whole}, (0.2,))["seen"]
    assert at[0.0] - at[0.2] == pytest.approx(free["scale_fall_0.2"], rel=0.1)


@pytest.fixture
def two_ridges(monkeypatch):
    monkeypatch.setattr(responses, "RIDGES", (16.0, 1.0))


def test_a_gain_is_found_whatever_the_size_of_the_features():
    """As scipy does; some move the logits a thousand times as much as others, in float32, as models are."""
    known, head = tokens(600, 16, 40)
    size = torch.logspace(-2, 1, 16).double()
    y = torch.distributions.Categorical(logits=0.5 * known.hidden * size @ head.weight.T).sample()
    known, head = known._replace(hidden=known.hidden * size, target=y), head._replace(logit_scale=1.0)

    def objective(x, b):
        a = torch.tensor(x, requires_grad=True)
        total = loss(known, head, known.hidden * (1 + a / size), b)
        total.backward()
        return total.item(), a.grad.numpy()

    def confidence(b):
        best = minimize(objective, np.zeros(16), b, jac=True, method="BFGS", options={"gtol": 1e-7}).x
        z = known.hidden * (1 + torch.tensor(best) / size) @ head.weight.T
        return z.softmax(-1).amax(-1).mean().item()

    single = known._replace(hidden=known.hidden.float())
    found = shared_falls(single, head._replace(weight=head.weight.float()), {"seen": single}, (0.1,))["seen"]
    assert found["gain_confidence"] == pytest.approx(confidence(0.0), abs=2e-3)
    assert found["gain_fall_0.1"] == pytest.approx(confidence(0.0) - confidence(0.1), abs=2e-3)


@pytest.mark.usefixtures("two_ridges")
def test_nothing_falls_without_smoothing():
    known, head = tokens(400, 6, 11)
    found = mapped_falls(known, head, {"seen": known}, (0.0, 0.2))["seen"]
    for kind in ("low_rank", "affine"):
        assert found[f"{kind}_fall_0"] == 0
        assert found[f"{kind}_fall_0.2"] > 0.01
        assert found[f"{kind}_gap_0.2"] < 1e-3
        assert found[f"{kind}_ridge_0.2"] in (16, 1)


def test_planted_changes_are_found():
    """On other tokens, a shift and a change of rank 1: most of what they are worth."""
    out, into = torch.randn(2, 24, generator=torch.Generator().manual_seed(3)).double() / 24**0.5

    def change(h):
        return h + 2 * (h @ into)[:, None] * out + 1.5 * out

    known, head = tokens(1500, 24, 40, change=change, sure=3.0)
    head = head._replace(logit_scale=3 * head.logit_scale)
    seen, other = (HiddenStates(*(x[part] for x in known)) for part in (slice(1000), slice(1000, None)))
    plain, true = (loss(other, head, h, 0.0).item() for h in (other.hidden, change(other.hidden)))
    for kind in ("low_rank", "affine"):
        found, unknowns = MapSolver(seen.hidden, seen.target, head, kind).solve(0.0, 2.0)
        left = loss(other, head, found(other.hidden), 0.0).item() - true
        assert left < 0.6 * (plain - true)
        if kind == "low_rank":
            beside = found.change - unknowns["scale"] * torch.eye(24)
            assert torch.linalg.matrix_rank(beside, rtol=1e-6) == RANK


@pytest.mark.usefixtures("two_ridges")
def test_separated_tokens_have_a_map():
    """The plain loss falls to 0 without bound there; what a scale costs keeps it finite, the condition holds."""
    g = torch.Generator().manual_seed(0)
    w, h = torch.randn(50, 16, generator=g), torch.randn(200, 16, generator=g)
    nothing = torch.zeros(200, dtype=torch.bool)
    known = HiddenStates(h, (h @ w.T).argmax(-1), torch.arange(200) // 20, nothing, nothing)
    found = mapped_falls(known, ModelHead(w, None, 1.0, None), {"seen": known}, (0.1,))["seen"]
    assert all(np.isfinite(value) for value in found.values())
    assert 0.02 < found["affine_fall_0.1"] < 0.5


def test_half_of_the_documents_are_solved_on():
    known, head = tokens(100, 4, 5)
    solved, checked = solved_and_checked(known)
    assert set(solved.document.tolist()) == {0, 2, 4}
    assert set(checked.document.tolist()) == {1, 3}
    assert len(solved.target) + len(checked.target) == 100
    one = HiddenStates(*(x[:20] for x in known))
    assert mapped_falls(one, head, {"seen": known}, (0.1,)) == {}
