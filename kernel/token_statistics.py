"""What a loss tells about each token besides its loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TokenStatistics"]


class TokenStatistics(NamedTuple):
    """What :func:`linear_cross_entropy` returns beside the loss; p = softmax(z), z after cap and temperature.

    The fields have the meaning of :class:`HeadStatistics`, at the loss's own temperature and without an axis for it.
    Gradients flow through the first three. Ignored tokens have nan, and -1 for the argmax: leave them out of any sum.

    Attributes:
        log_probability: log p of the target in nats ``(...)``.
        lse: log sum_k exp(z_k) in nats ``(...)``.
        entropy: -sum_k p_k log p_k in nats ``(...)``.
        confidence: max_k p_k ``(...)``, without gradient.
        argmax: Its index, the first on ties, int64 ``(...)``.
    """

    log_probability: Tensor
    lse: Tensor
    entropy: Tensor
    confidence: Tensor
    argmax: Tensor

    def reshape(self, shape: torch.Size) -> TokenStatistics:
        """Return the fields in another shape."""
        return TokenStatistics._make(field.reshape(shape) for field in self)
