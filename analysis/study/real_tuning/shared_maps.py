"""The map of the features, the same for all tokens, whose smoothed loss is least, with the head frozen.

With R the root mean square of the features' norms, and x = S^(-1/2) h for their second moments S = mean h h^T, maps are

    affine    h -> h + s h + R (c + A x), which is M h + c of any M and c,
    low_rank  h -> h + R (c + U V^T x) of rank 8: 2 D 8 unknowns, where A has D^2, more than a tuning has tokens,
    gain      h -> h + s h + a factor for each dimension,
    scale     h -> h + s h,

and moving costs (ridge |A|^2 + .03 (s^2 + |c|^2)) / 2 nats: |A|^2 is the mean square of A x, so that ridge / 2 is the
price of moving all features by their own length. What few unknowns can do, a scale and a shift, is nearly free: .03
only keeps a scale finite where it separates the tokens. Without a softcap the loss is convex (but in U and V), and the
penalty makes it steep: with g_i the gradient in the i-th unknown and r_i its price, the least loss is at most
sum g_i^2 / (2 r_i) below. That this is small is the first-order condition here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernel import linear_cross_entropy

from ...language_models.features import ModelHead

__all__ = ["RANK", "MapKind", "SharedMap", "Solver", "smoothed_loss"]

MapKind = Literal["scale", "gain", "low_rank", "affine"]
RANK = 8
_PRICE = 0.03  # of a scale and a shift
_SLICE, _SLICES = 10, 8  # iterations of L-BFGS between two looks at the condition, and how often they are allowed
_TOLERANCE = 1e-3  # what may be left to gain, as a share of the loss with its penalty
_SPECTRUM = 1e-7  # second moments below this share of the largest are none, as features are float32
_PARTS = {
    "scale": ("scale",),
    "gain": ("scale", "factors"),
    "low_rank": ("shift", "out", "into"),
    "affine": ("scale", "shift", "whole"),
}
Unknowns = Mapping[str, Tensor]


class SharedMap(NamedTuple):
    """A map h -> h + h change^T + shift."""

    change: Tensor  # (D, D)
    shift: Tensor  # (D,)
    loss: float  # mean over the tokens solved on, with the penalty
    gap: float  # what is left to gain, by the gradient, as a share of ``loss``

    @property
    def converged(self) -> bool:
        """Whether the first-order condition holds."""
        return self.gap <= _TOLERANCE

    def __call__(self, hidden: Tensor) -> Tensor:  # (n, D)
        """The features where the map moves them."""
        return hidden + hidden @ self.change.to(hidden.dtype).T + self.shift.to(hidden.dtype)


class Solver:
    """Solves for maps of one kind on the same tokens.

    Args:
        hidden: Features of the tokens, ``(N, D)``.
        target: Their tokens, ``(N,)``.
        head: What reads them; frozen.
        kind: Which maps.
        dtype: In which the head multiplies; None for that of the features.
    """

    def __init__(
        self, hidden: Tensor, target: Tensor, head: ModelHead, kind: MapKind, dtype: torch.dtype | None = None
    ) -> None:
        self.hidden, self.target, self.kind = hidden, target, kind
        dtype = dtype or hidden.dtype
        bias = None if head.bias is None else head.bias.to(dtype)
        self.head = head._replace(weight=head.weight.to(dtype), bias=bias)
        squares = hidden.double().square().mean(0)
        self._norm = float(squares.sum().sqrt())
        self._each = squares.rsqrt().where(squares > 0, 0)
        self._whitening = _whitening(hidden)
        self._states = (hidden.double() @ self._whitening).to(hidden.dtype)

    def identity(self, label_smoothing: float) -> dict[str, Tensor]:
        """Unknowns that move nothing; of low rank, ready to move where the loss falls fastest."""
        d, r = self.hidden.shape[1], self._states.shape[1]
        sizes = {"scale": (1,), "factors": (d,), "shift": (d,), "whole": (d, r), "out": (d, min(RANK, d, r))}
        unknowns = {name: self.hidden.new_zeros(sizes[name]) for name in _PARTS[self.kind] if name != "into"}
        if self.kind == "low_rank":
            whole = self.hidden.new_zeros(d, r).requires_grad_()
            moved = self.hidden + self._norm * self._states @ whole.T
            smoothed_loss(moved, self.target, self.head, label_smoothing).backward()
            assert whole.grad is not None
            unknowns["into"] = torch.linalg.svd(whole.grad.double())[2][: sizes["out"][1]].T.to(whole.dtype)
        return unknowns

    def solve(
        self, label_smoothing: float, ridge: float, start: Unknowns | None = None
    ) -> tuple[SharedMap, dict[str, Tensor]]:
        """Return the map of least loss, and its unknowns to start another one from.

        Args:
            label_smoothing: b.
            ridge: Price of moving, above 0.
            start: Unknowns; None for the identity.
        """
        start = self.identity(label_smoothing) if start is None else start
        unknowns = {name: x.detach().clone().requires_grad_() for name, x in start.items()}
        closure = self._closure(unknowns, label_smoothing, ridge)
        optimiser = torch.optim.LBFGS(
            list(unknowns.values()), max_iter=_SLICE, history_size=20, line_search_fn="strong_wolfe"
        )
        loss, gap = float("inf"), float("inf")
        for _ in range(_SLICES):
            optimiser.step(closure)  # pyright: ignore[reportArgumentType]
            loss = float(closure())
            left = sum(
                float(x.grad.double().square().sum()) / (2 * _price(name, ridge))
                for name, x in unknowns.items()
                if x.grad is not None
            )
            gap = left / loss
            if gap <= _TOLERANCE:
                break
        found = {name: x.detach() for name, x in unknowns.items()}
        return SharedMap(*self._as_map(found), loss, gap), found

    def _closure(self, unknowns: Unknowns, label_smoothing: float, ridge: float) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            for x in unknowns.values():
                x.grad = None
            loss = smoothed_loss(self._moved(unknowns), self.target, self.head, label_smoothing)
            loss = loss + self._penalty(unknowns, ridge)
            loss.backward()
            return loss.detach()

        return closure

    def _moved(self, unknowns: Unknowns) -> Tensor:
        h, moves = self.hidden, torch.zeros_like(self.hidden)
        if "shift" in unknowns:
            moves = moves + unknowns["shift"]
        if "whole" in unknowns:
            moves = moves + self._states @ unknowns["whole"].T
        if "into" in unknowns:
            moves = moves + (self._states @ unknowns["into"]) @ unknowns["out"].T
        if "factors" in unknowns:
            moves = moves + h * (self._each.to(h.dtype) * unknowns["factors"])
        return h + self._norm * moves + (h * unknowns["scale"] if "scale" in unknowns else 0.0)

    def _penalty(self, unknowns: Unknowns, ridge: float) -> Tensor:
        total = self.hidden.new_zeros(())
        for name, x in unknowns.items():
            if name not in ("into", "out"):
                total = total + _price(name, ridge) / 2 * x.square().sum()
        if "into" in unknowns:  # |U V^T|^2
            u, v = unknowns["out"], unknowns["into"]
            total = total + ridge / 2 * ((u.T @ u) * (v.T @ v)).sum()
        return total

    def _as_map(self, unknowns: Unknowns) -> tuple[Tensor, Tensor]:
        d = self.hidden.shape[1]
        known = {name: x.double() for name, x in unknowns.items()}
        change = torch.zeros(d, d, dtype=torch.float64, device=self.hidden.device)
        if "into" in known:
            known["whole"] = known["out"] @ known["into"].T
        if "whole" in known:
            change = self._norm * known["whole"] @ self._whitening.T
        factors = known["factors"] * self._each * self._norm if "factors" in known else torch.zeros_like(change[0])
        change = change + torch.diag(factors + known.get("scale", torch.zeros_like(change[0])))
        return change, self._norm * known["shift"] if "shift" in known else torch.zeros_like(change[0])


def _price(name: str, ridge: float) -> float:
    return _PRICE if name in ("scale", "shift") else ridge


def smoothed_loss(hidden: Tensor, target: Tensor, head: ModelHead, label_smoothing: float) -> Tensor:
    """The mean smoothed loss in nats, as the head's dtype multiplies."""
    return linear_cross_entropy(
        hidden.to(head.weight.dtype), head.weight, target, linear_bias=head.bias, label_smoothing=label_smoothing,
        softcap=head.softcap, logit_scale=head.logit_scale,
    )  # fmt: skip


def _whitening(states: Tensor) -> Tensor:
    """A matrix ``(D, r)`` whose product with the states has second moments 1; r is their rank."""
    values, vectors = torch.linalg.eigh(states.double().T @ states.double() / len(states))
    kept = values > _SPECTRUM * values[-1]
    return vectors[:, kept] / values[kept].sqrt()
