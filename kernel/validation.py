"""Checks of the tensors that enter the loss: shapes, dtypes and devices here, values on the CPU as well."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "check_target_range",
    "check_tensor",
    "check_tensors",
    "check_token_weight_range",
    "checked_target",
    "checked_token_weight",
]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(name: str, value: object) -> None:
    """Raise a TypeError that names the argument unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")


def _check_floating(name: str, value: Tensor) -> None:
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}.")


def check_tensors(
    input: Tensor,  # (..., D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor | None,  # (...)
    linear_bias: Tensor | None,  # (V,)
    token_weight: Tensor | None = None,  # (...)
) -> None:
    """Raise an error for a wrong type, dtype, shape or device; no value is read, so that nothing waits for a device."""
    check_tensor("input", input)
    check_tensor("linear_weight", linear_weight)
    _check_floating("input", input)
    _check_floating("linear_weight", linear_weight)
    if linear_weight.ndim != 2:
        raise ValueError(f"linear_weight must have shape (vocab_size, hidden_size), got {tuple(linear_weight.shape)}.")
    vocab_size, hidden_size = linear_weight.shape
    if vocab_size < 1 or hidden_size < 1:
        raise ValueError(f"linear_weight must not be empty, got shape {tuple(linear_weight.shape)}.")
    if input.ndim < 1 or input.shape[-1] != hidden_size:
        raise ValueError(
            f"input must have shape (..., {hidden_size}) to match linear_weight {tuple(linear_weight.shape)}, "
            f"got {tuple(input.shape)}."
        )
    if linear_weight.dtype != input.dtype:
        raise TypeError(f"linear_weight must have input's dtype {input.dtype}, got {linear_weight.dtype}.")
    _check_device("linear_weight", linear_weight, input)
    if target is not None:
        _check_target(target, input)
    if linear_bias is not None:
        check_tensor("linear_bias", linear_bias)
        if linear_bias.dtype != input.dtype:
            raise TypeError(f"linear_bias must have input's dtype {input.dtype}, got {linear_bias.dtype}.")
        if linear_bias.shape != (vocab_size,):
            raise ValueError(f"linear_bias must have shape ({vocab_size},), got {tuple(linear_bias.shape)}.")
        _check_device("linear_bias", linear_bias, input)
    if token_weight is not None:
        check_tensor("token_weight", token_weight)
        _check_floating("token_weight", token_weight)
        if token_weight.shape != input.shape[:-1]:
            raise ValueError(
                f"token_weight must have shape {tuple(input.shape[:-1])}, one weight a token, "
                f"got {tuple(token_weight.shape)}."
            )
        if token_weight.requires_grad:
            raise ValueError("token_weight must not require a gradient: it is a constant of the loss. Detach it.")
        _check_device("token_weight", token_weight, input)


def _check_target(target: Tensor, input: Tensor) -> None:
    check_tensor("target", target)
    if target.is_floating_point():
        raise TypeError(
            f"target must hold class indices (int64), got {target.dtype}; class probabilities are not supported."
        )
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64, got {target.dtype}.")
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"target must have shape {tuple(input.shape[:-1])}, input's without the last axis, "
            f"got {tuple(target.shape)}."
        )
    _check_device("target", target, input)


def _check_device(name: str, value: Tensor, input: Tensor) -> None:
    if value.device != input.device:
        raise ValueError(f"{name} must be on input's device {input.device}, got {value.device}.")


def check_target_range(target: Tensor, vocab_size: int, ignore_index: int) -> None:
    """Refuse targets outside ``[0, vocab_size)`` other than ``ignore_index``.

    On the CPU a ValueError names the first offender. On other devices the check is a device-side assertion, as in
    :func:`torch.nn.functional.cross_entropy`, so that the host does not wait.
    """
    good = ((target >= 0) & (target < vocab_size)) | (target == ignore_index)
    if target.device.type == "cpu":
        if not good.all():
            first = int(target[~good][0])
            raise ValueError(f"target must be in [0, {vocab_size}) or equal ignore_index={ignore_index}, got {first}.")
    else:
        torch.ops.aten._assert_async.msg(good.all(), f"target must be in [0, {vocab_size}) or equal ignore_index.")


def check_token_weight_range(token_weight: Tensor) -> None:
    """Refuse weights that are negative or not finite, or whose sum is not; off the CPU by a device-side assertion.

    The weights come as they will be used, in float32 or float64: what overflows there is refused.
    """
    if not token_weight.numel():
        return
    good = (token_weight.amin() >= 0) & (token_weight.sum() < torch.inf)  # neither is so of nan
    if token_weight.device.type != "cpu":
        text = "token_weight must be finite and at least 0, and so must its sum."
        torch.ops.aten._assert_async.msg(good, text)
    elif not good:
        wrong = token_weight[~(torch.isfinite(token_weight) & (token_weight >= 0))]
        if wrong.numel():
            raise ValueError(f"token_weight must be finite and at least 0, got {float(wrong[0])}.")
        raise ValueError(f"token_weight must have a finite sum, got weights up to {float(token_weight.max())}.")


# The two checks as operators, for the reference implementation: compilers and torch.func see one node that hands its
# argument on, and the values are looked at when the node runs, wherever that is.


@torch.library.custom_op("confidence_ceiling::checked_target", mutates_args=())
def checked_target(target: Tensor, vocab_size: int, ignore_index: int) -> Tensor:
    """Check the targets by :func:`check_target_range` and return a copy of them."""
    check_target_range(target, vocab_size, ignore_index)
    return target.clone()


@torch.library.custom_op("confidence_ceiling::checked_token_weight", mutates_args=())
def checked_token_weight(token_weight: Tensor) -> Tensor:
    """Check weights by :func:`check_token_weight_range`, under vmap the whole batch's, and return a copy of them."""
    check_token_weight_range(token_weight)
    return token_weight.clone()


for _check in (checked_target, checked_token_weight):
    _check.register_fake(lambda values, *_: torch.empty_like(values))
    _check.register_vmap(lambda info, in_dims, values, *rest, check=_check: (check(values, *rest), in_dims[0]))
