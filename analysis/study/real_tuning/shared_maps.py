"""The map of the features, the same for all tokens, whose smoothed loss is least, with the head frozen.

Let x = S^(-1/2) h with the second moments S = mean h h^T of the features, G the covariance of the head's rows, half of
them taken evenly, half as often as the model predicts them, and R^2 = mean h^T G h, how much logits vary. Maps are

    affine    h -> h + s h + R G^(-1/2) (c + A x), which is M h + c of any M and c,
    low_rank  the same with A = U V^T of rank 8: 8 D unknowns, where A has D^2, more than a tuning has tokens,
    gain      h -> h + s h + a factor for each dimension,
    scale     h -> h + s h,

and moving costs ``(ridge |A|^2 + .03 (s^2 + |c|^2)) / 2`` nats: ``|A|^2`` is the mean square of A x, so that ridge / 2
is the price of changing all logits by as much as they vary, whatever the units of the features. What few unknowns can
do, a scale and a shift, is nearly free: .03 only keeps a scale finite where it separates the tokens. V holds the 8
directions of x in which a uniform target pulls most, whatever b.

Without a softcap the loss is convex, and the penalty makes it steep: with ``g_i`` the gradient in the i-th unknown and
``r_i`` its price, the least loss is at most ``sum g_i^2 / (2 r_i)`` below. That this is small is the first-order
condition here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernel import linear_cross_entropy
from kernel.softcap import softcap as capped

from ...language_models.features import ModelHead

__all__ = ["RANK", "TOLERANCE", "MapKind", "MapSolver", "SharedMap", "smoothed_loss"]

MapKind = Literal["scale", "gain", "low_rank", "affine"]
RANK = 8
_PRICE = 0.03  # of a scale and a shift
_SLICE = 10  # iterations of L-BFGS between two looks at the condition
_SLICES, _ROUGH = 15, 4  # how often they are allowed
TOLERANCE = 0.02  # what may be left to gain, as a share of the loss with its penalty
_SMALL = 0.1  # nats: a loss of less counts as this there, as a model that knows its tokens by heart has nearly none
_ENTRIES = 2**25  # of a block of logits
_SPECTRUM = 1e-7  # second moments below this share of the largest are none, as features are float32
_PARTS = {
    "scale": ("scale",),
    "gain": ("scale", "factors"),
    "low_rank": ("scale", "shift", "whole"),
    "affine": ("scale", "shift", "whole"),
}
Unknowns = Mapping[str, Tensor]


class SharedMap(NamedTuple):
    """A map h -> h + h change^T + shift."""

    change: Tensor  # (D, D)
    shift: Tensor  # (D,)
    loss: float  # mean over the tokens solved on, with the penalty
    gap: float  # what is left to gain, by the gradient, as a share of ``loss`` or of .1 nats if that is more

    @property
    def converged(self) -> bool:
        """Whether the first-order condition holds."""
        return self.gap <= TOLERANCE

    def __call__(self, hidden: Tensor) -> Tensor:  # (n, D)
        """The features where the map moves them."""
        return hidden + hidden @ self.change.to(hidden.dtype).T + self.shift.to(hidden.dtype)


class MapSolver:
    """Solves for maps of one kind on the same tokens.

    Args:
        hidden: Features of the tokens, ``(N, D)``.
        target: Their tokens, ``(N,)``.
        head: What reads them; frozen.
        kind: Which maps.
        rough: Dtype in which the head multiplies where a map is solved for roughly; None for that of the features.
    """

    def __init__(
        self, hidden: Tensor, target: Tensor, head: ModelHead, kind: MapKind, rough: torch.dtype | None = None
    ) -> None:
        self.hidden, self.target, self.kind = hidden, target, kind
        self.head = self.rough = head
        if rough is not None:
            bias = None if head.bias is None else head.bias.to(rough)
            self.rough = head._replace(weight=head.weight.to(rough), bias=bias)
        squares = hidden.double().square().mean(0)
        self._each = (squares.sum() / squares).sqrt().where(squares > 0, 0)
        spread = _covariance(head.weight, (_mean_prediction(hidden, head) + 1 / len(head.weight)) / 2)
        self._logits = float(torch.einsum("nd,de,ne->n", hidden.double(), spread, hidden.double()).mean().sqrt())
        self._whitening, self._out = _whitening(hidden.double().T @ hidden.double() / len(hidden)), _whitening(spread)
        self._moving = (self._logits * self._out.T).to(hidden.dtype)  # (r', D)
        self._states = (hidden.double() @ self._whitening).to(hidden.dtype)
        if kind == "low_rank":
            whole = hidden.new_zeros(len(self._moving), self._states.shape[1]).requires_grad_()
            smoothed_loss(hidden + self._states @ whole.T @ self._moving, target, self.rough, 1.0).backward()
            assert whole.grad is not None
            self._whitening = self._whitening @ torch.linalg.svd(whole.grad.double())[2][:RANK].T
            self._states = (hidden.double() @ self._whitening).to(hidden.dtype)

    def identity(self) -> dict[str, Tensor]:
        """Unknowns that move nothing."""
        (d, r), s = self._whitening.shape, len(self._moving)
        sizes = {"scale": (1,), "factors": (d,), "shift": (s,), "whole": (s, r)}
        return {name: self.hidden.new_zeros(sizes[name]) for name in _PARTS[self.kind]}

    def solve(
        self, label_smoothing: float, ridge: float, start: Unknowns | None = None, *, rough: bool = False
    ) -> tuple[SharedMap, dict[str, Tensor]]:
        """Return the map of least loss, and its unknowns to start another one from.

        Args:
            label_smoothing: b.
            ridge: Price of moving, above 0.
            start: Unknowns; None for the identity.
            rough: In the rough dtype, and with fewer steps: its rounding hides how much is left to gain.
        """
        start = self.identity() if start is None else start
        unknowns = {name: x.detach().clone().requires_grad_() for name, x in start.items()}
        closure = self._closure(unknowns, label_smoothing, ridge, self.rough if rough else self.head)
        optimiser = torch.optim.LBFGS(
            list(unknowns.values()), max_iter=_SLICE, history_size=20, line_search_fn="strong_wolfe"
        )
        loss, gap = float("inf"), float("inf")
        for _ in range(_ROUGH if rough else _SLICES):
            optimiser.step(closure)  # pyright: ignore[reportArgumentType]
            loss = float(closure())
            left = sum(
                float(x.grad.double().square().sum()) / (2 * _price(name, ridge))
                for name, x in unknowns.items()
                if x.grad is not None
            )
            gap = left / max(loss, _SMALL)
            if gap <= TOLERANCE:
                break
        found = {name: x.detach() for name, x in unknowns.items()}
        return SharedMap(*self._as_map(found), loss, gap), found

    def _closure(self, unknowns: Unknowns, b: float, ridge: float, head: ModelHead) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            for x in unknowns.values():
                x.grad = None
            loss = smoothed_loss(self._moved(unknowns), self.target, head, b)
            for name, x in unknowns.items():
                loss = loss + _price(name, ridge) / 2 * x.square().sum()
            loss.backward()
            return loss.detach()

        return closure

    def _moved(self, unknowns: Unknowns) -> Tensor:
        h, moves = self.hidden, torch.zeros_like(self._moving[:, 0])
        if "shift" in unknowns:
            moves = moves + unknowns["shift"]
        if "whole" in unknowns:
            moves = moves + self._states @ unknowns["whole"].T
        factors = self._factors(unknowns)
        return h + moves @ self._moving + (0.0 if factors is None else h * factors)

    def _factors(self, unknowns: Unknowns) -> Tensor | None:
        """Of the features, (1,) or (D,)."""
        if "factors" in unknowns:
            return unknowns["scale"] + self._each.to(self.hidden.dtype) * unknowns["factors"]
        return unknowns.get("scale")

    def _as_map(self, unknowns: Unknowns) -> tuple[Tensor, Tensor]:
        d, moving = self.hidden.shape[1], self._logits * self._out  # (D, r')
        known = {name: x.double() for name, x in unknowns.items()}
        change, shift = torch.zeros_like(moving[:, :1]).expand(d, d), torch.zeros_like(moving[:, 0])
        if "whole" in known:
            change = moving @ known["whole"] @ self._whitening.T
        if "shift" in known:
            shift = moving @ known["shift"]
        factors = self._factors(unknowns)
        return change if factors is None else change + torch.diag(factors.double().expand(d)), shift


def _price(name: str, ridge: float) -> float:
    return _PRICE if name in ("scale", "shift") else ridge


def smoothed_loss(hidden: Tensor, target: Tensor, head: ModelHead, label_smoothing: float) -> Tensor:
    """The mean smoothed loss in nats, as the head's dtype multiplies."""
    single = head.weight.dtype == torch.float32  # on a GPU faster in cuBLAS than fused: no tensor cores
    return linear_cross_entropy(
        hidden.to(head.weight.dtype), head.weight, target, linear_bias=head.bias, label_smoothing=label_smoothing,
        softcap=head.softcap, logit_scale=head.logit_scale, implementation="chunked" if single else "auto",
    )  # fmt: skip


@torch.no_grad()
def _mean_prediction(hidden: Tensor, head: ModelHead) -> Tensor:
    """The mean of the model's distributions over the tokens, ``(V,)`` in float64, block by block."""
    total = torch.zeros(len(head.weight), dtype=torch.float64, device=hidden.device)
    for h in hidden.split(max(1, _ENTRIES // len(head.weight))):
        z = head.logit_scale * (h @ head.weight.T)
        z = z if head.bias is None else z + head.bias
        total += capped(z, head.softcap).softmax(-1).sum(0, dtype=torch.float64)
    return total / len(hidden)


def _covariance(weight: Tensor, share: Tensor) -> Tensor:
    """Of the rows, of which each counts as its share ``(V,)``, ``(D, D)`` in float64, block by block."""
    parts = list(zip(weight.split(2**14), share.split(2**14), strict=True))
    mean = torch.stack([q @ rows.double() for rows, q in parts]).sum(0)
    total = torch.zeros_like(mean).expand(len(mean), -1)
    for rows, q in parts:
        rest = rows.double() - mean
        total = total + rest.T @ (q.unsqueeze(-1) * rest)
    return total


def _whitening(moments: Tensor) -> Tensor:
    """A matrix B of shape ``(D, r)``, r the rank, with B^T moments B = 1."""
    values, vectors = torch.linalg.eigh(moments)
    kept = values > _SPECTRUM * values[-1]
    return vectors[:, kept] / values[kept].sqrt()
