"""The model: a feature vector for each context and a linear head, with or without a budget for their norms.

Under the budget the parameters are free and the norms hold by construction, so that any unconstrained optimiser trains
to the constrained optimum:

    h_n = sqrt(D) u_n / ||u_n||                   u_n in R^D         a sphere
    w_k = k sqrt(D) v_k[:D] / ||v_k||             v_k in R^(D+1)     a ball: the shadow of a sphere one dimension up

The last entry of v_k is the slack. This beats the two usual ways. Clipping w_k in the forward has no gradient towards
the inside, so that a row that once reached the limit stays there. Projecting after each step is exact for gradient
descent, but under a preconditioned step (Adam, L-BFGS) it rests where the *preconditioned* gradient is radial, which is
not the optimum. The shadow is smooth and onto, and where it has stationary points that the ball has not (slack 0,
gradient inwards) they are strict saddles, which a start with slack is not drawn to.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernel import linear_cross_entropy
from kernel.softcap import softcap

from ..teachers import Observations
from ._config import FitConfig

_INPUTS = (
    32  # width of what a trunk sees of a context: fewer than contexts, so that it cannot give each its own feature
)
_TRUNK = 128  # hidden units of the trunk


class Batch(NamedTuple):
    """Observations by context, so that the head is applied once to each context and not to each of its tokens.

    With z_n the logits of context n, t_n its first token and w_nt weights that sum to w_n, the smoothed losses l are

        sum_t w_nt l(z_n, t) = w_n l(z_n, t_n) + (1 - b) sum_t w_nt (z_n,tn - z_nt)

    exactly: log-partition, mean logit and entropy are those of the context, and only the target's logit differs.
    """

    context: Tensor  # (C,) int64, contexts that were observed
    token: Tensor  # (C,) int64, the first token of each
    weight: Tensor  # (C,) sum of its weights
    others: Observations  # the other pairs; ``context`` counts within the C contexts here

    @classmethod
    def of(cls, observations: Observations, *, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """Group pairs, whose contexts ascend."""
        contexts, where, counts = observations.context.unique_consecutive(return_inverse=True, return_counts=True)
        first = counts.cumsum(0) - counts
        weight = torch.zeros(len(contexts), dtype=torch.float64, device=where.device)
        weight.index_add_(0, where, observations.weight.double())
        rest = torch.ones(len(where), dtype=torch.bool, device=where.device)
        rest[first] = False
        others = Observations(
            where[rest].to(device), observations.token[rest].to(device), observations.weight[rest].to(device, dtype)
        )
        return cls(contexts.to(device), observations.token[first].to(device), weight.to(device, dtype), others)


class SoftmaxBottleneck(nn.Module):
    """Free features ``(N, D)`` under a head ``(V, D)``; logits z = f(W h) / T with the softcap f.

    Args:
        config: Sizes, norms, temperature, softcap and smoothing.
        generator: CPU generator of the first values; None takes ``config.seed``.
        device: Where the parameters live.

    Attributes:
        raw_features: Unconstrained features, ``(N, D)``, with a trunk its inputs ``(N, 32)``, which are not trained;
            :meth:`hidden` for what they stand for.
        trunk: The perceptron in front of the head; None for free features.
        raw_weight: Unconstrained head, ``(V, D + 1)`` under the budget, ``(V, D)`` without; :meth:`weight`.

    Example:
        >>> head = SoftmaxBottleneck(FitConfig(hidden_size=4, norm_coefficient=0.5))
        >>> head.hidden().norm(dim=-1).mean().item(), bool(head.weight().norm(dim=-1).max() <= 1)
        (2.0, True)
    """

    def __init__(
        self,
        config: FitConfig,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.config = config
        n, v, d = config.teacher.n_contexts, config.teacher.vocab_size, config.hidden_size
        generator = generator or torch.Generator().manual_seed(config.seed)
        inputs = _INPUTS if config.features == "trunk" else d
        features = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
        weight = torch.randn(v, d, generator=generator, dtype=torch.float64)
        # The first logits have a standard deviation of at most 1, after gain and temperature: saturated ones are slow.
        std = config.temperature / config.logit_scale  # of z = w . h, for ||h|| = sqrt(D) and rows of norm std
        weight *= std / d**0.5
        if config.norm == "budget":
            share = min(0.7, std / (config.norm_coefficient * d**0.5))  # first row norm / largest
            slack = (1 / share**2 - 1) ** 0.5
            weight = torch.cat([weight / std, torch.full((v, 1), slack, dtype=torch.float64)], dim=-1)
        dtype = getattr(torch, config.dtype)
        self.trunk: nn.Sequential | None = None
        if config.features == "trunk":
            self.trunk = nn.Sequential(nn.Linear(_INPUTS, _TRUNK), nn.Tanh(), nn.Linear(_TRUNK, d)).to(device, dtype)
            with torch.no_grad():
                for parameter in self.trunk.parameters():  # biases start at 0, weights so that variance is kept
                    values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.copy_(values / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.0 * values)
        self.raw_features = nn.Parameter(features.to(device, dtype), requires_grad=self.trunk is None)
        self.raw_weight = nn.Parameter(weight.to(device, dtype))

    def hidden(self) -> Tensor:  # (N, D)
        """Features of every context."""
        raw = self.raw_features if self.trunk is None else self.trunk(self.raw_features)
        if self.config.norm == "free":
            return raw
        return nn.functional.normalize(raw, dim=-1) * self.config.hidden_size**0.5

    def weight(self) -> Tensor:  # (V, D)
        """The head."""
        if self.config.norm == "free":
            return self.raw_weight
        limit = self.config.norm_coefficient * self.config.hidden_size**0.5
        return nn.functional.normalize(self.raw_weight, dim=-1)[:, :-1] * limit

    @property
    def loss_options(self) -> dict[str, Any]:
        """Softcap, scale and temperature as :func:`kernel.linear_cross_entropy` takes them."""
        config = self.config
        return {"softcap": config.softcap, "logit_scale": config.logit_scale, "temperature": config.temperature}

    def forward(self, observations: Observations | Batch, *, implementation: Any = "auto") -> Tensor:
        """Mean loss over the observations, in nats, through :func:`kernel.linear_cross_entropy`, plus decay.

        Args:
            observations: Pairs with weights, or the same grouped by context once and for all.
            implementation: Passed on.

        Returns:
            A scalar.
        """
        hidden, weight = self.hidden(), self.weight()
        batch = observations
        if not isinstance(batch, Batch):
            batch = Batch.of(batch, device=weight.device, dtype=weight.dtype)
        seen, smoothing = hidden.index_select(0, batch.context), self.config.label_smoothing
        loss = linear_cross_entropy(
            seen,
            weight,
            batch.token,
            token_weight=batch.weight,
            label_smoothing=smoothing,
            confidence_penalty=self.config.confidence_penalty,
            implementation=implementation,
            **self.loss_options,
        )
        if len(batch.others.token):
            own = self._logit(seen, weight.index_select(0, batch.token))  # (C,)
            where, tokens, weights = batch.others
            other = self._logit(seen.index_select(0, where), weight.index_select(0, tokens))
            share = weights / batch.weight.sum()
            loss = loss + (1 - smoothing) * (share * (own.index_select(0, where) - other)).sum()
        if self.config.weight_decay:
            squares = hidden.square().sum(-1).mean() + weight.square().sum(-1).mean()
            loss = loss + 0.5 * self.config.weight_decay * squares
        return loss

    def _logit(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Logits of single (feature, row) pairs, ``(P, D)`` each, after softcap and temperature."""
        z = (hidden * rows).sum(-1) * self.config.logit_scale
        return softcap(z, self.config.softcap) / self.config.temperature

    def evaluated(self, **changes: Any) -> SoftmaxBottleneck:
        """The same trained weights read with another softcap, its form or temperature: a view that shares them.

        Args:
            changes: ``softcap``, ``softcap_form``, ``temperature``; what is not given stays as trained.

        Raises:
            ValueError: If another field is given.
        """
        unknown = set(changes) - {"softcap", "softcap_form", "temperature"}
        if unknown:
            raise ValueError(f"changes must be among softcap, softcap_form and temperature, got {sorted(unknown)}.")
        view = copy.copy(self)  # parameters are shared
        view.config = replace(self.config, **changes)
        return view

    @torch.no_grad()
    def logits(self, contexts: slice = slice(None)) -> Tensor:  # (n, V)
        """Logits of a block of contexts in float64, after softcap and temperature."""
        config = self.config
        z = (self.hidden()[contexts].double() @ self.weight().double().T) * config.logit_scale
        return softcap(z, config.softcap) / config.temperature

    @torch.no_grad()
    def norm_product(self) -> float:
        """Norm product max ||h|| max ||w|| that the trained head uses, before gain, cap and temperature."""
        hidden, weight = self.hidden().double(), self.weight().double()
        return (hidden.norm(dim=-1).max() * weight.norm(dim=-1).max()).item()
