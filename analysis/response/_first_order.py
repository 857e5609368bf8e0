"""What the plain head says of an infinitesimal amount of smoothing: is it stationary, and how fast does it give way?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import interval
from ._inputs import Distributions, Reduced, ScaledHead, blocks, head_of, matrix, reduced, smoothings
from ._loss import ContextLoss, forward
from ._minimise import give_way
from ._newton import Domain

__all__ = ["Stationarity", "Susceptibility", "stationarity", "susceptibility"]

Array = NDArray[np.float64]
_SOLVED = 0.02  # share of the push up to which its equation counts as solved
_NOTHING = 1e-9  # a push, in units of the largest centred row, that is rounding


class Stationarity(NamedTuple):
    """First-order conditions in the hidden states; N contexts, S the shape () or (B,) of ``label_smoothing``.

    Attributes:
        sin_squared: Of the angle between smoothing's pull g_n and h_n, (N,): 0 where the pull is along h_n.
        activity_index: A_n, S + (N,); None without targets.
        multiplier: mu_n of the norm, (N,), from the radial part of the plain gradient; None without targets.
        residual: Norm of the rest of the plain gradient, in units of the largest centred row, (N,): 0 at a plain
            optimum on a sphere; None without targets.
    """

    sin_squared: Array
    activity_index: Array | None
    multiplier: Array | None
    residual: Array | None


class Susceptibility(NamedTuple):
    """Fall in confidence per unit of label smoothing, at first order.

    Attributes:
        chi: Mean over contexts: confidence falls by b chi + O(b^2). Contexts without a number are left out.
        chi_per_context: (N,); nan where the linear equation could not be solved, as where the Hessian is not positive.
    """

    chi: float
    chi_per_context: Array


def stationarity(
    weight: Any,  # (V, D)
    hidden: Any,  # (N, D)
    target_distribution: Any = None,  # (N, V)
    label_smoothing: Any = 0.1,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    device: torch.device | str | None = None,
    block_entries: int | None = None,
) -> Stationarity:
    r"""Does a plain optimum stay one under label smoothing? Iff in every context g is along h **and** A_n >= 1.

    With J = diag(f'(a)) W / T, u uniform and the norm of h_n binding,

    .. math:: g_n = J^\top (p_n - u), \qquad J^\top (q_n - p_n) = \mu_n h_n, \qquad
              A_n = \frac{h_n^\top J^\top (q_n - p_n)}{b\, h_n^\top J^\top (q_n - u)}.

    Without a softcap the products are losses, mu R^2 = H - CE, and A_n is (H_n - CE_n) / (b (CE_u,n - CE_n)), the
    :func:`analysis.smoothing.activity_index` of one context. Where no norm binds a plain optimum is never stationary
    (b > 0, p not uniform). Deterministic balanced targets at D >= V - 1 have two-level p, so that g is along h and A
    decides alone; noise gives p more levels and g a part across h, which acts at first order in b at any A.

    Args:
        weight: Rows of the plain head.
        hidden: Its hidden states.
        target_distribution: As in :func:`frozen_head_response`; None for the angle alone.
        label_smoothing: b in [0, 1].
        temperature: T > 0.
        softcap: c > 0 or None.
        device: Where to compute; None for where ``weight`` is.
        block_entries: Most logits of one block; None for what suits the device.

    Returns:
        Angles, and with targets indices, multipliers and residuals. Where g or h is 0 the angle is 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is outside its range or shapes do not fit.

    Example:
        >>> simplex = np.sqrt(3.0) * (np.eye(4) - 0.25)  # balanced and deterministic: C1
        >>> found = stationarity(simplex, simplex, np.arange(4), 0.1)
        >>> found.sin_squared.round(9).tolist(), found.activity_index.round(2).tolist()
        ([0.0, 0.0, 0.0, 0.0], [1.73, 1.73, 1.73, 1.73])
    """
    head, b = head_of(weight, temperature, softcap, device), smoothings(label_smoothing)
    h = matrix("hidden", hidden, head.rows.device, head.rows.shape[1])
    n, known = len(h), target_distribution is not None
    q = Distributions("target_distribution", target_distribution, n, head.vocab_size, h.device) if known else None
    read = np.zeros((5, n))  # sin^2, h.(pull to q), h.(q - u), ||h||^2, residual
    for part in blocks(n, head.vocab_size, h.device, block_entries):
        read[:, part] = _conditions(head, h[part], None if q is None else q.block(part)).cpu().numpy()
    if not known:
        return Stationarity(read[0], None, None, None)
    _, upward, against, square, residual = read
    return Stationarity(read[0], _index(upward, b[..., None] * against), upward / np.maximum(square, 1e-300), residual)


def _index(upward: Array, downward: Array) -> Array:
    """C4 with products in the place of losses, and its limits (:func:`analysis.smoothing.activity_index`)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sign = np.sign(upward - downward)
        return np.where(downward > 0, upward / downward, np.where(sign == 0, 1.0, sign * np.inf))


def _conditions(head: ScaledHead, hidden: Tensor, q: Tensor | None) -> Tensor:
    """The five lines of :func:`stationarity`, ``(5, n)``."""
    z, slope = forward(head, hidden)
    p, slope = z.softmax(-1), torch.ones_like(z) if slope is None else slope
    back = lambda residual: (residual * slope) @ head.rows  # noqa: E731
    pull, square = back(p - 1 / head.vocab_size), hidden.square().sum(-1)
    along = (pull * hidden).sum(-1)
    # the part across h, not 1 - cos^2, which loses half the digits
    across = pull - hidden * (along / square.clamp_min(1e-300)).unsqueeze(-1)
    sin = across.square().sum(-1) / pull.square().sum(-1).clamp_min(1e-300)
    if q is None:
        return torch.stack([sin, *4 * [torch.zeros_like(sin)]])
    plain, wanted = back(q - p), back(q - 1 / head.vocab_size)
    upward = (plain * hidden).sum(-1)
    rest = plain - hidden * (upward / square.clamp_min(1e-300)).unsqueeze(-1)
    return torch.stack([sin, upward, (wanted * hidden).sum(-1), square, rest.norm(dim=-1) / head.scale])


def susceptibility(
    weight: Any,  # (V, D)
    hidden: Any,  # (N, D)
    target_distribution: Any,  # (N, V)
    *,
    weight_decay: float | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    device: torch.device | str | None = None,
    block_entries: int | None = None,
) -> Susceptibility:
    r"""Fall in confidence per unit of label smoothing, at first order, the head frozen.

    .. math:: \chi = \operatorname{mean}_n\; p_{max} (j_{max} - J^\top p)^\top
              \bigl[\Pi (\nabla^2 L + \mu I) \Pi\bigr]^{+} \Pi\, J^\top (q - u),

    with the Hessian of the plain loss L (without a softcap J^T (diag p - p p^T) J), mu the multiplier of the norm and
    Pi the projector across h, which makes J^T (q - u) smoothing's pull J^T (p - u). It is the slope at b = 0 of the
    fall of :func:`frozen_head_response`, on the sphere as in the ball, where mu > 0; with ``weight_decay`` norms are
    free, Pi = I and mu is the decay. Second-order terms matter from b of about .1 on.

    Args:
        weight: Rows of the plain head.
        hidden: Its hidden states, at their optimum: what they miss of it is not mended here
            (:func:`stationarity` has the residual).
        target_distribution: As in :func:`frozen_head_response`.
        weight_decay: lambda of free norms; None where every norm binds.
        temperature: T > 0.
        softcap: c > 0 or None.
        device: Where to compute; None for where ``weight`` is.
        block_entries: Most entries of one block; None for what suits the device.

    Returns:
        chi, and that of each context.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is outside its range or shapes do not fit.

    Example:
        >>> simplex = np.sqrt(3.0) * (np.eye(4) - 0.25)
        >>> round(abs(susceptibility(simplex, simplex, np.arange(4)).chi), 9)  # C1: inert, no first order
        0.0
    """
    head = head_of(weight, temperature, softcap, device)
    h = matrix("hidden", hidden, head.rows.device, head.rows.shape[1])
    decay = float(interval("weight_decay", 0.0 if weight_decay is None else weight_decay, 0))
    q = Distributions("target_distribution", target_distribution, len(h), head.vocab_size, h.device)
    small = reduced(head)
    h = h @ small.axes
    chi = np.empty(len(h))
    for part in blocks(len(h), head.vocab_size, h.device, block_entries):
        domain = Domain("free", None) if weight_decay is not None else Domain("sphere", h[part].norm(dim=-1))
        chi[part] = _chi(small, h[part], q.block(part), decay, domain).cpu().numpy()
    known = chi[np.isfinite(chi)]
    return Susceptibility(float(known.mean()) if known.size else float("nan"), chi)


def _chi(small: Reduced, hidden: Tensor, q: Tensor, decay: float, domain: Domain) -> Tensor:
    """Susceptibilities of a block of contexts, ``(n,)``."""
    head, loss = small.head, ContextLoss(small.head, q, 0.0, decay)
    point = loss.at(hidden)
    slope = torch.ones_like(point.p) if point.slope is None else point.slope
    top = point.p.argmax(-1, keepdim=True)
    rise = point.p.gather(-1, top) * (
        slope.gather(-1, top) * head.rows[top.squeeze(-1)] - (point.p * slope) @ head.rows
    )
    # J^T (q - u) = J^T (p - u) + mu h: across h the two are one, with free norms the decay adds to the pull
    pull = ((q - 1 / head.vocab_size) * slope) @ head.rows
    moved, left = give_way(loss, hidden, domain, pull, squares=small.squares, scale=head.scale)
    # at a symmetric optimum nothing pushes, and the share of nothing says nothing
    solved = (left < _SOLVED) | (left * pull.norm(dim=-1) < _NOTHING * head.scale)
    return torch.where(solved, (rise * moved).sum(-1), torch.nan)
