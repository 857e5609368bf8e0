"""What a shared change of the features would make of smoothing: candidates for the fall of a tuned language model.

The features of a trained model are not free in every context, as the frozen-head response takes them to be. What can
move without training is shared by all tokens: one scale of the hidden states, or a gain for each of their dimensions,
as the last norm has. Each is solved for on the tokens that were tuned on, without and with smoothing, the rest of the
plain model frozen, and the fall in confidence between the two is read on any tokens. Both are candidates, to be judged
beside the fall that smoothing brought. Where a change separates the tokens, the plain loss has no minimum: nothing is
predicted then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from kernel import linear_cross_entropy

from ...language_models.features import HiddenStates, ModelHead
from ...language_models.scoring import score_tokens

__all__ = ["shared_falls"]

_ITERATIONS = 50  # of L-BFGS
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
    """Each b with the factors of the hidden states of least smoothed loss, the next from the last; nan if unsolved."""
    gain = torch.ones(size, device=seen.hidden.device, requires_grad=True)
    for b in smoothings:
        optimiser = torch.optim.LBFGS([gain], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure(b: float = b, optimiser: torch.optim.LBFGS = optimiser) -> Tensor:
            optimiser.zero_grad()
            loss = linear_cross_entropy(
                seen.hidden * gain, head.weight, seen.target, linear_bias=head.bias, label_smoothing=b,
                softcap=head.softcap, logit_scale=head.logit_scale,
            )  # fmt: skip
            loss.backward()
            return loss

        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
        loss, reached = closure(), gain.detach().clone()
        assert gain.grad is not None
        solved = bool((gain.grad * reached).abs().max() < _TOLERANCE * loss)  # and not where both are 0
        yield b, reached if solved else torch.full_like(reached, float("nan"))
        if not solved:  # far out: no start for the next
            with torch.no_grad():
                gain.fill_(1.0)
