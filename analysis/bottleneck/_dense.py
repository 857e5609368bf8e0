"""The loss of a head with its gradient in closed form: what training a small one on a CPU evaluates.

A problem of 64 x 64 is a millisecond of calls, and hardly any arithmetic, where autograd goes through norms, loss and
observations one by one. With the targets as a matrix (a row for each context, smoothed once and for all) it is a dozen
calls and three products: two to six times faster, the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..teachers import Observations
from ._config import FitConfig
from ._head import SoftmaxBottleneck
from ._unseen import Classes

_ENTRIES = 2**20  # most of the matrix of targets; beyond it the products take the time and the blocks save memory


class DenseLoss:
    """``SoftmaxBottleneck.forward`` over fixed observations, for a head whose logits fit in memory four times.

    Args:
        head: What is trained.
        observations: Pairs with weights.
        classes: Tokens that share a row, where ``head.raw_weight`` has a row for each class; None for one a token.

    Example:
        >>> from analysis.bottleneck._training import _data
        >>> head = SoftmaxBottleneck(FitConfig(hidden_size=4, norm_coefficient=0.5))
        >>> _, observations, _ = _data(head.config.teacher)
        >>> bool((DenseLoss(head, observations)() - head(observations)).abs() < 1e-5)
        True
    """

    def __init__(self, head: SoftmaxBottleneck, observations: Observations, *, classes: Classes | None = None) -> None:
        config, dtype = head.config, head.raw_weight.dtype
        smoothing, device = config.label_smoothing, head.raw_weight.device
        target = torch.zeros(config.teacher.n_contexts, len(head.raw_weight), dtype=torch.float64, device=device)
        context, token, weight = (part.to(device) for part in observations)
        weight = weight.double()
        column = token if classes is None else classes.of_token[token]
        target.index_put_((context, column), weight / weight.sum(), accumulate=True)
        mass = target.sum(-1, keepdim=True)
        share = 1.0 if classes is None else classes.size  # of smoothing's mass, in units of 1 / V
        target.mul_(1 - smoothing).add_(smoothing / config.teacher.vocab_size * mass * share)
        self._head, self._target, self._mass = head, target.to(dtype), mass.to(dtype)
        self._count = None if classes is None else classes.size.to(dtype)

    @staticmethod
    def serves(head: SoftmaxBottleneck, implementation: Any) -> bool:
        """Whether this is the way to train that head: asked for, or no other was and it is small and on a CPU."""
        teacher = head.config.teacher
        small = teacher.n_contexts * teacher.vocab_size <= _ENTRIES
        return implementation == "dense" or (small and not head.raw_weight.is_cuda and implementation == "auto")

    def __call__(self) -> Tensor:
        """The loss at the head's parameters, as they are, in nats."""
        head = self._head
        features = head.raw_features if head.trunk is None else head.trunk(head.raw_features)
        return _Loss.apply(features, head.raw_weight, self._target, self._mass, self._count, head.config)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        target: Tensor,
        mass: Tensor,
        count: Tensor | None,
        config: FitConfig,
    ) -> Tensor:
        hidden, rows = _Vectors.of(features), _Vectors.shared(weight, count)
        if config.norm == "budget":
            length = config.hidden_size**0.5
            hidden, rows = (
                _Vectors.on_sphere(features, length),
                _Vectors.shadow(weight, config.norm_coefficient * length),
            )
        loss, of_logits = _cross_entropy(hidden.value @ rows.value.T, target, mass, count, config)
        of_hidden, of_rows = of_logits @ rows.value, of_logits.T @ hidden.value
        if config.weight_decay:
            for vectors, gradient, copies in ((hidden.value, of_hidden, None), (rows.value, of_rows, count)):
                share = 1 / len(vectors) if copies is None else (copies / copies.sum()).unsqueeze(-1)
                decayed = vectors * (config.weight_decay * share)
                loss += 0.5 * (vectors * decayed).sum()
                gradient.add_(decayed)
        ctx.save_for_backward(hidden.pulled_back(of_hidden), rows.pulled_back(of_rows))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        return (*(grad * gradient for gradient in ctx.saved_tensors), None, None, None, None)


def _cross_entropy(
    z: Tensor, target: Tensor, mass: Tensor, count: Tensor | None, config: FitConfig
) -> tuple[Tensor, Tensor]:
    """Loss of the target matrix at z = h . w, and its gradient in z; ``z`` is overwritten.

    With logits from their largest, whose row sums of targets are ``mass``: - sum_k q_k log p_k = mass lse - q . z. A
    confidence penalty gamma adds gamma mass sum_k p_k log p_k = - gamma mass H, whose gradient is
    gamma mass p_k (log p_k + H).

    A column of ``count`` tokens is one of logit z + log count in p; q . z has z itself. The loss is then summed in
    float64: where so few columns are left float32 sums would end the line search some 3e-4 nats too early.
    """
    wide = None if count is None else torch.float64
    slope: float | Tensor = config.logit_scale / config.temperature
    if config.softcap is not None:
        z.mul_(config.logit_scale / config.softcap).tanh_()
        slope = z.square().neg_().add_(1).mul_(slope)
        z.mul_(config.softcap / config.temperature)
    else:
        z.mul_(slope)
    if count is not None:
        z.add_(count.log())
    z.sub_(z.amax(-1, keepdim=True))
    p = z.exp()
    total = p.sum(-1, keepdim=True)
    log_p = z - total.log() if config.confidence_penalty else None
    loss = (mass * total.log()).sum(dtype=wide) - z.mul_(target).sum(-1, dtype=wide).sum()
    if count is not None:
        loss += target.sum(0) @ count.log()  # as z is summed with its log count above
    p.mul_(mass / total)
    if log_p is not None:
        entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
        loss -= config.confidence_penalty * (mass * entropy).sum()
        p.mul_(log_p.add_(entropy).mul_(config.confidence_penalty).add_(1))
    return loss, p.sub_(target).mul_(slope)


class _Vectors(NamedTuple):
    """Vectors of free parameters, and what takes a gradient from the vectors back to the parameters."""

    value: Tensor  # (n, D)
    unit: Tensor | None = None  # (n, D) or (n, D + 1), the parameters' directions
    factor: Tensor | None = None  # (n, 1), length of the vector over that of the parameters

    @classmethod
    def of(cls, raw: Tensor) -> _Vectors:
        """The parameters themselves."""
        return cls(raw)

    @classmethod
    def shared(cls, raw: Tensor, count: Tensor | None) -> _Vectors:
        """Each the row of ``count`` tokens: ``raw`` over sqrt(count), see :class:`Classes`."""
        if count is None:
            return cls(raw)
        factor = count.rsqrt().unsqueeze(-1)
        return cls(raw * factor, None, factor)

    @classmethod
    def on_sphere(cls, raw: Tensor, length: float) -> _Vectors:
        """Every vector of that length."""
        norm = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min_(1e-12)  # as nn.functional.normalize
        unit = raw / norm
        return cls(unit * length, unit, length / norm)

    @classmethod
    def shadow(cls, raw: Tensor, length: float) -> _Vectors:
        """Every vector of at most that length: what a sphere leaves without its last entry."""
        sphere = cls.on_sphere(raw, length)
        return sphere._replace(value=sphere.value[:, :-1])

    def pulled_back(self, gradient: Tensor) -> Tensor:
        """The gradient in the parameters: what lies across them, scaled."""
        if self.factor is None:
            return gradient
        if self.unit is None:
            return gradient * self.factor
        if gradient.shape != self.unit.shape:
            gradient = torch.nn.functional.pad(gradient, (0, 1))
        along = (self.unit * gradient).sum(-1, keepdim=True)
        return torch.addcmul(gradient, self.unit, along, value=-1).mul_(self.factor)
