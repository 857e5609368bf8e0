"""How inexact gradients may be, and how exact they became."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["GradientTolerance", "tolerance_of"]


def tolerance_of(value: Any) -> Any:
    """Return the number that a ``gradient_tolerance`` stands for."""
    return value.tolerance if isinstance(value, GradientTolerance) else value


class GradientTolerance:
    """A ``gradient_tolerance`` that tells what the last loss, or its backward, made of it.

    Bounds hold beyond rounding, that of a backward without a tolerance in the same dtype. The Triton path leaves
    nothing out with fewer than four blocks of tokens (512; float32: 256) or eight tiles of the vocabulary, nor where
    that could save no time. Where too much would remain, it computes all logits anew, and the next losses, 31 or more,
    exactly as without a tolerance: that is remembered for each of these objects, of which a head in another order, or
    of another model, should have its own.

    Deep copies of a module or a model share it, so that they tell the one that the caller holds.

    Args:
        tolerance: Largest relative Frobenius error of each gradient, in [0, 1).

    Attributes:
        tolerance: As given.
        input_active: Share of the tiles (256 rows of the head x a block of tokens, at most 128; on the Triton path
            64 x 64 in float32, and 128 rows before Hopper) that entered the input's gradient as they are; 1 where it
            was computed exactly or not at all, nan before any loss and while the backward, which computes it on the
            Triton path and for ``reduction="none"``, has yet to come.
        input_bound: Certified relative error of the input's gradient: at most the tolerance.
        weight_active: As ``input_active``, of the head's gradient.
        weight_bound: As ``input_bound``, of the head's gradient.

    Example:
        >>> import torch
        >>> from kernel import linear_cross_entropy
        >>> told = GradientTolerance(0.01)
        >>> hidden, head = torch.full((256, 3), 1e-9, requires_grad=True), torch.arange(1536.0).view(512, 3) % 5
        >>> loss = linear_cross_entropy(hidden, head, torch.arange(256), gradient_tolerance=told)
        >>> told.input_active, round(told.input_bound, 6), told.weight_active
        (0.5, 0.0, 1.0)
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.input_active: float = math.nan
        self.input_bound: float = math.nan
        self.weight_active: float = math.nan
        self.weight_bound: float = math.nan

    def __repr__(self) -> str:
        """Return the attributes, as a call."""
        return f"GradientTolerance({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    def __deepcopy__(self, memo: object) -> GradientTolerance:
        """Return itself."""
        return self

    def exact(self) -> None:
        """Note that both gradients are computed exactly."""
        self.input_active = self.weight_active = 1.0
        self.input_bound = self.weight_bound = 0.0

    def await_backward(self, of_input: bool, of_weight: bool) -> None:
        """Note which gradients the backward is yet to compute."""
        for name, needed in (("input", of_input), ("weight", of_weight)):
            if needed:
                setattr(self, f"{name}_active", math.nan)
                setattr(self, f"{name}_bound", math.nan)

    def record(self, of_input: Any, of_weight: Any) -> None:
        """Take ``active`` and ``bound`` of both products; None stands for one that was not asked for."""
        for name, product in (("input", of_input), ("weight", of_weight)):
            if product is not None:
                setattr(self, f"{name}_active", product.active)
                setattr(self, f"{name}_bound", product.bound)
