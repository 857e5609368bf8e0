"""What a shared change of the features would make of smoothing: candidates for the fall of a tuned language model.

The features of a trained model are not free in every context, as the frozen-head response takes them to be. What can
move without training is shared by all tokens: one scale of the hidden states, or a gain for each of their dimensions,
as the last norm has. Each is solved for on the tokens that were tuned on, without and with smoothing, the rest of the
plain model frozen, and the fall in confidence between the two is read on any tokens. Both are candidates, to be judged
beside the fall that smoothing brought. Where a change separates the tokens, the plain loss has no minimum: nothing is
predicted then. Maps of more unknowns, of low rank and affine, pay for how far they move the features
(:mod:`.shared_maps`); how much, other tokens that were tuned on decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...language_models.features import HiddenStates, ModelHead
from ...language_models.scoring import score_tokens
from .shared_maps import MapKind, MapSolver, SharedMap, smoothed_loss

__all__ = ["RIDGES", "mapped_falls", "shared_falls", "solved_and_checked"]

MAPS: tuple[MapKind, ...] = ("low_rank", "affine")
RIDGES = (64.0, 8.0, 1.0, 0.125)  # half of it, in nats: price of changing all logits by as much as they vary
_MAPPED = 4096  # tokens that a map is solved on, and that its ridge is chosen on, each

_SLICE, _SLICES = 10, 8  # iterations of L-BFGS between two looks at the slope, and how often they are allowed
# Of the gradient in the logarithm of the gain, as a share of the loss. Where tokens are separated the loss falls to 0
# and its gradient with it, but as fast: their ratio is the logarithm of the loss.
_TOLERANCE = 1e-3


def shared_falls(
    seen: HiddenStates, head: ModelHead, read: Mapping[str, HiddenStates], smoothings: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Falls in mean confidence that shared changes of the features predict.

    Args:
        seen: Hidden states of a model tuned without smoothing, and their targets: the tokens tuned on.
        head: As the loss reads it: its softcap is that of the loss, its ``logit_scale`` has the temperature in it.
        read: Name -> hidden states whose confidence is read.
        smoothings: b to predict.

    Returns:
        Name -> ``scale_fall_B`` and ``gain_fall_B`` for each b, such as ``gain_fall_0.1``, and ``scale_confidence`` and
        ``gain_confidence``, the plain confidence that they fall from; nan where no minimum was reached.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in read}
    for kind, size in (("scale", 1), ("gain", seen.hidden.shape[1])):
        for name in ("confidence", *(f"fall_{b:g}" for b in smoothings)):
            for numbers in found.values():
                numbers[f"{kind}_{name}"] = float("nan")  # until it is solved
        for b, gain in _solved(seen, head, size, [0.0, *smoothings]):
            for name, known in read.items():
                moved = known._replace(hidden=known.hidden * gain)
                confidence = float("nan") if gain.isnan().any() else float(score_tokens(moved, head).confidence.mean())
                if b:
                    found[name][f"{kind}_fall_{b:g}"] = found[name][f"{kind}_confidence"] - confidence
                else:
                    found[name][f"{kind}_confidence"] = confidence
    return found


def _solved(
    seen: HiddenStates, head: ModelHead, size: int, smoothings: Sequence[float]
) -> Iterator[tuple[float, Tensor]]:
    """Each b, 0 first, with the factors of the hidden states of least smoothed loss, the next from the last.

    They are nan if unsolved; after a 0 that is, no more are solved for.
    """
    each = torch.ones(size, dtype=torch.float64, device=seen.hidden.device)
    if size > 1:  # some features of Gemma move logits many times as much as others: in these unknowns all do alike
        logits = seen.hidden.double().square().mean(0).sqrt() * head.weight.std(0).double()
        each = (logits.square().mean().sqrt() / logits).where(logits > 0, 0)
    each = each.to(seen.hidden.dtype)
    moved = torch.zeros(size, device=seen.hidden.device, dtype=seen.hidden.dtype, requires_grad=True)
    for b in smoothings:
        optimiser = torch.optim.LBFGS([moved], max_iter=_SLICE, history_size=20, line_search_fn="strong_wolfe")

        def closure(b: float = b, optimiser: torch.optim.LBFGS = optimiser) -> Tensor:
            optimiser.zero_grad()
            loss = smoothed_loss(seen.hidden * (1 + each * moved), seen.target, head, b)
            loss.backward()
            return loss

        solved, reached = False, torch.ones_like(each)
        for _ in range(_SLICES):
            optimiser.step(closure)  # pyright: ignore[reportArgumentType]
            loss, reached = closure(), 1 + each * moved.detach()
            assert moved.grad is not None
            slope = (moved.grad / each * reached).where(each > 0, 0).abs().max()
            solved = bool(slope < _TOLERANCE * loss)  # and not where both are 0
            if solved:
                break
        yield b, reached if solved else torch.full_like(reached, float("nan"))
        if not solved and not b:
            return  # nothing to fall from
        if not solved:  # far out: no start for the next
            with torch.no_grad():
                moved.zero_()


def mapped_falls(
    seen: HiddenStates, head: ModelHead, read: Mapping[str, HiddenStates], smoothings: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Falls in mean confidence that a map of low rank and an affine one predict, solved with and without smoothing.

    Half of the documents are solved on. For each b, 0 too, the ridge is that of ``RIDGES``, from the largest on,
    at which the same smoothed loss is least on the other half: they were tuned on as well, so that it is the map that
    is kept from being fitted to its tokens, not the model.

    Args:
        seen: As for :func:`shared_falls`; at most 4096 tokens of each half are read.
        head: As for :func:`shared_falls`. On CUDA it multiplies in bfloat16 while the ridge is looked for.
        read: Name -> hidden states whose confidence is read.
        smoothings: b to predict.

    Returns:
        Name -> ``low_rank_fall_B`` and ``affine_fall_B`` for each b, ``low_rank_confidence`` and
        ``affine_confidence`` with the map of b = 0, from which they fall, ``affine_ridge_B`` with the ridge that was
        chosen, of b = 0 too, and ``affine_gap_B``, the larger of what is left to gain at b and at 0 as a share of the
        loss: solved where that is at most .02 (:attr:`.SharedMap.converged`). No line where there is but one document.
    """
    solved, checked = solved_and_checked(seen)
    if not len(checked.target):
        return {}
    found: dict[str, dict[str, float]] = {name: {} for name in read}
    for kind in MAPS:
        rough = torch.bfloat16 if seen.hidden.is_cuda else None
        solver = MapSolver(solved.hidden, solved.target, head, kind, rough)
        maps = {b: _chosen(solver, checked, b) for b in (0.0, *smoothings)}
        plain = maps[0.0][0]
        for name, known in read.items():
            sure = {
                b: float(score_tokens(known._replace(hidden=change(known.hidden)), head).confidence.mean())
                for b, (change, _) in maps.items()
            }
            line = found[name]
            line[f"{kind}_confidence"] = sure[0.0]
            line |= {f"{kind}_ridge_{b:g}": ridge for b, (_, ridge) in maps.items()}
            for b in smoothings:
                line[f"{kind}_fall_{b:g}"] = sure[0.0] - sure[b]
                line[f"{kind}_gap_{b:g}"] = max(plain.gap, maps[b][0].gap)
    return found


def solved_and_checked(seen: HiddenStates) -> tuple[HiddenStates, HiddenStates]:
    """Tokens of every other document, and of the rest: at most 4096 of each, evenly among them."""
    odd = seen.document.to(seen.target.device) % 2 == 1
    halves = []
    for half in (~odd, odd):
        rows = half.nonzero().squeeze(-1)
        kept = rows[torch.linspace(0, max(0, len(rows) - 1), min(_MAPPED, len(rows))).long().to(rows.device)]
        halves.append(HiddenStates(*(x[kept.to(x.device)] for x in seen)))
    return halves[0], halves[1]


def _chosen(solver: MapSolver, checked: HiddenStates, b: float) -> tuple[SharedMap, float]:
    """The map at the ridge of least loss on other tokens, and that ridge."""
    found, unknowns, chosen, least = None, None, 0.0, float("inf")
    rough = solver.rough is not solver.head
    for ridge in RIDGES:
        change, start = solver.solve(b, ridge, unknowns, rough=rough)
        with torch.no_grad():
            loss = float(smoothed_loss(change(checked.hidden), checked.target, solver.rough, b))
        if found is not None and not loss < least:
            break
        found, unknowns, chosen, least = change, start, ridge, loss
    assert found is not None
    return (solver.solve(b, chosen, unknowns)[0] if rough else found), chosen
