"""The public loss: checks its arguments, flattens the leading axes and hands over to an implementation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import chunked, fused, reference
from .options import LossOptions, Reduction
from .reference import compute_dtype
from .validation import (
    check_target_range,
    check_tensor,
    check_tensors,
    check_token_weight_range,
    checked_target,
    checked_token_weight,
)

__all__ = ["Implementation", "LinearCrossEntropy", "linear_cross_entropy"]

Implementation = Literal["auto", "reference", "chunked", "triton"]
_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.loss,
    "chunked": chunked.loss,
    "triton": fused.loss,
}
_OPTIONS = tuple(field.name for field in dataclasses.fields(LossOptions))
_ELSEWHERE = {
    "weight": "class weights are not supported; token_weight weighs tokens",
    "options": "torch's chunking options are not supported; implementation chooses the path",
    "token_weight": "it is an argument of forward",
    "linear_bias": "bias=True makes one",
}


def linear_cross_entropy(
    input: Tensor,  # (..., D)
    linear_weight: Tensor,  # (V, D)
    target: Tensor,  # (...)
    *,
    linear_bias: Tensor | None = None,  # (V,)
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    token_weight: Tensor | None = None,  # (...)
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    implementation: Implementation = "auto",
    workspace_bytes: int = fused.DEFAULT_WORKSPACE_BYTES,
    **unsupported: object,
) -> Tensor:
    r"""Cross entropy of a linear head with label smoothing, softcap and temperature, without materialising the logits.

    Equivalent to :func:`torch.nn.functional.linear_cross_entropy` where both are defined, with more options:

    .. math::
        z &= \text{logit\_scale}\; h W^\top + \text{bias}, \quad
        z \leftarrow c \tanh(z / c), \quad z \leftarrow z / T \\
        \ell &= -\sum_k q_k \log \operatorname{softmax}(z)_k + \text{z\_loss}\,\operatorname{lse}(z)^2, \quad
        q_k = (1 - \beta)\,[k = y] + \beta / V

    Args:
        input: Hidden states ``(..., D)``; float16, bfloat16, float32 or float64. Under autocast it and the head are
            cast as :func:`torch.nn.functional.linear` would cast them.
        linear_weight: Head ``(V, D)``, of input's dtype, any strides.
        target: Class indices ``(...)``, int64.
        linear_bias: Bias ``(V,)``, added after ``logit_scale`` and before the softcap.
        label_smoothing: :math:`\beta \in [0, 1]`, the convention of :func:`torch.nn.functional.cross_entropy`.
        softcap: :math:`c > 0` of the Gemma 2 logit cap; None for no cap.
        temperature: :math:`T > 0`, divides the logits after the cap.
        logit_scale: Multiplies the product before bias and cap.
        z_loss: Coefficient of the squared log-partition, at least 0.
        token_weight: Weight of each token ``(...)``, finite and at least 0; a constant, no gradient flows to it.
        ignore_index: Tokens with this target have loss 0, cost nothing and count in no mean.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: sum(w loss) / sum(w) over the tokens kept.
        implementation: ``"reference"`` (full logits, plain PyTorch), ``"chunked"`` (any device, blocks of tokens,
            gradients formed in the forward), ``"triton"`` (fused kernels, NVIDIA GPUs from Ampere on), or ``"auto"``:
            ``"triton"`` on a CUDA device that can run it, else ``"chunked"``.
        workspace_bytes: Memory in bytes that ``"triton"`` may use beyond gradients, a float32 ``(N, D)`` and, where
            tokens are few, partial sums of the input's gradient; at least one strip of 256 logits a token is used.
            Twice N V bytes saves recomputing logits in half precision: a quarter of the work. It changes time and
            memory, never the result beyond rounding.
        **unsupported: torch's ``weight`` and ``options`` are refused with the reason.

    Returns:
        Loss in nats: a scalar, or ``(...)`` for ``"none"``; float64 for float64 inputs, else float32. With no token
        kept the mean is nan, as torch's, and the gradients are zero.

    Raises:
        TypeError: Wrong type or dtype, class probabilities as target, ``weight`` or ``options`` given.
        ValueError: Wrong shape, device or range; the text names the argument, what is allowed and what came.

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, Sec. 7. arXiv:1512.00567
        Gemma Team, "Gemma 2", 2024, Sec. 2 (logit soft-capping). arXiv:2408.00118

    Example:
        >>> hidden, head = torch.eye(3), 2 * torch.eye(3)
        >>> loss = linear_cross_entropy(hidden, head, torch.arange(3), label_smoothing=0.1)
        >>> round(loss.item(), 4)
        0.3729
    """
    _refuse_unsupported("linear_cross_entropy", list(unsupported))
    _check_choices(implementation, workspace_bytes)
    options = LossOptions(label_smoothing, softcap, temperature, logit_scale, z_loss, ignore_index, reduction)
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    check_tensor("target", target)
    check_tensors(input, linear_weight, target, linear_bias, token_weight)
    function = _resolve(implementation, input)
    traceable = function is reference.loss
    if traceable:
        target = checked_target(target, linear_weight.shape[0], ignore_index)
    elif function is not fused.loss or target.device.type == "cpu":  # the fused loss checks on its way
        check_target_range(target, linear_weight.shape[0], ignore_index)
    if token_weight is not None:
        token_weight = token_weight.to(compute_dtype(input.dtype))
        if traceable:
            token_weight = checked_token_weight(token_weight)
        else:
            check_token_weight_range(token_weight)
    with _autocast_off(input):
        loss = function(
            input.reshape(-1, input.shape[-1]),
            linear_weight,
            target.reshape(-1),
            linear_bias,
            None if token_weight is None else token_weight.reshape(-1),
            options,
            **({"workspace_bytes": workspace_bytes} if function is fused.loss else {}),
        )
    return loss.reshape(target.shape) if reduction == "none" else loss


def _refuse_unsupported(function: str, names: Sequence[str]) -> None:
    for name in names:
        reason = _ELSEWHERE.get(name, "no such argument")
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}: {reason}.")


def _check_choices(implementation: object, workspace_bytes: object) -> None:
    if not isinstance(implementation, str) or implementation not in ("auto", *_IMPLEMENTATIONS):
        raise ValueError(f"implementation must be one of {('auto', *_IMPLEMENTATIONS)}, got {implementation!r}.")
    if isinstance(workspace_bytes, bool) or not isinstance(workspace_bytes, int):
        raise TypeError(f"workspace_bytes must be an int, got {type(workspace_bytes).__name__}.")
    if workspace_bytes < 0:
        raise ValueError(f"workspace_bytes must be at least 0, got {workspace_bytes}.")


def _resolve(implementation: str, input: Tensor) -> Callable[..., Tensor]:
    if implementation == "auto":
        runs_triton = input.is_cuda and fused.available(input.device, input.dtype) is None
        implementation = "triton" if runs_triton else "chunked"
    return _IMPLEMENTATIONS[implementation]


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """Cast floating tensors as autocast casts the arguments of a matrix product; float64 stays, as there."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    # Dynamo cannot trace is_autocast_available; a compiled call is on a device that has autocast.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if not (known and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    castable = (torch.float16, torch.bfloat16, torch.float32)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in castable else t for t in tensors)


def _autocast_off(input: Tensor) -> contextlib.AbstractContextManager[object]:
    device = input.device.type
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else contextlib.nullcontext()


class LinearCrossEntropy(nn.Module):
    """A linear head and its loss as one module; equivalent to ``nn.Linear`` followed by ``nn.CrossEntropyLoss``.

    Args:
        hidden_size: D, features of the input.
        vocab_size: V, number of classes.
        bias: Whether the head has a bias. It may not be combined with ``weight``.
        weight: A parameter ``(V, D)`` to share, for a head tied to an embedding; None makes a new one, initialised as
            :class:`torch.nn.Linear` does.
        device: Device of a new weight.
        dtype: Dtype of a new weight.
        **options: Keyword arguments of :func:`linear_cross_entropy` other than tensors, checked here.

    Example:
        >>> embedding = nn.Embedding(10, 4)
        >>> head = LinearCrossEntropy(4, 10, weight=embedding.weight, label_smoothing=0.1)
        >>> head(torch.zeros(2, 4), torch.tensor([1, 2])).item() == torch.tensor(10.0).log().item()
        True
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        bias: bool = False,
        weight: nn.Parameter | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        choices = {"implementation": "auto", "workspace_bytes": fused.DEFAULT_WORKSPACE_BYTES}
        choices = {name: options.pop(name, default) for name, default in choices.items()}
        _check_choices(**choices)
        _refuse_unsupported(type(self).__name__, [name for name in options if name not in _OPTIONS])
        LossOptions(**options)
        self.options = {**options, **choices}
        for name, size in (("hidden_size", hidden_size), ("vocab_size", vocab_size)):
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an int, got {type(size).__name__}.")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if weight is None:
            linear = nn.Linear(hidden_size, vocab_size, bias=bias, device=device, dtype=dtype)
            self.weight = nn.Parameter(linear.weight.detach())
            self.register_parameter("bias", linear.bias)
        else:
            if bias:
                raise ValueError("bias must be False when weight is given: a tied head has no bias of its own.")
            if device is not None or dtype is not None:
                raise ValueError("device and dtype must be None when weight is given: they are the weight's.")
            if not isinstance(weight, nn.Parameter):
                raise TypeError(
                    f"weight must be a torch.nn.Parameter, so that it is shared, got {type(weight).__name__}."
                )
            if weight.shape != (vocab_size, hidden_size):
                raise ValueError(f"weight must have shape {(vocab_size, hidden_size)}, got {tuple(weight.shape)}.")
            self.weight = weight
            self.register_parameter("bias", None)

    def forward(self, input: Tensor, target: Tensor, token_weight: Tensor | None = None) -> Tensor:
        """Loss of hidden states ``(..., D)`` and targets ``(...)``; see :func:`linear_cross_entropy`."""
        return linear_cross_entropy(
            input, self.weight, target, linear_bias=self.bias, token_weight=token_weight, **self.options
        )

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        vocab_size, hidden_size = self.weight.shape
        return ", ".join([f"{hidden_size}, {vocab_size}", *(f"{k}={v!r}" for k, v in self.options.items())])
