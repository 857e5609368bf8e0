"""The response of a head to label smoothing with its rows frozen: how far its confidence will fall."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..calibration import binned_true_error, tied_accuracy
from ..checks import interval
from ._inputs import Distributions, Reduced, blocks, head_of, matrix, reduced, smoothings
from ._loss import ContextLoss, forward
from ._minimise import minimise
from ._newton import Domain

__all__ = ["FrozenHeadResponse", "domain_of", "frozen_head_response"]

Array = NDArray[np.float64]
Features = Literal["sphere", "ball"]
_TOLERANCE = 1e-7  # of the solver: gradient along the domain, in units of the largest centred row
_CONVERGED = 1e-5  # what counts: the confidence of a context is then right to about 1e-5
_RIDGE_STEPS = 20  # from below and never beyond; the start need not be exact
_KICK = 1e-2  # share of the norm by which a start on the sphere is moved, as smoothing may turn it into a saddle


class FrozenHeadResponse(NamedTuple):
    """Predictions with and without smoothing, of the frozen head; S is the shape () or (B,) of ``label_smoothing``.

    Attributes:
        fall: Mean over contexts of plain minus smoothed confidence max p, S.
        fall_per_context: The same of each context, S + (N,).
        confidence: Mean smoothed confidence, S.
        confidence_per_context: S + (N,).
        entropy: Mean smoothed entropy in nats, S.
        plain_hidden: Hidden states of the plain optimum, solved again with the head frozen, (N, D), without the part
            that no logit sees.
        plain_confidence: Of that optimum, (N,).
        plain_entropy: Its mean entropy in nats, ().
        true_ece: True calibration error of the smoothed predictions in 15 equal bins, S; None without the conditionals.
        true_ece_gain: That of the plain ones minus ``true_ece``, S: above 0 where smoothing helps; None likewise.
        converged: Whether the first-order condition holds in every context, with and without smoothing, S.
        residual: Largest gradient along the domain, in units of the largest norm of a centred row, S + (N,).
    """

    fall: Array
    fall_per_context: Array
    confidence: Array
    confidence_per_context: Array
    entropy: Array
    plain_hidden: Array
    plain_confidence: Array
    plain_entropy: float
    true_ece: Array | None
    true_ece_gain: Array | None
    converged: NDArray[Any]  # of bool
    residual: Array


def frozen_head_response(
    weight: Any,  # (V, D)
    hidden: Any,  # (N, D)
    target_distribution: Any,  # (N, V)
    label_smoothing: Any,  # () or (B,)
    *,
    feature_norm: float | None = None,
    weight_decay: float | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    features: Features = "ball",
    true_conditionals: Any = None,  # (N, V)
    device: torch.device | str | None = None,
    block_entries: int | None = None,
) -> FrozenHeadResponse:
    r"""Predict how far label smoothing will lower a head's confidence, from the head trained without it.

    The rows stay as they are, and each context's hidden state moves to the least smoothed loss

    .. math:: h_n(b) = \arg\min_h\ \operatorname{lse}\tfrac{f(Wh)}{T}
              - \bigl((1-b)\,q_n + \tfrac bV\bigr)^\top \tfrac{f(Wh)}{T} + \tfrac{\lambda}{2}\lVert h\rVert^2,

    once at b = 0 and once at each b; the fall is the difference in max p. No parameter is fitted. The problem has D
    unknowns a context and is convex in a ball without a softcap: its minimum is then the only one of these logits.

    Args:
        weight: Rows W of the head that was trained **without** smoothing.
        hidden: Its hidden states, one a context, where the search begins.
        target_distribution: What each context was trained on, the counts over the number of samples: ``(N, V)``
            probabilities, ``(N,)`` tokens, pairs with ``context``, ``token`` and ``weight``
            (:class:`analysis.teachers.Observations`), or a function of a slice of contexts that returns ``(n, V)``.
        label_smoothing: b in [0, 1].
        feature_norm: R > 0 that hidden states have ("sphere") or may have at most ("ball"); None for the largest of
            ``hidden``, and for no limit where ``weight_decay`` is given; ``math.inf`` for no limit.
        weight_decay: lambda >= 0 of the hidden states, per context as in the formula.
        temperature: Training temperature T > 0, after the softcap.
        softcap: c > 0 of f(x) = c tanh(x / c), or None. Under a softcap the loss is not convex: what is found is the
            minimum that a descent from ``hidden`` reaches. For the scaled tanh c tanh(x) give c W as ``weight``.
        features: ``"ball"``, norms of at most R; ``"sphere"``, norms of R exactly, as RMSNorm makes them. They differ
            only where smoothing wants a smaller scale (A < 1). A whole head can give that by shorter rows, which are
            frozen here, so that the ball is the better prediction for RMS-normed features too where targets are
            deterministic. With noisy targets the sphere was, by little (S9: R2 0.955 against 0.951; with a trunk 0.996
            against 0.995, over 128 to 1024 contexts too, 0.994 against 0.987; at 4096 they were equal).
        true_conditionals: The true distributions, in any form of ``target_distribution``, for ``true_ece``.
        device: Where to compute, in float64; None for where ``weight`` is.
        block_entries: Most logits of one block of contexts, of which some six arrays live at once, beside three of the
            size of ``weight``; None for 2^20 on a CPU and 2^25 on a GPU. N x V arrays larger than a block are never
            made.

    Returns:
        Falls, confidences, entropies and calibration errors, and whether the solver reached its condition. Where norms
        are not limited and a target lies on the edge of what the rows can say, the plain problem has no minimum and
        ``converged`` is False.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is outside its range or shapes do not fit.

    Example:
        Three lines from a trained head to the fall that smoothing will bring:

        >>> from analysis.bottleneck import FitConfig, train
        >>> from analysis.teachers import TeacherConfig
        >>> plain = train(FitConfig(hidden_size=64, teacher=TeacherConfig(kind="lowrank")))
        >>> response = frozen_head_response(
        ...     plain.head.weight(), plain.head.hidden(), plain.training, [0.05, 0.1])
        >>> response.fall.round(3).tolist(), response.converged.tolist()
        ([0.004, 0.01], [True, True])
    """
    head, b = head_of(weight, temperature, softcap, device), smoothings(label_smoothing)
    h = matrix("hidden", hidden, head.rows.device, head.rows.shape[1])
    if features not in ("sphere", "ball"):
        raise ValueError(f"features must be 'sphere' or 'ball', got {features!r}.")
    decay = float(interval("weight_decay", 0.0 if weight_decay is None else weight_decay, 0))
    domain = domain_of(h, feature_norm, features, unlimited=weight_decay is not None)
    small = reduced(head)
    if domain.kind == "sphere" and small.axes.shape[1] < small.axes.shape[0]:
        domain = Domain("ball", domain.radius)  # the rest of the norm goes where no logit sees it
    h = h @ small.axes
    n, v = len(h), head.vocab_size
    q = Distributions("target_distribution", target_distribution, n, v, h.device)
    truth = None if true_conditionals is None else Distributions("true_conditionals", true_conditionals, n, v, h.device)
    values = np.concatenate([[0.0], b.reshape(-1)])
    read, plain = np.empty((4, values.size, n)), torch.empty_like(h)
    for part in blocks(n, v, h.device, block_entries):
        read[:, :, part], plain[part] = _block(
            small,
            h[part],
            q.block(part),
            values,
            domain.part(part),
            decay,
            None if truth is None else truth.block(part),
        )
    confidence, entropy, accuracy, residual = read
    worst = np.maximum(residual[0], residual[1:])
    ece = (
        None
        if truth is None
        else np.array([binned_true_error(*pair) for pair in zip(confidence, accuracy, strict=True)])
    )
    shape = (*b.shape, n)
    fall = (confidence[0] - confidence[1:]).reshape(shape)
    smoothed = confidence[1:].reshape(shape)
    return FrozenHeadResponse(
        fall=fall.mean(-1),
        fall_per_context=fall,
        confidence=smoothed.mean(-1),
        confidence_per_context=smoothed,
        entropy=entropy[1:].mean(-1).reshape(b.shape),
        plain_hidden=(plain @ small.axes.T).cpu().numpy(),
        plain_confidence=confidence[0],
        plain_entropy=float(entropy[0].mean()),
        true_ece=None if ece is None else ece[1:].reshape(b.shape),
        true_ece_gain=None if ece is None else (ece[0] - ece[1:]).reshape(b.shape),
        converged=(worst <= _CONVERGED).all(-1).reshape(b.shape),
        residual=worst.reshape(shape),
    )


def domain_of(hidden: Tensor, feature_norm: float | None, kind: Features, *, unlimited: bool) -> Domain:
    """Where hidden states may be; ``unlimited`` is what no ``feature_norm`` means."""
    if feature_norm is None:
        norm = math.inf if unlimited else float(hidden.norm(dim=-1).max())
    else:
        norm = feature_norm if feature_norm == math.inf else float(interval("feature_norm", feature_norm, 0))
    if norm == math.inf:
        return Domain("free", None)
    if norm == 0:
        raise ValueError("feature_norm must be greater than 0, got 0.")
    return Domain(kind, torch.full_like(hidden[:, 0], norm))


def _block(
    small: Reduced, hidden: Tensor, q: Tensor, values: Array, domain: Domain, decay: float, truth: Tensor | None
) -> tuple[Array, Tensor]:
    """Confidence, entropy, accuracy and residual of contexts at each b, ``(4, B, n)``; the plain hidden states."""
    head, start, plain, read = small.head, hidden, hidden, np.empty((4, values.size, len(hidden)))
    for index in np.argsort(values, kind="stable"):  # upwards, each from the last
        b = float(values[index])
        loss = ContextLoss(head, q, b, decay)
        if b and head.softcap is None and domain.kind != "sphere":  # convex: any start leads to the minimum
            start = _best_start(small, loss, start, q, b, domain)
        elif b and domain.kind == "sphere":
            start = _kicked(start)
        found = minimise(
            loss, start, domain, squares=small.squares, scale=small.head.scale, tolerance=_TOLERANCE
        )  # fmt: skip
        z, _ = forward(head, found.hidden)
        log_p = z.log_softmax(-1)
        p = log_p.exp()
        accuracy = torch.zeros_like(p[:, 0]) if truth is None else tied_accuracy(p, truth, counts=q)
        lines = (p.amax(-1), -(p * log_p).sum(-1), accuracy, found.residual)
        read[:, index] = torch.stack(lines).cpu().numpy()
        start = found.hidden
        plain = start if index == 0 else plain  # values[0] is 0 and comes first
    return read, plain


def _best_start(small: Reduced, loss: ContextLoss, start: Tensor, q: Tensor, b: float, domain: Domain) -> Tensor:
    """The last minimum, or the least-squares fit to what smoothing asks of it or of the target: the lowest of each.

    Where the last one is saturated the rivals' logits have far to go.
    """
    found, least = start, loss.at(start).value
    for p in (forward(small.head, start)[0].softmax(-1), q):
        wanted = torch.log((1 - b) * p + b / small.head.vocab_size)
        trial = _fitted(wanted @ small.head.rows, small.squares, domain.radius)
        value = loss.value(trial)
        found = torch.where((value < least).unsqueeze(-1), trial, found)
        least = torch.minimum(value, least)
    return found


def _fitted(products: Tensor, squares: Tensor, radius: Tensor | None) -> Tensor:
    """Least-squares hidden states, ``(n, D)``, of logits by their products with the rows, of at most a radius.

    Where the free fit is longer the ridge is that at which it has the radius: a step of Newton for 1 / norm each.
    """
    ridge = torch.zeros_like(products[:, :1])
    fit = products / squares
    if radius is None:
        return fit
    for _ in range(_RIDGE_STEPS):
        square = fit.square().sum(-1, keepdim=True)
        slope = (fit.square() / (squares + ridge)).sum(-1, keepdim=True)
        over = (square.sqrt() / radius.unsqueeze(-1) - 1).clamp_min(0)
        ridge = ridge + over * square / slope.clamp_min(1e-300)
        fit = products / (squares + ridge)
    return fit * (radius / fit.norm(dim=-1).clamp_min(1e-300)).clamp_max(1.0).unsqueeze(-1)


def _kicked(hidden: Tensor) -> Tensor:
    """Moved a little in a fixed direction at random: a minimum may have become a saddle, which no gradient leaves."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(hidden.shape, generator=generator, dtype=torch.float64).to(hidden.device)
    return hidden + _KICK * hidden.norm(dim=-1, keepdim=True) * noise / noise.norm(dim=-1, keepdim=True)
