"""The cap of logits, c tanh(z / c), for PyTorch code: one function, whose slope keeps relative accuracy at saturation.

The slope 1 - tanh(x)^2, as autograd takes it of ``torch.tanh``, cancels: at x = 9 nothing is left of it in float32.
With ``e = exp(-2 |x|)`` it is 4 e / (1 + e)^2, a product of accurate numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["slope", "softcap"]


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """Return ``cap * tanh(logits / cap)``, or the logits themselves if the cap is None.

    It can be differentiated any number of times, each time to the relative accuracy of its dtype.

    Args:
        logits: Logits of any shape.
        cap: Bound c > 0 of the result's magnitude.

    Example:
        >>> z = torch.tensor([0.0, 10.0], requires_grad=True)
        >>> (torch.autograd.grad(softcap(z, 1.0).sum(), z)[0] / torch.tensor([1.0, 8.2446e-09])).round(decimals=4)
        tensor([1., 1.])
    """
    return logits if cap is None else cap * _Tanh.apply(logits / cap)


def slope(x: Tensor) -> Tensor:
    """Return the derivative of tanh at x, to the relative accuracy of its dtype, which 1 - tanh(x)^2 would lose."""
    e = torch.exp(-2 * x.abs())
    return 4 * e / (1 + e).square()


class _Tanh(torch.autograd.Function):
    """``torch.tanh`` with :func:`slope` for its derivative; works under ``torch.func`` too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * slope(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tangent * slope(*ctx.saved_tensors)
