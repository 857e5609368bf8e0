"""The public loss: checks its arguments, flattens the leading axes and hands over to an implementation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import chunked, fused, reference, vocab_parallel
from .gradient_tolerance import GradientTolerance, tolerance_of
from .options import LossOptions, Reduction
from .reference import compute_dtype
from .token_statistics import TokenStatistics
from .validation import (
    check_target_range,
    check_tensor,
    check_tensors,
    check_token_weight_range,
    checked_target,
    checked_token_weight,
)

__all__ = [
    "Implementation",
    "autocast",
    "autocast_off",
    "check_choices",
    "linear_cross_entropy",
    "local_tensors",
    "refuse_unsupported",
]

Implementation = Literal["auto", "reference", "chunked", "triton"]
_IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, TokenStatistics | None]]] = {
    "reference": reference.loss,
    "chunked": chunked.loss,
    "triton": fused.loss,
}
_ELSEWHERE = {
    "weight": "class weights are not supported; token_weight weighs tokens",
    "options": "torch's chunking options are not supported; implementation chooses the path",
    "token_weight": "it is an argument of forward",
    "linear_bias": "bias=True makes one",
}


@overload
def linear_cross_entropy(
    *args: Any, return_statistics: Literal[True], **options: Any
) -> tuple[Tensor, TokenStatistics]: ...
@overload
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
    confidence_penalty: float = 0.0,
    token_weight: Tensor | None = None,  # (...)
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    implementation: Implementation = "auto",
    workspace_bytes: int | None = None,
    return_statistics: Literal[False] = False,
    process_group: Any = None,
    gradient_tolerance: float | GradientTolerance = 0.0,
    **unsupported: object,
) -> Tensor: ...
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
    confidence_penalty: float = 0.0,
    token_weight: Tensor | None = None,  # (...)
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    implementation: Implementation = "auto",
    workspace_bytes: int | None = None,
    return_statistics: bool = False,
    process_group: Any = None,
    gradient_tolerance: float | GradientTolerance = 0.0,
    **unsupported: object,
) -> Tensor | tuple[Tensor, TokenStatistics]:
    r"""Cross entropy of a linear head with label smoothing, softcap and temperature, without materialising the logits.

    Equivalent to :func:`torch.nn.functional.linear_cross_entropy` where both are defined, with more options:

    .. math::
        z &= \text{logit\_scale}\; h W^\top + \text{bias}, \\
        z &\leftarrow c \tanh(z / c), \quad z \leftarrow z / T, \\
        p &= \operatorname{softmax}(z), \quad q_k = (1 - \beta)\,[k = y] + \beta / V, \\
        \ell &= -\sum_k q_k \log p_k + \text{z\_loss}\,\operatorname{lse}(z)^2 \\
        &\quad {}+ \text{confidence\_penalty} \sum_k p_k \log p_k

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
        confidence_penalty: Coefficient, at least 0, of the entropy H of p, which is subtracted from the loss: it pulls
            towards uniform predictions as smoothing does, but hardly where p is far from them.
        token_weight: Weight of each token ``(...)``, finite and at least 0; a constant, no gradient flows to it.
        ignore_index: Tokens with this target have a loss of 0, cost no time and count in no mean.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: sum(w loss) / sum(w) over the tokens kept.
        implementation: ``"reference"`` (full logits, plain PyTorch), ``"chunked"`` (any device, blocks of tokens,
            gradients formed in the forward), ``"triton"`` (fused kernels, NVIDIA GPUs from Ampere on), or ``"auto"``:
            ``"triton"`` on a CUDA device that can run it, else ``"chunked"``.
        workspace_bytes: Memory in bytes that ``"triton"`` may use for time. More makes the backward faster: with 2 N V
            bytes half-precision inputs need no logit twice, which saves a quarter of the work. None may use 16 KiB for
            each of the N tokens, ignored ones among them, at least 128 MiB and at most 512 MiB, and uses less where
            more saves next to nothing. The least is a strip of 256 logits a token. Beyond it come the gradients, a
            float32 ``(N, D)`` and, where tokens are few, partial sums of the input's gradient; those of the weight's,
            where they are many (32 D and more), take an eighth of it, 17 MiB at most on an H200. With float16, a
            ``z_loss`` or a ``confidence_penalty`` the peaks of logits that are kept in the weight's gradient may come
            on top, of its size a 128th at most; with a ``gradient_tolerance`` at most N V / 18 bytes (float32: N V /
            4.5), a twentieth of the head and some 140 MiB. The number changes time and memory, and the result by no
            more than the rounding of kept probabilities: to the inputs' dtype or, of bfloat16 inputs, to one byte. With
            a number, and not with None, a mean or a sum may be computed in chunks of tokens, its gradients in the
            forward; docs/kernel.md says what each costs.
        return_statistics: Also return each token's log-probability, log-partition, entropy, confidence and argmax, from
            the same pass over the head. A loss of any function of the first three has exact gradients.
        process_group: A group of :mod:`torch.distributed` whose processes hold the head's rows between them, at least
            one each, in the order of their ranks: ``linear_weight`` and ``linear_bias`` are this process's rows,
            ``target`` counts over all. Tokens, their weights and options are the same in every process, and so are
            loss, statistics and the gradient of ``input``; the gradient of the rows stays with them. Waits for the
            other processes. A head that is a DTensor sharded by rows over one mesh dimension brings its own group.
        gradient_tolerance: Largest relative Frobenius error, in [0, 1), of the gradients of ``input`` and of
            ``linear_weight``, beyond rounding; 0 computes all of them. Used by ``"chunked"`` and ``"triton"`` in one
            process, where the latter waits for the device once a backward; otherwise gradients stay exact. A
            :class:`GradientTolerance` learns what was left out; the limits are told there.
        **unsupported: torch's ``weight`` and ``options`` are refused with the reason.

    Returns:
        Loss in nats: a scalar, or ``(...)`` for ``"none"``; float64 for float64 inputs, else float32. With no token
        kept the mean is nan, as torch's, and the gradients are zero. With ``return_statistics`` a pair of it and
        :class:`TokenStatistics`.

    Raises:
        TypeError: Wrong type or dtype, class probabilities as target, ``weight`` or ``options`` given.
        ValueError: Wrong shape, device or range; the text names the argument, what is allowed and what came. With
            ``process_group``, too, if input's shape or the options differ between processes.
        RuntimeError: Another process of ``process_group`` refused its arguments or failed.

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, Sec. 7. arXiv:1512.00567
        Gemma Team, "Gemma 2", 2024, Sec. 2 (logit soft-capping). arXiv:2408.00118
        Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017.
        arXiv:1701.06548

    Example:
        >>> hidden, head = torch.eye(3), 2 * torch.eye(3)
        >>> loss = linear_cross_entropy(hidden, head, torch.arange(3), label_smoothing=0.1)
        >>> round(loss.item(), 4)
        0.3729
        >>> loss, of = linear_cross_entropy(hidden, head, torch.arange(3), return_statistics=True)
        >>> [round(h, 4) for h in of.entropy.tolist()], of.argmax.tolist()
        ([0.6656, 0.6656, 0.6656], [0, 1, 2])
    """
    process_group, refused, input, linear_weight, linear_bias, target, token_weight = local_tensors(
        process_group, input, linear_weight, linear_bias, target=target, token_weight=token_weight
    )
    told = gradient_tolerance if isinstance(gradient_tolerance, GradientTolerance) else None

    def checked() -> LossOptions:
        if refused is not None:
            raise refused
        refuse_unsupported("linear_cross_entropy", list(unsupported))
        check_choices(implementation, workspace_bytes)
        if not isinstance(return_statistics, bool):
            raise TypeError(f"return_statistics must be a bool, got {type(return_statistics).__name__}.")
        options = LossOptions(
            *(label_smoothing, softcap, temperature, logit_scale, z_loss, confidence_penalty, ignore_index, reduction),
            tolerance_of(gradient_tolerance),
        )
        check_tensor("target", target)
        check_tensors(input, linear_weight, target, linear_bias, token_weight)
        return options

    if process_group is not None:

        def local(
            input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float, ignored: int
        ) -> tuple[Tensor, TokenStatistics]:
            return linear_cross_entropy(
                *(input, weight, target), linear_bias=bias, label_smoothing=smoothing, softcap=softcap,
                temperature=temperature, logit_scale=logit_scale, ignore_index=ignored, reduction="none",
                implementation=implementation, workspace_bytes=workspace_bytes, return_statistics=True,
            )  # fmt: skip

        if told is not None:
            told.exact()
        tensors = input, linear_weight, target, linear_bias, token_weight
        agreement = vocab_parallel.propose(process_group, checked, *tensors, return_statistics=return_statistics)
        tensors = input, linear_weight, linear_bias, target, token_weight
        if _resolve(implementation, input) is fused.loss and target.numel():
            call = partial(vocab_parallel.fused_loss, *tensors, agreement, workspace_bytes=workspace_bytes)
        else:
            call = partial(vocab_parallel.loss, local, *tensors, agreement)
        with autocast_off(input):
            loss, statistics = call(return_statistics=return_statistics)
        return loss if statistics is None else (loss, statistics)
    options = checked()
    function = _resolve(implementation, input)
    traceable = function is reference.loss
    if traceable:
        target = checked_target(target, linear_weight.shape[0], ignore_index)
    elif function is not fused.loss or target.device.type == "cpu":  # the fused loss checks on its way
        check_target_range(target, linear_weight.shape[0], ignore_index)
    if told is not None:
        told.exact()
    if token_weight is not None:
        token_weight = token_weight.to(compute_dtype(input.dtype))
        if traceable:
            token_weight = checked_token_weight(token_weight)
        else:
            check_token_weight_range(token_weight)
    with autocast_off(input):
        loss, statistics = function(
            input.reshape(-1, input.shape[-1]),
            linear_weight,
            target.reshape(-1),
            linear_bias,
            None if token_weight is None else token_weight.reshape(-1),
            options,
            return_statistics=return_statistics,
            **({"workspace_bytes": workspace_bytes} if function is fused.loss else {}),
            **({} if traceable else {"told": told}),
        )
    loss = loss.reshape(target.shape) if reduction == "none" else loss
    return loss if statistics is None else (loss, statistics.reshape(target.shape))


def local_tensors(process_group: Any, input: Any, linear_weight: Any, linear_bias: Any, **others: Any) -> Any:
    """Take this process's part of DTensors and cast as autocast does.

    Returns:
        Process group; what was wrong, to be raised where the group's other processes learn of it, or None; input,
        weight, bias and ``others``.
    """
    group, refused, linear_weight, linear_bias, input, *rest = vocab_parallel.local_parts(
        process_group, linear_weight, linear_bias, input=input, **others
    )
    if group is None:
        input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    elif refused is None:
        try:
            input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
        except Exception as error:
            refused = error
    return group, refused, input, linear_weight, linear_bias, *rest


def refuse_unsupported(function: str, names: Sequence[str]) -> None:
    """Raise a TypeError, as Python does, for the first of ``names``, and say why ``function`` does not take it."""
    for name in names:
        reason = _ELSEWHERE.get(name, "no such argument")
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}: {reason}.")


def check_choices(implementation: object, workspace_bytes: object) -> None:
    """Raise an error unless ``implementation`` is a known name and ``workspace_bytes`` None or an int of at least 0."""
    if not isinstance(implementation, str) or implementation not in ("auto", *_IMPLEMENTATIONS):
        raise ValueError(f"implementation must be one of {('auto', *_IMPLEMENTATIONS)}, got {implementation!r}.")
    if workspace_bytes is None:
        return
    if isinstance(workspace_bytes, bool) or not isinstance(workspace_bytes, int):
        raise TypeError(f"workspace_bytes must be None or an int, got {type(workspace_bytes).__name__}.")
    if workspace_bytes < 0:
        raise ValueError(f"workspace_bytes must be None or at least 0, got {workspace_bytes}.")


def _resolve(implementation: str, input: Tensor) -> Callable[..., tuple[Tensor, TokenStatistics | None]]:
    if implementation == "auto":
        runs_triton = input.is_cuda and fused.available(input.device, input.dtype) is None
        implementation = "triton" if runs_triton else "chunked"
    return _IMPLEMENTATIONS[implementation]


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """Cast the tensors as autocast casts those of a matrix product: float64, integers and None stay as they are."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    # Dynamo cannot trace is_autocast_available; a compiled call is on a device that has autocast.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if not (known and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    castable = (torch.float16, torch.bfloat16, torch.float32)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in castable else t for t in tensors)


def autocast_off(input: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off on the device of ``input``; its arguments are cast before."""
    device = input.device.type
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else contextlib.nullcontext()
